import contextlib
import io
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from agents.cli import main
from agents.options import ReproduceOptions
from agents.reproduce import Interrupted, Reproduction
from agents.stages import Stage
from gan.losses import Metrics
from rlsr_env.codec import LRCodec

METHODS = ("lanczos", "srgan", "rl-srgan")
METRICS = ("psnr", "psnr_clic", "ms_ssim", "ssim")
STAGES = ("pretrained", "srgan-seed0", "rl-srgan-seed0", "srgan-seed1", "rl-srgan-seed1")
SIZES = {
    "train": [(96, 112), (104, 96)],
    "first": [(66, 75), (80, 64)],  # no multiple of the scale, too small for MS-SSIM
    "second": [(161, 168), (97, 99)],
}


def picture(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = 50 * np.sin(rows / rng.uniform(3, 6)) * np.cos(columns / rng.uniform(3, 6))
    image = (120 + rows / 2 - columns / 3 + waves)[..., None] + rng.uniform(-30, 30, 3)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of training and of held-out pictures, and a damaged file among the former."""
    root = tmp_path_factory.mktemp("data")
    for number, (name, sizes) in enumerate(SIZES.items()):
        (root / name).mkdir()
        for i, (height, width) in enumerate(sizes):
            Image.fromarray(picture(height, width, seed=10 * number + i)).save(root / name / f"{name}-{i}.png")
    whole = (root / "train" / "train-0.png").read_bytes()
    (root / "train" / "damaged.png").write_bytes(whole[: len(whole) // 2])
    return root


def tiny(data: Path, out: Path) -> ReproduceOptions:
    return ReproduceOptions(
        data=data / "train",
        eval_data=(data / "first", data / "second"),
        content_loss="none",
        pretrain_updates=4,
        updates=4,
        seeds=2,
        batch_size=2,
        hr_patch_size=32,
        discriminator_channels=4,
        n_envs=2,
        rollout_steps=2,
        device="cpu",
        out=out,
    )


def as_arguments(options: ReproduceOptions) -> list[str]:
    """The command line of options."""
    arguments = ["reproduce"]
    for name, value in vars(options).items():
        if value != getattr(ReproduceOptions(), name):
            values = value if isinstance(value, tuple) else (value,)
            arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return arguments


def prepare(options: ReproduceOptions, command: str = "rlsr reproduce ...") -> Reproduction:
    """A run that reports to nobody; `test_cli.py` looks at the warning about the damaged file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Reproduction(options, command, Console(file=io.StringIO()))


def read(path: Path) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def outcome(out: Path) -> list[Any]:
    """Everything that a run found out, without times and the command."""
    left_out = ("command", "seconds", "machine")
    return [
        {key: value for key, value in read(out / folder / "results.json").items() if key not in left_out}
        for folder in ("", "second")
    ]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run; do not write to it."""
    out = tmp_path_factory.mktemp("finished")
    prepare(tiny(data, out)).run()
    return out


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def interrupt(reproduction: Reproduction, name: str, after: int) -> None:
    """Ask to stop once the stage `name` has done `after` updates, as Ctrl-C would."""
    run_with_progress = reproduction._run_with_progress

    def run(stage_name: str, stage: Stage, points: list[dict[str, float]]) -> None:
        if stage_name == name:
            run_stage = stage.run

            def run_and_ask(on_update: Callable[[Metrics], None], interruption: Any) -> None:
                def on_update_and_ask(metrics: Metrics) -> None:
                    on_update(metrics)
                    interruption.requested |= stage.n_done == after

                run_stage(on_update_and_ask, interruption)

            stage.run = run_and_ask  # type: ignore[method-assign]
        run_with_progress(stage_name, stage, points)

    reproduction._run_with_progress = run  # type: ignore[method-assign, assignment]


def interrupt_measuring(reproduction: Reproduction) -> None:
    """Ask to stop after the first decoder was measured."""
    measure = reproduction._measure

    def measure_and_ask(*arguments: Any) -> dict[str, Any]:
        result = measure(*arguments)
        reproduction.interruption.requested = True
        return result

    reproduction._measure = measure_and_ask  # type: ignore[method-assign, assignment]


def test_run_leaves_every_file_of_the_issue(finished: Path) -> None:
    for folder in (finished, finished / "second"):
        files = {path.name for path in folder.iterdir() if path.is_file()}
        assert {"results.json", "table.md", "comparison.png"} <= files
    assert (finished / "curves.png").is_file()
    assert (finished / "config.json").is_file()
    for stage in STAGES:
        assert (finished / "weights" / f"{stage}.safetensors").is_file()
        assert list((finished / "tensorboard" / stage).glob("events*"))
    assert list((finished / "checkpoints").iterdir()) == []
    assert not [path for path in finished.rglob("*") if path.name.startswith(".")]  # nothing half-written


def test_pictures_open_and_are_small(finished: Path) -> None:
    for name in ("comparison.png", "curves.png", "second/comparison.png"):
        assert (finished / name).stat().st_size < 300_000
        with Image.open(finished / name) as image:
            image.load()
            assert image.width > 1000


def test_results_have_the_schema_of_the_issue(finished: Path) -> None:
    for folder in (finished, finished / "second"):
        results = read(folder / "results.json")
        assert set(results) >= {
            "command", "versions", "machine", "seeds", "bits_per_pixel", "bytes", "methods", "images",
        }  # fmt: skip
        assert results["command"] == "rlsr reproduce ..."
        assert results["seeds"] == [0, 1]
        assert set(results["methods"]) == set(METHODS)
        for method in METHODS:
            assert set(results["methods"][method]) == set(METRICS)
            for value in results["methods"][method].values():
                assert set(value) == {"mean", "std", "per_seed"}
                assert len(value["per_seed"]) == 2
        assert set(results["pretrained"]) == set(results["rl-srgan minus srgan"]) == set(METRICS)
        assert results["training_pictures"] == 2
        assert results["skipped_files"] == 1
        assert results["content_loss"] == "none"
        assert set(results["seconds"]) == set(STAGES)
    assert read(finished / "results.json")["held_out"] == "first"
    assert read(finished / "second" / "results.json")["held_out"] == "second"


def test_means_and_spreads_are_those_of_the_seeds(finished: Path) -> None:
    methods = read(finished / "results.json")["methods"]
    for method in METHODS:
        first, second = methods[method]["psnr"]["per_seed"]
        assert methods[method]["psnr"]["mean"] == pytest.approx((first + second) / 2)
        assert methods[method]["psnr"]["std"] == pytest.approx(abs(first - second) / math.sqrt(2))
        assert (first == second) == (method == "lanczos")
    assert methods["srgan"]["psnr"]["per_seed"] != methods["rl-srgan"]["psnr"]["per_seed"]


@pytest.mark.parametrize(("name", "folder"), [("first", ""), ("second", "second")])
def test_bytes_rate_and_lanczos_psnr_agree_with_an_independent_computation(
    name: str, folder: str, data: Path, finished: Path
) -> None:
    results = read(finished / folder / "results.json")
    originals = [np.asarray(Image.open(data / name / f"{name}-{i}.png")) for i in range(2)]
    files = [LRCodec(scale=4, quality=75).encode(original) for original in originals]
    assert results["bytes"] == sum(map(len, files))
    pixels = sum(height * width for height, width in SIZES[name])
    assert results["bits_per_pixel"] == pytest.approx(8 * results["bytes"] / pixels)
    psnrs, errors = [], []
    for original, file, row in zip(originals, files, results["images"], strict=True):
        height, width = original.shape[:2]
        assert (row["height"], row["width"], row["bytes"]) == (height, width, len(file))
        assert row["bits_per_pixel"] == pytest.approx(8 * len(file) / (height * width))
        channels = []
        with Image.open(io.BytesIO(file)) as lr_image:
            size = (4 * lr_image.width, 4 * lr_image.height)
            for channel in lr_image.split():  # as floats, so that Pillow does not round between its two passes
                channels.append(np.asarray(channel.convert("F").resize(size, Image.Resampling.LANCZOS)))
        restored = np.stack(channels, axis=2)[:height, :width].clip(0, 255).round()
        errors.append(np.square(restored - original))
        psnrs.append(10 * math.log10(255**2 / errors[-1].mean()))
        assert row["methods"]["lanczos"][0]["psnr"] == pytest.approx(psnrs[-1], abs=1e-3)
    lanczos = results["methods"]["lanczos"]
    assert lanczos["psnr"]["mean"] == pytest.approx(np.mean(psnrs), abs=1e-3)
    pooled = np.concatenate([error.ravel() for error in errors]).mean()
    assert lanczos["psnr_clic"]["mean"] == pytest.approx(10 * math.log10(255**2 / pooled), abs=1e-3)


def test_ms_ssim_is_null_where_pictures_are_below_161_pixels(finished: Path) -> None:
    results = read(finished / "results.json")
    for method in METHODS:
        assert results["methods"][method]["ms_ssim"] == {"mean": None, "std": None, "per_seed": [None, None]}
    table = (finished / "table.md").read_text()
    columns = table.splitlines()[0].split(" | ").index("MS-SSIM")
    assert all(line.split(" | ")[columns] == "n/a" for line in table.splitlines()[2:7])
    larger = read(finished / "second" / "results.json")
    assert 0 < larger["methods"]["lanczos"]["ms_ssim"]["mean"] < 1
    assert larger["images"][1]["methods"]["srgan"][0]["ms_ssim"] is None
    assert "n/a" not in (finished / "second" / "table.md").read_text()


def test_results_name_no_folder_of_this_machine(data: Path, finished: Path) -> None:
    for path in (finished / "results.json", finished / "second" / "results.json", finished / "table.md"):
        assert str(data) not in path.read_text()
        assert str(finished) not in path.read_text()
    assert [image["uri"] for image in read(finished / "results.json")["images"]] == ["first-0.png", "first-1.png"]


def test_config_holds_the_options(data: Path, finished: Path) -> None:
    options = ReproduceOptions.from_json((finished / "config.json").read_text())
    assert options == replace(tiny(data, finished), out=None)


def test_curves_hold_losses_reward_and_psnr_of_every_stage(finished: Path) -> None:
    for stage in STAGES:
        points = read(finished / "curves" / f"{stage}.json")
        assert [point["update"] for point in points] == [1, 2, 3, 4]
        assert all(point["psnr"] > 10 for point in points)
        assert all(("gan/l1" in point) == (stage == "pretrained") for point in points)
        assert all(("gan/loss" in point) == (stage != "pretrained") for point in points)
        assert all(("rl/reward" in point) == stage.startswith("rl-srgan") for point in points)


def test_the_same_command_twice_gives_the_same_results(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        assert main(as_arguments(tiny(data, out))) == 0
    assert outcome(out) == outcome(finished)
    captured = capsys.readouterr()
    assert captured.out == f"wrote {out}/results.json, table.md, comparison.png, curves.png\n"
    assert captured.err.count("rlsr: warning: skipped") == 1
    assert read(out / "results.json")["command"].startswith("rlsr reproduce --data ")


def test_interrupted_in_every_kind_of_stage_and_resumed_gives_the_same_results(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "with space"
    how_to_go_on = f"go on with: rlsr reproduce --resume '{out}'"
    options, resumed = tiny(data, out), ReproduceOptions(resume=out)
    # An agent stops between two rollouts. A request at a stage's last update stops the next one before its first.
    for name, after, stopped_in, stopped_at in (
        ("pretrained", 2, "pretrained", 2),
        ("srgan-seed0", 1, "srgan-seed0", 1),
        ("srgan-seed0", 4, "rl-srgan-seed0", 0),
        ("rl-srgan-seed0", 1, "rl-srgan-seed0", 2),
        ("srgan-seed1", 3, "srgan-seed1", 3),
    ):
        reproduction = prepare(options)
        interrupt(reproduction, name, after)
        with pytest.raises(Interrupted) as stop:
            reproduction.run()
        assert str(stop.value) == f"stopped in {stopped_in} at update {stopped_at} of 4; {how_to_go_on}"
        assert [path.name for path in (out / "checkpoints").iterdir()] == [f"{stopped_in}.pt"]
        assert not (out / "results.json").exists()
        options = resumed
    reproduction = prepare(resumed)
    interrupt_measuring(reproduction)
    with pytest.raises(Interrupted) as stop:
        reproduction.run()
    assert str(stop.value) == f"stopped while measuring; {how_to_go_on}"
    assert not (out / "results.json").exists()
    prepare(resumed).run()
    assert outcome(out) == outcome(finished)
    assert list((out / "checkpoints").iterdir()) == []
    for stage in STAGES:
        assert read(out / "curves" / f"{stage}.json") == read(finished / "curves" / f"{stage}.json")


def test_resuming_a_finished_run_just_measures_again(
    finished: Path, copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (*copy_of_finished.rglob("results.json"), *copy_of_finished.glob("*.png")):
        path.unlink()
    reproduction = prepare(ReproduceOptions(resume=copy_of_finished), command="rlsr reproduce --resume copy")
    monkeypatch.delattr(reproduction.__class__, "_run_with_progress")  # no stage could run
    reproduction.run()
    assert outcome(copy_of_finished) == outcome(finished)
    assert read(copy_of_finished / "results.json")["seconds"] == read(finished / "results.json")["seconds"]
    assert read(copy_of_finished / "results.json")["command"] == read(finished / "results.json")["command"]
    assert (copy_of_finished / "comparison.png").is_file()
    assert (copy_of_finished / "curves.png").is_file()


def test_damaged_weights_of_a_run_are_not_measured(copy_of_finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = copy_of_finished / "weights" / "srgan-seed1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"srgan-seed1\.safetensors has sha256 .* damaged"):
        prepare(ReproduceOptions(resume=copy_of_finished)).run()


def test_flat_picture_that_is_restored_exactly_is_no_end(data: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "flat" / "costs $5 or $_6.png")
    options = replace(
        tiny(data, tmp_path / "out"), eval_data=(tmp_path / "flat",), seeds=1, updates=1, rollout_steps=1,
        pretrain_updates=1,
    )  # fmt: skip
    prepare(options).run()
    results = read(tmp_path / "out" / "results.json")
    assert results["methods"]["lanczos"]["psnr"] == {"mean": None, "std": None, "per_seed": [None]}
    assert results["methods"]["lanczos"]["ssim"]["mean"] == pytest.approx(1)
    assert "| Lanczos | inf | inf |" in (tmp_path / "out" / "table.md").read_text()


def test_ctrl_c_of_a_real_process_leaves_a_run_to_go_on_with(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = replace(tiny(data, out), eval_data=(data / "first",), pretrain_updates=60, seeds=1)
    command = [sys.executable, "-m", "agents.cli", *as_arguments(options)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdout is not None
        with contextlib.closing(process.stderr) as lines:
            seen = []
            for line in lines:
                seen.append(line)
                if line.startswith("pretrained 3/60 "):
                    process.send_signal(signal.SIGINT)
            said = "".join(seen)
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert "stopping at the next point from which the run can go on" in said
    assert seen[-1].startswith("rlsr: stopped in pretrained at update ")
    assert seen[-1].endswith(f" of 60; go on with: rlsr reproduce --resume {out}\n")
    assert "Traceback" not in said
    assert (out / "checkpoints" / "pretrained.pt").is_file()
    assert not (out / "results.json").exists()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert main(["reproduce", "--resume", str(out)]) == 0
    assert capsys.readouterr().out.startswith("wrote ")
    assert read(out / "results.json")["seeds"] == [0]
    assert [point["update"] for point in read(out / "curves" / "pretrained.json")] == list(range(3, 61, 3))


FEW_UPDATES = ("--pretrain-updates", "10", "--updates", "5", "--discriminator-channels", "4")


@pytest.mark.parametrize("fewer", [FEW_UPDATES, pytest.param((), marks=pytest.mark.slow)])
def test_quick_run_on_the_default_pictures(fewer: tuple[str, ...], tmp_path: Path) -> None:
    command = shlex.join(["reproduce", "--quick", *fewer, "--out", "out"])
    done = subprocess.run(
        [sys.executable, "-m", "agents.cli", *shlex.split(command)],
        cwd=tmp_path, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote out/results.json, table.md, comparison.png, curves.png\n"
    assert "content loss: VGG19 of fixed random weights (seed 0)" in done.stderr
    results = read(tmp_path / "out" / "results.json")
    assert results["command"] == f"rlsr {command}"
    assert results["content_loss"].startswith("VGG19 of fixed random weights (seed 0)")
    assert results["training_pictures"] == 8
    assert results["skipped_files"] == 0
    assert [image["uri"] for image in results["images"]] == ["sample:camera", "sample:chelsea", "sample:coffee"]
    assert results["seeds"] == [0, 1]
    for method in METHODS:
        for metric, (least, most) in {"psnr": (20, 40), "ms_ssim": (0.7, 1), "ssim": (0.5, 1)}.items():
            assert least < results["methods"][method][metric]["mean"] < most
    assert 0.01 < results["bits_per_pixel"] < 0.5
    for name in ("comparison.png", "curves.png"):
        assert (tmp_path / "out" / name).stat().st_size < 300_000
        with Image.open(tmp_path / "out" / name) as image:
            image.load()
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"Command: `rlsr {command}`" in table
    assert "n/a" not in table


def test_a_run_is_not_resumed_with_other_pictures(copy_of_finished: Path) -> None:
    run = json.loads((copy_of_finished / "run.json").read_text())
    (copy_of_finished / "run.json").write_text(json.dumps(run | {"pictures": ["other", "pictures"]}))
    with pytest.raises(ValueError, match=r"began with pictures .*bring back what it began with, or start a new run"):
        prepare(ReproduceOptions(resume=copy_of_finished))


def test_a_run_is_not_resumed_with_another_content_loss(copy_of_finished: Path) -> None:
    run = json.loads((copy_of_finished / "run.json").read_text())
    (copy_of_finished / "run.json").write_text(json.dumps(run | {"content_loss": "VGG19 of other weights"}))
    with pytest.raises(ValueError, match="began with content_loss 'VGG19 of other weights', now it is 'none'"):
        prepare(ReproduceOptions(resume=copy_of_finished))


def test_held_out_pictures_may_not_use_the_run_s_own_folders(data: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    shutil.copy(data / "first" / "first-0.png", tmp_path / "weights")
    options = replace(tiny(data, tmp_path / "out"), eval_data=(data / "first", tmp_path / "weights"))
    with pytest.raises(ValueError, match="--eval-data weights: the run has a folder of that name"):
        prepare(options)


def test_out_may_not_lie_in_the_data(data: Path) -> None:
    with pytest.raises(ValueError, match="its pictures would be read by the next run"):
        prepare(tiny(data, data / "train" / "out"))
