import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gan import zoo
from gan.generator import Generator, GeneratorConfig
from gan.tiling import TiledDecoder
from gan.weights import save_generator
from gan.zoo import (
    LANCZOS_WEIGHTS,
    MissingWeightsError,
    choose_weights,
    find_weights,
    list_weights,
    load_decoder,
    read_weights,
    weights_folders,
)
from rlsr_env.resample import upsample

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, make_generator: Callable[..., Generator]) -> Save:
    """Writes small networks."""

    def write(name: str, scale: int = 2, folder: Path = tmp_path, seed: int = 0, **card: str) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.safetensors"
        generator = make_generator(GeneratorConfig(scale=scale, channels=4, n_blocks=1, base="none"), seed=seed)
        save_generator(path, generator, card)
        return path

    return write


def test_own_folder_goes_before_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Save) -> None:
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path / "package")
    monkeypatch.delenv("RLSR_WEIGHTS", raising=False)
    assert weights_folders() == [tmp_path / "package"]
    save("one", folder=tmp_path / "package", purpose="psnr")
    save("two", folder=tmp_path / "package")
    monkeypatch.setenv("RLSR_WEIGHTS", str(tmp_path / "own"))
    save("one", folder=tmp_path / "own", purpose="ms_ssim")
    assert weights_folders() == [tmp_path / "own", tmp_path / "package"]
    there = list_weights()
    assert [weights.name for weights in there] == ["one", "two"]
    assert there[0].purpose == "ms_ssim"
    assert there[0].path == tmp_path / "own" / "one.safetensors"


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_own_folder_that_is_none_is_said(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLSR_WEIGHTS", str(tmp_path / name))
    with pytest.warns(UserWarning, match=f"RLSR_WEIGHTS names .*{name}, which is no folder"):
        assert weights_folders() == [zoo.PRETRAINED]


def test_no_folder_is_no_weights(tmp_path: Path) -> None:
    assert list_weights([tmp_path / "nowhere"]) == []


def test_weights_without_a_usable_card_are_left_out_with_a_warning(tmp_path: Path, save: Save) -> None:
    save("good")
    save("bad").with_suffix(".json").write_text("{}")
    save("bare").with_suffix(".json").unlink()
    with pytest.warns(UserWarning, match=r"left out weights (bad|bare)") as warned:
        assert [weights.name for weights in list_weights([tmp_path])] == ["good"]
    assert len(warned) == 2


def test_card_is_what_weights_say(save: Save) -> None:
    path = save("x2-jpeg-psnr", base_codec="jpeg", purpose="psnr")
    weights = read_weights(path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert (weights.name, weights.scale, weights.base_codec, weights.purpose) == ("x2-jpeg-psnr", 2, "jpeg", "psnr")
    assert weights.sha256.hex() == card["sha256"]
    bare = read_weights(save("bare"))
    assert (bare.base_codec, bare.purpose) == ("", "")
    assert read_weights("lanczos") is LANCZOS_WEIGHTS
    assert LANCZOS_WEIGHTS.sha256 == b""


def test_weights_are_chosen_by_scale_codec_and_purpose(tmp_path: Path, save: Save) -> None:
    save("a-x2-jpeg", base_codec="jpeg", purpose="psnr")
    save("b-x2-jpeg", base_codec="jpeg", purpose="psnr")
    save("x2-jpeg-rl-ms_ssim", base_codec="jpeg", purpose="ms_ssim")
    save("x2-webp", base_codec="webp", purpose="psnr")
    save("x3-jpeg", scale=3, base_codec="jpeg", purpose="psnr")
    save("nothing-said")

    def chosen(scale: int, base: str, purpose: str = "psnr") -> str:
        return choose_weights(scale, base, purpose, [tmp_path]).name

    assert chosen(2, "jpeg") == "a-x2-jpeg"
    assert chosen(2, "jpeg", "ms_ssim") == "x2-jpeg-rl-ms_ssim"
    assert chosen(2, "jpeg", "perceptual") == "a-x2-jpeg"  # there are none for it
    assert chosen(2, "webp", "ms_ssim") == "x2-webp"
    assert chosen(3, "jpeg") == "x3-jpeg"
    assert chosen(4, "jpeg") == chosen(2, "avif") == "lanczos"
    with pytest.raises(ValueError, match="unknown purpose 'beauty'; known: psnr, ms_ssim, perceptual"):
        choose_weights(2, "jpeg", "beauty", [tmp_path])
    with pytest.raises(ValueError, match="unknown base codec 'gif'"):
        choose_weights(2, "gif", "psnr", [tmp_path])


def test_weights_are_found_by_name_and_digest(tmp_path: Path, save: Save) -> None:
    weights = read_weights(save("some"))
    assert find_weights("some", weights.sha256[:4], [tmp_path]) == weights
    assert find_weights("lanczos", b"", [tmp_path]) is LANCZOS_WEIGHTS
    with pytest.raises(MissingWeightsError, match=r"'other' are not here \(there are: some\); put them"):
        find_weights("other", weights.sha256[:4], [tmp_path])
    with pytest.raises(MissingWeightsError, match=r"'some' here have the sha256 .*, the file was made with 00000000"):
        find_weights("some", bytes(4), [tmp_path])


def test_decoder_is_the_network(save: Save) -> None:
    weights = read_weights(save("some"))
    decoder = load_decoder(weights, 2, "cpu", "fp32", tile=5)
    assert isinstance(decoder, TiledDecoder)
    assert (decoder.scale, decoder.tile, decoder.step) == (2, 5, 1)
    lr_image = torch.rand(1, 3, 12, 9)
    assert weights.path is not None
    network = zoo.load_generator(weights.path)
    with torch.no_grad():
        torch.testing.assert_close(decoder(lr_image), network(lr_image), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="weights 'some' are for scale 2, the picture has scale 3"):
        load_decoder(weights, 3)


def test_decoder_of_an_unshuffled_network_has_its_grid(
    tmp_path: Path, make_generator: Callable[..., Generator]
) -> None:
    path = tmp_path / "wide.safetensors"
    config = GeneratorConfig(scale=2, channels=4, n_blocks=1, unshuffle=2, head_kernel=3)
    save_generator(path, make_generator(config), {})
    decoder = load_decoder(read_weights(path), 2, "cpu", "fp32", tile=5, ensemble=True)
    assert decoder.step == 2 and decoder.radius % 2 == 0
    assert decoder(torch.rand(1, 3, 13, 7)).shape == (1, 3, 26, 14)


def test_damaged_weights_are_noticed_when_loaded(save: Save) -> None:
    path = save("some")
    weights = read_weights(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or not the card's"):
        load_decoder(weights, 2, "cpu")


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_lanczos_is_a_decoder_of_any_scale(scale: int) -> None:
    lr_image = torch.rand(1, 3, 40, 33)
    decoder = load_decoder(LANCZOS_WEIGHTS, scale, "cpu", tile=16)
    torch.testing.assert_close(decoder(lr_image), upsample(lr_image, scale), rtol=0, atol=1e-5)


def test_weights_of_the_package_are_whole() -> None:
    """Every network that comes with the package can be loaded and says what it is for."""
    for weights in list_weights([zoo.PRETRAINED]):
        assert weights.purpose in zoo.PURPOSES
        assert weights.base_codec in ("jpeg", "webp", "avif")
        assert weights.path is not None
        assert zoo.load_generator(weights.path).config.scale == weights.scale
        assert choose_weights(weights.scale, weights.base_codec, weights.purpose, [zoo.PRETRAINED]).path is not None
