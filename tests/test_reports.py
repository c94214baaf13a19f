import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from agents.reports import (
    busiest_crop,
    choose_picture,
    collect_results,
    describe_machine,
    describe_versions,
    paired_difference,
    summarise,
    verdict,
    write_comparison,
    write_curves,
    write_json,
    write_table,
)
from gan.evaluation import CodedPicture
from rlsr_env.resample import upsample

INF = math.inf


def measured(psnr: float, ms_ssim: float | None = None) -> dict[str, Any]:
    """What `gan.evaluation.measure` says of two pictures."""
    row = {"psnr": psnr, "ms_ssim": ms_ssim, "ssim": 0.5}
    return {**row, "psnr_clic": psnr - 1, "images": [row, row]}


def strict_json(path: Path) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def coded(hr_image: np.ndarray, uri: str = "folder:/data/some.png", scale: int = 2, n_bytes: int = 123) -> CodedPicture:
    return CodedPicture(uri, hr_image, hr_image[::scale, ::scale], n_bytes)


def restored_by_lanczos(picture: CodedPicture, scale: int = 2) -> dict[str, Tensor]:
    height, width = picture.hr_image.shape[:2]
    lr_image = torch.from_numpy(picture.lr_image.copy()).permute(2, 0, 1)[None] / 255
    sr_image = upsample(lr_image, scale)[..., :height, :width].clamp(0, 1)
    return {name: sr_image for name in ("lanczos", "srgan", "rl-srgan")}


