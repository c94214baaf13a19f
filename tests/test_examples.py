"""Every example runs as a user runs it: in a process of its own, here with numbers that are small."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents.rate_policy import RatePolicy

EXAMPLES = Path(__file__).parent.parent / "examples"
SHARE = r"([+-]\d\.\d{4}) +(-?\d+)% of the oracle's ([+-]\d\.\d{4})"


def run(name: str, *arguments: object, timeout: float = 600) -> str:
    """What an example prints; its warnings are the libraries' own."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def gains(printed: str) -> dict[str, float]:
    """The table of gains at the end of an example; its shares must follow from its numbers."""
    table = re.findall(rf"^(.+?) +{SHARE}$", printed, flags=re.MULTILINE)
    assert table, printed
    for _, gain, share, oracle in table:
        assert abs(float(share) / 100 - float(gain) / float(oracle)) < 0.02
    return {name: float(gain) for name, gain, _, _ in table}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two small pictures with something in them to restore."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(2):
        waves = 128 + 60 * np.sin(np.arange(170) / (2 + number))[:, None, None] * np.cos(np.arange(180) / 3)[:, None]
        picture = waves + rng.normal(0, 10, (170, 180, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path / f"{number}.png")
    return f"folder:{path}"


def test_random_agent_prints_steps_and_saves_a_frame(folder: str, tmp_path: Path) -> None:
    frame = tmp_path / "frame.png"
    printed = run("random_agent.py", "--images", folder, "--n-steps", 6, "--frame", frame).splitlines()
    assert re.fullmatch(r"observation \(3, \d+, \d+\) uint8, PSNR of the generator .+ \d+\.\d\d dB", printed[0])
    assert len(printed) == 7
    assert all(re.fullmatch(r"predicted .+ dB, reached .+ dB, reward [+-]\d\.\d{3}", line) for line in printed[1:])
    with Image.open(frame) as picture:
        assert picture.format == "PNG" and picture.width > picture.height


@pytest.mark.parametrize("algorithm", ["a2c", pytest.param("ppo", marks=pytest.mark.slow)])
def test_train_rl_srgan_trains_and_saves(algorithm: str, folder: str, tmp_path: Path) -> None:
    save = tmp_path / "model.zip"
    printed = run(
        "train_rl_srgan.py", "--quick", "--algorithm", algorithm, "--images", folder, "--held-out", folder,
        "--n-envs", 2, "--n-steps", 2, "--pretrain-updates", 2, "--total-timesteps", 8,
        "--batch-size", 2, "--save", save,
    )  # fmt: skip
    assert re.search(r"^pretrained: \d+\.\d{3} dB on held-out pictures$", printed, flags=re.MULTILINE)
    assert re.search(rf"^{algorithm}, 4 SRGAN updates: \d+\.\d{{3}} dB, SSIM 0\.\d{{4}}$", printed, flags=re.MULTILINE)
    assert save.stat().st_size > 0 and save.with_suffix(".pt").stat().st_size > 0


def test_random_agent_plays_one_episode_when_quick(folder: str) -> None:
    assert len(run("random_agent.py", "--images", folder, "--quick").splitlines()) == 6


def test_reinforce_measures_before_and_after(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    printed = run(
        "reinforce.py", "--quick", "--lr-patch-size", 24, "--grid-size", 2, "--out", out,
        "--images", folder, "--n-patches", 2, "--n-attempts", 2, "--n-updates", 10,
        "--n-held-out", 4, "--n-oracle-iterations", 5,
    )  # fmt: skip
    assert re.match(r"update 10: exploring gains [+-]\d\.\d{4} ssim\n", printed)
    table = gains(printed)
    assert list(table) == ["before training", "after training", "best constant"]
    assert table["before training"] == 0.0 != table["after training"]
    assert table["best constant"] > 0.0
    result = json.loads(out.read_text())
    assert result["timesteps"] == 10 * 3 * 4 and round(result["gain"], 4) == table["after training"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_reinforce_learns(seed: int) -> None:
    printed = run("reinforce.py", "--quick", "--seed", seed)
    assert gains(printed)["after training"] > 0.006


def test_torchrl_ppo_measures_before_and_after(folder: str) -> None:
    pytest.importorskip("torchrl")
    printed = run(
        "torchrl_ppo.py", "--images", folder, "--n-envs", 2, "--n-updates", 10, "--n-epochs", 1, "--n-held-out", 4,
        "--n-oracle-iterations", 5,
    )  # fmt: skip
    assert re.match(r"update 10: exploring gains [+-]\d\.\d{4} ssim\n", printed)
    table = gains(printed)
    assert table["before training"] == 0.0 != table["after training"]


def test_rllib_ppo_measures_before_and_after(folder: str) -> None:
    pytest.importorskip("ray")
    printed = run(
        "rllib_ppo.py", "--images", folder, "--n-envs", 2, "--n-iterations", 2, "--batch-size", 24, "--n-epochs", 1,
        "--n-held-out", 4, "--n-oracle-iterations", 5,
    )  # fmt: skip
    assert len(re.findall(r"^iteration \d: exploring gains [+-]\d\.\d{4} ssim$", printed, flags=re.MULTILINE)) == 2
    table = gains(printed)
    assert table["before training"] == 0.0 != table["after training"]


ALGORITHMS = ["A2C", "PPO", "TRPO", "RecurrentPPO", "SAC", "TD3", "DDPG", "TQC", "CrossQ", "DQN", "ARS", "REINFORCE"]
KEPT = {"gain": 0.5, "training_gain": 0.4, "timesteps": 48, "cpu_seconds": 1.0}


@pytest.fixture(scope="module")
def comparison(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of everything that needs no further extra; one of its runs was there already."""
    out = tmp_path_factory.mktemp("comparison")
    (out / "metric's-gradient-no-RL-seed0.json").write_text(json.dumps(KEPT))
    run(
        "compare_algorithms.py", "--quick", "--images", folder, "--held-out", folder, "--algorithms", *ALGORITHMS,
        "--total-timesteps", 96, "--n-envs", 4, "--n-held-out", 4, "--n-oracle-iterations", 2, "--out", out,
    )  # fmt: skip
    return out


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "algorithms.json").read_text())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_and_is_judged(name: str, comparison: Path) -> None:
    (trained,) = results_of(comparison)["algorithms"][name]["runs"]
    assert trained["timesteps"] >= 96
    for gain in (trained["gain"], trained["training_gain"]):
        assert -1.0 < gain < 1.0  # of SSIM
        if name != "DQN":  # of its seven moves one is to do nothing
            assert gain != 0.0


def test_comparison_keeps_what_was_there_and_says_what_it_comes_to(comparison: Path) -> None:
    results = results_of(comparison)
    assert results["algorithms"]["metric's gradient, no RL"]["runs"] == [KEPT]
    assert results["yardsticks"]["oracle"] > 0.0
    table = (comparison / "algorithms.md").read_text()
    for name, entry in results["algorithms"].items():
        training, ruler = entry["training"], results["yardsticks"]
        assert entry["share_of_oracle"] == pytest.approx(entry["gain"] / ruler["oracle"])
        assert training["share_of_oracle"] == pytest.approx(training["gain"] / ruler["training"]["oracle"])
        assert f" of 1 | {training['gain']:+.4f} | {training['share_of_oracle']:.0%} |" in table
        assert f"| {name} | {entry['gain']:+.4f} | {entry['share_of_oracle']:.0%} |" in table
    assert results["command"] in table


def test_comparison_goes_on_from_its_results_alone(folder: str, comparison: Path, tmp_path: Path) -> None:
    results = results_of(comparison)
    results["algorithms"] = {name: results["algorithms"][name] for name in ("metric's gradient, no RL", "PPO")}
    results["algorithms"]["PPO"]["runs"] = [KEPT]
    (tmp_path / "algorithms.json").write_text(json.dumps(results))
    run(
        "compare_algorithms.py", "--quick", "--images", folder, "--held-out", folder, "--algorithms", "PPO", "A2C",
        "--total-timesteps", 96, "--n-envs", 4, "--n-held-out", 4, "--n-oracle-iterations", 2, "--out", tmp_path,
    )  # fmt: skip
    added = results_of(tmp_path)
    assert added["algorithms"]["PPO"]["runs"] == [KEPT]
    assert added["yardsticks"] == results["yardsticks"]
    assert added["algorithms"]["A2C"]["runs"][0]["timesteps"] >= 96


def test_comparison_does_not_mix_runs_of_other_settings(comparison: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "compare_algorithms.py"), "--out", str(comparison)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode != 0 and "holds runs with other settings" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A2C", "PPO", "SAC"])
def test_algorithms_learn_more_than_the_best_constant_action(name: str, tmp_path: Path) -> None:
    arguments = ("--algorithms", name, "--seeds", 1, "--n-oracle-iterations", 50, "--out", tmp_path)
    run("compare_algorithms.py", *arguments, timeout=3600)  # two minutes, on a machine that does nothing else
    results = results_of(tmp_path)
    trained, ruler = results["algorithms"][name], results["yardsticks"]
    assert trained["training"]["gain"] > ruler["training"]["best_constant"] > 0.0
    assert trained["gain"] > 0.0


def test_train_rate_control_compares_agents_and_writes_a_policy(folder: str, tmp_path: Path) -> None:
    printed = run(
        "train_rate_control.py", "--images", folder, "--held-out", folder, "--file", "stream", "--crop-size", 128,
        "--crops", 3, "--agents", "values", "ppo", "--seeds", 1, "--quick", "--tables", tmp_path / "tables", "--out",
        tmp_path, "--policy", tmp_path / "policy.safetensors",
    )  # fmt: skip
    results = json.loads((tmp_path / "rate-control-stream.json").read_text())
    (totals,) = results["totals"].values()
    share = totals["values"]["share"]  # nothing where the oracle gains nothing at the rates that are met
    assert set(totals) == {"values", "ppo"}
    assert ("action values, fitted" if share is None else f"| {100 * share:.0f} %") in printed
    assert ("| none |" in printed) == any(entry["share"] is None for entry in totals.values())
    (agents,) = results["results"].values()
    rows = [row for row in agents["values"][0]["rows"] if "unmet" not in row]
    assert rows and all(row["policy_bytes"] <= row["bytes"] and row["policy"] <= row["oracle"] + 1e-9 for row in rows)
    policy = RatePolicy.load(tmp_path / "policy.safetensors")
    assert policy.card["training_pictures"] == 6 and "--quick" in policy.card["command"]
    assert len(list((tmp_path / "tables").iterdir())) == 2


def test_train_rate_control_says_what_too_few_files_do_not_meet(folder: str, tmp_path: Path) -> None:
    run(
        "train_rate_control.py", "--images", folder, "--held-out", folder, "--crop-size", 128, "--every", 4, "--files",
        0.01, "--agents", "blind", "--seeds", 2, "--out", tmp_path,
    )  # fmt: skip
    table = (tmp_path / "rate-control.md").read_text()
    (agents,) = json.loads((tmp_path / "rate-control.json").read_text(), parse_constant=pytest.fail)["results"].values()
    rows = [row for agent in agents["blind"] for row in agent["rows"]]
    unmet = sum("unmet" in row for row in rows)
    assert len(rows) == 16 and unmet > 0 and f"| {unmet} of 16 |" in table
    assert "nan" not in table


@pytest.mark.slow
def test_train_rate_control_is_quick_as_it_stands(tmp_path: Path) -> None:
    assert "| ppo: " in run("train_rate_control.py", "--quick", "--out", tmp_path)
