import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from agents.cli import main
from agents.evaluate import Evaluation, next_settings
from agents.evaluate_options import EvaluateOptions
from agents.evaluation_report import SCHEMA, read_results
from gan import zoo
from gan.evaluation import REPORTED, code_pictures
from gan.generator import Generator, GeneratorConfig
from gan.rate_curves import PictureRecord, setting_key
from gan.rate_points import SETTINGS, FileSeries, PictureJudge
from gan.weights import save_generator
from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.metrics import METRICS

RATES = (0.5, 0.8, 1.2)


@pytest.fixture(autouse=True)
def _no_pretrained_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package's own weights and the user's, and their speed, are no part of these tests."""
    monkeypatch.delenv("RLSR_WEIGHTS", raising=False)
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path / "none")


def write_pictures(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"picture-{number}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path, hr_pictures: list[np.ndarray]) -> Path:
    return write_pictures(tmp_path / "data", hr_pictures)


def options(data: Path, out: Path, **given: Any) -> EvaluateOptions:
    small: dict[str, Any] = {
        "codecs": ("jpeg", "lanczos"), "base_codecs": ("jpeg",), "scales": (2,), "rates": RATES, "workers": 1,
        "pictures": 0,
    }  # fmt: skip
    return EvaluateOptions(str(data), out=out, **(small | given))


def evaluate(data: Path, out: Path, **given: Any) -> dict[str, Any]:
    Evaluation(options(data, out, **given), command="rlsr evaluate").run()
    return read_results(out / "results.json")


def save_weights(folder: Path, scale: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(scale=scale, channels=4, n_blocks=1))
    torch.nn.init.normal_(generator.decoder.layers[-1].convolution.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    path = folder / f"jpeg-x{scale}-psnr.safetensors"
    save_generator(path, generator, {"base_codec": "jpeg", "purpose": "psnr"})
    return path


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, hr_pictures: list[np.ndarray]
) -> tuple[Path, dict[str, Any], list[str]]:
    """One run with everything: its folder, its results, its warnings."""
    base = tmp_path_factory.mktemp("evaluate")
    data = write_pictures(base / "data", hr_pictures)
    (data / "broken.png").write_bytes(b"\x89PNG no more")
    save_weights(base / "weights", 2)
    save_weights(base / "weights", 3)
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning) as warned:
        patch.setenv("RLSR_WEIGHTS", str(base / "weights"))
        patch.setattr(zoo, "PRETRAINED", base / "none")
        results = evaluate(
            data, base / "out", codecs=("jpeg", "avif", "jpeg2000", "lanczos", "ours"), scales=(2, 3, 4), pictures=1,
            show_rate=0.8, self_ensemble=True, precision="fp32",
        )  # fmt: skip
    return base / "out", results, [str(one.message) for one in warned]


def test_results_hold_every_curve_and_what_it_was_made_of(run: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, results, _ = run
    assert results["schema"] == SCHEMA
    whole = ["jpeg", "avif", "jpeg2000"]
    lanczos = [f"lanczos-jpeg-{scale}" for scale in ("x2", "x3", "x4", "auto")]
    ours = [f"ours-jpeg-{scale}{more}" for scale in ("x2", "x3", "auto") for more in ("", "-ensemble")]
    plain = [f"ours-jpeg-{scale}{more}-plain" for scale in ("x2", "x3") for more in ("", "-ensemble")]
    assert sorted(results["curves"]) == sorted([*whole, *lanczos, *ours, *plain])
    assert results["rates"] == ["0.50", "0.80", "1.20"]
    assert [(one["name"], one["height"], one["width"]) for one in results["pictures"]] == [
        ("picture-0.png", 163, 181), ("picture-1.png", 171, 165),
    ]  # fmt: skip
    assert results["no_weights_for"] == ["jpeg x4 (psnr)"]
    for name, curve in results["curves"].items():
        assert set(curve["at_rates"]) == set(REPORTED)
        rates = [point["bits_per_pixel"] for point in curve["points"]]
        assert rates == sorted(rates) and (curve["lowest_rate"], curve["highest_rate"]) == (rates[0], rates[-1])
        for rate, value in curve["at_rates"]["psnr"].items():
            assert (value is not None) == (rates[0] <= float(rate) <= rates[-1]), (name, rate)
        assert set(curve["bd_rate"]) == {"jpeg", "avif"} - {name}
    assert results["curves"]["ours-jpeg-x2"]["weights"]["name"] == "jpeg-x2-psnr"
    assert len(results["curves"]["ours-jpeg-x2"]["weights"]["sha256"]) == 64


def test_a_point_is_what_encoding_and_judging_by_hand_gives(
    run: tuple[Path, dict[str, Any], list[str]], hr_pictures: list[np.ndarray]
) -> None:
    _, results, _ = run
    point = results["curves"]["jpeg"]["points"][1]
    images = DecodedImages(("a", "b"), tuple(hr_pictures), ())
    coded = code_pictures(images, LRCodec(1, "jpeg", int(point["setting"])))
    pixels = sum(picture.shape[0] * picture.shape[1] for picture in hr_pictures)
    assert point["bits_per_pixel"] == pytest.approx(8 * sum(one.n_bytes for one in coded) / pixels, rel=1e-6)
    values = []
    for one in coded:
        sr, hr = (torch.from_numpy(i).permute(2, 0, 1)[None] / 255 for i in (one.lr_image, one.hr_image))
        values.append([METRICS[name](sr, hr).item() for name in ("psnr", "ms_ssim", "ssim")])
    for name, value in zip(("psnr", "ms_ssim", "ssim"), np.mean(values, 0), strict=True):
        assert point[name] == pytest.approx(value, rel=2e-6)


def test_envelope_is_never_below_a_scale_and_the_container_saves_bytes(
    run: tuple[Path, dict[str, Any], list[str]],
) -> None:
    curves = run[1]["curves"]
    n_compared = 0
    for rate, best in curves["ours-jpeg-auto"]["at_rates"]["psnr"].items():
        for scale in ("x2", "x3"):
            value = curves[f"ours-jpeg-{scale}"]["at_rates"]["psnr"][rate]
            if value is not None:
                assert best >= value - 0.02  # it has its own points between those of the scale
                n_compared += 1
    assert n_compared >= 2
    for packed, plain in zip(curves["ours-jpeg-x2"]["points"], curves["ours-jpeg-x2-plain"]["points"], strict=False):
        if packed["setting"] == plain["setting"]:
            assert packed["bits_per_pixel"] < plain["bits_per_pixel"] and packed["psnr"] == plain["psnr"]
    gains = curves["ours-jpeg-x2"]["gain_over_lanczos"]
    assert any(value is not None and value != 0 for value in gains.values())


def test_unreadable_picture_is_counted_and_missing_weights_are_told(
    run: tuple[Path, dict[str, Any], list[str]],
) -> None:
    out, results, warned = run
    assert [one["name"] for one in results["skipped"]] == ["broken.png"]
    assert sum("skipped broken.png: cannot decode" in text for text in warned) == 1
    assert sum("no weights for jpeg x4 (psnr): left out of ours" in text for text in warned) == 1
    assert "2 pictures of data (1 more could not be used)" in (out / "table.md").read_text()


def test_table_has_every_curve_and_says_where_there_is_no_value(run: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, results, _ = run
    lines = (out / "table.md").read_text().splitlines()
    psnr = lines.index("| PSNR (dB) at bits per pixel | 0.50 | 0.80 | 1.20 |")
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[psnr + 2 : psnr + 2 + len(results["curves"])]}
    assert len(rows) == len(results["curves"])
    best = max(c["at_rates"]["psnr"]["0.80"] or 0 for c in results["curves"].values())
    assert sum(f"**{best:.2f}**" in line for line in rows.values()) >= 1
    value = results["curves"]["jpeg2000"]["at_rates"]["psnr"]["0.50"]
    assert rows["JPEG 2000"].replace("*", "").split(" | ")[1] == f"{value:.2f}"
    assert rows["JPEG best scale + ours"]
    assert any(line.startswith("| dB above Lanczos from the same files") for line in lines)
    savings = [rate["psnr"] for c in results["curves"].values() for rate in c["bd_rate"].values()]
    known = [value for value in savings if value is not None]
    assert known and all(any(f"| {value:+.1f} % |" in line for line in lines) for value in known)
    assert (out / "rd.png").read_bytes()[:4] == b"\x89PNG"


def test_second_run_measures_nothing_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hr_pictures: list[np.ndarray]
) -> None:
    first = evaluate(data, tmp_path / "out")
    calls: list[str] = []
    encode = FileSeries.encode

    def counted(self: FileSeries, hr_image: np.ndarray, setting: float) -> bytes:
        calls.append(self.name)
        return encode(self, hr_image, setting)

    monkeypatch.setattr(FileSeries, "encode", counted)
    assert evaluate(data, tmp_path / "out") == first
    assert calls == []
    more = evaluate(data, tmp_path / "out", codecs=("jpeg", "lanczos", "jpeg2000"))
    assert set(calls) == {"jpeg2000"}
    assert {name: more["curves"][name] for name in first["curves"]} == first["curves"]
    calls.clear()
    Image.fromarray(hr_pictures[0][::-1]).save(data / "picture-0.png")
    changed = evaluate(data, tmp_path / "out")
    assert set(calls) == {"jpeg", "jpeg-x2"}
    assert changed["curves"]["jpeg"]["points"] != first["curves"]["jpeg"]["points"]


def test_other_weights_are_measured_again_and_the_rest_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLSR_WEIGHTS", str(tmp_path / "weights"))
    path = save_weights(tmp_path / "weights")
    first = evaluate(data, tmp_path / "out", codecs=("lanczos", "ours"))
    torch.manual_seed(1)
    generator = Generator(GeneratorConfig(scale=2, channels=4, n_blocks=1))
    save_generator(path, generator, {"base_codec": "jpeg", "purpose": "psnr"})  # still equal to Lanczos
    judged: list[str] = []
    restore = PictureJudge.restore

    def counted(self: PictureJudge, series: FileSeries, restorer: Any, lr_image: np.ndarray) -> np.ndarray:
        judged.append(restorer.kind)
        return restore(self, series, restorer, lr_image)

    monkeypatch.setattr(PictureJudge, "restore", counted)
    second = evaluate(data, tmp_path / "out", codecs=("lanczos", "ours"))
    assert set(judged) == {"ours"}
    assert second["curves"]["lanczos-jpeg-x2"] == first["curves"]["lanczos-jpeg-x2"]
    gains = second["curves"]["ours-jpeg-x2"]["gain_over_lanczos"].values()
    assert all(gain == pytest.approx(0, abs=1e-3) for gain in gains if gain is not None)


def test_damaged_record_is_measured_again(data: Path, tmp_path: Path) -> None:
    first = evaluate(data, tmp_path / "out")
    record = sorted((tmp_path / "out" / "pictures").iterdir())[0]
    record.write_text(record.read_text()[:100])
    with pytest.warns(UserWarning, match="damaged and measured again"):
        assert evaluate(data, tmp_path / "out") == first


def test_processes_give_the_same_results(data: Path, tmp_path: Path) -> None:
    one, two = (evaluate(data, tmp_path / f"out-{n}", workers=n, rates=(0.8,), codecs=("jpeg",)) for n in (1, 2))
    assert two["curves"] == one["curves"]


def test_first_pictures_only(data: Path, tmp_path: Path) -> None:
    results = evaluate(data, tmp_path / "out", max_pictures=1, codecs=("jpeg",))
    assert [one["name"] for one in results["pictures"]] == ["picture-0.png"]


def test_image_set_by_name(tmp_path: Path) -> None:
    job = Evaluation(options(Path("sample:held-out"), tmp_path / "out", max_pictures=2), command="")
    assert [job.worker.name(uri) for uri in job.uris] == ["sample:camera", "sample:chelsea"]
    assert not (tmp_path / "out").exists()


def test_whole_codec_beyond_its_range_has_no_value(data: Path, tmp_path: Path) -> None:
    results = evaluate(data, tmp_path / "out", codecs=("jpeg",), rates=(0.01, 0.8))
    curve = results["curves"]["jpeg"]
    assert curve["at_rates"]["psnr"]["0.01"] is None and curve["at_rates"]["psnr"]["0.80"] is not None
    assert curve["points"][0]["setting"] == 1 and curve["lowest_rate"] > 0.01


def test_settings_go_outwards_until_the_rates_are_covered() -> None:
    series = FileSeries("jpeg")
    settings = SETTINGS["jpeg"]
    rate = {setting: 0.1 * 1.3**index for index, setting in enumerate(settings)}

    def records(known: tuple[float, ...]) -> list[PictureRecord]:
        entry = {"restored": {"whole": {}}}
        points = {setting_key(s): entry | {"bytes": round(rate[s] * 1e6 / 8)} for s in known}
        return [PictureRecord("a", 1000, 1000, {"jpeg": points})]

    for low, high in ((0.05, 0.2), (0.12, 0.3), (0.5, 1.0), (0.01, 100.0)):
        known: tuple[float, ...] = ()
        rounds = 0
        while wanted := next_settings(series, records(known) if known else [], low, high):
            assert not set(wanted) & set(known)
            known = tuple(sorted({*known, *wanted}))
            rounds += 1
        assert rounds <= 3
        assert known == settings[settings.index(known[0]) : settings.index(known[-1]) + 1]
        assert rate[known[0]] <= low or known[0] == settings[0]
        assert rate[known[-1]] >= high or known[-1] == settings[-1]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command line is refused with."""
    assert main(["evaluate", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rlsr: error: "), lines
    return lines[0]


def test_wrong_options_are_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    pictures = str(data)
    for arguments, message in {
        ("missing/",): "does not exist",
        ("missing",): "'missing' is no folder, and unknown image set",
        ("empty",): "empty is empty",
        (pictures, "--codecs", "bpg"): "bpg",
        (pictures, "--codecs", "jpeg", "jpeg"): "--codecs must name one or more, each once, got jpeg jpeg",
        (pictures, "--scales", "5"): "--scales are integers of 1 to 4, got 5",
        (pictures, "--rates", "0"): "bits per pixel above 0",
        (pictures, "--rates", "nan"): "bits per pixel above 0",
        (pictures, "--workers", "0"): "--workers must be 1 or more, got 0",
        (pictures, "--max-pictures", "0"): "--max-pictures must be 1 or more",
        (pictures, "--device", "abacus"): "device 'abacus' cannot be used here",
        (pictures, "--codecs", "ours"): "nothing to evaluate: there are no weights for jpeg x2 (psnr), jpeg x3",
        (pictures, "--out", "file"): "file is a file",
        (pictures, "--out", "file/below"): "file is a file",
        (pictures, "--out", "full"): "holds something that is not of rlsr evaluate",
        (pictures, "--out", "data/out"): "lies in the folder of the pictures",
        (): "data",
    }.items():
        assert message.lower() in refusal(capsys, *arguments).lower(), arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "empty", "file", "full"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_to_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no permission to write" in refusal(capsys, str(data), "--out", str(tmp_path / "locked" / "out"))


def test_codec_that_pillow_lacks_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    assert "no avif; install Pillow's own wheel, or leave avif out" in refusal(capsys, str(data))
    assert "no avif" in refusal(capsys, str(data), "--codecs", "lanczos", "--base-codecs", "avif")


@pytest.mark.filterwarnings("always::UserWarning")
def test_no_usable_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "data" / name).write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "data", "--codecs", "jpeg", "--out", "out", "--workers", "1"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("rlsr: warning: skipped a.png: cannot decode data/a.png")
    assert lines[-1] == "rlsr: error: no usable picture in 'folder:data': all 2 were skipped"


def test_interrupted_run_keeps_what_was_measured_and_says_how_to_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, n_done = PictureJudge.measure, 0

    def stopping(self: PictureJudge, *arguments: Any) -> Any:
        nonlocal n_done
        n_done += 1
        os.kill(os.getpid(), 2)
        return measure(self, *arguments)

    given = ["--codecs", "jpeg", "--rates", "0.8", "--workers", "1", "--pictures", "0", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(PictureJudge, "measure", lambda self, *a: measure(self, *a) if n_done else stopping(self, *a))
        assert main(["evaluate", str(data), *given]) == 130
    assert f"the same command with --out {tmp_path / 'out'} goes on" in capsys.readouterr().err
    (record,) = (tmp_path / "out" / "pictures").iterdir()
    assert json.loads(record.read_text())["name"] == "picture-0.png"
    assert not (tmp_path / "out" / "results.json").exists()
    assert main(["evaluate", str(data), *given]) == 0
    assert len(read_results(tmp_path / "out" / "results.json")["pictures"]) == 2


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": "rlsr-evaluate/99"}')
    with pytest.raises(ValueError, match="has no schema 'rlsr-evaluate/1'"):
        read_results(tmp_path / "results.json")