def test_summary_is_mean_and_sample_deviation() -> None:
    summary = summarise([measured(30.0), measured(32.0), measured(37.0)])
    assert summary["psnr"]["mean"] == 33.0
    assert summary["psnr"]["std"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert summary["psnr"]["per_seed"] == [30.0, 32.0, 37.0]
    assert summary["psnr_clic"]["mean"] == 32.0
    assert summary["ssim"] == {"mean": 0.5, "std": 0.0, "per_seed": [0.5, 0.5, 0.5]}
    assert set(summary) == {"psnr", "psnr_clic", "ms_ssim", "ssim"}


def test_one_seed_has_no_spread() -> None:
    assert summarise([measured(30.0)])["psnr"] == {"mean": 30.0, "std": None, "per_seed": [30.0]}


def test_metric_that_no_picture_is_large_enough_for_has_no_summary() -> None:
    summary = summarise([measured(30.0), measured(31.0)])
    assert summary["ms_ssim"] == {"mean": None, "std": None, "per_seed": [None, None]}


def test_infinite_psnr_has_a_mean_and_no_spread() -> None:
    assert summarise([measured(INF), measured(INF)])["psnr"] == {"mean": INF, "std": None, "per_seed": [INF, INF]}
    assert summarise([measured(INF), measured(40.0)])["psnr"]["std"] is None


def test_differences_are_taken_seed_by_seed() -> None:
    difference = paired_difference({"per_seed": [30.0, 35.0]}, {"per_seed": [29.0, 31.0]})
    assert difference["per_seed"] == [1.0, 4.0]
    assert difference["mean"] == 2.5
    assert difference["std"] == pytest.approx(math.sqrt(4.5))
    # Unpaired, the spread over the seeds would hide what every seed shows.
    far_apart = paired_difference({"per_seed": [20.5, 40.5]}, {"per_seed": [20.0, 40.0]})
    assert (far_apart["mean"], far_apart["std"]) == (0.5, 0.0)


def test_difference_of_one_seed_has_no_spread() -> None:
    assert paired_difference({"per_seed": [2.0]}, {"per_seed": [1.5]}) == {"mean": 0.5, "std": None, "per_seed": [0.5]}


@pytest.mark.parametrize("values", [[None, None], [INF, 30.0], [30.0, INF]])
def test_missing_and_infinite_values_have_no_difference(values: list[float | None]) -> None:
    nothing = {"mean": None, "std": None, "per_seed": None}
    assert paired_difference({"per_seed": values}, {"per_seed": [30.0, 30.0]}) == nothing
    assert paired_difference({"per_seed": [30.0, 30.0]}, {"per_seed": values}) == nothing
    assert paired_difference({"per_seed": values}, {"per_seed": values}) == nothing


def test_difference_needs_equally_many_seeds() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference({"per_seed": [1.0]}, {"per_seed": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (0.3, 0.2, "RL-SRGAN is better than SRGAN"),
        (-0.3, 0.2, "RL-SRGAN is worse than SRGAN"),
        (0.1, 0.2, "neither method is better"),
        (-0.2, 0.2, "neither method is better"),
        (0.0, 0.0, "neither method is better"),
        (0.5, None, "nothing can be said of who is better"),
        (None, None, "restored exactly, so nothing can be said of who is better"),
    ],
)
def test_verdict_in_words(mean: float | None, std: float | None, words: str) -> None:
    assert verdict({"mean": mean, "std": std, "per_seed": [mean] * 3}).endswith(words)


def test_no_verdict_from_less_than_three_seeds() -> None:
    assert "nothing can be said" in verdict({"mean": 1.0, "std": 0.1, "per_seed": [0.9, 1.1]})


def results(
    srgan: list[float], agent: list[float], lanczos: float = 28.0, ms_ssim: float | None = None
) -> dict[str, Any]:
    pictures = [coded(texture(16, 20), n_bytes=40), coded(texture(32, 10), "sample:cat", n_bytes=60)]
    by_method = {
        "lanczos": [measured(lanczos, ms_ssim)] * len(srgan),
        "srgan": [measured(value, ms_ssim) for value in srgan],
        "rl-srgan": [measured(value, ms_ssim) for value in agent],
        "pretrained": [measured(29.0, ms_ssim)],
    }
    rest = {"seeds": list(range(len(srgan))), "content_loss": "none", "command": "rlsr reproduce --seeds 2"}
    return collect_results(pictures, by_method) | rest


def test_collected_results_by_hand() -> None:
    collected = results(srgan=[30.0, 31.0], agent=[30.5, 31.5])
    assert collected["bytes"] == 100
    assert collected["bits_per_pixel"] == 800 / (16 * 20 + 32 * 10)
    assert set(collected["methods"]) == {"lanczos", "srgan", "rl-srgan"}
    assert collected["methods"]["srgan"]["psnr"]["mean"] == 30.5
    assert collected["methods"]["lanczos"]["psnr"] == {"mean": 28.0, "std": 0.0, "per_seed": [28.0, 28.0]}
    assert collected["rl-srgan minus srgan"]["psnr"] == {"mean": 0.5, "std": 0.0, "per_seed": [0.5, 0.5]}
    assert collected["pretrained"]["psnr"]["per_seed"] == [29.0]
    first, second = collected["images"]
    assert {key: first[key] for key in ("uri", "width", "height", "bytes", "bits_per_pixel")} == {
        "uri": "some.png",  # of a folder, the path is this machine's own
        "width": 20,
        "height": 16,
        "bytes": 40,
        "bits_per_pixel": 1.0,
    }
    assert second["uri"] == "sample:cat"
    assert [row["psnr"] for row in first["methods"]["rl-srgan"]] == [30.5, 31.5]


def test_table_has_the_paper_s_columns_and_the_methods_in_its_order(tmp_path: Path) -> None:
    write_table(tmp_path / "table.md", results(srgan=[30.0, 31.0], agent=[30.5, 32.5], ms_ssim=0.91))
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[:7] == [
        "| method | PSNR (dB) | PSNR, pooled as CLIC does (dB) | MS-SSIM | SSIM |",
        "|---|---|---|---|---|",
        "| RL-SRGAN | 31.50 ± 1.41 | 30.50 ± 1.41 | 0.9100 ± 0.0000 | 0.5000 ± 0.0000 |",
        "| SRGAN | 30.50 ± 0.71 | 29.50 ± 0.71 | 0.9100 ± 0.0000 | 0.5000 ± 0.0000 |",
        "| pretrained (start of both) | 29.00 | 28.00 | 0.9100 | 0.5000 |",
        "| Lanczos | 28.00 | 27.00 | 0.9100 | 0.5000 |",
        "| RL-SRGAN minus SRGAN | +1.000 ± 0.707 | +1.000 ± 0.707 | +0.00000 ± 0.00000 | +0.00000 ± 0.00000 |",
    ]
    text = "\n".join(lines[7:])
    assert "2 pictures, 100 bytes, 1.2500 bits per pixel; mean ± standard deviation over 2 seeds" in text
    assert "PSNR: less than 3 seeds, so nothing can be said of who is better." in text
    assert "Content loss: none." in text
    assert "Command: `rlsr reproduce --seeds 2`" in text


def test_table_of_one_seed_and_small_pictures(tmp_path: Path) -> None:
    write_table(tmp_path / "table.md", results(srgan=[30.0], agent=[29.5]))
    text = (tmp_path / "table.md").read_text()
    assert "| RL-SRGAN | 29.50 | 28.50 | n/a | 0.5000 |" in text
    assert "| RL-SRGAN minus SRGAN | -0.500 | -0.500 | n/a | +0.00000 |" in text
    assert "over 1 seed (" in text
    assert "PSNR: less than 3 seeds" in text


def test_exactly_restored_picture_gives_a_table_and_strict_json(tmp_path: Path) -> None:
    collected = results(srgan=[INF, 60.0], agent=[INF, INF], lanczos=INF)
    write_table(tmp_path / "table.md", collected)
    text = (tmp_path / "table.md").read_text()
    assert "| Lanczos | inf | inf | n/a | 0.5000 |" in text
    assert "| RL-SRGAN minus SRGAN | n/a | n/a | n/a |" in text
    write_json(tmp_path / "results.json", collected)
    read = strict_json(tmp_path / "results.json")
    assert read["methods"]["srgan"]["psnr"] == {"mean": None, "std": None, "per_seed": [None, 60.0]}


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "some.json", {"a": (1.5, INF, -INF, math.nan), "b": [{"c": INF}], "d": "inf", "e": 3})
    assert strict_json(tmp_path / "some.json") == {
        "a": [1.5, None, None, None],
        "b": [{"c": None}],
        "d": "inf",
        "e": 3,
    }


