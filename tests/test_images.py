import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsr_env.images import FolderImages, ImageSet, SampleImages, decode_images, image_set, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUADRANTS = ((RED, GREEN), (BLUE, WHITE))


def write_png(path: Path, height: int = 4, width: int = 6, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, value, value)).save(path)
    return path


def noise(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    loaded = load_image(tmp_path / "rgb.png")
    np.testing.assert_array_equal(loaded, pixels)
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous and loaded.flags.writeable


def test_path_may_be_a_string(tmp_path: Path) -> None:
    assert load_image(str(write_png(tmp_path / "a.png"))).shape == (4, 6, 3)


def test_grey_is_repeated_to_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 77], [128, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    loaded = load_image(tmp_path / "grey.png")
    assert loaded.tolist() == [[[0] * 3, [77] * 3], [[128] * 3, [255] * 3]]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "bit.png")
    assert load_image(tmp_path / "bit.png").tolist() == [[[0] * 3, [255] * 3]]


# v / 257 rounded: 128 / 257 = 0.498, 129 / 257 = 0.502, 257 -> 1, 32768 / 257 = 127.502, 65406 / 257 = 254.498,
# 65407 / 257 = 254.502, 65535 -> 255.
SIXTEEN_BIT = [0, 128, 129, 257, 32768, 65406, 65407, 65535]
EIGHT_BIT = [0, 0, 1, 1, 128, 254, 255, 255]


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_sixteen_bit_grey_is_scaled_and_rounded(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.array([SIXTEEN_BIT], dtype=np.uint16)).save(tmp_path / name)
    assert load_image(tmp_path / name).tolist() == [[[value] * 3 for value in EIGHT_BIT]]


def test_big_endian_sixteen_bit_grey_is_scaled_and_rounded(tmp_path: Path) -> None:
    grey = Image.frombytes("I;16B", (8, 1), struct.pack(">8H", *SIXTEEN_BIT))
    grey.save(tmp_path / "big.tif")
    with Image.open(tmp_path / "big.tif") as image:
        assert image.mode == "I;16B"
    assert load_image(tmp_path / "big.tif")[0, :, 0].tolist() == EIGHT_BIT


def test_thirty_two_bit_grey_within_sixteen_bits_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([SIXTEEN_BIT], dtype=np.int32)).save(tmp_path / "grey.tif")
    assert load_image(tmp_path / "grey.tif")[0, :, 2].tolist() == EIGHT_BIT


@pytest.mark.parametrize("value", [-1, 65536])
def test_thirty_two_bit_grey_beyond_sixteen_bits_is_refused(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.array([[0, value]], dtype=np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"wide\.tif: 32-bit grey"):
        load_image(tmp_path / "wide.tif")


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: floating-point pixels"):
        load_image(tmp_path / "float.tif")


def test_sixteen_bit_rgb_png_is_read(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1200, 0x3400, 0x5600)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(data)
    assert load_image(tmp_path / "deep.png").tolist() == [[[0, 0x80, 0xFF], [0x12, 0x34, 0x56]]]


def test_rgba_is_composited_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    # Alpha 51 is a fifth: 0.8 * 255 = 204, 0.2 * 100 + 204 = 224, 0.2 * 255 + 204 = 255.
    assert load_image(tmp_path / "rgba.png").tolist() == [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]]


def test_grey_with_alpha_is_composited_over_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[40, 255], [40, 0], [100, 51]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert load_image(tmp_path / "la.png").tolist() == [[[40] * 3, [255] * 3, [224] * 3]]


@pytest.mark.parametrize(("name", "transparent"), [("p.png", False), ("p.png", True), ("p.gif", True)])
def test_palette_is_resolved_and_its_transparency_becomes_white(tmp_path: Path, name: str, transparent: bool) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    if transparent:
        palette.info["transparency"] = 1
    palette.save(tmp_path / name)
    assert load_image(tmp_path / name).tolist() == [[list(RED), list(WHITE if transparent else BLUE)]]


def test_palette_with_partial_transparency_is_composited(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 100, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=bytes([255, 51]))
    assert load_image(tmp_path / "p.png").tolist() == [[list(RED), [204, 224, 255]]]


def test_transparent_key_colour_of_rgb_becomes_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[RED, BLUE]], dtype=np.uint8)).save(tmp_path / "key.png", transparency=BLUE)
    assert load_image(tmp_path / "key.png").tolist() == [[list(RED), list(WHITE)]]


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    # No ink is white, full cyan absorbs the red, full black is black.
    for name, ink, expected in [
        ("white", (0, 0, 0, 0), (255, 255, 255)),
        ("cyan", (255, 0, 0, 0), (0, 255, 255)),
        ("black", (0, 0, 0, 255), (0, 0, 0)),
    ]:
        path = tmp_path / f"{name}.jpg"
        Image.new("CMYK", (16, 16), ink).save(path, quality=100)
        with Image.open(path) as image:
            assert image.mode == "CMYK" and "adobe" in image.info
        np.testing.assert_allclose(load_image(path), np.broadcast_to(expected, (16, 16, 3)), atol=2)


