"""From the cells of an ablation to gains with intervals, the matrix, its verdict and the files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import t as student_t

from agents.ablation_report import Cell, Gain, collect, gain_over_control, interval, write_page, write_reports
from rlsr_env.metrics import metric

PICTURES = ("a", "b")


def cell(method: str, reward: str, seed: int, psnr: list[float], dtw: list[float], seconds: float = 2.0) -> Cell:
    """A cell of two pictures."""
    values = {"psnr": dict(zip(PICTURES, psnr, strict=True)), "dtw": dict(zip(PICTURES, dtw, strict=True))}
    return Cell(method, reward, seed, seconds, values)


@pytest.fixture
def cells() -> list[Cell]:
    """Two seeds; dtw is better where it is less."""
    return [
        cell("control", "", 0, [20.0, 30.0], [0.5, 0.3]),
        cell("rl", "psnr", 0, [21.0, 31.2], [0.5, 0.3]),
        cell("rl", "dtw", 0, [19.0, 29.0], [0.4, 0.2]),
        cell("evolution", "psnr", 0, [20.5, 30.5], [0.5, 0.3]),
        cell("evolution", "dtw", 0, [20.0, 30.0], [0.3, 0.1]),
        cell("control", "", 1, [20.2, 30.2], [0.5, 0.3], seconds=4.0),
        cell("rl", "psnr", 1, [21.2, 31.4], [0.6, 0.4]),
        cell("rl", "dtw", 1, [19.0, 29.0], [0.4, 0.2]),
        cell("evolution", "psnr", 1, [20.5, 30.5], [0.5, 0.3]),
        cell("evolution", "dtw", 1, [20.0, 30.0], [0.3, 0.1]),
    ]


# --- The interval ---


def test_interval_worked_by_hand() -> None:
    """Seeds' means 1 and 3, pictures' means 1, 2 and 3: variances 2 / 2 and 1 / 3, together 4 / 3."""
    gain = interval(np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]))
    assert gain.mean == 2.0
    # Welch and Satterthwaite: (4 / 3)^2 / (1^2 / 1 + (1 / 3)^2 / 2) = (16 / 9) / (19 / 18) = 32 / 19.
    assert gain.half_width == pytest.approx(student_t.ppf(0.975, 32 / 19) * math.sqrt(4 / 3))


def test_interval_of_seeds_that_agree_is_that_of_the_pictures() -> None:
    gains = np.array([[1.0, 2.0, 6.0]] * 4)
    expected = student_t.ppf(0.975, 2) * math.sqrt(7.0 / 3)  # the variance of 1, 2 and 6 is 7
    assert interval(gains) == Gain(3.0, pytest.approx(expected))


def test_interval_of_equal_gains_has_no_width() -> None:
    assert interval(np.full((3, 5), 0.25)) == Gain(0.25, 0.0)


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (1, 1)])
def test_a_single_seed_or_picture_says_nothing_about_the_spread(shape: tuple[int, int]) -> None:
    gain = interval(np.ones(shape))
    assert gain == Gain(1.0, math.inf)
    assert not gain.is_above_zero
    assert not gain.is_below_zero


def test_interval_contains_the_mean_of_independent_gains_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n_inside = 0
    for _ in range(400):
        gains = rng.normal(size=(3, 1)) + rng.normal(size=(1, 10)) + 0.3 * rng.normal(size=(3, 10))
        gain = interval(gains)
        n_inside += abs(gain.mean) <= gain.half_width
    assert 0.92 < n_inside / 400 <= 1.0


def test_wider_confidence_is_a_wider_interval() -> None:
    gains = np.random.default_rng(1).normal(size=(3, 4))
    assert interval(gains, 0.99).half_width > interval(gains, 0.9).half_width


@pytest.mark.parametrize(
    ("gain", "above", "below"),
    [(Gain(1.0, 0.5), True, False), (Gain(1.0, 1.0), False, False), (Gain(-1.0, 0.5), False, True)],
)
def test_where_an_interval_lies(gain: Gain, above: bool, below: bool) -> None:
    assert (gain.is_above_zero, gain.is_below_zero) == (above, below)


# --- Gains ---


def test_gain_is_over_the_control_of_the_same_seed_and_picture(cells: list[Cell]) -> None:
    gain = gain_over_control(cells, "rl", "psnr", metric("psnr"))
    # 1.0 and 1.2 in both seeds: the pictures' variance is 0.02.
    assert gain.mean == pytest.approx(1.1)
    assert gain.half_width == pytest.approx(student_t.ppf(0.975, 1) * math.sqrt(0.02 / 2), rel=1e-6)


def test_where_less_is_better_a_fall_is_a_gain(cells: list[Cell]) -> None:
    assert gain_over_control(cells, "rl", "dtw", metric("dtw")).mean == pytest.approx(0.1)
    assert gain_over_control(cells, "rl", "psnr", metric("dtw")).mean == pytest.approx(-0.05)


def test_order_of_the_cells_does_not_matter(cells: list[Cell]) -> None:
    judge = metric("psnr")
    assert gain_over_control(cells[::-1], "rl", "dtw", judge) == gain_over_control(cells, "rl", "dtw", judge)


# --- The matrix ---


def test_matrix_has_a_row_for_each_method_and_reward(cells: list[Cell]) -> None:
    matrix = collect(cells, [metric("psnr"), metric("dtw")])
    assert [(row["method"], row["reward"]) for row in matrix["rows"]] == [
        ("rl", "psnr"), ("rl", "dtw"), ("evolution", "psnr"), ("evolution", "dtw"),
    ]  # fmt: skip
    assert matrix["control"]["psnr"]["mean"] == pytest.approx(25.1)
    assert matrix["control"]["psnr"]["std"] == pytest.approx(0.2 / math.sqrt(2))
    assert matrix["control"]["dtw"]["per_seed"] == pytest.approx([0.4, 0.4])
    assert matrix["control_seconds"] == 3.0


def test_verdict_says_what_the_rows_come_to(cells: list[Cell]) -> None:
    verdict = collect(cells, [metric("psnr"), metric("dtw")])["verdict"]
    # Of psnr, two pictures' gains of 1.0 and 1.2 leave the interval wider than the mean has room for: 12.7 * 0.1.
    assert verdict["rl_raises_its_own_metric"] == ["dtw"]
    assert verdict["own_row_is_the_best_rl_row"] == ["psnr", "dtw"]
    assert verdict["rl_above_evolution"] == ["psnr"]
    assert verdict["rl_above_gradient"] == []


def test_verdict_of_rows_that_another_reward_beats(cells: list[Cell]) -> None:
    swapped = [replace(c, reward={"psnr": "dtw", "dtw": "psnr", "": ""}[c.reward]) for c in cells]
    verdict = collect(swapped, [metric("psnr"), metric("dtw")])["verdict"]
    assert verdict["own_row_is_the_best_rl_row"] == []


def test_matrix_without_rl_has_an_empty_verdict(cells: list[Cell]) -> None:
    verdict = collect([c for c in cells if c.method != "rl"], [metric("psnr"), metric("dtw")])["verdict"]
    assert set(map(tuple, verdict.values())) == {()}


# --- Files ---


def read(path: Path) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_reports_hold_the_matrix(cells: list[Cell], tmp_path: Path) -> None:
    judges = [metric("psnr"), metric("dtw")]
    write_reports(tmp_path, cells, judges, {"command": "rlsr ablate ..."})
    results = read(tmp_path / "results.json")
    assert results["seeds"] == [0, 1]
    assert results["held_out"] == ["a", "b"]
    first = results["rows"][0]
    assert (first["method"], first["reward"]) == ("rl", "psnr")
    assert first["gains"]["psnr"]["mean"] == pytest.approx(1.1)
    table = (tmp_path / "table.md").read_text()
    assert "| control | | 25.100 | 0.40000 | 3 |" in table
    assert "| rl | dtw | -1.100 ± " in table
    assert "**+0.10000 ± 0.00000**" in table
    assert "RL raises its own metric (interval above zero) for 1 of 2 (dtw)" in table
    assert "Command: `rlsr ablate ...`" in table
    with Image.open(tmp_path / "matrix.png") as image:
        image.load()


def test_a_single_seed_has_no_interval_in_the_files(cells: list[Cell], tmp_path: Path) -> None:
    write_reports(tmp_path, cells[:5], [metric("psnr"), metric("dtw")], {"command": "x"})
    results = read(tmp_path / "results.json")
    assert results["rows"][0]["gains"]["psnr"] == {"mean": pytest.approx(1.1), "half_width": None}
    assert results["control"]["psnr"]["std"] is None
    assert "±" not in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("n_panels", [1, 6, 7])
def test_page_shows_every_picture(n_panels: int, tmp_path: Path) -> None:
    panels = {f"panel {i}": torch.full((1, 3, 40, 48), i / 10) for i in range(n_panels)}
    write_page(tmp_path / "page.png", panels)
    with Image.open(tmp_path / "page.png") as image:
        grey = np.asarray(image.convert("L"))
    areas = [(abs(grey.astype(int) - round(25.5 * i)) <= 1).sum() for i in range(n_panels)]
    assert min(areas) > 9000
