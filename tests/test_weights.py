import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan.generator import Generator
from gan.weights import load_generator, save_generator


@pytest.fixture
def generator(make_generator: Callable[..., Generator]) -> Generator:
    """A generator whose BatchNorm has seen pictures, so that its buffers are not the initial ones."""
    generator = make_generator()
    generator.train()
    with torch.no_grad():
        generator(torch.rand(2, 3, 8, 8))
    return generator.eval()


@pytest.fixture
def saved(generator: Generator, tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_generator(path, generator, {"name": "some", "updates": 7})
    return path


def test_round_trip_is_bit_equal(generator: Generator, saved: Path) -> None:
    loaded = load_generator(str(saved))
    assert loaded.config == generator.config
    assert not loaded.training
    before, after = generator.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    lr_image = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(loaded(lr_image), generator(lr_image))


def test_card_says_what_it_was_given_and_which_network_and_file_it_belongs_to(saved: Path) -> None:
    card = json.loads(saved.with_suffix(".json").read_text())
    assert card == {
        "generator": {
            "scale": 2,
            "channels": 8,
            "n_blocks": 1,
            "batch_norm": True,
            "n_subpixel_layers": 2,
            "base": "none",
        },
        "sha256": hashlib.sha256(saved.read_bytes()).hexdigest(),
        "name": "some",
        "updates": 7,
    }


def test_saving_again_replaces_both_files(saved: Path, make_generator: Callable[..., Generator]) -> None:
    other = make_generator(seed=1)
    save_generator(saved, other, {"name": "other"})
    weight = load_generator(saved).state_dict()["encoder.head.0.weight"]
    assert torch.equal(weight, other.state_dict()["encoder.head.0.weight"])
    assert json.loads(saved.with_suffix(".json").read_text())["name"] == "other"


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_damaged_byte_is_noticed(saved: Path, position: int) -> None:
    content = bytearray(saved.read_bytes())
    content[position] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or not the card's"):
        load_generator(saved)


def test_truncated_file_is_noticed(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or not the card's"):
        load_generator(saved)


def test_card_of_another_file_is_noticed(saved: Path, make_generator: Callable[..., Generator]) -> None:
    other = saved.with_name("other.safetensors")
    save_generator(other, make_generator(seed=1), {})
    other.with_suffix(".json").replace(saved.with_suffix(".json"))
    with pytest.raises(ValueError, match=r"some\.safetensors has sha256 .*, its card says"):
        load_generator(saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_missing_file_is_named(saved: Path, suffix: str) -> None:
    missing = saved.with_suffix(suffix)
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} does not exist; weights are"):
        load_generator(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: "{",
        lambda card: "[]",
        lambda card: json.dumps({key: value for key, value in card.items() if key != "sha256"}),
        lambda card: json.dumps({key: value for key, value in card.items() if key != "generator"}),
        lambda card: json.dumps({**card, "generator": {"depth": 3}}),
        lambda card: json.dumps({**card, "generator": {"scale": 1}}),
    ],
    ids=["no JSON", "no object", "no sha256", "no generator", "unknown field", "scale out of range"],
)
def test_card_of_another_form_is_one_clear_error(saved: Path, change: Callable[[dict[str, Any]], str]) -> None:
    card_path = saved.with_suffix(".json")
    card_path.write_text(change(json.loads(card_path.read_text())))
    with pytest.raises(ValueError, match=r"some\.json is no card that save_generator wrote"):
        load_generator(saved)


def test_nothing_is_left_where_writing_fails(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(descriptor: int, *_: object, **__: object) -> None:
        os.close(descriptor)
        raise OSError("no space left on device")

    monkeypatch.setattr("rlsr_env.files.os.fdopen", disk_full)
    with pytest.raises(OSError, match="no space left"):
        save_generator(tmp_path / "some.safetensors", generator, {})
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_cannot_be_written_leaves_older_files_as_they_were(saved: Path, generator: Generator) -> None:
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    with torch.no_grad():
        generator.get_parameter("encoder.head.0.weight").add_(1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_generator(saved, generator, {"data": Path("somewhere")})
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before