# Where the stored top left quadrant (red) and the others come to lie; EXIF 2.3, tag 0x0112: 3 is a half turn,
# 6 a quarter turn clockwise, 8 a quarter turn counterclockwise.
UPRIGHT = {
    1: ((RED, GREEN), (BLUE, WHITE)),
    3: ((WHITE, BLUE), (GREEN, RED)),
    6: ((BLUE, RED), (WHITE, GREEN)),
    8: ((GREEN, WHITE), (RED, BLUE)),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = np.array(QUADRANTS, dtype=np.uint8).repeat(16, axis=0).repeat(32, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=100, subsampling="4:4:4", exif=exif)
    loaded = load_image(tmp_path / "photo.jpg")
    height, width = loaded.shape[:2]
    assert (height, width) == ((64, 32) if orientation in (6, 8) else (32, 64))
    centres = loaded[height // 4 :: height // 2, width // 4 :: width // 2]
    np.testing.assert_allclose(centres, np.array(UPRIGHT[orientation]), atol=4)
    assert loaded.flags.c_contiguous


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "moving.gif") as image:
        assert getattr(image, "n_frames", 1) == 2
    assert load_image(tmp_path / "moving.gif").tolist() == [[list(RED)] * 3] * 2


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        load_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    "content", [b"", b"these are words, not a picture\n" * 20, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_file_that_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "words.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot decode .*words\.png"):
        load_image(tmp_path / "words.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "avif", "bmp", "tif", "gif", "ppm", "jp2"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_file_is_refused_by_name(tmp_path: Path, extension: str, kept: float) -> None:
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(noise()).save(path)
    assert load_image(path).shape == (40, 50, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf"cannot decode .*cut\.{extension}"):
        load_image(path)


def test_corrupt_pixel_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.png"
    Image.fromarray(noise()).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot decode .*corrupt\.png"):
        load_image(path)


def test_corrupt_avif_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.avif"
    Image.fromarray(noise()).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"mdat") + 4] ^= 0xFF  # the header of the coded picture
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot decode .*corrupt\.avif"):
        load_image(path)


def test_picture_too_large_to_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cannot decode .*bomb\.png"):
        load_image(write_png(tmp_path / "bomb.png"))


def test_folder_is_listed_recursively_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ["b.png", "a/z.PNG", "a.png", "c/d/e.png", ".hidden.png", ".cache/f.png", "c/.d/g.png"]:
        write_png(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    images = FolderImages(tmp_path)
    assert images.name == f"folder:{tmp_path}"
    assert images.uris() == [f"folder:{tmp_path}/{name}" for name in ["a.png", "a/z.PNG", "b.png", "c/d/e.png"]]
    assert images.uris() == FolderImages(tmp_path).uris()
    assert images.load(images.uris()[0]).shape == (4, 6, 3)


def test_folder_version_follows_names_and_sizes_only(tmp_path: Path) -> None:
    write_png(tmp_path / "one" / "a.png")
    write_png(tmp_path / "two" / "a.png")
    os.utime(tmp_path / "two" / "a.png", (0, 0))
    version = FolderImages(tmp_path / "one").version
    assert FolderImages(tmp_path / "two").version == version
    write_png(tmp_path / "two" / "b.png")
    assert FolderImages(tmp_path / "two").version != version
    (tmp_path / "one" / "a.png").rename(tmp_path / "one" / "c.png")
    assert FolderImages(tmp_path / "one").version != version


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give a folder of images"):
        FolderImages(tmp_path / "nowhere")


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png is a file"):
        FolderImages(write_png(tmp_path / "a.png"))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is empty; looked for \.avif"):
        FolderImages(tmp_path)


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"holds no image file; looked for .*\.png"):
        FolderImages(tmp_path)


def test_uri_of_another_set_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    with pytest.raises(ValueError, match="'sample:chelsea' is not in the image set 'folder:"):
        FolderImages(tmp_path).load("sample:chelsea")


def test_sample_splits_are_disjoint_and_together_all() -> None:
    train, held_out, everything = (image_set(name).uris() for name in ("sample:train", "sample:held-out", "sample"))
    assert held_out == ["sample:camera", "sample:chelsea", "sample:coffee"]
    assert len(train) == 8 and not set(train) & set(held_out)
    assert everything == sorted(train + held_out)
    assert "sample:motorcycle_right" not in everything


