import dataclasses
import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from safetensors.torch import save_file

import agents.reproduce
from agents.cli import COMMANDS, Command, main
from agents.options import QUICK, ReproduceOptions
from gan.content import ENVIRONMENT_VARIABLE

Fails = Callable[..., str]


def save_picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def save_damaged(path: Path) -> None:
    save_picture(path, 40, 40)
    path.write_bytes(path.read_bytes()[:200])


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        save_picture(tmp_path / "good" / f"{name}.png", 40, 48)
    return tmp_path / "good"


@pytest.fixture
def fails(tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs `rlsr reproduce` on good pictures with further options, which must be refused as the issue has it."""

    def run(*options: object, start: tuple[str, ...] = ("--content-loss", "none", "--hr-patch-size", "32")) -> str:
        before = sorted(tmp_path.rglob("*"))
        given = [str(option) for option in options]
        for flag, default in (("--data", good), ("--eval-data", good), ("--out", tmp_path / "out")):
            if flag not in given and "--resume" not in given:
                given += [flag, str(default)]
        code = main(["reproduce", *(() if "--resume" in given else start), *given])
        assert code == 2
        assert sorted(tmp_path.rglob("*")) == before  # nothing written
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("rlsr: error: ")
        return line.removeprefix("rlsr: error: ")

    return run


def test_missing_folder(fails: Fails, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for flag in ("--data", "--eval-data"):
        assert fails(flag, missing) == f"{missing} does not exist; give a folder of images"


def test_file_in_the_place_of_a_folder(fails: Fails, good: Path) -> None:
    assert fails("--data", good / "a.png") == f"{good}/a.png is a file; give the folder that holds the images"


def test_empty_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for flag in ("--data", "--eval-data"):
        assert fails(flag, tmp_path / "empty").startswith(f"{tmp_path}/empty is empty; looked for .avif")


def test_folder_without_an_image(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    for flag in ("--data", "--eval-data"):
        assert fails(flag, tmp_path / "texts").startswith(f"{tmp_path}/texts holds no image file; looked for .avif")


def test_nothing_but_damaged_files(fails: Fails, tmp_path: Path) -> None:
    save_damaged(tmp_path / "damaged" / "a.png")
    (tmp_path / "damaged" / "b.jpg").write_text("no\npicture\n")
    for flag in ("--data", "--eval-data"):
        message = fails(flag, tmp_path / "damaged")
        assert message.startswith(f"no usable picture in 'folder:{tmp_path}/damaged': 2 skipped")
        assert "a.png" in message and "b.jpg" in message


def test_nothing_but_images_smaller_than_a_patch(fails: Fails, tmp_path: Path) -> None:
    save_picture(tmp_path / "small" / "a.png", 31, 64)
    message = fails("--data", tmp_path / "small")
    assert "small/a.png: 64x31 pixels, but the shorter side must have at least 32" in message


def test_image_smaller_than_a_patch_is_skipped_and_named(good: Path, tmp_path: Path) -> None:
    save_picture(good / "small.png", 31, 64)
    options = ReproduceOptions(
        data=good, eval_data=(good,), out=tmp_path / "out", content_loss="none", hr_patch_size=32, device="cpu"
    )
    with pytest.warns(UserWarning, match=r"skipped .*small\.png: 64x31 pixels") as seen:
        reproduction = agents.reproduce.Reproduction(options, command="")
    assert len(seen) == 1  # as a held-out picture it is large enough
    assert (reproduction.n_training_pictures, reproduction.n_skipped) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default::UserWarning")
def test_damaged_file_among_good_ones_is_one_line_and_no_end(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_damaged(good / "damaged.png")
    monkeypatch.setattr(agents.reproduce.Reproduction, "run", lambda self: "")
    tiny = ["--content-loss", "none", "--hr-patch-size", "32", "--device", "cpu"]
    assert main(["reproduce", *tiny, "--data", str(good), "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rlsr: warning: skipped folder:{good}/damaged.png: cannot decode {good}/damaged.png: ")


@pytest.mark.parametrize("scale", [1, 0, -4])
def test_scale_below_2(fails: Fails, scale: int) -> None:
    assert fails("--scale", scale) == f"--scale must be an integer of 2 or more, got {scale}"


@pytest.mark.parametrize("scale", ["2.5", "x", ""])
def test_scale_that_is_no_integer(fails: Fails, scale: str) -> None:
    message = fails("--scale", scale)
    assert "--scale" in message
    assert f"'{scale}'" in message


@pytest.mark.parametrize(
    ("codec", "quality", "least"), [("jpeg", 0, 1), ("jpeg", 101, 1), ("webp", -1, 0), ("avif", 101, 0)]
)
def test_quality_out_of_range(fails: Fails, codec: str, quality: int, least: int) -> None:
    message = fails("--quality", quality, "--base-codec", codec)
    assert message == f"quality of {codec} is {least} to 100; got {quality}"


def test_unknown_codec(fails: Fails) -> None:
    assert fails("--base-codec", "bpg") == "unknown base codec 'bpg'; known: jpeg, webp, avif"


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99"])
def test_unknown_or_absent_device(fails: Fails, device: str) -> None:
    message = fails("--device", device)
    assert message.startswith(f"device '{device}' cannot be used here (")
    assert message.endswith("give auto, cpu or cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda(fails: Fails) -> None:
    assert fails("--device", "cuda").startswith("device 'cuda' cannot be used here (")


def test_out_that_is_not_empty(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    message = fails("--out", tmp_path / "full")
    assert message.startswith(f"--out {tmp_path}/full is not empty; give a new folder, or --resume {tmp_path}/full")


def test_out_that_is_a_file_or_lies_in_one(fails: Fails, good: Path) -> None:
    file = good / "a.png"
    for out in (file, file / "some" / "where"):
        assert fails("--out", out) == f"cannot write to {out}: {file} is a file, not a folder"


def write_vgg(path: Path, content: str) -> None:
    if content == "wrong shape" and path.suffix == ".pth":
        torch.save({"features.0.weight": torch.zeros(64, 3, 5, 5)}, path)
    elif content == "wrong shape":
        save_file({"0.weight": torch.zeros(64, 3, 5, 5)}, path)
    elif content == "another network":
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    elif content == "no dictionary":
        torch.save(torch.zeros(3), path)
    else:
        path.write_bytes(content.encode())


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("vgg.pth", "wrong shape", "'0.weight' has shape (64, 3, 5, 5), VGG19's is (64, 3, 3, 3)"),
        ("vgg.safetensors", "wrong shape", "'0.weight' has shape (64, 3, 5, 5), VGG19's is (64, 3, 3, 3)"),
        ("vgg.pth", "another network", "lacks '0.weight'; expected the weights of torchvision's vgg19().features"),
        ("vgg.pth", "no dictionary", "holds a Tensor, expected a dictionary of VGG19's weights"),
        ("vgg.pth", "no weights\nat all", "cannot be read as a weights file"),
        ("vgg.safetensors", "no weights\nat all", "cannot be read as a weights file"),
        ("vgg.pth", "", "cannot be read as a weights file"),
    ],
)
def test_unusable_vgg_file(fails: Fails, tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    write_vgg(path, content)
    message = fails("--vgg-weights", path, start=())
    assert message.startswith(str(path))
    assert complaint in message


def test_missing_vgg_file(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.pth"
    expected = f"no VGG19 weights at {missing}; give the path of a .safetensors or .pth file"
    assert fails("--vgg-weights", missing, start=()) == expected
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(missing))
    assert fails(start=()) == expected


def test_vgg_file_that_would_not_be_used(fails: Fails, tmp_path: Path) -> None:
    message = fails("--content-loss", "random", "--vgg-weights", tmp_path / "vgg.pth", start=())
    assert message.startswith("VGG19 weights were given, but content loss random does not use them")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--updates", 7], "--updates must be a multiple of --rollout-steps = 5, got 7; take 10"),
        (["--updates", 0], "--updates must be 1 or more, got 0"),
        (["--updates", -5], "--updates must be 1 or more, got -5"),
        (["--pretrain-updates", 0], "--pretrain-updates must be 1 or more, got 0"),
        (["--seeds", 0], "--seeds must be 1 or more, got 0"),
        (["--batch-size", -1], "--batch-size must be 1 or more, got -1"),
        (["--n-envs", 0], "--n-envs must be 1 or more, got 0"),
        (["--rollout-steps", 0], "--rollout-steps must be 1 or more, got 0"),
        (["--hr-patch-size", 30], "--hr-patch-size must be a multiple of the scale 4, got 30; take 32"),
        (["--learning-rate", 0], "--learning-rate must be above 0, got 0.0"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0, got nan"),
        (["--mse-weight", -1], "--mse-weight must be 0 or more, got -1.0"),
        (["--adversarial-weight", "inf"], "--adversarial-weight must be 0 or more, got inf"),
        (["--mse-weight", 0, "--adversarial-weight", 0], "all loss weights are 0"),
        (["--mse-weight", 0, "--adversarial-weight", 0, "--content-weight", 0], "all loss weights are 0"),
    ],
)
def test_number_out_of_range(fails: Fails, options: list[object], message: str) -> None:
    assert fails(*options).startswith(message)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bogus", 3], "Unrecognized options: --bogus"),
        (["extra"], "Unrecognized options: extra"),
        (["--generator", "huge"], "invalid choice 'huge'"),
        (["--content-loss", "lpips"], "invalid choice 'lpips'"),
        (["--precision", "fp16"], "invalid choice 'fp16'"),
        (["--seeds", "many"], "--seeds"),
    ],
)
def test_unknown_option_or_choice(fails: Fails, options: list[object], words: str) -> None:
    assert words in fails(*options)


def test_missing_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--out"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    expected = (
        "rlsr: error: Missing value for argument '--out'. Expected 1 values. For full helptext, run rlsr reproduce"
    )
    assert line == f"{expected} --help"
    assert captured.out == ""


def test_resume_of_what_is_no_run(fails: Fails, tmp_path: Path, good: Path) -> None:
    for folder in (tmp_path / "missing", good):
        assert (
            fails("--resume", folder) == f"--resume {folder}: no config.json there, so it is no run of rlsr reproduce"
        )
    (good / "config.json").write_text('{"some": "other program"}')
    assert fails("--resume", good).startswith("config.json is not one of rlsr reproduce")


@pytest.mark.parametrize("options", [("--seeds", 5), ("--out", "elsewhere"), ("--quick",)])
def test_resume_with_other_options(fails: Fails, tmp_path: Path, options: tuple[object, ...]) -> None:
    message = fails("--resume", tmp_path, *options)
    assert message == "--resume takes all options from the run's own config.json; leave the others out"


def test_eval_folders_whose_results_would_overwrite_each_other(fails: Fails, good: Path) -> None:
    message = fails("--eval-data", good, good, good)
    assert message == "two folders of --eval-data are called good; their results would overwrite each other"


class FakeReproduction:
    """Stands for the real one where only the command line is looked at."""

    made: ReproduceOptions
    command: str
    how_to_go_on = "go on with: that"
    failure: BaseException | None = None

    def __init__(self, options: ReproduceOptions, command: str) -> None:
        FakeReproduction.made, FakeReproduction.command = options, command

    def run(self) -> str:
        if self.failure is not None:
            raise self.failure
        return "wrote everything\nwhere it belongs"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeReproduction]:
    monkeypatch.setattr(agents.reproduce, "Reproduction", FakeReproduction)
    monkeypatch.setattr(FakeReproduction, "failure", None)
    return FakeReproduction


def test_finished_run_prints_its_closing_lines(
    fake: type[FakeReproduction], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--eval-data", "a b", "c", "--scale", "2"]) == 0
    assert fake.made == ReproduceOptions(eval_data=(Path("a b"), Path("c")), scale=2)
    assert fake.command == "rlsr reproduce --eval-data 'a b' c --scale 2"  # can be pasted into a shell
    captured = capsys.readouterr()
    assert captured.out == "wrote everything\nwhere it belongs\n"
    assert captured.err == ""


def test_quick_changes_defaults_and_nothing_that_is_given(fake: type[FakeReproduction]) -> None:
    assert main(["reproduce", "--quick"]) == 0
    assert fake.made == ReproduceOptions(quick=True, **QUICK)
    assert main(["reproduce", "--seeds", "3", "--quick", "--scale", "2"]) == 0
    assert fake.made == ReproduceOptions(quick=True, scale=2, **{**QUICK, "seeds": 3})
    assert ReproduceOptions().seeds == 3  # as given, although it is the default without --quick


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (agents.reproduce.Interrupted("stopped; go on"), 130, "rlsr: stopped; go on"),
        (KeyboardInterrupt(), 130, "rlsr: stopped at once; go on with: that"),
        (ValueError("several\n  lines"), 1, "rlsr: error: several lines"),
        (OSError("disk full"), 1, "rlsr: error: disk full"),
    ],
)
def test_run_that_does_not_finish_is_one_line(
    failure: BaseException,
    code: int,
    line: str,
    fake: type[FakeReproduction],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fake, "failure", failure)
    assert main(["reproduce"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line + "\n")


def test_ctrl_c_while_pictures_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agents.reproduce, "decode_images", interrupted)
    assert main(["reproduce", "--content-loss", "none", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "rlsr: stopped before anything was written\n"
    assert not (tmp_path / "out").exists()


def test_warnings_are_one_line(
    fake: type[FakeReproduction], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(self: FakeReproduction) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("several\n  lines", UserWarning, stacklevel=1)
        return ""

    monkeypatch.setattr(fake, "run", warn)
    assert main(["reproduce"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "rlsr: warning: several lines\n")


@dataclass(frozen=True)
class CopyOptions:
    """Copy a file.

    More about it.
    """

    source: tyro.conf.Positional[Path]
    """What to copy."""
    times: int = 3
    """How often."""
    quick: bool = False
    """Once."""


class Copying:
    """A job that ends although some of its files failed."""

    made: CopyOptions
    how_to_go_on = "start anew"
    exit_code = 1

    def __init__(self, options: CopyOptions, *, command: str) -> None:
        Copying.made = options

    def run(self) -> str:
        return ""


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "copy", Command(CopyOptions, f"{__name__}:Copying", {"times": 1}))


@pytest.mark.usefixtures("copying")
def test_command_with_a_required_option_and_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", "a b"]) == 1
    assert Copying.made == CopyOptions(Path("a b"))
    assert main(["copy", "a", "--quick"]) == 1
    assert Copying.made == CopyOptions(Path("a"), times=1, quick=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")  # no empty line for no closing lines
    assert main(["copy"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rlsr: error: Missing from rlsr copy: PATH What to copy. (required) For full help")
    assert len(captured.err.splitlines()) == 1


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no command given"),
        (["bogus"], "unknown command 'bogus'"),
        (["bogus", "--scale", "2"], "unknown command 'bogus'"),
        (["--quick", "copy"], "unknown command '--quick'"),
        ([""], "unknown command ''"),
    ],
)
def test_no_command_and_an_unknown_one_list_all(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"rlsr: error: {complaint}; known: {', '.join(COMMANDS)}; see rlsr --help\n"
    assert captured.err.endswith("copy; see rlsr --help\n")


@pytest.mark.usefixtures("copying")
def test_help_has_one_line_for_each_command_and_the_commands_own_help_has_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code in (0, None)
    overview = capsys.readouterr().out
    assert "Copy a file." in overview and "More about it." not in overview
    with pytest.raises(SystemExit):
        main(["copy", "--help"])
    assert "More about it." in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_job_and_documented_options(name: str) -> None:
    command = COMMANDS[name]
    assert command.options.__doc__
    module, _, attribute = command.job.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    assert callable(command.options.check)
    fields = {entry.name for entry in dataclasses.fields(command.options)}
    assert set(command.quick) <= fields
    assert ("quick" in fields) == bool(command.quick)
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.defaults(quick=False).anything = 1


HELP = """
import sys
from agents.cli import COMMANDS, main
for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code in (0, None), stop.code
    else:
        raise AssertionError("no exit")
heavy = {"torch", "numpy", "PIL", "gymnasium", "matplotlib", "stable_baselines3"} & set(sys.modules)
assert not heavy, heavy
"""


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_help_names_every_option_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = run_python("-c", HELP, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        "data", "eval-data", "scale", "quality", "base-codec", "generator", "updates", "seeds", "device", "out",
        "vgg-weights", "quick", "resume",
    ):  # fmt: skip
        assert f"--{option}" in done.stdout
    for name in COMMANDS:
        assert f"usage: rlsr {name}" in done.stdout


def test_module_and_console_script_run(tmp_path: Path) -> None:
    done = run_python("-m", "agents.cli", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: rlsr" in done.stdout
    script = Path(sys.executable).with_name("rlsr")
    again = subprocess.run([str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "usage: rlsr" in again.stdout


def test_error_of_a_real_process_is_one_line_too(tmp_path: Path) -> None:
    done = run_python("-m", "agents.cli", "reproduce", "--scale", "2.5", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("rlsr: error: ")
    assert "invalid literal for int() with base 10: '2.5'" in line
    assert list(tmp_path.iterdir()) == []


def test_resume_takes_no_option_even_at_its_default_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--resume", str(tmp_path), "--seeds", "3"]) == 2
    assert capsys.readouterr().err.endswith("config.json; leave the others out\n")
