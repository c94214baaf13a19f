"""`rlsr train` from pictures to weights, and what it refuses."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from agents.cli import COMMANDS, main
from agents.interruption import Interrupted
from agents.train_options import PRESETS, QUALITIES, QUICK_TRAIN, TrainOptions
from agents.training_run import TrainingRun
from gan.generator import Generator, GeneratorConfig
from gan.training import LatePhase, PatchSampler, Pretraining
from gan.weights import load_generator, read_card, save_generator
from rlsr_env.codec import BASE_CODECS, LosslessLRCodec
from rlsr_env.patches import PatchSource


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures large enough for MS-SSIM."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 255, (26, 30, 3), np.uint8))
        small.resize((240, 208), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def options(pictures: Path, out: Path, **changes: Any) -> TrainOptions:
    settings = {
        **QUICK_TRAIN, "fidelity_updates": 4, "adversarial_updates": 0, "rl_updates": 0, "lr_patch_size": 16,
        "late_lr_patch_size": 24, "validate_every": 2, "validation_size": 176, "qualities": (20, 40),
        "content_loss": "none", "data": pictures, "valid_data": pictures, "out": out, "seed": 3, **changes,
    }  # fmt: skip
    return TrainOptions(**settings)


def run(given: TrainOptions) -> TrainingRun:
    job = TrainingRun(given, command="rlsr train ...", console=Console(quiet=True))
    job.run()
    return job


ALL_STAGES = {"adversarial_updates": 3, "rl_updates": 2, "reward": "psnr", "purpose": "perceptual", "group_size": 4}


@pytest.fixture(scope="module")
def whole_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """All three stages."""
    given = options(pictures, tmp_path_factory.mktemp("runs") / "whole", eval_data=(pictures,), **ALL_STAGES)
    run(given)
    return given


def test_weights_are_float16_and_their_card_says_all_about_them(whole_run: TrainOptions, pictures: Path) -> None:
    assert whole_run.out is not None
    path = whole_run.out / "x2-jpeg-psnr.safetensors"
    card = read_card(path)
    assert card["updates"] == {"fidelity": 4, "adversarial": 3, "rl": 2}
    assert (card["purpose"], card["base_codec"], card["qualities"], card["seed"]) == ("perceptual", "jpeg", [20, 40], 3)
    assert card["command"] == "rlsr train ..."
    assert abs(card["psnr_lost_to_float16"]) < 0.01
    assert set(card["measured"][pictures.name]) == {"decoder", "lanczos"}
    assert set(card["seconds"]) == {"fidelity", "adversarial", "rl"}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    last = load_generator(whole_run.out / "stages" / "rl.safetensors").state_dict()
    assert all(
        torch.equal(tensor, last[name].half().float()) for name, tensor in load_generator(path).state_dict().items()
    )
    assert not (whole_run.out / "checkpoint.pt").exists()
    assert (whole_run.out / "tensorboard" / "rl").is_dir()


def test_each_stage_changes_the_network_and_keeps_the_best_by_each_metric(whole_run: TrainOptions) -> None:
    assert whole_run.out is not None
    folder = whole_run.out / "stages"
    before: Any = None
    for stage in ("fidelity", "adversarial", "rl"):
        weights = load_generator(folder / f"{stage}.safetensors").state_dict()
        if before is not None:
            assert any(not torch.equal(weights[name], before[name]) for name in weights)
        before = weights
        points = json.loads((folder / f"{stage}-curve.json").read_text())
        for name in ("psnr", "ms_ssim", "ssim"):
            card = read_card(folder / f"{stage}-best-{name}.safetensors")
            assert card[name] == max(point[name] for point in points)


@pytest.mark.parametrize(("stage", "n_before"), [("fidelity", 3), ("adversarial", 2), ("rl", 1)])
def test_interrupted_run_goes_on_exactly(
    stage: str, n_before: int, whole_run: TrainOptions, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(pictures, tmp_path / "run", eval_data=(pictures,), **ALL_STAGES)
    job = TrainingRun(given, command="rlsr train ...", console=Console(quiet=True))
    make = job._make

    def make_interrupted(name: str, start: Generator | None) -> Any:
        made = make(name, start)
        if name == stage:
            run_stage = made.run

            def run_until(on_update: Any, interruption: Any) -> None:
                def count(metrics: Any) -> None:
                    on_update(metrics)
                    if made.n_done == n_before:
                        interruption._on_signal(signal.SIGINT, None)

                run_stage(count, interruption)

            monkeypatch.setattr(made, "run", run_until)
        return made

    monkeypatch.setattr(job, "_make", make_interrupted)
    with pytest.raises(Interrupted, match=f"stopped in {stage} at update {n_before} of .*rlsr train --resume"):
        job.run()
    torch.manual_seed(99)  # what happens in between must not matter
    resumed = TrainingRun(TrainOptions(resume=given.out), command="other", console=Console(quiet=True))
    assert resumed.options == TrainOptions.from_json(given.to_json())
    resumed.run()
    assert whole_run.out is not None and given.out is not None
    name = "x2-jpeg-psnr.safetensors"
    assert read_card(given.out / name)["sha256"] == read_card(whole_run.out / name)["sha256"]
    assert read_card(given.out / name)["command"] == "rlsr train ..."


def test_damaged_checkpoint_is_one_clear_error(whole_run: TrainOptions, tmp_path: Path) -> None:
    assert whole_run.out is not None
    out = shutil.copytree(whole_run.out, tmp_path / "run")
    (out / "stages" / "rl.json").unlink()  # as if it were not finished
    (out / "checkpoint.pt").write_bytes(b"PK no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        TrainingRun(TrainOptions(resume=out), command="", console=Console(quiet=True)).run()


def test_another_scale_takes_over_the_encoder(pictures: Path, tmp_path: Path, whole_run: TrainOptions) -> None:
    assert whole_run.out is not None
    start = whole_run.out / "x2-jpeg-psnr.safetensors"
    job = TrainingRun(
        options(pictures, tmp_path / "run", scale=3, validation_size=177, start=start, late_share=0.0),
        command="", console=Console(quiet=True),
    )  # fmt: skip
    assert job.start is not None and job.start.config.scale == 3
    for name, tensor in load_generator(start).encoder.state_dict().items():
        assert torch.equal(job.start.encoder.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="its last layer starts anew at scale 3, so give --fidelity-updates"):
        TrainingRun(
            options(
                pictures, tmp_path / "run", scale=3, validation_size=177, start=start, fidelity_updates=0, rl_updates=1
            ),
            command="",
        )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"fidelity_updates": 0}, "no stage has any updates; give --fidelity-updates"),
        ({"fidelity_updates": 0, "rl_updates": 3}, "goes on from weights: give --start FILE"),
        ({"fidelity_updates": -1}, "--fidelity-updates must be 0 or more, got -1"),
        ({"batch_size": 0}, "--batch-size must be 1 or more, got 0"),
        ({"late_share": 1.5}, r"--late-share must be in \[0, 1\], got 1.5"),
        ({"group_size": 3}, "--group-size must be an even number of 4 or more"),
        ({"validation_size": 100}, "--validation-size must be a multiple of the scale 2 and at least 176"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"clean": True}, "--clean has no qualities"),
        ({"qualities": (0,)}, "quality of jpeg is 1 to 100"),
        ({"reward": "nonsense", "rl_updates": 1}, "Unknown metric 'nonsense'"),
        ({"adversarial_updates": 1, "batch_size": 1}, "--batch-size must be 2 or more for SRGAN"),
        ({"name": "my/weights"}, "--name must be 1 to 100 letters, digits, .* got 'my/weights'"),
        ({"name": "../../elsewhere"}, "--name must be"),
        ({"name": ""}, "--name must be"),
        ({"name": "two words"}, "--name must be"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    changes: dict[str, Any], complaint: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainingRun(options(pictures, tmp_path / "run", **changes), command="")
    assert list(tmp_path.iterdir()) == []


def test_start_of_another_architecture_is_refused(pictures: Path, tmp_path: Path, torch_rng: None) -> None:
    save_generator(tmp_path / "other.safetensors", Generator(GeneratorConfig(scale=2, channels=8)), {})
    with pytest.raises(
        ValueError, match=r"--start .*other\.safetensors has the architecture .*differ in the scale only"
    ):
        TrainingRun(options(pictures, tmp_path / "run", start=tmp_path / "other.safetensors"), command="")
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors does not exist"):
        TrainingRun(options(pictures, tmp_path / "run", start=tmp_path / "missing.safetensors"), command="")


def test_preset_changes_defaults_and_quick_leaves_its_stages(tmp_path: Path) -> None:
    train = COMMANDS["train"]
    assert train.defaults(quick=False) == TrainOptions()
    assert train.defaults(quick=False, preset="perceptual").updates == {"adversarial": 600}
    assert set(train.defaults(quick=True, preset="rl-srgan").updates) == {"fidelity", "adversarial", "rl"}
    assert train.defaults(quick=True).updates == {"fidelity": QUICK_TRAIN["fidelity_updates"]}
    assert train.defaults(quick=True, preset="rl-ms_ssim").updates == {"rl": QUICK_TRAIN["rl_updates"]}
    for changes in PRESETS.values():
        TrainOptions(**changes, start=tmp_path).check()


def test_command_line_knows_presets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--preset", "perceptual", "--out", str(tmp_path / "run")]) == 2
    assert "--preset perceptual goes on from weights: give --start FILE" in capsys.readouterr().err
    assert main(["train", "--preset=nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_qualities_are_valid_for_their_codec() -> None:
    for base, by_scale in QUALITIES.items():
        for qualities in by_scale.values():
            assert all(quality in BASE_CODECS[base].qualities for quality in qualities)


def test_late_phase_has_its_own_batches_and_loss(patch_source: PatchSource, torch_rng: None) -> None:
    generator = Generator(GeneratorConfig(scale=2, channels=4, n_blocks=1))
    late = LatePhase(PatchSampler(patch_source.resized(16), 1, 5), share=0.25, loss="mse")
    training = Pretraining(generator, PatchSampler(patch_source, 2, 0), 8, loss="charbonnier", late=late)
    names = [next(iter(training.update())) for _ in range(8)]
    assert names == ["gan/charbonnier"] * 6 + ["gan/mse"] * 2
    with pytest.raises(ValueError, match="unknown loss 'l2'; known: l1, charbonnier, mse"):
        LatePhase(late.sampler, 0.5, "l2")
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2"):
        LatePhase(late.sampler, 2)


def test_resized_source_shares_the_pixels(patch_source: PatchSource) -> None:
    larger = patch_source.resized(12)
    lr_image, hr_image = larger.gather(larger.draw(np.random.default_rng(0), 3))
    assert (lr_image.shape[-1], hr_image.shape[-1]) == (12, 24)
    assert larger._hr is patch_source._hr
    assert patch_source.lr_patch_size == 8
    with pytest.raises(ValueError, match="smaller than a patch of 200 pixels"):
        patch_source.resized(100)


def test_lossless_codec_only_shrinks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (21, 16, 3), np.uint8)
    codec = LosslessLRCodec(scale=4, downsampling="bicubic")
    assert np.array_equal(codec.decode(codec.encode(image)), codec.downsample(image))
    with pytest.raises(ValueError, match="no whole png picture"):
        codec.decode(b"nothing")