def test_sample_photographs_load_without_importing_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, module)
    images = SampleImages()
    shapes = {uri: images.load(uri).shape for uri in images.uris()}
    assert shapes["sample:chelsea"] == (300, 451, 3)
    assert shapes["sample:coffee"] == (400, 600, 3)
    assert shapes["sample:camera"] == shapes["sample:astronaut"] == (512, 512, 3)
    assert len(shapes) == 11
    assert "skimage" not in sys.modules


def test_held_out_photograph_is_not_in_the_training_split() -> None:
    with pytest.raises(ValueError, match="'sample:chelsea' is not in the image set 'sample:train'"):
        SampleImages("train").load("sample:chelsea")


def test_unknown_sample_split() -> None:
    with pytest.raises(ValueError, match="no split 'test' of the sample images; known: all, train, held-out"):
        SampleImages("test")  # type: ignore[arg-type]


def test_scikit_image_without_a_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Specification:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Specification)
    with pytest.raises(FileNotFoundError, match=r"scikit-image .* has no camera\.png, chelsea\.png, coffee\.png"):
        SampleImages("held-out")


def test_sample_set_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="need scikit-image; run `pip install scikit-image`"):
        SampleImages()


@pytest.mark.parametrize("name", ["sample", "sample:train", "sample:held-out"])
def test_image_set_has_the_name_it_was_made_with(name: str) -> None:
    images = image_set(name)
    assert images.name == name
    assert images.version and images.licence and images.description


def test_image_set_of_a_folder_by_name_and_by_path(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    by_name = image_set(f"folder:{tmp_path}")
    assert by_name.uris() == image_set(tmp_path).uris() == [f"folder:{tmp_path}/a.png"]
    assert image_set(by_name) is by_name


@pytest.mark.parametrize("name", ["kodak:train", "sample:test", "folder:", "photos", ""])
def test_unknown_image_set_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"known: sample, sample:train, sample:held-out, kodak, .*, folder:PATH"):
        image_set(name)


def test_image_set_of_something_else() -> None:
    with pytest.raises(TypeError, match="got int"):
        image_set(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [None, 1, 4])
def test_decode_images_keeps_the_order_of_the_set(tmp_path: Path, workers: int | None) -> None:
    for index in range(20):
        write_png(tmp_path / f"{index:02d}.png", value=index)
    images = FolderImages(tmp_path)
    decoded = decode_images(images, workers=workers)
    assert decoded.uris == tuple(images.uris())
    assert [image[0, 0, 0] for image in decoded.images] == list(range(20))
    assert decoded.skipped == ()


def test_decode_images_skips_bad_and_small_pictures_with_a_warning(tmp_path: Path) -> None:
    write_png(tmp_path / "good.png", 8, 8)
    write_png(tmp_path / "small.png", 16, 7)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.warns(UserWarning) as warned:
        decoded = decode_images(FolderImages(tmp_path), min_size=8)
    assert decoded.uris == (f"folder:{tmp_path}/good.png",)
    assert [image.shape for image in decoded.images] == [(8, 8, 3)]
    assert [uri.rpartition("/")[2] for uri, _ in decoded.skipped] == ["bad.png", "small.png"]
    assert decoded.skipped[1][1] == "7x16 pixels, but the shorter side must have at least 8"
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == 2 and "bad.png: cannot decode" in messages[0] and "small.png: 7x16" in messages[1]


def test_decode_images_skips_a_file_that_has_gone(tmp_path: Path) -> None:
    write_png(tmp_path / "here.png")
    gone = write_png(tmp_path / "gone.png")
    images = FolderImages(tmp_path)
    gone.unlink()
    with pytest.warns(UserWarning, match=r"skipped .*gone\.png: .* does not exist"):
        assert len(decode_images(images).skipped) == 1


def test_decode_images_with_nothing_left_says_why(tmp_path: Path) -> None:
    for index in range(5):
        write_png(tmp_path / f"{index}.png", 4, 4)
    with pytest.raises(ValueError, match=r"5 skipped, the first ones: .*0\.png: 4x4 pixels.*2\.png") as raised:
        decode_images(FolderImages(tmp_path), min_size=5)
    assert "3.png" not in str(raised.value)


@pytest.mark.parametrize("setting", [{"min_size": 0}, {"workers": 0}])
def test_decode_images_refuses_settings_below_one(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        decode_images(SampleImages(), **setting)


def test_image_set_of_ones_own_needs_only_uris_and_load() -> None:
    class Flat(ImageSet):
        name = "flat"

        def uris(self) -> list[str]:
            return ["flat:0"]

        def load(self, uri: str) -> np.ndarray:
            return np.zeros((4, 4, 3), np.uint8)

    assert decode_images(image_set(Flat())).uris == ("flat:0",)


def test_links_to_nowhere_are_skipped_and_pipes_never_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(UserWarning, match="skipped") as warned:
        decoded = decode_images(FolderImages(tmp_path))
    assert len(decoded.images) == 1
    assert len(decoded.skipped) == len(warned) == 2
