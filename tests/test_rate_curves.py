import math
from typing import Any

import pytest

from gan.rate_curves import (
    AUTO,
    Curve,
    PictureRecord,
    bd_rates,
    curves_of,
    leading,
    set_rates,
    setting_key,
    with_auto_scales,
)
from gan.rate_points import LANCZOS_RESTORER, FileSeries, Restorer
from gan.zoo import Weights

WEIGHTS = Weights("net", 2, path=None, card={"sha256": "ab" * 32, "purpose": "psnr"})
OURS = Restorer("ours", WEIGHTS)


def values(psnr: float, **more: Any) -> dict[str, Any]:
    return {"squared_error": 10 ** (-psnr / 10), "psnr": psnr, "ms_ssim": 0.9, "ssim": 0.8} | more


def record(name: str, size: tuple[int, int], points: dict[float, tuple[int, float]]) -> PictureRecord:
    """A picture with JPEG files: setting to bytes and PSNR."""
    series = {setting_key(s): {"bytes": n, "restored": {"whole": values(psnr)}} for s, (n, psnr) in points.items()}
    return PictureRecord(name, *size, {"jpeg": series})


def curve(name: str, scale: int, points: list[tuple[float, float]], kind: str = "lanczos", **more: Any) -> Curve:
    plain = [
        {"setting": n, "bits_per_pixel": rate, "psnr": psnr, "psnr_clic": psnr - 1, "ms_ssim": 0.9, "ssim": scale / 10}
        for n, (rate, psnr) in enumerate(points)
    ]
    return Curve(name, kind, "jpeg", scale, tuple(plain), **more)


def test_rate_is_all_bits_over_all_pixels_and_quality_the_mean_of_the_pictures() -> None:
    records = [
        record("a", (10, 10), {3: (100, 20.0), 4: (200, 30.0)}),
        record("b", (10, 30), {3: (500, 40.0), 4: (700, 44.0)}),
    ]
    (whole,) = curves_of(FileSeries("jpeg"), records, 0, 100)
    assert [point["bits_per_pixel"] for point in whole.points] == [8 * 600 / 400, 8 * 900 / 400]
    assert [point["psnr"] for point in whole.points] == [30.0, 37.0]
    error = (100 * 10**-2 + 300 * 10**-4) / 400
    assert whole.points[0]["psnr_clic"] == pytest.approx(-10 * math.log10(error))
    assert [point["setting"] for point in whole.points] == [3, 4]
    assert (whole.name, whole.kind, whole.scale, whole.container) == ("jpeg", "whole", 1, "file")


def test_setting_that_a_picture_lacks_does_not_count() -> None:
    records = [record("a", (10, 10), {3: (1, 20.0), 4: (2, 30.0)}), record("b", (10, 10), {4: (2, 30.0), 5: (3, 31.0)})]
    assert [point["setting"] for point in curves_of(FileSeries("jpeg"), records, 0, 100)[0].points] == [4]
    assert set_rates(FileSeries("jpeg"), records) == [(4, 8 * 4 / 200, 8 * 4 / 200)]
    assert curves_of(FileSeries("jpeg", 2, (LANCZOS_RESTORER,)), records, 0, 100) == []


def test_too_small_pictures_are_no_part_of_a_mean_and_an_exact_one_makes_none() -> None:
    small = record("a", (10, 10), {3: (100, 20.0)})
    small.points["jpeg"]["3"]["restored"]["whole"]["ms_ssim"] = None
    exact = record("b", (10, 10), {3: (100, 20.0)})
    (point,) = curves_of(FileSeries("jpeg"), [small, exact], 0, 100)[0].points
    assert point["ms_ssim"] == 0.9
    exact.points["jpeg"]["3"]["restored"]["whole"] |= {"psnr": None, "squared_error": 0.0}
    (point,) = curves_of(FileSeries("jpeg"), [small, exact], 0, 100)[0].points
    assert point["psnr"] is None and point["psnr_clic"] == pytest.approx(20 + 10 * math.log10(2))


def test_points_reach_one_beyond_the_rates_and_a_dearer_worse_one_is_left_out() -> None:
    points = {1: (10, 20.0), 3: (20, 21.0), 4: (30, 20.5), 5: (40, 22.0), 7: (60, 23.0), 10: (90, 24.0)}
    records = [record("a", (10, 10), points)]
    (whole,) = curves_of(FileSeries("jpeg"), records, 8 * 25 / 100, 8 * 50 / 100)
    assert [point["setting"] for point in whole.points] == [3, 5, 7]
    (exact,) = curves_of(FileSeries("jpeg"), records, 8 * 40 / 100, 8 * 60 / 100)
    assert [point["setting"] for point in exact.points] == [5, 7]


