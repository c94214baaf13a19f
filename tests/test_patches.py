import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.patches import FLIP, IMAGE, LEFT, QUALITY, TOP, PatchSource, to_float

FLIPS = range(8)


def decoded(*pictures: np.ndarray) -> DecodedImages:
    return DecodedImages(tuple(f"picture:{i}" for i in range(len(pictures))), pictures, ())


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_grey(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Grey blobs some 12 pixels wide: no colour for JPEG's 4:2:0 to lose, no detail for the downsampling to lose."""
    coarse = np.random.default_rng(seed).integers(30, 226, (height // 12 + 2, width // 12 + 2), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.repeat(grey[..., None], 3, axis=2)


def flipped(patch: np.ndarray, flip: int) -> np.ndarray:
    """The eight flips and rotations of `(H, W, 3)`, each as NumPy has it."""
    return [
        patch,
        np.flipud(patch),
        np.fliplr(patch),
        np.rot90(patch, 2),
        patch.transpose(1, 0, 2),
        np.rot90(patch, -1),
        np.rot90(patch, 1),
        np.rot90(patch, 2).transpose(1, 0, 2),
    ][flip]


def as_pictures(patches: torch.Tensor) -> np.ndarray:
    """`(n, 3, H, W)` as `(n, H, W, 3)`."""
    return patches.permute(0, 2, 3, 1).numpy()


def box_mean(picture: np.ndarray, scale: int) -> np.ndarray:
    height, width = picture.shape[0] // scale, picture.shape[1] // scale
    return picture.astype(np.float64).reshape(height, scale, width, scale, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(96, 120), (97, 121), (95, 118)], ids=["multiple", "one-more", "one-or-two-less"])
def test_hr_patches_lie_exactly_under_their_lr_patches_in_every_flip(scale: int, size: tuple[int, int]) -> None:
    source = PatchSource(decoded(smooth_grey(*size), smooth_grey(*size, seed=1)), LRCodec(scale, quality=100), 8)
    index = source.draw(np.random.default_rng(0), 64)
    for flip in FLIPS:
        index[:, FLIP] = flip
        lr_image, hr_image = (as_pictures(patches) for patches in source.gather(index))
        for lr_patch, hr_patch in zip(lr_image, hr_image, strict=True):
            expected = box_mean(hr_patch, scale)
            error = np.abs(lr_patch - expected).mean()
            assert error < 3.0
            # Shifted by one LR pixel in any direction, the two agree worse.
            for axis in (0, 1):
                inner = np.delete(lr_patch, 0, axis) - np.delete(expected, -1, axis)
                outer = np.delete(lr_patch, -1, axis) - np.delete(expected, 0, axis)
                assert error < np.abs(inner).mean() and error < np.abs(outer).mean()


def test_gathers_slices_of_the_right_picture_quality_and_flip() -> None:
    pictures = [noise(40, 56, seed=1), noise(61, 45, seed=2), noise(32, 32, seed=3)]
    source = PatchSource(decoded(*pictures), LRCodec(2), 8, qualities=(30, 90))
    index = source.draw(np.random.default_rng(0), 200)
    assert {tuple(row) for row in index[:, [IMAGE, QUALITY]]} == {(i, q) for i in range(3) for q in range(2)}
    assert set(index[:, FLIP]) == set(FLIPS)
    lr_image, hr_image = (as_pictures(patches) for patches in source.gather(index))
    for row, lr_patch, hr_patch in zip(index, lr_image, hr_image, strict=True):
        codec = LRCodec(2, quality=(30, 90)[row[QUALITY]])
        hr_picture = pictures[row[IMAGE]]
        lr_picture = codec.decode(codec.encode(hr_picture))
        top, left = row[TOP], row[LEFT]
        assert np.array_equal(lr_patch, flipped(lr_picture[top : top + 8, left : left + 8], row[FLIP]))
        hr_slice = hr_picture[2 * top : 2 * top + 16, 2 * left : 2 * left + 16]
        assert np.array_equal(hr_patch, flipped(hr_slice, row[FLIP]))


def test_the_eight_flips_of_a_patch_are_all_different() -> None:
    source = PatchSource(decoded(noise(32, 32)), LRCodec(2), 16)
    index = np.array([[0, 0, 0, 0, flip] for flip in FLIPS])
    assert len({patch.tobytes() for patch in as_pictures(source.gather(index)[1])}) == 8


@given(
    scale=st.integers(2, 4),
    size=st.integers(1, 9),
    extra=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_patches_never_leave_the_picture(scale: int, size: int, extra: tuple[int, int], seed: int) -> None:
    height, width = (scale * size + more for more in extra)
    hr_picture = noise(height, width, seed)
    source = PatchSource(decoded(hr_picture), LRCodec(scale), size)
    index = source.draw(np.random.default_rng(seed), 40)
    assert (index >= 0).all()
    assert (index[:, [IMAGE, QUALITY]] == 0).all()
    assert (index[:, FLIP] < 8).all()
    assert (scale * (index[:, TOP] + size) <= height).all()
    assert (scale * (index[:, LEFT] + size) <= width).all()
    index[:, FLIP] = 0
    for row, hr_patch in zip(index, as_pictures(source.gather(index)[1]), strict=True):
        top, left = scale * row[TOP], scale * row[LEFT]
        assert np.array_equal(hr_patch, hr_picture[top : top + scale * size, left : left + scale * size])


def test_every_corner_of_a_picture_is_drawn() -> None:
    source = PatchSource(decoded(noise(2 * 19 + 1, 2 * 14)), LRCodec(2), 8)  # corners 0..11 and 0..6, the stride is 2
    index = source.draw(np.random.default_rng(0), 6000)
    assert {tuple(row) for row in index[:, [TOP, LEFT]]} == {(top, left) for top in range(12) for left in range(7)}


def test_a_picture_of_exactly_one_patch_has_one_corner() -> None:
    hr_picture = noise(24, 24)
    source = PatchSource(decoded(hr_picture), LRCodec(3), 8)
    index = source.draw(np.random.default_rng(0), 50)
    assert (index[:, [TOP, LEFT]] == 0).all()
    index[:, FLIP] = 0
    assert np.array_equal(as_pictures(source.gather(index[:1])[1])[0], hr_picture)


def test_equal_generators_draw_equal_patches_whatever_else_is_random() -> None:
    source = PatchSource(decoded(noise(40, 40), noise(50, 40, seed=1)), LRCodec(2), 8, qualities=(50, 75))
    first = source.draw(np.random.default_rng(7), 30)
    np.random.default_rng().random(5)
    torch.rand(5)
    assert np.array_equal(source.draw(np.random.default_rng(7), 30), first)
    assert not np.array_equal(source.draw(np.random.default_rng(8), 30), first)
    assert first.dtype == np.int64 and first.shape == (30, 5)


def test_drawing_one_by_one_is_as_drawing_at_once() -> None:
    source = PatchSource(decoded(noise(40, 40)), LRCodec(2), 8)
    rng = np.random.default_rng(7)
    one_by_one = np.concatenate([source.draw(rng, 1) for _ in range(10)])
    assert np.array_equal(one_by_one, source.draw(np.random.default_rng(7), 10))


@given(
    sides=st.lists(st.tuples(st.integers(16, 40), st.integers(16, 40)), min_size=1, max_size=4),
    flat=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_patches_of_a_chosen_picture_come_from_it_alone(sides: list[tuple[int, int]], flat: int, seed: int) -> None:
    images = [np.full((*side, 3), 90, np.uint8) if i == flat else noise(*side, i) for i, side in enumerate(sides)]
    source = PatchSource(decoded(*images), LRCodec(2), 8)
    for picture, (height, width) in enumerate(sides):
        index = source.draw(np.random.default_rng(seed), 50, picture)
        assert (index[:, IMAGE] == picture).all()
        assert (index[:, [TOP, LEFT]] >= 0).all()
        assert (index[:, TOP] <= height // 2 - 8).all() and (index[:, LEFT] <= width // 2 - 8).all()


def test_a_chosen_picture_takes_as_many_random_numbers_as_any() -> None:
    source = PatchSource(decoded(noise(40, 40), noise(40, 40, 1)), LRCodec(2), 8)
    chosen, free = np.random.default_rng(0), np.random.default_rng(0)
    index, free_index = source.draw(chosen, 5, 1), source.draw(free, 5)
    assert chosen.random() == free.random()
    assert np.array_equal(index[:, [QUALITY, FLIP]], free_index[:, [QUALITY, FLIP]])


def test_within_a_chosen_picture_places_are_as_likely_as_otherwise() -> None:
    left = np.concatenate([noise(32, 32), np.full((32, 64, 3), 90, np.uint8)], axis=1)  # detail only on the left
    source = PatchSource(decoded(noise(40, 40, 1), left), LRCodec(2), 8)
    chosen, free = source.draw(np.random.default_rng(0), 4000, 1), source.draw(np.random.default_rng(1), 40000)
    free = free[free[:, IMAGE] == 1]
    columns = np.arange(41)
    shares = [np.mean(index[:, LEFT, None] <= columns, axis=0) for index in (chosen, free)]
    assert np.abs(shares[0] - shares[1]).max() < 0.04
    assert (chosen[:, LEFT] < 16).mean() > 0.7


@pytest.mark.parametrize("picture", [-1, 2])
def test_refuses_to_draw_from_a_picture_that_is_none(picture: int) -> None:
    source = PatchSource(decoded(noise(40, 40), noise(40, 40, 1)), LRCodec(2), 8)
    with pytest.raises(ValueError, match=f"there is no picture {picture}; the set has 2, counted from 0"):
        source.draw(np.random.default_rng(0), 1, picture)


def test_prefers_gradient_energy_and_still_draws_smooth_patches() -> None:
    half_flat = noise(64, 256)
    half_flat[:, :128] = 90
    source = PatchSource(decoded(half_flat), LRCodec(2, quality=95), 8)
    left = source.draw(np.random.default_rng(0), 4000)[:, LEFT]
    flat, noisy = np.mean(left + 8 <= 62), np.mean(left >= 64)
    # In units of the mean energy, a smooth corner weighs 0.1 and a noisy one 2.1: 4.5 % of the patches are smooth.
    assert 0.02 < flat < 0.08
    assert noisy > 0.8


def test_without_a_uniform_share_smooth_patches_are_not_drawn() -> None:
    half_flat = noise(64, 256)
    half_flat[:, :128] = 90
    source = PatchSource(decoded(half_flat), LRCodec(2, quality=95), 8, uniform_share=0.0)
    left = source.draw(np.random.default_rng(0), 2000)[:, LEFT]
    assert not (left + 8 <= 48).any()


def test_pictures_that_are_flat_throughout_are_drawn_uniformly() -> None:
    grey = np.full((48, 48, 3), 128, dtype=np.uint8)
    source = PatchSource(decoded(grey, grey), LRCodec(2), 8)
    index = source.draw(np.random.default_rng(0), 2000)
    assert 0.45 < index[:, IMAGE].mean() < 0.55
    assert set(index[:, TOP]) == set(range(17)) == set(index[:, LEFT])
    lr_image, hr_image = source.gather(index)
    assert (hr_image == 128).all()
    assert ((lr_image.int() - 128).abs() <= 1).all()


def test_qualities_and_flips_are_equally_likely() -> None:
    source = PatchSource(decoded(noise(40, 40)), LRCodec(2), 8, qualities=(20, 50, 75, 95))
    index = source.draw(np.random.default_rng(0), 8000)
    # Standard deviations of 0.005 and 0.004.
    assert np.bincount(index[:, QUALITY]) / 8000 == pytest.approx([1 / 4] * 4, abs=0.02)
    assert np.bincount(index[:, FLIP]) / 8000 == pytest.approx([1 / 8] * 8, abs=0.016)


@pytest.mark.parametrize("base", ["jpeg", "webp"])
def test_n_bytes_are_the_lengths_of_the_files(base: str) -> None:
    pictures = [noise(40, 56), smooth_grey(61, 45)]
    source = PatchSource(decoded(*pictures), LRCodec(2, base), 8, qualities=(20, 75))
    expected = [[len(LRCodec(2, base, quality).encode(picture)) for quality in (20, 75)] for picture in pictures]
    assert source.n_bytes.tolist() == expected
    assert source.n_bytes.dtype == np.int64


def test_the_default_quality_is_that_of_the_codec() -> None:
    source = PatchSource(decoded(noise(40, 40)), LRCodec(2, quality=33), 8)
    assert source.qualities == (33,)
    assert source.codec == LRCodec(2, quality=33)
    assert PatchSource(decoded(noise(40, 40)), LRCodec(2, quality=33), 8, qualities=[60, 70]).codec.quality == 60


def test_says_what_it_holds() -> None:
    source = PatchSource(decoded(noise(40, 40), noise(41, 43)), LRCodec(4), 8)
    assert len(source) == 2
    assert source.uris == ("picture:0", "picture:1")
    assert (source.lr_patch_size, source.hr_patch_size) == (8, 32)
    assert source.device == torch.device("cpu")


def test_patches_are_fresh_uint8_in_channels_last_memory() -> None:
    source = PatchSource(decoded(noise(40, 40)), LRCodec(2), 8)
    index = source.draw(np.random.default_rng(0), 3)
    for patches, size in zip(source.gather(index), (8, 16), strict=True):
        assert patches.dtype == torch.uint8
        assert patches.shape == (3, 3, size, size)
        assert patches.is_contiguous(memory_format=torch.channels_last)
    kept = [patches.clone() for patches in source.gather(index)]
    for patches in source.gather(index):
        patches.zero_()
    for patches, expected in zip(source.gather(index), kept, strict=True):
        assert torch.equal(patches, expected)


def test_to_float_maps_255_to_1_and_keeps_memory_and_input() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(1, 1, 2, 2)
    image = image.contiguous(memory_format=torch.channels_last)
    floats = to_float(image)
    assert floats[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0], abs=1e-7)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert image.dtype == torch.uint8 and image.max() == 255


@pytest.mark.parametrize("size", [0, -3])
def test_refuses_a_patch_size_below_1(size: int) -> None:
    with pytest.raises(ValueError, match=f"lr_patch_size must be 1 or more, got {size}"):
        PatchSource(decoded(noise(40, 40)), LRCodec(2), size)


def test_refuses_no_qualities() -> None:
    with pytest.raises(ValueError, match="qualities is empty; give at least one"):
        PatchSource(decoded(noise(40, 40)), LRCodec(2), 8, qualities=[])


def test_refuses_a_quality_that_the_codec_has_not() -> None:
    with pytest.raises(ValueError, match="quality of jpeg is 1 to 100; got 101"):
        PatchSource(decoded(noise(40, 40)), LRCodec(2), 8, qualities=[75, 101])


@pytest.mark.parametrize("size", [(31, 40), (40, 31)])
def test_refuses_a_picture_smaller_than_a_patch_and_names_it(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"picture:1 is {size[1]}x{size[0]}, smaller than a patch of 32 pixels"):
        PatchSource(decoded(noise(40, 40), noise(*size)), LRCodec(2), 16)


# Loops on the CPU


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("scale", [2, 3])
def test_planar_patches_are_the_same_pixels(flip: int, scale: int) -> None:
    source = PatchSource(decoded(noise(50, 61), noise(64, 40, seed=1)), LRCodec(scale, quality=50), 9)
    index = source.draw(np.random.default_rng(0), 20)
    index[:, FLIP] = flip
    for planar, patches in zip(source.gather(index, torch.contiguous_format), source.gather(index), strict=True):
        assert planar.is_contiguous() and planar.dtype == torch.uint8
        assert torch.equal(planar, patches)


def test_one_draw_for_each_of_several_seeds_is_their_own_draw() -> None:
    source = PatchSource(decoded(noise(50, 61), noise(64, 40, seed=1)), LRCodec(2), 9, qualities=(20, 50))
    expected = [source.draw(np.random.default_rng(seed), 1)[0] for seed in range(30)]
    assert np.array_equal(source.draw_each([np.random.default_rng(seed) for seed in range(30)]), expected)
    pictures = [seed % 2 for seed in range(30)]
    expected = [source.draw(np.random.default_rng(seed), 1, seed % 2)[0] for seed in range(30)]
    assert np.array_equal(source.draw_each([np.random.default_rng(seed) for seed in range(30)], pictures), expected)


def test_the_loops_are_not_let_loose_on_an_index_of_other_pictures() -> None:
    source = PatchSource(decoded(noise(50, 61)), LRCodec(2), 9)
    index = source.draw(np.random.default_rng(0), 4)
    index[2, TOP] = 10**6
    with pytest.raises(ValueError, match="is no patch of 9 pixels"):
        source.gather(index, torch.contiguous_format)
