import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from PIL import Image, ImageCms

from gan.picture_files import Metadata, Picture, check_pixels, load_picture, pillow_takes, save_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height: int = 30, width: int = 44) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def exif(**tags: Any) -> Image.Exif:
    """EXIF with a description, and more."""
    made = Image.Exif()
    made[0x010E] = "a cat"
    for tag, value in tags.items():
        made[int(tag[1:])] = value
    return made


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg", ".avif"])
def test_profile_and_exif_come_back(suffix: str, tmp_path: Path) -> None:
    image = np.full((40, 60, 3), 90, np.uint8)
    path = tmp_path / f"picture{suffix}"
    save_picture(path, Picture(image, Metadata(SRGB, exif().tobytes())))
    picture = load_picture(path)
    assert picture.metadata.icc_profile == SRGB
    read = Image.Exif()
    read.load(picture.metadata.exif)
    assert read[0x010E] == "a cat"
    np.testing.assert_allclose(picture.image, image, atol=2)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_formats_that_lose_nothing_lose_nothing(suffix: str, tmp_path: Path) -> None:
    save_picture(tmp_path / f"p{suffix}", Picture(noise()))
    picture = load_picture(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(picture.image, noise())
    assert not picture.metadata


def test_orientation_is_applied_and_then_gone(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    Image.fromarray(noise()).save(path, exif=exif(_274=6))
    picture = load_picture(path)
    np.testing.assert_array_equal(picture.image, np.rot90(noise(), -1))
    read = Image.Exif()
    read.load(picture.metadata.exif)
    assert 274 not in read and read[0x010E] == "a cat"


def test_exif_of_nothing_but_the_orientation_is_none(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    made = Image.Exif()
    made[274] = 3
    Image.fromarray(noise()).save(path, exif=made)
    assert load_picture(path).metadata == Metadata()


def test_tags_about_how_a_tiff_file_lies_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    Image.fromarray(noise()).save(path, compression="tiff_lzw", description="a cat")
    metadata = load_picture(path).metadata
    read = Image.Exif()
    read.load(metadata.exif)
    assert dict(read) == {0x010E: "a cat"}


@pytest.mark.parametrize(("mode", "space"), [("CMYK", b"CMYK"), ("L", b"GRAY")])
def test_a_profile_of_other_colours_is_left_out_with_a_warning(mode: str, space: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    profile = SRGB[:16] + space + SRGB[20:]
    Image.fromarray(noise()).convert(mode).save(path, icc_profile=profile)
    with pytest.warns(UserWarning, match=f"left out the colour profile of .*: it is for {space.decode()}, not for RGB"):
        picture = load_picture(path)
    assert picture.metadata == Metadata()


def test_alpha_grey_and_16_bit_are_read_as_everywhere(tmp_path: Path) -> None:
    grey = noise()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgba = np.dstack([noise(), np.zeros((30, 44), np.uint8)])
    Image.fromarray(rgba, "RGBA").save(tmp_path / "clear.png")
    for name in ("deep", "grey"):
        np.testing.assert_array_equal(load_picture(tmp_path / f"{name}.png").image, np.repeat(grey[..., None], 3, 2))
    assert (load_picture(tmp_path / "clear.png").image == 255).all()


def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png does not exist"):
        load_picture(tmp_path / "nothing.png")
    file = io.BytesIO()
    Image.fromarray(noise()).save(file, "PNG")
    for name, content in {"empty": b"", "text": b"hello", "cut": file.getvalue()[:500]}.items():
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot decode .*{name}.png"):
            load_picture(tmp_path / f"{name}.png")


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "p.png", Picture(noise()))
    monkeypatch.setattr("gan.picture_files.load_image", lambda path: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="44 x 30 = 1320 pixels, more than the 1319 that are allowed"):
        load_picture(tmp_path / "p.png", max_pixels=1319)


def test_more_than_pillows_own_limit_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "p.png", Picture(noise()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_picture(tmp_path / "p.png", max_pixels=1320).image.shape == (30, 44, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ZeroDivisionError), pillow_takes(1000):
        assert Image.MAX_IMAGE_PIXELS == 1000
        _ = 1 / 0
    assert Image.MAX_IMAGE_PIXELS == 100
    with pillow_takes(50):
        assert Image.MAX_IMAGE_PIXELS == 100


def test_check_pixels() -> None:
    check_pixels(3, 4, 12)
    with pytest.raises(ValueError, match="4 x 3 = 12 pixels, more than the 11"):
        check_pixels(3, 4, 11)


@pytest.mark.parametrize("name", ["p", "p.xyz", "p.psd"])
def test_unknown_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture format is called .*; give \.png, for example"):
        save_picture(tmp_path / name, Picture(noise()))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_too_large_for_its_format_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*p\.webp"):
        save_picture(tmp_path / "p.webp", Picture(np.zeros((1, 20000, 3), np.uint8)))
    assert os.listdir(tmp_path) == []


def test_usual_profile_of_srgb_is_left_out(tmp_path: Path) -> None:
    """Without a profile a picture is in sRGB, and this one would have more bytes than the picture."""
    chelsea = Path(skimage.__path__[0]) / "data" / "chelsea.png"
    with Image.open(chelsea) as image:
        assert b"sRGB IEC61966-2.1" in image.info["icc_profile"]
    assert load_picture(chelsea).metadata.icc_profile == b""