def test_value_at_a_rate_is_linear_over_its_logarithm_and_nothing_is_extrapolated() -> None:
    one = curve("jpeg", 1, [(0.1, 24.0), (0.4, 28.0)])
    assert one.value_at(0.2, "psnr") == pytest.approx(26.0)
    assert one.value_at(0.1, "psnr") == 24.0 and one.value_at(0.4, "psnr") == 28.0
    assert one.value_at(0.0999, "psnr") is None and one.value_at(0.41, "psnr") is None
    assert one.range == (0.1, 0.4)


def test_decoder_makes_a_curve_of_each_container_and_its_gain_over_lanczos() -> None:
    def point(n_bytes: int, packed: int, lanczos: float, ours: float) -> dict[str, Any]:
        restored = {"lanczos": values(lanczos), OURS.key: values(ours, packed_bytes=packed)}
        return {"bytes": n_bytes, "restored": restored}

    points = {"jpeg-x2": {"3": point(100, 80, 20.0, 20.5), "4": point(200, 160, 22.0, 23.0)}}
    series = FileSeries("jpeg", 2, (LANCZOS_RESTORER, OURS))
    records = [PictureRecord("a", 10, 10, points)]
    lanczos, packed, plain = curves_of(series, records, 0.1, 100)
    assert [one.name for one in (lanczos, packed, plain)] == ["lanczos-jpeg-x2", "ours-jpeg-x2", "ours-jpeg-x2-plain"]
    assert [point["bits_per_pixel"] for point in packed.points] == [6.4, 12.8]
    assert [point["bits_per_pixel"] for point in plain.points] == [8.0, 16.0]
    assert [point["gain_over_lanczos"] for point in packed.points] == [0.5, 1.0]
    assert packed.value_at(math.sqrt(6.4 * 12.8), "gain_over_lanczos") == pytest.approx(0.75)
    assert set_rates(series, records) == [(3, 8.0, 6.4), (4, 16.0, 12.8)]
    without = curves_of(FileSeries("jpeg", 2, (OURS,)), records, 0.1, 100)
    assert [point["gain_over_lanczos"] for point in without[0].points] == [0.5, 1.0]  # it was measured


def test_envelope_takes_the_best_scale_at_each_rate_for_all_metrics() -> None:
    two = curve("lanczos-jpeg-x2", 2, [(0.1, 20.0), (0.4, 30.0)])
    four = curve("lanczos-jpeg-x4", 4, [(0.05, 22.0), (0.2, 24.0)])
    curves = with_auto_scales([curve("jpeg", 1, [(0.1, 24.0)], kind="whole"), two, four])
    assert [one.name for one in curves] == ["jpeg", "lanczos-jpeg-x2", "lanczos-jpeg-x4", "lanczos-jpeg-auto"]
    auto = curves[-1]
    assert auto.scale == AUTO
    picked = [(point["bits_per_pixel"], point["curve"], point["psnr"]) for point in auto.points]
    expected = [(0.05, four, 22.0), (0.1, four, 23.0), (0.2, two, 25.0), (0.4, two, 30.0)]
    assert picked == [(rate, one.name, pytest.approx(psnr)) for rate, one, psnr in expected]
    assert [point["ssim"] for point in auto.points] == [0.4, 0.4, 0.2, 0.2]
    assert [one.name for one in leading(curves)] == ["jpeg", "lanczos-jpeg-auto"]


def test_envelopes_keep_purposes_ensembles_and_containers_apart() -> None:
    def ours(name: str, scale: int, **more: Any) -> Curve:
        return curve(name, scale, [(0.1, 20.0), (0.4, 30.0)], kind="ours", **({"container": "rlsr"} | more))

    curves = [
        ours("ours-jpeg-x2", 2, purpose="psnr"),
        ours("ours-jpeg-x2-plain", 2, purpose="psnr", container="file"),
        ours("ours-jpeg-x3", 3, purpose="psnr"),
        ours("ours-jpeg-x2-ensemble", 2, purpose="psnr", ensemble=True),
        ours("ours-jpeg-x3-ensemble", 3, purpose="psnr", ensemble=True),
        ours("ours-jpeg-x2-for-ms_ssim", 2, purpose="ms_ssim"),
    ]
    added = with_auto_scales(curves)[len(curves) :]
    assert [one.name for one in added] == ["ours-jpeg-auto", "ours-jpeg-auto-ensemble"]
    shown = [one.name for one in leading([*curves, *added])]
    assert shown == ["ours-jpeg-x2-for-ms_ssim", "ours-jpeg-auto", "ours-jpeg-auto-ensemble"]


def test_bd_rates_of_two_curves() -> None:
    anchor = curve("jpeg", 1, [(0.1, 24.0), (0.2, 26.0), (0.4, 28.0)])
    half = curve("half", 1, [(0.05, 24.0), (0.1, 26.0), (0.2, 28.0)])
    assert bd_rates(half, anchor) == {"psnr": pytest.approx(-50), "ms_ssim": None}  # all of one MS-SSIM: no range
