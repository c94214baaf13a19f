"""`rlsr ablate`: its cells, what it leaves, how it goes on, what it refuses."""

import io
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from agents.ablation import Ablation
from agents.ablation_options import AblateOptions
from agents.cli import main
from agents.interruption import Interrupted
from gan.weights import load_generator
from rlsr_env.metrics import metric

SIZES = {"train": [(72, 64), (64, 80)], "first": [(70, 66), (64, 64)], "second": [(64, 72)]}
CELLS = [
    "control-seed0", "rl-psnr-seed0", "rl-jpeg_bytes-seed0", "gradient-psnr-seed0", "evolution-psnr-seed0",
    "evolution-jpeg_bytes-seed0",
]  # fmt: skip


def picture(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = 50 * np.sin(rows / rng.uniform(2, 5)) * np.cos(columns / rng.uniform(2, 5))
    image = (120 + rows / 2 - columns / 3 + waves)[..., None] + rng.uniform(-30, 30, 3)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of training and held-out pictures."""
    root = tmp_path_factory.mktemp("data")
    for number, (name, sizes) in enumerate(SIZES.items()):
        (root / name).mkdir()
        for i, (height, width) in enumerate(sizes):
            Image.fromarray(picture(height, width, seed=10 * number + i)).save(root / name / f"{name}-{i}.png")
    return root


def tiny(data: Path, out: Path, **changed: Any) -> AblateOptions:
    options = AblateOptions(
        metrics=("psnr", "jpeg_bytes"), data=data / "train", eval_data=(data / "first", data / "second"), scale=4,
        content_loss="none", pretrain_updates=2, srgan_updates=1, updates=1, seeds=1, batch_size=2, n_patches=2,
        group_size=4, hr_patch_size=32, discriminator_channels=4, crop_size=48, device="cpu", precision="fp32", out=out,
    )  # fmt: skip
    return replace(options, **changed)


def prepare(options: AblateOptions, command: str = "rlsr ablate ...") -> Ablation:
    """A run that reports to nobody."""
    return Ablation(options, command=command, console=Console(file=io.StringIO()))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def values_of(out: Path) -> dict[str, Any]:
    """What the cells have measured."""
    return {path.stem: read(path)["values"] for path in sorted((out / "cells").glob("*.json"))}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run; do not write to it."""
    out = tmp_path_factory.mktemp("finished")
    closing = prepare(tiny(data, out)).run()
    assert closing == f"wrote {out}/results.json, table.md, matrix.png, crops.png"
    return out


# --- What it leaves ---


def test_run_leaves_reports_cells_and_weights(finished: Path) -> None:
    files = {path.name for path in finished.iterdir() if path.is_file()}
    assert files == {"config.json", "run.json", "results.json", "table.md", "matrix.png", "crops.png"}
    assert {path.stem for path in (finished / "cells").iterdir()} == set(CELLS)
    for name in ("matrix.png", "crops.png"):
        with Image.open(finished / name) as image:
            image.load()


def test_weights_of_a_cell_are_those_that_were_measured(finished: Path, data: Path, tmp_path: Path) -> None:
    run = prepare(tiny(data, tmp_path / "out"))
    for name in CELLS:
        values = run.measure(load_generator(finished / "weights" / f"{name}.safetensors"))
        for judge, of_pictures in read(finished / "cells" / f"{name}.json")["values"].items():
            # Weights are kept in half precision.
            assert values[judge] == pytest.approx(of_pictures, rel=2e-3)


def test_results_say_what_was_run_and_measured(finished: Path) -> None:
    results = read(finished / "results.json")
    assert results["command"] == "rlsr ablate ..."
    names = [Path(uri).name for uri in results["held_out"]]
    assert names == ["first-0.png", "first-1.png", "second-0.png"]
    assert [(row["method"], row["reward"]) for row in results["rows"]] == [
        ("rl", "psnr"), ("rl", "jpeg_bytes"), ("gradient", "psnr"), ("evolution", "psnr"), ("evolution", "jpeg_bytes"),
    ]  # fmt: skip
    assert results["start"]["pretrain_updates"] == 2
    assert results["options"]["updates"] == 1
    assert results["training_pictures"] == 2
    assert set(results["verdict"]) == {
        "rl_raises_its_own_metric", "own_row_is_the_best_rl_row", "rl_above_gradient", "rl_above_evolution",
    }  # fmt: skip


def test_cells_differ_from_each_other_and_from_the_control(finished: Path) -> None:
    values = [tuple(cell["psnr"].values()) for cell in values_of(finished).values()]
    assert len(set(values)) == len(CELLS)


def test_same_options_give_the_same_values(finished: Path, data: Path, tmp_path: Path) -> None:
    prepare(tiny(data, tmp_path / "out")).run()
    assert values_of(tmp_path / "out") == values_of(finished)


def test_a_measured_value_is_that_of_the_rounded_picture(data: Path, tmp_path: Path) -> None:
    run = prepare(tiny(data, tmp_path / "out"))
    torch.manual_seed(0)
    generator = run.new_generator()  # an untrained one is Lanczos
    crop = run.crops[0]
    with torch.no_grad():
        sr_image = generator(crop.lr_image.float() / 255)
    sr_image = (sr_image.clamp(0, 1) * 255).round()
    error = (sr_image - crop.hr_image.float()).square().mean().item()
    assert run.measure(generator)["psnr"][crop.uri] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)


