"""The benchmarks of GRPO run from end to end and leave what they promise; what they find is not looked at."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsr_env.metrics import Metric

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from grpo_sweep import SWEEPS, Args, options_of, with_block_size  # noqa: E402


def run(script: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark with --quick; its JSON and its table."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--out", "found.json", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = (folder / "found.md").read_text()
    assert table.strip() in done.stdout
    return json.loads((folder / "found.json").read_text()), table


def map_of_brightness(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    return sr_image.mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))


def test_coarser_credit_is_the_mean_over_a_square() -> None:
    judge = Metric("brightness", lambda sr, hr: sr.mean((1, 2, 3)), block_map=map_of_brightness)
    pictures = torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    fine = judge.blocks(pictures, pictures)
    coarse = with_block_size(judge, 16).blocks(pictures, pictures)
    assert coarse.shape == fine.shape == (2, 5, 4)
    torch.testing.assert_close(coarse[:, 2:4, 2:4], fine[:, 2:4, 2:4].mean((1, 2), keepdim=True).expand(2, 2, 2))
    # Five rows of blocks: the last square has one row only.
    torch.testing.assert_close(coarse[:, 4, :2], fine[:, 4, :2].mean(1, keepdim=True).expand(2, 2))
    assert with_block_size(judge, 8) is judge


def test_every_sweep_is_of_an_option_and_has_the_default_in_it() -> None:
    centre = options_of(Args())
    for name, values in SWEEPS.items():
        assert (8 if name == "block_size" else getattr(centre, name)) in values
        assert len(set(values)) == len(values) >= 3


@pytest.mark.slow
def test_sweep_leaves_an_entry_for_each_value_and_goes_on_from_its_file(tmp_path: Path) -> None:
    results, table = run("grpo_sweep.py", tmp_path, "--sweeps", "group_size", "block_size", "--metrics", "psnr")
    found = [(entry["setting"], entry["value"]) for entry in results["entries"]]
    assert found == [
        *(("group_size", value) for value in SWEEPS["group_size"]),
        *(("block_size", value) for value in SWEEPS["block_size"]),
    ]
    for entry in results["entries"]:
        assert -1 <= entry["gradient"]["cosine"] <= 1
        assert set(entry["gains"]) == {"psnr", "jpeg_bytes"}
    assert "| psnr | picture |" in table
    again, _ = run("grpo_sweep.py", tmp_path, "--sweeps", "group_size", "--metrics", "psnr")
    assert again["entries"] == results["entries"]


@pytest.mark.slow
def test_policy_gradient_is_compared_with_the_metrics_own_where_there_is_one(tmp_path: Path) -> None:
    results, table = run("policy_gradient.py", tmp_path)
    assert [row["metric"] for row in results["rows"]] == ["psnr"] * 4 + ["jpeg_bytes"] * 4
    for row in results["rows"]:
        assert ("cosine" in row) == (row["metric"] == "psnr")
        assert -1 <= row["agreement"] <= 1
    white = next(row for row in results["rows"] if row["metric"] == "psnr")
    assert 0.3 < white["cosine"] < white["cosine_of_all"] < 1  # the right way, and the more so the more draws
    assert "| psnr | white | 0.02 | 4 | leave one out |" in table


@pytest.mark.slow
def test_cost_of_a_group_is_a_ratio_of_times(tmp_path: Path) -> None:
    results, table = run("reward_cost.py", tmp_path)
    assert list(results["metrics"]) == ["ssim", "jpeg_bytes"]
    for entry in results["metrics"].values():
        assert entry["by_block"]
        assert entry["ratio"]["min"] <= entry["ratio"]["median"] <= entry["ratio"]["max"]
    assert "| ssim | block |" in table


@pytest.mark.slow
def test_three_ways_have_a_row_each(tmp_path: Path) -> None:
    results, table = run("three_ways.py", tmp_path)
    assert list(results["ways"]) == ["control", "predicted", "detail", "generator"]
    assert results["ways"]["detail"]["judged"] == results["ways"]["generator"]["judged"] > 0
    for way, entry in results["ways"].items():
        assert 10 < entry["means"]["psnr"] < 50
        assert ("gains" in entry) == (way != "control")
    assert table.count("\n| ") == 5
