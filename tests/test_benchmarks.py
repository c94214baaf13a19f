"""The benchmarks run and write what they say; their figures here mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlsr_env import ENVIRONMENTS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(name: str, out: Path, *arguments: str, quick: bool = True) -> dict[str, Any]:
    """What a benchmark writes, in a process of its own."""
    command = [sys.executable, str(BENCHMARKS / name), *(["--quick"] if quick else []), "--out", str(out), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(out.read_text())


def test_vector_env_compares_all_environments(tmp_path: Path) -> None:
    out = tmp_path / "vector-env.json"
    results = run("vector_env.py", out)
    assert set(results["ids"]) == set(ENVIRONMENTS)
    assert set(results["lr_patch_sizes"]) == {"8"}
    assert set(results["others"]) == {"SyncVectorEnv"}  # no processes when quick
    for entry in [*results["ids"].values(), *results["lr_patch_sizes"].values(), *results["others"].values()]:
        ratio = entry["ratio"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        # One round: the median ratio is that of the two rates.
        assert ratio["median"] == pytest.approx(entry["native_steps_per_second"] / entry["steps_per_second"])
    for env_id, entry in results["fixed_cost"].items():
        assert env_id in ENVIRONMENTS and entry["step_microseconds"] > 0 < entry["fixed_microseconds"]
    assert len(results["fixed_cost"]) == len(ENVIRONMENTS)
    assert results["sizes"]["2"]["steps_per_second"] > 0
    if sys.platform == "linux":
        assert results["sizes"]["2"]["peak_megabytes"] > results["sizes"]["2"]["before_the_environments"] > 0
    step = results["step_over_generator_and_metric"]
    assert step["ratio"]["median"] == pytest.approx(step["step_seconds"] / step["alone_seconds"])
    table = out.with_suffix(".md").read_text()
    assert results["command"] in table
    assert all(f"| `{env_id}` |" in table for env_id in ENVIRONMENTS)


def test_oracle_is_measured_by_metric_and_generator(tmp_path: Path) -> None:
    out = tmp_path / "oracle.json"
    results = run("oracle.py", out, "--metrics", "psnr", "gmsd")
    assert len(results["generators"]) == 2
    table = out.with_suffix(".md").read_text()
    for name, by_metric in results["generators"].items():
        assert set(by_metric) == {"psnr", "gmsd"}
        for metric, entry in by_metric.items():
            assert entry["oracle"] >= 0.0  # doing nothing is among what it may choose
            assert f"| {name} | {metric} | {entry['start']:.4f} |" in table


def test_self_ensemble_is_compared_with_the_network_alone(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 11, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture).save(tmp_path / "pictures" / "squares.png")
    results = run(
        "self_ensemble.py", tmp_path / "ensemble.json", "--images", f"folder:{tmp_path / 'pictures'}", quick=False
    )
    assert results["n_pictures"] == 1
    found = results["weights"]["x2-jpeg-psnr"]
    assert found["network"] != found["self_ensemble"]
    assert found["gain_of_ensemble"] == pytest.approx(found["self_ensemble"] - found["network"])
    assert 10 < found["lanczos"] < 40
