"""Metrics without a gradient, against hand-worked numbers and independent implementations."""

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dtaidistance import dtw as dtaidistance_dtw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.feature import canny
from torch import Tensor

from rlsr_env.black_box_metrics import dtw
from rlsr_env.canny import edge_maps
from rlsr_env.codec import LRCodec
from rlsr_env.dtw import LANES, line_distances, line_shares
from rlsr_env.metrics import METRICS, metric

SEEDS = st.integers(min_value=0, max_value=2**31 - 1)


def photographs(height: int, width: int) -> Tensor:
    crops = [picture[96 : 96 + height, 160 : 160 + width] for picture in (data.astronaut(), data.chelsea())]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def with_noise(pictures: Tensor, amplitude: float, seed: int = 0) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))
    return (pictures + amplitude * noise).clamp(0, 1)


def grey(levels: np.ndarray) -> Tensor:
    """A grey picture `(1, 3, H, W)`, whose luma is its level."""
    return torch.from_numpy(levels).float().expand(1, 3, *levels.shape)


def grey_of(picture: Tensor) -> np.ndarray:
    """BT.601's luma, with its weights as everyone rounds them."""
    return (picture.permute(1, 2, 0).numpy() @ np.array([0.299, 0.587, 0.114])).astype(np.float32)


# Dynamic time warping


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], 0),  # the same step, elsewhere
        ([0, 0, 0, 0], [1, 1, 1, 1], 4),  # no warping helps; the diagonal is the shortest way
        ([0, 1, 0, 0], [0, 0, 1, 0], 0),  # the same peak
        ([0, 1, 0, 0], [0, 0, 0, 1], 2),  # the peaks meet, then two zeros lie beside one; or each lies beside a zero
        ([0, 0.5, 1], [0, 1, 1], 0.5),
        ([3], [5], 2),
    ],
)
def test_warping_distances_worked_by_hand(one: list[float], other: list[float], distance: float) -> None:
    assert line_distances(np.array([one], float), np.array([other], float)).tolist() == [distance]


def test_a_window_forbids_what_lies_further_apart() -> None:
    one, other = np.array([[0.0, 1, 0, 0, 0]]), np.array([[0.0, 0, 0, 1, 0]])
    # The peaks are two places apart; where they cannot meet, each lies beside a zero.
    assert [line_distances(one, other, window).item() for window in (0, 1, 2, 3, None)] == [2, 2, 0, 0, 0]


@given(
    seed=SEEDS, n_lines=st.integers(1, 3 * LANES), length=st.integers(1, 40), window=st.none() | st.integers(0, 45)
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_warping_distances_agree_with_dtaidistance(seed: int, n_lines: int, length: int, window: int | None) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.random((2, n_lines, length))
    distances = line_distances(one, other, window)
    assert distances.shape == (n_lines,)
    for line in {0, n_lines // 2, n_lines - 1}:
        # Their window is the first distance that is too far.
        expected = dtaidistance_dtw.distance(
            one[line], other[line], window=None if window is None else window + 1, inner_dist="euclidean"
        )
        assert distances[line] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other", "shares"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, 3.0], [1.0, 3.0, 3.0], [1.0, 1.0, 0.0]),  # the second point is nearer to 1 than to 3
        ([5.0], [2.0], [3.0]),
        ([0.0, 9.0], [1.0, 9.0], [1.0, 0.0]),
    ],
)
def test_shares_of_a_warping_distance_worked_by_hand(one: list[float], other: list[float], shares: list[float]) -> None:
    assert line_shares(np.array([one]), np.array([other])).tolist() == [shares]


@pytest.mark.parametrize(("seed", "n_lines", "length"), [(0, 1, 7), (1, 40, 24), (2, 70, 33)])
def test_shares_sum_up_to_the_warping_distance(seed: int, n_lines: int, length: int) -> None:
    one, other = np.random.default_rng(seed).random((2, n_lines, length))
    shares = line_shares(one, other)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), line_distances(one, other), rtol=1e-12)


def test_a_points_share_changes_with_the_point() -> None:
    one, other = np.random.default_rng(3).random((2, 1, 20))
    before = line_shares(one, other)
    for point in range(20):
        moved = one.copy()
        moved[0, point] += 1e-6  # too little to make another path the best one
        change = line_shares(moved, other) - before
        assert np.delete(change, point) == pytest.approx(0.0, abs=1e-12)
        assert change.sum() == pytest.approx(float((line_distances(moved, other) - line_distances(one, other))[0]))


def test_warping_distances_of_one_line_do_not_depend_on_the_others() -> None:
    lines = np.random.default_rng(0).random((2, 70, 20), dtype=np.float32)
    alone = np.concatenate([line_distances(lines[0, i : i + 1], lines[1, i : i + 1]) for i in range(70)])
    assert np.array_equal(line_distances(*lines), alone)


