import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.ablation_options import AblateOptions
from agents.options import ReproduceOptions
from agents.run_folder import choose_run, read_checkpoint, read_run
from agents.run_options import RunOptions
from agents.train_options import TrainOptions

COMMANDS = [TrainOptions, AblateOptions, ReproduceOptions]
every_command = pytest.mark.parametrize("kind", COMMANDS, ids=[kind.command for kind in COMMANDS])


@every_command
def test_new_run_keeps_its_options_and_writes_nothing(kind: Any, tmp_path: Path) -> None:
    options = kind(out=tmp_path / "new" / "folder")
    assert choose_run(options) == (tmp_path / "new" / "folder", options)
    assert list(tmp_path.iterdir()) == []
    assert choose_run(kind())[0].name.startswith(kind.command)


@every_command
def test_resumed_run_has_the_options_of_its_own(kind: Any, tmp_path: Path) -> None:
    begun: RunOptions = kind(data=Path("some/where"), eval_data=(Path("a"), Path("b")), quick=True)
    (tmp_path / "config.json").write_text(begun.to_json())
    assert choose_run(kind(resume=tmp_path)) == (tmp_path, begun)
    with pytest.raises(ValueError, match="leave the others out"):
        choose_run(kind(resume=tmp_path, quick=True))


@every_command
def test_option_that_came_later_has_its_default(kind: Any) -> None:
    values = json.loads(kind(base_codec="webp").to_json())
    del values["precision"]
    assert kind.from_json(json.dumps(values)) == kind(base_codec="webp")


@every_command
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"junk", b"[]", b'{"scale": "four"}', b'{"preset": 3, "no": 1}'])
def test_config_that_is_none_is_named(kind: Any, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json is not one of rlsr {kind.command} \("):
        choose_run(kind(resume=tmp_path))


@pytest.mark.parametrize("content", ["junk", "[1]", '{"pictures": []}', "3"])
def test_damaged_beginning_is_named(content: str, tmp_path: Path) -> None:
    assert read_run(tmp_path, "command") == {}
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.+\); start a new run"):
        read_run(tmp_path, "command", "pictures")


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "srgan-seed0.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"srgan-seed0\.pt is damaged .*delete it, and what it holds is made anew"):
        read_checkpoint(path, torch.device("cpu"))
    torch.save({"stage": 1}, path)
    assert read_checkpoint(path, torch.device("cpu"), "stage") == {"stage": 1}
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(path, torch.device("cpu"), "stage", "points")
