import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from gan.evaluation import code_pictures, measure
from gan.file_format import decompress, pack
from gan.generator import Generator, GeneratorConfig
from gan.rate_points import (
    LANCZOS_RESTORER,
    SETTINGS,
    WHOLE_CODECS,
    FileSeries,
    PictureJudge,
    Restorer,
    UnusablePictureError,
    check_codec,
    encode_jpeg2000,
)
from gan.weights import save_generator
from gan.zoo import Weights, read_weights
from rlsr_env.codec import BASE_CODECS, LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.resample import upsample

CPU = torch.device("cpu")


@pytest.fixture
def hr_image(hr_pictures: list[np.ndarray]) -> np.ndarray:
    return hr_pictures[0]


@pytest.fixture
def weights(tmp_path: Path, torch_rng: None) -> Weights:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(scale=2, channels=4, n_blocks=1))
    torch.nn.init.normal_(generator.decoder.layers[-1].convolution.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    path = tmp_path / "jpeg-x2-psnr.safetensors"
    save_generator(path, generator, {"base_codec": "jpeg", "purpose": "psnr"})
    return read_weights(path)


@pytest.mark.parametrize("codec", WHOLE_CODECS)
def test_settings_make_ever_larger_files_that_are_whole_files_of_the_codec(codec: str, hr_image: np.ndarray) -> None:
    series = FileSeries(codec)
    settings = SETTINGS[codec][:: 4 if codec == "avif" else 3]
    files = [series.encode(hr_image, setting) for setting in settings]
    assert [len(file) for file in files] == sorted(len(file) for file in files)
    assert len(set(map(len, files))) == len(files)
    for file in files:
        decoded = series.decode(file)
        assert decoded.shape == hr_image.shape and decoded.dtype == np.uint8
        with Image.open(io.BytesIO(file)) as image:
            assert np.array_equal(np.array(image.convert("RGB")), decoded)
    assert series.name == codec


def test_settings_are_within_the_codecs_ranges() -> None:
    for codec, base in BASE_CODECS.items():
        assert all(setting in base.qualities for setting in SETTINGS[codec])
        assert list(SETTINGS[codec]) == sorted(set(SETTINGS[codec]))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 3), (161, 161)])
@pytest.mark.parametrize("codec", WHOLE_CODECS)
def test_pictures_of_any_size(codec: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    series = FileSeries(codec)
    assert series.decode(series.encode(image, SETTINGS[codec][5])).shape == image.shape


def test_jpeg2000_keeps_to_its_rate(hr_image: np.ndarray) -> None:
    for rate in (0.5, 1.0, 2.0):
        rates = 8 * len(encode_jpeg2000(hr_image, rate)) / (hr_image.shape[0] * hr_image.shape[1])
        assert 0.9 * rate < rates < 1.05 * rate


def test_picture_that_a_codec_cannot_store_is_named(hr_image: np.ndarray) -> None:
    with pytest.raises(UnusablePictureError, match="webp cannot store it"):
        FileSeries("webp").encode(np.zeros((1, 16400, 3), np.uint8), 0)


def test_judge_says_what_the_evaluation_of_whole_pictures_says(hr_image: np.ndarray) -> None:
    judge = PictureJudge(hr_image, CPU)
    point = judge.measure(FileSeries("jpeg", 2, (LANCZOS_RESTORER,)), 20)
    coded = code_pictures(DecodedImages(("one",), (hr_image,), ()), LRCodec(2, "jpeg", 20))
    expected = measure(lambda lr_image: upsample(lr_image, 2), coded)
    assert point["bytes"] == coded[0].n_bytes
    for name in ("psnr", "ms_ssim", "ssim"):
        assert point["restored"]["lanczos"][name] == pytest.approx(expected[name], rel=2e-6)
    assert -10 * np.log10(point["restored"]["lanczos"]["squared_error"]) == pytest.approx(expected["psnr_clic"])


def test_decoder_is_priced_as_the_projects_own_file_that_restores_the_same(
    hr_image: np.ndarray, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.path is not None
    monkeypatch.setenv("RLSR_WEIGHTS", str(weights.path.parent))
    ours = (Restorer("ours", weights), Restorer("ours", weights, ensemble=True))
    judge = PictureJudge(hr_image, CPU, "fp32")
    point = judge.measure(FileSeries("jpeg", 2, (LANCZOS_RESTORER, *ours)), 20)
    file = pack(LRCodec(2, "jpeg", 20).encode(hr_image), hr_image.shape[:2], 2, "jpeg", weights)
    one, ensemble = (point["restored"][restorer.key] for restorer in ours)
    assert one["packed_bytes"] == ensemble["packed_bytes"] == len(file) < point["bytes"]
    assert one == judge.judge(decompress(file, precision="fp32")) | {"packed_bytes": len(file)}
    restored = decompress(file, precision="fp32", self_ensemble=True)
    assert ensemble == judge.judge(restored) | {"packed_bytes": len(file)}
    assert len({one["psnr"], ensemble["psnr"], point["restored"]["lanczos"]["psnr"]}) == 3
    assert "packed_bytes" not in point["restored"]["lanczos"]


def test_only_what_is_missing_is_measured(hr_image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = PictureJudge(hr_image, CPU)
    series = FileSeries("jpeg", 2, (LANCZOS_RESTORER,))
    known = judge.measure(series, 20)
    monkeypatch.setattr(FileSeries, "encode", lambda *arguments: pytest.fail("encoded again"))
    assert judge.measure(series, 20, known) is known


def test_exact_restoration_has_no_psnr_and_a_small_one_no_ms_ssim() -> None:
    image = np.full((20, 30, 3), 128, np.uint8)
    values = PictureJudge(image, CPU).judge(image)
    assert values == {"squared_error": 0.0, "psnr": None, "ms_ssim": None, "ssim": pytest.approx(1)}


def test_keys_tell_weights_apart(weights: Weights) -> None:
    other = Weights(weights.name, 2, weights.path, weights.card | {"sha256": "00" * 32})
    keys = {Restorer("ours", weights).key, Restorer("ours", other).key, Restorer("ours", weights, ensemble=True).key}
    assert len(keys | {LANCZOS_RESTORER.key}) == 4


def test_missing_codec_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    check_codec("avif")
    monkeypatch.setattr(features, "check", lambda feature: feature != "jpg_2000")
    check_codec("avif")
    with pytest.raises(ValueError, match=r"no jpeg2000; install .* name the others \(jpeg, webp, avif\)"):
        check_codec("jpeg2000")
    with pytest.raises(ValueError, match="unknown codec 'bpg'; known: jpeg, webp, avif, jpeg2000"):
        check_codec("bpg")
