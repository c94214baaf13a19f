import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from agents.cli import main
from agents.codec_files import Task, attempt, plan, print_table, work_through
from agents.codec_options import MAX_PIXELS, SCALES, TILE, CompressOptions
from gan import picture_files, tiling, zoo
from gan.file_format import compress, decompress, read_content, read_header
from gan.generator import Generator, GeneratorConfig
from gan.picture_files import load_picture
from gan.weights import save_generator
from gan.zoo import LANCZOS_WEIGHTS
from rlsr_env.codec import LRCodec

Run = Callable[..., str]


def waves(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """A picture that JPEG can do something with."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    wave = 120 + 70 * np.sin(rows / rng.uniform(3, 9)) * np.cos(columns / rng.uniform(3, 9))
    return (wave[..., None] + rng.uniform(-30, 30, 3) + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype("u1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path / "none")
    monkeypatch.delenv("RLSR_WEIGHTS", raising=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three, one of them in a subfolder."""
    for number, name in enumerate(("a.png", "b.PNG", "sub/c.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(waves(seed=number)).save(path)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_text("no picture")
    return Path("in")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `rlsr`, which must succeed."""

    def call(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return call


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `rlsr`, which must fail in one line and leave everything as it was."""

    def call(*arguments: object, code: int = 2) -> str:
        before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
        assert main([str(argument) for argument in arguments]) == code
        assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("rlsr: error: ")
        return line.removeprefix("rlsr: error: ")

    return call


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Warnings are printed, as for a user; the tests' own filter would raise them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def test_there_and_back_again(run: Run, pictures: Path) -> None:
    text = run("compress", pictures, "-o", "small", "--quality", 60)
    assert "3 of 3 pictures compressed" in text and "lanczos" in text
    files = sorted(path.relative_to("small").as_posix() for path in Path("small").rglob("*") if path.is_file())
    assert files == ["a.rlsr", "b.rlsr", "sub/c.rlsr"]
    expected = compress(waves(seed=2), scale=2, quality=60, weights=LANCZOS_WEIGHTS)
    assert Path("small/sub/c.rlsr").read_bytes() == expected
    text = run("decompress", "small", "-o", "back")
    assert "3 of 3 files decompressed" in text
    np.testing.assert_array_equal(load_picture("back/sub/c.png").image, decompress(expected))


@pytest.mark.parametrize("base", ["jpeg", "webp", "avif"])
def test_small_picture_inside_is_a_plain_file(base: str, run: Run, pictures: Path) -> None:
    run("compress", pictures / "a.png", "-o", "a.rlsr", "--base-codec", base, "--quality", 50, "--scale", 3)
    run("decompress", "a.rlsr", "-o", "lr", "--lr")
    suffix = {"jpeg": "jpg", "webp": "webp", "avif": "avif"}[base]
    stream = Path(f"lr/a.{suffix}").read_bytes()
    assert stream == LRCodec(3, base, 50).encode(waves())
    run("decompress", "a.rlsr", "-o", f"one.{suffix}", "--lr")
    assert Path(f"one.{suffix}").read_bytes() == stream


def test_table_has_room_for_a_name_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    name = "out/bee.rlsr"
    row = (name, "329", "0.137", "32.97", "0.9999", "2", "jpeg 30", "x2-jpeg-psnr")
    columns = ("file", "bytes", "bpp", "PSNR (dB)", "MS-SSIM", "scale", "quality", "weights")
    print_table(Console(width=80), columns, [row])
    assert name in capsys.readouterr().out


def test_json_says_what_the_files_are(run: Run, pictures: Path) -> None:
    result = json.loads(run("compress", pictures, "-o", "small", "--bytes", 700, "--json"))
    assert result["command"] == "rlsr compress in -o small --bytes 700 --json"
    assert result["skipped"] == []
    for row in result["files"]:
        data = Path(row["output"]).read_bytes()
        assert row["bytes"] == len(data) <= 700
        assert row["bpp"] == pytest.approx(8 * len(data) / (60 * 90))
        header = read_header(data)
        assert (row["scale"], row["base_codec"], row["weights"]) == (header.scale, "jpeg", "lanczos")
        assert 15 < row["psnr"] < 60
        assert row["ms_ssim"] is None  # too small for it
    result = json.loads(run("decompress", "small", "-o", "back", "--json", "--format", "webp"))
    assert [row["output"] for row in result["files"]] == ["back/a.webp", "back/b.webp", "back/sub/c.webp"]
    facts = json.loads(run("info", "small", "--json"))["files"]
    assert [row["bytes"] for row in facts] == [Path(row["file"]).stat().st_size for row in facts]
    assert all(row["abbreviated"] and row["weights_are_here"] for row in facts)


def test_targets(run: Run, pictures: Path) -> None:
    def row(*options: object) -> dict[str, Any]:
        given = ("compress", pictures / "a.png", "-o", "out", "--force", "--json")
        result: dict[str, Any] = json.loads(run(*given, *options))["files"][0]
        return result

    by_bpp, by_bytes = row("--bpp", 0.8), row("--bytes", 540)
    assert by_bpp == by_bytes and by_bpp["bpp"] <= 0.8
    thorough = row("--bytes", 540, "--search", "all")
    assert thorough["bytes"] <= 540 and thorough["psnr"] >= by_bytes["psnr"]
    assert by_bytes["encodes"] < thorough["encodes"] / 2
    by_psnr = row("--psnr", 25, "--search", "all")
    assert by_psnr["psnr"] >= 25
    assert row("--psnr", 25, "--scale", 1)["bytes"] >= by_psnr["bytes"]
    assert row("--bpp", 0.8, "--base-codec", "webp")["encodes"] > 20  # the policy is for JPEG
    assert (row()["scale"], row()["quality"], row()["encodes"]) == (2, 30, 1)
    assert row("--scale", 4, "--quality", 80, "--no-measure")["psnr"] is None


def test_abbreviation_and_metadata_can_be_left_out(run: Run) -> None:
    exif = Image.Exif()
    exif[0x010E] = "waves"
    exif[274] = 6
    profile = 16 * b"\0" + b"RGB " + bytes(100)
    Image.fromarray(waves()).save("a.png", exif=exif, icc_profile=profile)
    run("compress", "a.png", "-o", "kept.rlsr")
    run("compress", "a.png", "-o", "bare.rlsr", "--no-metadata", "--no-abbreviated")
    kept, bare = (read_content(Path(name).read_bytes()) for name in ("kept.rlsr", "bare.rlsr"))
    assert kept.metadata.icc_profile == profile and kept.header.abbreviated
    assert not bare.metadata and not bare.header.abbreviated
    assert (kept.header.height, kept.header.width) == (90, 60)  # upright
    run("decompress", "kept.rlsr", "-o", "kept.png")
    run("decompress", "kept.rlsr", "-o", "dropped.png", "--no-metadata")
    with Image.open("kept.png") as kept_picture, Image.open("dropped.png") as dropped:
        assert kept_picture.info["icc_profile"] == profile
        assert kept_picture.getexif()[0x010E] == "waves" and 274 not in kept_picture.getexif()
        assert "icc_profile" not in dropped.info and not dropped.getexif()
        assert kept_picture.size == (60, 90)


def test_weights_for_a_purpose_restore(
    run: Run,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_generator: Callable[..., Generator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("weights").mkdir()
    monkeypatch.setenv("RLSR_WEIGHTS", "weights")
    for seed, (name, purpose) in enumerate({"x2-jpeg-psnr": "psnr", "x2-jpeg-rl-ms_ssim": "ms_ssim"}.items()):
        generator = make_generator(GeneratorConfig(scale=2, channels=4, n_blocks=1, base="none"), seed=seed)
        card = {"base_codec": "jpeg", "purpose": purpose}
        save_generator(f"weights/{name}.safetensors", generator, card)
    restored = {}
    for purpose in ("psnr", "ms_ssim"):
        run("compress", pictures / "a.png", "-o", f"{purpose}.rlsr", "--for", purpose)
        run("decompress", f"{purpose}.rlsr", "-o", f"{purpose}.png", "--precision", "fp32", "--tile", 16)
        restored[purpose] = load_picture(f"{purpose}.png").image
    assert read_header(Path("ms_ssim.rlsr").read_bytes()).weights == "x2-jpeg-rl-ms_ssim"
    assert not np.array_equal(restored["psnr"], restored["ms_ssim"])
    with told():
        assert main(["compress", "in/a.png", "-o", "other.rlsr", "--for", "perceptual"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("rlsr: warning: there are no weights for perceptual at scale 2 with jpeg; x2-jpeg-psnr")
    assert len(said.splitlines()) == 1
    listed = json.loads(run("weights", "--json"))["weights"]
    assert [entry["name"] for entry in listed] == ["x2-jpeg-psnr", "x2-jpeg-rl-ms_ssim"]
    assert "ms_ssim" in run("weights")
    assert json.loads(run("weights", "x2-jpeg-psnr", "--json"))["purpose"] == "psnr"
    assert "base_codec" in run("weights", "x2-jpeg-psnr")
    assert "x2-jpeg-psnr" in run("info", "psnr.rlsr")
    Path("weights/x2-jpeg-psnr.safetensors").rename("elsewhere.safetensors")
    Path("weights/x2-jpeg-psnr.json").rename("elsewhere.json")
    assert "(not here)" in run("info", "psnr.rlsr")
    run("decompress", "psnr.rlsr", "-o", "by-path.png", "--weights", "elsewhere.safetensors", "--precision", "fp32")
    np.testing.assert_array_equal(load_picture("by-path.png").image, restored["psnr"])
    run("decompress", "psnr.rlsr", "-o", "by-lanczos.png", "--weights", "lanczos")
    assert not np.array_equal(load_picture("by-lanczos.png").image, restored["psnr"])


def test_without_weights_their_list_says_so(run: Run, fails: Run) -> None:
    assert "restored by Lanczos" in run("weights")
    assert "there are no weights 'some' (there are: none)" in fails("weights", "some")
    assert "the name is empty" in fails("weights", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bytes", 9, "--psnr", 30), "there can be one target, got --bytes and --psnr; leave all but one out"),
        (("--bytes", 0), "--bytes must be above 0, got 0"),
        (("--bpp", "nan"), "--bpp must be above 0, got nan"),
        (("--quality", 0), "--quality of jpeg is 1 to 100, got 0"),
        (("--quality", 101, "--base-codec", "webp"), "--quality of webp is 0 to 100, got 101"),
        (("--tile", 0), "--tile must be 1 or more, got 0"),
        (("--workers", 0), "--workers must be 1 or more, got 0"),
        (("--max-pixels", 0), "--max-pixels must be 1 or more, got 0"),
        (("--device", "tpu9"), "device 'tpu9' cannot be used here"),
        (("--scale", 5), "--scale"),
    ],
)
def test_options_that_cannot_be(options: tuple[object, ...], message: str, fails: Run, pictures: Path) -> None:
    assert message in fails("compress", pictures, "-o", "out", *options)


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_inputs_that_cannot_be(command: str, fails: Run) -> None:
    assert "nowhere does not exist" in fails(command, "nowhere", "-o", "out")
    Path("empty").mkdir()
    assert "empty holds no" in fails(command, "empty", "-o", "out")
    os.mkfifo("pipe")
    assert "pipe is neither a file nor a folder" in fails(command, "pipe", "-o", "out")


def test_names_that_clash(fails: Run, run: Run, pictures: Path) -> None:
    Image.fromarray(waves()).save("in/a.bmp")
    message = fails("compress", pictures, "-o", "out")
    assert message == "in/a.bmp and in/a.png would both become out/a.rlsr; rename one, or do one at a time"
    assert "would both become out/a.rlsr" in fails("compress", "in/a.png", "in/a.png", "-o", "out")
    run("compress", "in/a.png", "-o", "a.rlsr")
    assert fails("compress", "in/a.png", "-o", "a.rlsr").startswith("a.rlsr exists already; give --force")
    run("compress", "in/b.PNG", "-o", "a.rlsr", "--force")
    assert Path("a.rlsr").read_bytes() == compress(waves(seed=1), weights=LANCZOS_WEIGHTS)
    Path("out/a.rlsr").mkdir(parents=True)
    assert "out/a.rlsr is a folder" in fails("compress", "in/b.PNG", "in/a.png", "-o", "out", "--force")


def test_outputs_that_cannot_be(fails: Run, run: Run, pictures: Path) -> None:
    Path("file").write_text("in the way")
    assert "file is a file, not a folder" in fails("compress", pictures, "-o", "file/below")
    assert "is one file, the input may be several" in fails("compress", pictures, "-o", "all.rlsr")
    run("compress", "in/a.png", "-o", "a.rlsr")
    assert "no picture format is called .xyz" in fails("decompress", "a.rlsr", "-o", "a.xyz")
    assert "its ending must be .jpg" in fails("decompress", "a.rlsr", "-o", "a.png", "--lr")
    Path("b.rlsr").write_bytes(Path("a.rlsr").read_bytes())
    assert "is one picture, the input may be several" in fails("decompress", "a.rlsr", "b.rlsr", "-o", "c.png")
    assert "w.safetensors does not exist" in fails("decompress", "a.rlsr", "-o", "c.png", "--weights", "w.safetensors")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(fails: Run, pictures: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    assert "no permission to write in" in fails("compress", pictures, "-o", "locked/below")


def test_a_folder_whose_permission_is_missing_is_refused(
    fails: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.codec_files.os.access", lambda *_: False)
    assert "no permission to write in" in fails("compress", pictures, "-o", "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bytes", 15), "in/a.png: no file has 15 bytes or less: the nearest has"),
        (("--psnr", 99), "in/a.png: no file reaches 99 dB: the nearest is"),
        (("--max-pixels", 100), "in/a.png: the picture has 90 x 60 = 5400 pixels, more than the 100"),
    ],
)
def test_what_one_picture_cannot_be(options: tuple[object, ...], message: str, fails: Run, pictures: Path) -> None:
    assert message in fails("compress", "in/a.png", "-o", "a.rlsr", *options, code=1)
    assert not Path("a.rlsr").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_in_a_folder_the_others_go_on(workers: int, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/b.PNG").write_bytes(Path("in/b.PNG").read_bytes()[:300])
    with told():
        assert main(["compress", "in", "-o", "small", "--json", "--workers", str(workers)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("rlsr: warning: skipped in/b.PNG: cannot decode in/b.PNG: ")
    result = json.loads(captured.out)
    assert [row["input"] for row in result["files"]] == ["in/a.png", "in/sub/c.png"]
    assert [row["input"] for row in result["skipped"]] == ["in/b.PNG"]
    assert "cannot decode" in result["skipped"][0]["reason"]
    Path("small/b.rlsr").write_bytes(b"nothing")
    with told():
        assert main(["decompress", "small", "-o", "back", "--workers", str(workers)]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("rlsr: warning: skipped small/b.rlsr: this is no .rlsr file")
        assert "2 of 3 files decompressed; 1 skipped" in captured.out
        assert sorted(path.name for path in Path("back").rglob("*.png")) == ["a.png", "c.png"]
        assert main(["info", "small"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("rlsr: warning: skipped small/b.rlsr: this is no .rlsr file")
    assert "2 of 3 files read; 1 skipped" in captured.out


def test_a_damaged_file_is_one_error(fails: Run, run: Run, pictures: Path) -> None:
    run("compress", "in/a.png", "-o", "a.rlsr")
    data = Path("a.rlsr").read_bytes()
    for name, content in {"cut": data[:-9], "empty": b"", "later": data[:4] + b"\x09" + data[5:]}.items():
        Path(f"{name}.rlsr").write_bytes(content)
        for command in (["decompress", f"{name}.rlsr", "-o", "x.png"], ["info", f"{name}.rlsr"]):
            assert fails(*command, code=1).startswith(f"{name}.rlsr: the file ")
    assert fails("decompress", "a.rlsr", "-o", "x.png", "--max-pixels", 9, code=1).startswith("a.rlsr: the picture has")


def test_a_full_disk_leaves_no_file(fails: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("agents.codec_compress.write_whole", full)
    assert "No space left" in fails("compress", "in/a.png", "-o", "a.rlsr", code=1)


def test_what_work_can_raise_becomes_an_outcome() -> None:
    def exhausted(task: Task) -> int:
        raise MemoryError

    task = Task(Path("x"), Path("y"))
    assert attempt(exhausted, task).error == "there is too little memory for it"
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not hidden
        attempt(lambda task: 1 // 0, task)


def test_outcomes_are_in_the_order_of_the_tasks() -> None:
    from rich.console import Console

    tasks = [Task(Path(f"{number}"), Path("o")) for number in range(20)]
    outcomes = work_through(tasks, lambda task: int(str(task.source)), 1, "", Console(file=open(os.devnull, "w")))
    assert [outcome.row for outcome in outcomes] == list(range(20))


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    Path("a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png is read, so it cannot be written"):
        plan([(Path("a.png"), Path("a.png"))], Path("."), lambda path: ".png", False, force=True)


def test_defaults_are_those_of_the_modules_that_the_options_do_not_import() -> None:
    assert (MAX_PIXELS, TILE, SCALES) == (picture_files.MAX_PIXELS, tiling.DEFAULT_TILE, zoo.SCALES)
    options = CompressOptions((Path("x"),), Path("y"))
    assert options.scales == (2,)
    assert CompressOptions((Path("x"),), Path("y"), bpp=0.1).scales == SCALES


@pytest.mark.slow
def test_a_fresh_process_compresses_and_restores(pictures: Path) -> None:
    for arguments in (["compress", "in", "-o", "s", "--bpp", "1"], ["decompress", "s", "-o", "r"], ["info", "s"]):
        done = subprocess.run([sys.executable, "-m", "agents.cli", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert len(list(Path("r").rglob("*.png"))) == 3
