import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from rich.console import Console

import rlsr_env
from agents.cli import main
from agents.envs import EnvsListing
from agents.envs_options import EnvsOptions
from rlsr_env.catalogue import environment_facts, environment_ids
from rlsr_env.images import image_set, image_set_names
from rlsr_env.metrics import METRICS, register_metric
from rlsr_env.rewards import REWARDS

IDS = sorted([*rlsr_env.ENVIRONMENTS, rlsr_env.RATE_CONTROL])


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["envs", "--json", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def shown(id: str | None = None, width: int = 200) -> str:
    file = io.StringIO()
    assert EnvsListing(EnvsOptions(id), command="", console=Console(file=file, width=width)).run() == ""
    return file.getvalue()


def test_json_lists_every_id_with_the_spaces_that_gymnasium_makes(capsys: pytest.CaptureFixture[str]) -> None:
    environments = listed(capsys)["environments"]
    assert [facts["id"] for facts in environments] == IDS
    for facts in environments:
        env: Any = gymnasium.make(facts["id"])
        for name in ("observation_space", "action_space"):
            space = getattr(env, name)
            expected = {"space": str(space), "shape": list(space.shape), "dtype": str(space.dtype)}
            assert facts[name] == expected
        assert facts["summary"].endswith(".")
        env.reset(seed=0)
        steps, terminated = 0, False
        while not terminated:
            _, _, terminated, _, info = env.step(env.action_space.sample())
            steps += 1
        assert steps == facts["episode_length"]
        assert facts["metric"] in info


def test_defaults_are_those_of_the_id_and_their_meaning_is_the_docstrings() -> None:
    facts = environment_facts("rlsr/DetailControl-v0")
    arguments = {argument.name: argument for argument in facts.arguments}
    assert (arguments["scale"].default, arguments["quality"].default) == (2, 20)  # 4 and 75 for the other ids
    assert arguments["scale"].description == "Downsampling factor of the LR file."
    assert arguments["source"].description.endswith("`lr_patch_size` and `device`.")  # three lines in the docstring
    assert not {"self", "num_envs", "task", "autoreset_mode", "task_options"} & set(arguments)
    options = [(option.name, option.default, option.description) for option in facts.task_options]
    assert options == [
        ("n_bands", 3, "Frequency bands, finest first."),
        ("grid_size", 4, "Cells along each side."),
        ("max_change", 1.0, "The strength that an action of 1 adds."),
    ]
    assert all(argument.description for argument in facts.arguments)
    assert facts.reward == "improvement"
    assert facts.description.startswith("The generator restores the patch once")


@pytest.mark.parametrize("id", IDS)
def test_every_listed_argument_is_accepted_by_make(id: str) -> None:
    facts = environment_facts(id)
    given = {argument.name: argument.default for argument in (*facts.arguments, *facts.task_options)}
    env = gymnasium.make(id, **given)
    assert env.action_space == facts.action_space
    assert env.observation_space == facts.observation_space


def test_json_of_one_id_is_its_entry_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    for entry in listed(capsys)["environments"]:
        assert listed(capsys, entry["id"]) == entry


def test_json_lists_metrics_rewards_and_image_sets(capsys: pytest.CaptureFixture[str]) -> None:
    before = listed(capsys)
    try:
        register_metric("darkness", lambda sr, hr: 0.0, higher_is_better=False, min_size=7, unit="lux", source="us")
        after = listed(capsys)
    finally:
        del METRICS["darkness"]
    assert [metric for metric in after["metrics"] if metric not in before["metrics"]] == [
        {
            "name": "darkness", "unit": "lux", "higher_is_better": False, "min_size": 7, "block_map": False,
            "source": "us",
        }
    ]  # fmt: skip
    assert [reward["name"] for reward in before["rewards"]] == list(REWARDS)
    assert all(reward["description"] for reward in before["rewards"])
    assert [images["name"] for images in before["image_sets"]] == image_set_names()
    kodak = next(images for images in before["image_sets"] if images["name"] == "kodak")
    assert kodak["licence"] == image_set("kodak").licence
    assert "24 photographs" in kodak["description"]


def test_table_shows_all_and_takes_brackets_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "odd", METRICS["psnr"].__class__("odd", METRICS["psnr"].function, source="[red]us[/]"))
    text = shown()
    for name in (*IDS, *METRICS, *REWARDS, *image_set_names(), "folder:PATH", "[red]us[/]"):
        assert name in text
    assert "action: Box(-1.0, 1.0, (48,), float32)" in text
    assert "reward: improvement of ssim" in text
    assert "its own options: n_bands=3, grid_size=4, max_change=1.0" in text
    assert "episode: 1 step\u0020" in text and "episode: 5 steps" in text


@pytest.mark.parametrize("id", IDS)
def test_one_environment_in_full(id: str) -> None:
    text = shown(id)
    facts = environment_facts(id)
    assert str(facts.action_space) in text
    for argument in (*facts.arguments, *facts.task_options):
        assert argument.name in text
        assert repr(argument.default) in text
    for other in set(IDS) - {id}:
        assert f"`{other}`" not in text


def test_narrow_terminal_loses_nothing() -> None:
    letters = "".join(character for character in shown(width=50) if character.isalnum())
    for id in IDS:
        assert "".join(character for character in id if character.isalnum()) in letters


@pytest.mark.parametrize("id", ["DetailControl", "rlsr/DetailControl-v9", "CartPole-v1", "nonsense"])
def test_unknown_id_lists_the_known_ones(id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", id]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"rlsr: error: unknown environment {id!r}")
    assert line.endswith(f" Known: {', '.join(environment_ids())}")
    assert ("did you mean rlsr/DetailControl-v0?" in line) == ("Detail" in id)
    assert captured.out == ""


def test_empty_id_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", ""]) == 2
    assert capsys.readouterr().err.startswith("rlsr: error: the id is empty")


def test_no_picture_is_read_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlsr_env.images.load_image", refuse)
    monkeypatch.setenv("RLSR_DATA", str(tmp_path / "cache"))
    assert main(["envs"]) == 0
    assert not list(tmp_path.iterdir())


def test_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.cli", "envs", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    complaint = process.stderr.read()
    assert process.wait(timeout=300) == 141
    assert complaint == ""