def test_crops_are_always_the_same_and_of_the_size_asked_for(data: Path, tmp_path: Path) -> None:
    first, second = (prepare(tiny(data, tmp_path / "out")).crops for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.uri == other.uri
        assert torch.equal(one.hr_image, other.hr_image)
        assert one.hr_image.shape == (1, 3, 48, 48)
        assert one.lr_image.shape == (1, 3, 12, 12)


def test_whole_pictures_are_cut_to_multiples_of_the_scale(data: Path, tmp_path: Path) -> None:
    crops = prepare(tiny(data, tmp_path / "out", crop_size=0)).crops
    assert [tuple(crop.hr_image.shape[2:]) for crop in crops] == [(68, 64), (64, 64), (64, 72)]


def test_crops_page_can_show_a_photograph_that_anybody_may_pass_on(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, torch.Tensor] = {}
    monkeypatch.setattr("agents.ablation.write_page", lambda path, panels: shown.update(panels))
    monkeypatch.setattr("agents.ablation.write_reports", lambda *_: None)
    out = shutil.copytree(finished, tmp_path / "out")
    config = read(out / "config.json") | {"crops_of": "sample", "crop_size": 64}
    (out / "config.json").write_text(json.dumps(config))
    run = prepare(AblateOptions(resume=out))
    run.run()
    assert list(shown) == [
        "original", "control", "rl psnr", "rl jpeg_bytes", "gradient psnr", "evolution psnr", "evolution jpeg_bytes",
    ]  # fmt: skip
    assert all(panel.shape == (1, 3, 64, 64) for panel in shown.values())
    assert not any(torch.equal(shown["original"] * 255, crop.hr_image.float()) for crop in run.crops)


# --- Which cells ---


def test_keys_come_seed_by_seed_and_gradients_only_where_there_are_some(data: Path, tmp_path: Path) -> None:
    keys = prepare(tiny(data, tmp_path / "out", seeds=2)).keys()
    assert keys[0] == ("control", "", 0)
    assert [seed for *_, seed in keys] == [0] * 6 + [1] * 6
    assert [reward for method, reward, seed in keys if method == "gradient" and seed == 0] == ["psnr"]


def test_evolution_may_be_left_to_some_rewards(data: Path, tmp_path: Path) -> None:
    keys = prepare(tiny(data, tmp_path / "out", evolution_metrics=("jpeg_bytes",))).keys()
    assert [reward for method, reward, _ in keys if method == "evolution"] == ["jpeg_bytes"]
    assert [reward for method, reward, _ in keys if method == "rl"] == ["psnr", "jpeg_bytes"]


def test_some_metrics_may_be_measured_only(data: Path, tmp_path: Path) -> None:
    run = prepare(tiny(data, tmp_path / "out", rewards=("psnr",)))
    assert {reward for method, reward, _ in run.keys() if method != "control"} == {"psnr"}
    run.run()
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| rl | psnr |" in table and "| rl | jpeg_bytes |" not in table
    assert "RL gains more than evolution strategies for" in table and " of 1" in table and " of 2" not in table
    assert set(values_of(tmp_path / "out")["rl-psnr-seed0"]) == {"psnr", "jpeg_bytes"}
    with pytest.raises(ValueError, match="--rewards names dtw, which --metrics lacks"):
        prepare(tiny(data, tmp_path / "other", rewards=("dtw",)))


def test_noise_is_smooth_for_the_rewards_that_are_named(finished: Path, data: Path, tmp_path: Path) -> None:
    smooth = {"smooth_noise_for": ("jpeg_bytes",), "noise_blur": 0.8, "smooth_sigma": 0.04}
    run = prepare(tiny(data, tmp_path / "out", start=finished, sigma=0.01, final_sigma=0.005, **smooth))
    run.prepare()
    noise = {name: run.make_grpo(metric(name), seed=0) for name in ("psnr", "jpeg_bytes")}
    assert (noise["jpeg_bytes"].noise_blur, noise["jpeg_bytes"].grey_noise) == (0.8, True)
    assert (noise["psnr"].noise_blur, noise["psnr"].grey_noise) == (0.0, False)
    # From the first update to the last: 1 to 0 of the training remains.
    assert [noise["psnr"]._sigma_at(remaining) for remaining in (1.0, 0.0)] == pytest.approx([0.01, 0.005])
    assert [noise["jpeg_bytes"]._sigma_at(remaining) for remaining in (1.0, 0.0)] == pytest.approx([0.04, 0.02])


def test_patches_are_as_large_as_the_metric_needs_and_as_many_as_cover_as_much() -> None:
    run = object.__new__(Ablation)
    run.options = AblateOptions(scale=4, hr_patch_size=96, n_patches=8)
    assert (run._patch_size(metric("psnr")), run._n_patches(metric("psnr"))) == (96, 8)
    # 161 pixels, in blocks of 8 and LR pixels of 4: 168; 8 * (96 / 168)^2 = 2.6.
    assert (run._patch_size(metric("ms_ssim")), run._n_patches(metric("ms_ssim"))) == (168, 3)
    run.options = AblateOptions(scale=3, hr_patch_size=96, n_patches=2)
    assert (run._patch_size(metric("ms_ssim")), run._n_patches(metric("ms_ssim"))) == (168, 2)


# --- Going on ---


def stop_after(run: Ablation, n_cells: int) -> None:
    """Ask to stop once so many cells are finished, as Ctrl-C would."""
    measure, n_measured = run.measure, 0

    def measure_and_ask(generator: Any) -> Any:
        nonlocal n_measured
        n_measured += 1
        run.interruption.requested |= n_measured >= n_cells
        return measure(generator)

    run.measure = measure_and_ask  # type: ignore[method-assign]


@pytest.mark.parametrize("n_cells", [1, 3, 4])
def test_goes_on_cell_by_cell(n_cells: int, finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    run = prepare(tiny(data, out))
    stop_after(run, n_cells)
    with pytest.raises(Interrupted, match=rf"stopped in {CELLS[n_cells]}, which starts anew; go on with: rlsr ablate"):
        run.run()
    assert f"--resume '{out}'" in run.how_to_go_on
    done = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert {path.stem for path in done} == set(CELLS[:n_cells])
    start = (out / "start" / "srgan.pt").stat().st_mtime_ns
    prepare(AblateOptions(resume=out), command="not this one").run()
    assert values_of(out) == values_of(finished)
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert (out / "start" / "srgan.pt").stat().st_mtime_ns == start
    assert read(out / "results.json")["command"] == "rlsr ablate ..."


def test_stopped_in_the_start_keeps_nothing_half(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = prepare(tiny(data, out))
    run.interruption.requested = True
    with pytest.raises(Interrupted, match="stopped in pretraining, which starts anew"):
        run.run()
    assert list((out / "start").iterdir()) == []
    prepare(AblateOptions(resume=out)).run()
    assert values_of(out) == values_of(finished)


def test_resuming_a_finished_run_trains_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "table.md").unlink()
    monkeypatch.setattr(Ablation, "train_cell", lambda *_: pytest.fail("trained again"))
    prepare(AblateOptions(resume=out)).run()
    assert (out / "table.md").read_text() == (finished / "table.md").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [("start/srgan.pt", "junk"), ("cells/control-seed0.json", "junk"), ("cells/control-seed0.json", '{"no": "cell"}')],
)
def test_damaged_file_of_a_run_is_named(name: str, content: str, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is damaged .*delete it, and "):
        prepare(AblateOptions(resume=out)).run()


def test_options_survive_the_file(data: Path, tmp_path: Path) -> None:
    options = tiny(data, tmp_path, final_sigma=0.01, evolution_metrics=("psnr",), start=tmp_path, crops_of="sample")
    assert AblateOptions.from_json(options.to_json()) == replace(options, out=None)


@pytest.mark.parametrize("text", ["no json", "{}", "[1]", '{"data": null, "no_option": 1}'])
def test_config_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not one of rlsr ablate"):
        prepare(AblateOptions(resume=tmp_path))


def test_resume_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json there, so it is no run of rlsr ablate"):
        prepare(AblateOptions(resume=tmp_path))


# --- Another run's start ---


def test_start_of_another_run_gives_the_same_cells(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(tiny(data, out, start=finished, methods=("evolution",), srgan_updates=9)).run()
    assert not (out / "start" / "srgan.pt").exists()
    for name, values in values_of(out).items():
        assert values == values_of(finished)[name]
    assert read(out / "results.json")["start"]["srgan_updates"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 2}, "trained with --scale 4, this run has 2"),
        ({"quality": 50}, "trained with --quality 75, this run has 50"),
        ({"generator": "paper"}, "trained with --generator fast, this run has paper"),
        ({"discriminator_channels": 8}, "trained with --discriminator-channels 4, this run has 8"),
        ({"adversarial_weight": 0.0}, "differ in whether --adversarial-weight is 0"),
    ],
)
def test_start_for_other_files_or_networks_is_refused(
    changed: dict[str, Any], message: str, finished: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tiny(data, tmp_path / "out", start=finished, **changed))
    assert not (tmp_path / "out").exists()