@pytest.mark.parametrize(
    ("one", "other", "window", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), None, r"one shape and dtype, got \(2, 3\) float64 and \(2, 4\) float64"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.float32), None, "one shape and dtype"),
        (np.zeros(3), np.zeros(3), None, "one shape and dtype"),
        (np.zeros((2, 3)), np.zeros((2, 3)), -1, "0 or more points wide.*got -1"),
    ],
)
def test_lines_that_cannot_be_warped_are_refused(
    one: np.ndarray, other: np.ndarray, window: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        line_distances(one, other, window)


def test_dtw_is_the_mean_over_rows_and_columns_by_dtaidistance() -> None:
    hr_image = photographs(20, 28)
    sr_image = with_noise(hr_image, 0.1)
    values = METRICS["dtw"](sr_image, hr_image)
    for number in range(2):
        sr, hr = grey_of(sr_image[number]).astype(float), grey_of(hr_image[number]).astype(float)
        rows, columns = (
            np.mean(
                [dtaidistance_dtw.distance(a, b, inner_dist="euclidean") / len(a) for a, b in zip(x, y, strict=True)]
            )
            for x, y in ((sr, hr), (sr.T, hr.T))
        )
        assert values[number].item() == pytest.approx((rows + columns) / 2, rel=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (40, 16)])
def test_dtw_of_black_and_white_is_1_at_any_size(size: tuple[int, int]) -> None:
    assert METRICS["dtw"](torch.zeros(1, 3, *size), torch.ones(1, 3, *size)).item() == pytest.approx(1)


def test_dtw_forgives_a_shift_but_no_blur() -> None:
    step = np.repeat([0.0, 1.0], 8) * np.ones((16, 1))
    ramp = np.clip((np.arange(16) - 4) / 8, 0, 1) * np.ones((16, 1))
    judge = METRICS["dtw"]
    columns_only = judge(grey(np.roll(step, 2, 1)[:, 2:]), grey(step[:, 2:])).item()
    # Every row is warped for nothing; two of 14 columns are white for black.
    assert columns_only == pytest.approx(0.5 * 2 / 14)
    rows = line_distances(ramp, step) / 16
    assert (rows > 0.1).all()


def test_dtw_treats_rows_and_columns_alike() -> None:
    hr_image = photographs(24, 40)
    sr_image = with_noise(hr_image, 0.1)
    turned = METRICS["dtw"](sr_image.mT, hr_image.mT)
    torch.testing.assert_close(METRICS["dtw"](sr_image, hr_image), turned)


def test_dtw_within_a_window_is_no_less_than_without_and_no_more_than_point_by_point() -> None:
    hr_image = photographs(24, 40)
    sr_image = with_noise(hr_image, 0.2)
    free, narrow, straight = (dtw(sr_image, hr_image, window=window) for window in (None, 2, 0))
    assert (free < narrow).all() and (narrow < straight).all()
    apart = [np.abs(grey_of(sr) - grey_of(hr)).mean() for sr, hr in zip(sr_image, hr_image, strict=True)]
    assert straight.tolist() == pytest.approx(apart, rel=1e-4)


# Edges


@pytest.mark.parametrize(("height", "width"), [(64, 96), (7, 200), (33, 5), (3, 3), (2, 9), (1, 1)])
@pytest.mark.parametrize("amplitude", [0, 0.1])
def test_edges_are_those_of_scikit_image(height: int, width: int, amplitude: float) -> None:
    pictures = with_noise(photographs(height, width), amplitude)
    lumas = np.stack([grey_of(picture) for picture in pictures])
    assert np.array_equal(edge_maps(lumas), [canny(luma, 1.0) for luma in lumas])


@given(seed=SEEDS, contrast=st.floats(0.05, 1), height=st.integers(1, 24), width=st.integers(1, 24))
@settings(deadline=None, max_examples=30)
def test_edges_of_noise_are_nearly_those_of_scikit_image(seed: int, contrast: float, height: int, width: int) -> None:
    luma = contrast * np.random.default_rng(seed).random((3, height, width), dtype=np.float32)
    differ = edge_maps(luma) != np.stack([canny(picture, 1.0) for picture in luma])
    # The last bit of a float32 may decide a tie.
    assert differ.sum() <= 1


def test_edge_of_a_bright_square_goes_around_it() -> None:
    luma = np.zeros((1, 24, 24), np.float32)
    luma[:, 8:16, 8:16] = 1
    edges = edge_maps(luma)[0]
    assert edges[12].nonzero()[0].tolist() in ([7, 15], [8, 15], [7, 16], [8, 16], [7, 8, 15, 16])
    assert not edges[:6].any() and not edges[10:14, 10:14].any()


def test_a_weak_edge_counts_where_it_hangs_together_with_a_strong_one() -> None:
    # Under a Gaussian of sigma 1, a step of height h has a slope of 0.35 h per pixel beside it; times Sobel's eight,
    # 0.06 makes 0.17, between both thresholds.
    weak, strong = 0.06, 0.2
    alone, joined = np.zeros((2, 1, 60, 24), np.float32)
    alone[0, :, 12:] = weak
    joined[0, :, 12:] = np.interp(np.arange(60), [0, 30], [strong, weak])[:, None]
    assert not edge_maps(alone).any()
    assert edge_maps(joined)[0, 1:59].any(1).all()


