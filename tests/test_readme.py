"""The README's code blocks run as they stand, and its table says what the committed results say."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import skimage
from PIL import Image

from agents.cli import main
from gan.file_format import MAGIC

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
RESULTS = sorted((ROOT / "results").glob("reproduce-*/**/results.json"))


def run(block: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_environment_example_plays_one_episode(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(BLOCKS[0], {})
    assert names["terminated"] is True
    assert names["obs"].shape == (3, 40, 40)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_metric_example_registers_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    from rlsr_env.metrics import METRICS

    before = dict(METRICS)
    names = run(BLOCKS[1], {"gymnasium": gymnasium})
    assert "brightness_error" in names["env"].reset(seed=0)[1]
    METRICS.clear()
    METRICS.update(before)


def test_the_training_example_trains_the_generator() -> None:
    names = run(BLOCKS[2], {})
    assert names["model"].num_timesteps == 60
    last = names["env"].generator.decoder.layers[-1].convolution.weight
    assert last.abs().max() > 0  # it starts at zero
    assert len(BLOCKS[2].splitlines()) <= 15 and len(BLOCKS[0].splitlines()) <= 10


def test_the_codec_example_goes_there_and_back() -> None:
    names = run(BLOCKS[3], {})
    assert names["restored"].shape == names["image"].shape and names["restored"].dtype == names["image"].dtype
    assert names["data"][:4] == MAGIC


def test_the_codec_commands_compress_and_restore_a_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (b for b in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) if "chelsea.rlsr" in b)
    picture = Path(skimage.__path__[0]) / "data" / "chelsea.png"
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines()[1:]:
        words = shlex.split(line.replace("$picture", str(picture)), comments=True)
        assert words[:2] == ["uv", "run"]
        assert main(words[3:]) == 0, capsys.readouterr().err
    with Image.open(picture) as original, Image.open("chelsea.png") as restored:
        assert restored.size == original.size
        bits = 8 * Path("chelsea.rlsr").stat().st_size / (original.width * original.height)
    assert 0.1 < bits <= 0.15
    with Image.open("chelsea.jpg") as lr_image:
        assert lr_image.format == "JPEG" and lr_image.width < restored.width


def test_there_are_committed_results_for_both_scales() -> None:
    assert len(RESULTS) == 4


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.parent.relative_to(ROOT / "results")))
def test_the_table_says_what_the_results_say(path: Path) -> None:
    results = json.loads(path.read_text())
    methods = results["methods"]
    difference = results["rl-srgan minus srgan"]["psnr"]
    row = (
        f"| {results['held_out']} | {results['bits_per_pixel']:.3f} | {methods['lanczos']['psnr']['mean']:.2f} "
        f"| {results['pretrained']['psnr']['mean']:.2f} "
        f"| {methods['srgan']['psnr']['mean']:.2f} ± {methods['srgan']['psnr']['std']:.2f} "
        f"| {methods['rl-srgan']['psnr']['mean']:.2f} ± {methods['rl-srgan']['psnr']['std']:.2f} "
        f"| {difference['mean']:+.3f} ± {difference['std']:.3f} |"
    )
    assert row in README


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.parent.relative_to(ROOT / "results")))
def test_committed_results_hold_together(path: Path) -> None:
    results = json.loads(path.read_text())
    assert len(results["seeds"]) >= 3
    assert results["bytes"] == sum(image["bytes"] for image in results["images"])
    for method in ("lanczos", "srgan", "rl-srgan"):
        for metric in ("psnr", "psnr_clic", "ms_ssim", "ssim"):
            summary = results["methods"][method][metric]
            assert summary["mean"] == pytest.approx(sum(summary["per_seed"]) / len(summary["per_seed"]))
        for seed in range(len(results["seeds"])):
            values = [image["methods"][method][seed]["psnr"] for image in results["images"]]
            assert results["methods"][method]["psnr"]["per_seed"][seed] == pytest.approx(sum(values) / len(values))