def test_start_that_is_no_run_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json and start/srgan\.pt there"):
        prepare(tiny(data, tmp_path / "out", start=tmp_path))


# --- What is refused ---


@pytest.fixture
def fails(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `rlsr ablate`, which must refuse in one line and write nothing."""

    def run(*options: object) -> str:
        given = [*map(str, options), "--data", str(data / "train"), "--eval-data", str(data / "first")]
        given += ["--out", str(tmp_path / "out")] if "--out" not in given else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            code = main(["ablate", "--quick", "--content-loss", "none", *given])
        assert code == 2
        assert not (tmp_path / "out").exists()
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert line.startswith("rlsr: error: ")
        return line

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "psnr", "beauty"), "Unknown metric 'beauty'"),
        (("--metrics", "psnr", "psnr"), "--metrics must name one or more, each once"),
        (("--evolution-metrics", "dtw"), "--evolution-metrics names dtw, which --metrics lacks"),
        (("--seeds", 0), "--seeds must be 1 or more, got 0"),
        (("--updates", 0), "--updates must be 1 or more, got 0"),
        (("--group-size", 5), "--group-size must be an even number of 4 or more, got 5"),
        (("--scale", 1), "--scale must be an integer of 2 or more, got 1"),
        (("--hr-patch-size", 30), "--hr-patch-size must be a multiple of the scale 4, 16 or more, got 30"),
        (("--crop-size", 50), "--crop-size must be a multiple of the scale 4"),
        (("--sigma", 0), "--sigma must be above 0, got 0"),
        (("--final-sigma", -1), "--final-sigma must be above 0"),
        (("--smooth-sigma", 0), "--smooth-sigma must be above 0, got 0"),
        (("--policy-coef", -1), "--policy-coef must be 0 or more"),
        (("--learning-rate", "nan"), "--learning-rate must be above 0"),
        (("--batch-size", 1), "--batch-size must be 2 or more"),
        (("--quality", 0), "quality"),
        (("--device", "toaster"), "toaster"),
    ],
)
def test_option_out_of_range_is_one_line(options: tuple[object, ...], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(*options)


def test_metric_that_needs_larger_pictures_than_there_are_is_refused(fails: Callable[..., str]) -> None:
    """MS-SSIM takes 161 pixels and more, PSNR any; the pictures here have 64 to 80."""
    assert "168" in fails("--metrics", "psnr", "ms_ssim")


def test_out_that_is_not_empty_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="not empty"):
        prepare(tiny(data, tmp_path))


# --- The command ---


@pytest.mark.slow
def test_quick_run_on_the_default_pictures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agents.cli", "ablate", "--quick", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote out/results.json, table.md, matrix.png, crops.png\n"
    results = read(tmp_path / "out" / "results.json")
    assert results["command"] == "rlsr ablate --quick --out out"
    assert results["seeds"] == [0, 1]
    assert len(results["rows"]) == 5
    for row in results["rows"]:
        assert all(gain["half_width"] >= 0 for gain in row["gains"].values())
    for name in ("matrix.png", "crops.png"):
        assert (tmp_path / "out" / name).stat().st_size < 400_000