def test_edge_f1_agrees_with_scikit_image() -> None:
    hr_image = photographs(64, 80)
    sr_image = with_noise(hr_image, 0.05)
    values = METRICS["edge_f1"](sr_image, hr_image)
    for number in range(2):
        sr, hr = (canny(grey_of((image[number] * 255).round() / 255), 1.0) for image in (sr_image, hr_image))
        expected = 2 * (sr & hr).sum() / (sr.sum() + hr.sum())
        assert 0.2 < expected < 0.95
        assert values[number].item() == pytest.approx(expected, abs=2e-3)


def test_edge_f1_of_flat_pictures() -> None:
    flat, edge = torch.full((1, 3, 24, 24), 0.5), photographs(24, 24)[:1]
    assert edge_maps(grey_of(edge[0])[None]).any()
    assert METRICS["edge_f1"](torch.cat([flat, flat, edge]), torch.cat([flat, edge, flat])).tolist() == [1, 0, 0]


def test_edge_f1_of_samples_of_one_original_is_that_of_each_alone() -> None:
    hr_image = photographs(32, 32).repeat(3, 1, 1, 1)
    sr_image = with_noise(hr_image, 0.05)
    alone = [METRICS["edge_f1"](sr_image[i : i + 1], hr_image[i : i + 1]).item() for i in range(6)]
    assert len(set(alone)) == 6
    assert METRICS["edge_f1"](sr_image, hr_image).tolist() == alone


# Bytes


def test_jpeg_bytes_are_those_of_a_file_that_pillow_saves(tmp_path: Path) -> None:
    pictures = photographs(48, 65)
    pictures = torch.cat([pictures, with_noise(pictures, 0.2), torch.zeros(1, 3, 48, 65)])
    arrays = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for array in arrays:
        file = tmp_path / "picture.jpg"
        Image.fromarray(array).save(file, quality=75, subsampling="4:2:0", optimize=True)
    expected = []
    for array in arrays:
        Image.fromarray(array).save(file, quality=75, subsampling="4:2:0", optimize=True)
        expected.append(file.stat().st_size)
    assert len(set(expected)) == 5
    assert METRICS["jpeg_bytes"](pictures, pictures).tolist() == expected
    assert expected == [len(LRCodec(quality=75).compress(array)) for array in arrays]


def test_jpeg_bytes_do_not_depend_on_the_original() -> None:
    sr_image, hr_image = photographs(32, 32)
    values = [METRICS["jpeg_bytes"](sr_image[None], original[None]).item() for original in (sr_image, hr_image)]
    assert values[0] == values[1]


# SSIMULACRA 2


def test_ssimulacra2_is_that_of_the_package_on_files(tmp_path: Path) -> None:
    package = pytest.importorskip("ssimulacra2")
    hr_image = photographs(48, 56)
    sr_image = with_noise(hr_image, 0.05)
    expected = []
    for pair in zip(sr_image, hr_image, strict=True):
        for name, picture in zip(("sr", "hr"), pair, strict=True):
            array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(array).save(tmp_path / f"{name}.png")
        expected.append(package.compute_ssimulacra2(tmp_path / "hr.png", tmp_path / "sr.png"))
    assert METRICS["ssimulacra2"](sr_image, hr_image).tolist() == pytest.approx(expected)


def test_without_its_package_ssimulacra2_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = builtins.__import__

    def without_it(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ssimulacra2":
            raise ImportError(name)
        return ordinary(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "ssimulacra2", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_it)
    pictures = photographs(16, 16)
    with pytest.raises(ImportError, match=r"install rlsr\[ssimulacra2\] \(uv sync --extra ssimulacra2\)"):
        METRICS["ssimulacra2"](pictures, pictures)


# All of them


@pytest.mark.parametrize("name", ["dtw", "edge_f1", "jpeg_bytes", "psnr_8bit"])
def test_a_black_box_metric_leaves_its_pictures_alone(name: str) -> None:
    hr_image = photographs(24, 24)
    sr_image = with_noise(hr_image, 0.1)
    before = sr_image.clone(), hr_image.clone()
    METRICS[name](sr_image, hr_image)
    assert torch.equal(sr_image, before[0]) and torch.equal(hr_image, before[1])


@pytest.mark.parametrize("name", ["dtw", "edge_f1", "jpeg_bytes"])
def test_a_black_box_metric_judges_an_empty_batch(name: str) -> None:
    assert METRICS[name](torch.zeros(0, 3, 24, 24), torch.zeros(0, 3, 24, 24)).shape == (0,)


@pytest.mark.parametrize("name", ["dtw", "edge_f1", "jpeg_bytes", "psnr_8bit"])
def test_a_black_box_metric_has_no_gradient_and_no_map(name: str) -> None:
    assert not metric(name).differentiable
    values = metric(name)(photographs(24, 24).requires_grad_(), photographs(24, 24))
    assert values.dtype == torch.float64 and not values.requires_grad
