import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan.generator import Generator
from gan.weights import load_generator, read_card, save_generator


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
            "unshuffle": 1,
            "head_kernel": 9,
            "base": "none",
        },
        "sha256": hashlib.sha256(saved.read_bytes()).hexdigest(),
        "name": "some",
        "updates": 7,
    }


def test_float16_halves_the_file_and_is_read_as_float32(
    generator: Generator, saved: Path, tmp_path: Path, torch_rng: None
) -> None:
    half = tmp_path / "half.safetensors"
    save_generator(half, generator, {}, dtype="float16")
    assert half.stat().st_size < 0.75 * saved.stat().st_size  # the names take their part
    with half.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    dtypes = {name: entry["dtype"] for name, entry in header.items()}
    assert dtypes.pop("encoder.blocks.0.body.0.1.num_batches_tracked") == "I64"
    assert set(dtypes.values()) == {"F16", "I64"} or set(dtypes.values()) == {"F16"}
    before, after = generator.state_dict(), load_generator(half).state_dict()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(after[name], expected)


def test_number_beyond_float16_is_refused(generator: Generator, tmp_path: Path) -> None:
    with torch.no_grad():
        generator.get_parameter("encoder.head.0.bias")[0] = 7e4
    with pytest.raises(ValueError, match=r"encoder\.head\.0\.bias holds a number that is too large for float16"):
        save_generator(tmp_path / "half.safetensors", generator, {}, dtype="float16")
    with pytest.raises(ValueError, match="unknown dtype 'bf16' of weights; known: float32, float16"):
        save_generator(tmp_path / "half.safetensors", generator, {}, dtype="bf16")
    assert list(tmp_path.iterdir()) == []


def test_card_is_read_without_the_weights(saved: Path) -> None:
    saved.write_bytes(b"damaged")
    assert read_card(saved)["updates"] == 7


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
        lambda card: json.dumps({**card, "generator": {"scale": 0}}),
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