def test_json_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    write_json(path, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    assert strict_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_busiest_crop_finds_the_texture() -> None:
    image = np.full((96, 128, 3), 90, dtype=np.uint8)
    image[40:72, 80:112] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    top, left, contrast = busiest_crop(image, 32)
    assert (top, left) == (40, 80)  # on the grid of a quarter of the size
    assert contrast > 10


def test_contrast_of_a_chessboard_by_hand() -> None:
    board = np.indices((8, 8)).sum(0) % 2 * 100
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    # Every pixel differs by 100 from the one below and the one beside it, but for the last row and the last column.
    assert busiest_crop(image, 8) == (0, 0, pytest.approx(2 * 100 * 56 / 64))


@pytest.mark.parametrize("shape", [(20, 20), (20, 50), (3, 2)])
def test_busiest_crop_lies_inside_the_picture(shape: tuple[int, int]) -> None:
    size = min(shape)
    top, left, _ = busiest_crop(texture(*shape), size)
    assert 0 <= top <= shape[0] - size
    assert 0 <= left <= shape[1] - size


def test_picture_to_show_is_the_one_whose_small_file_shows_structure() -> None:
    smooth = np.full((64, 64, 3), 90, dtype=np.uint8)
    lost = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255  # flat once it is shrunk
    pictures = [
        coded(smooth),
        CodedPicture("lost", lost.astype(np.uint8), np.full((32, 32, 3), 127, np.uint8), 1),
        coded(texture(64, 64)),
        coded(texture(64, 64) // 2),
    ]
    assert choose_picture(pictures, scale=2) is pictures[2]


@pytest.mark.parametrize("shape", [(200, 180), (40, 57), (16, 31)])
def test_comparison_of_small_and_large_pictures(shape: tuple[int, int], tmp_path: Path) -> None:
    picture = coded(texture(*shape))
    path = tmp_path / "comparison.png"
    write_comparison(path, picture, restored_by_lanczos(picture), scale=2)
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        image.load()
        assert image.width > 3.5 * image.height  # five panels in a row


@pytest.mark.parametrize("name", ["a$^$b.png", "$x_$", "50 % {of} \\all_.png"])
def test_comparison_takes_any_file_name(name: str, tmp_path: Path) -> None:
    picture = coded(texture(32, 32), f"folder:/some where/{name}")
    write_comparison(tmp_path / "comparison.png", picture, restored_by_lanczos(picture), scale=2)
    assert (tmp_path / "comparison.png").is_file()


def test_comparison_shows_the_same_crop_with_its_psnr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The right half is flat, so the crop is in the left half; there SRGAN is wrong by 51 levels = 20 % = 13.98 dB.
    hr_image = np.full((128, 256, 3), 100, dtype=np.uint8)
    hr_image[:, :128] = texture(128, 128) // 2
    picture = coded(hr_image)
    exact = torch.from_numpy(hr_image).permute(2, 0, 1)[None] / 255
    titles: dict[str, np.ndarray] = {}

    def keep(figure: Any, path: Path) -> None:
        titles.update({axes.get_title(): axes.images[0].get_array() for axes in figure.axes})

    monkeypatch.setattr("agents.reports._save", keep)
    wrong_elsewhere = exact.clone()
    wrong_elsewhere[..., 140:] = 0
    sr_images = {"lanczos": exact, "srgan": exact + 51 / 255, "rl-srgan": wrong_elsewhere}
    write_comparison(tmp_path / "comparison.png", picture, sr_images, scale=2)
    assert [title.split("\n")[0] for title in titles] == ["LR", "LANCZOS", "SRGAN", "RL-SRGAN", "ORIGINAL"]
    shown = dict(title.split("\n") for title in titles)
    assert shown["SRGAN"] == "13.98 dB"
    assert shown["LANCZOS"] == shown["RL-SRGAN"] == shown["ORIGINAL"] == "∞ dB"
    panels = {title.split("\n")[0]: panel for title, panel in titles.items()}
    assert np.array_equal(panels["ORIGINAL"], hr_image[:128, :128])
    assert np.array_equal(panels["LR"], picture.lr_image[:64, :64].repeat(2, 0).repeat(2, 1))


def curve(*psnrs: float | None, **rest: float) -> list[dict[str, float | None]]:
    return [{"update": number + 1, "psnr": psnr, **rest} for number, psnr in enumerate(psnrs)]


def test_curves_of_several_seeds_and_of_infinite_values(tmp_path: Path) -> None:
    curves = {
        "pretrained": curve(20.0, 25.0, **{"gan/l1": 0.1}),
        "srgan-seed0": curve(26.0, None, **{"gan/loss": 0.2}),
        "srgan-seed1": curve(26.0, None, **{"gan/loss": 0.3}),
        "rl-srgan-seed0": curve(26.0, 27.0, **{"gan/loss": 0.2, "rl/reward": 1.0}),
        "rl-srgan-seed1": curve(None, 27.0, **{"gan/loss": 0.2, "rl/reward": -1.0}),
    }
    for name, lanczos in (("a.png", 24.0), ("b.png", INF)):
        write_curves(tmp_path / name, curves, lanczos)
        assert (tmp_path / name).stat().st_size < 300_000
        with Image.open(tmp_path / name) as image:
            image.load()
            assert abs(image.width - 1200) < 40 and abs(image.height - 700) < 40


def test_versions_and_machine_are_named() -> None:
    versions = describe_versions()
    assert torch.__version__.startswith(versions["torch"].partition("+")[0])
    assert {"python", "rlsr", "numpy", "pillow", "gymnasium", "stable-baselines3"} <= set(versions)
    machine = describe_machine(torch.device("cpu"), torch.bfloat16)
    assert (machine["device"], machine["precision"]) == ("cpu", "bfloat16")
    assert machine["cores"] >= 1
    assert machine["processor"]
