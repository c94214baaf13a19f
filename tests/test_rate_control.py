import inspect
import json
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlsr_env.codec import LRCodec
from rlsr_env.crops import CroppedImages
from rlsr_env.images import DecodedImages, ImageSet, image_set
from rlsr_env.metrics import METRICS, Metric
from rlsr_env.rate_control import RateControlVectorEnv, rate_weight_code
from rlsr_env.rate_env import RateControlEnv
from rlsr_env.rate_source import RateSource
from rlsr_env.rate_table import DEFAULT_SETTINGS, RateTable, Setting, checked_settings
from rlsr_env.rate_views import N_VIEW_CHANNELS, detail_code, view_picture
from rlsr_env.resample import upsample

ENV_ID = "rlsr/RateControl-v0"
SETTINGS = ((1, 10), (2, 30), (2, 80), (4, 60))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Waves, with noise that differs from picture to picture."""
    rng = np.random.default_rng(seed)
    waves = 128 + 60 * np.sin(np.arange(height) / (2 + seed))[:, None, None] * np.cos(np.arange(width) / 3)[:, None]
    return (waves + rng.normal(0, 4 * seed, (height, width, 3))).clip(0, 255).astype(np.uint8)


PICTURES = DecodedImages(("a", "b", "c"), (picture(48, 64, 0), picture(50, 61, 1), picture(64, 48, 2)), ())


class Pictures(ImageSet):
    name, version, licence, description = "pictures", "1", "none", "three pictures"

    def uris(self) -> list[str]:
        return list(PICTURES.uris)

    def load(self, uri: str) -> np.ndarray:
        return PICTURES.images[PICTURES.uris.index(uri)]


def source(**options: Any) -> RateSource:
    return RateSource(PICTURES, **{"settings": SETTINGS, **options})


def env_of(**options: Any) -> RateControlEnv:
    return RateControlEnv(**{"images": Pictures(), "settings": SETTINGS, **options})


def vector(n: int = 3, **options: Any) -> RateControlVectorEnv:
    return RateControlVectorEnv(n, **{"images": Pictures(), "settings": SETTINGS, **options})


def by_hand(image: np.ndarray, setting: tuple[int, int]) -> tuple[int, float]:
    """Bytes and PSNR of a picture at a setting, on levels in NumPy."""
    codec = LRCodec(setting[0], "jpeg", setting[1])
    stream = codec.encode(image)
    lr_image = torch.from_numpy(codec.decode(stream)).permute(2, 0, 1)[None].float() / 255
    sr_image = upsample(lr_image, setting[0])[0, :, : image.shape[0], : image.shape[1]].permute(1, 2, 0).numpy()
    levels = (sr_image.clip(0, 1).astype(np.float64) * 255).round()
    return len(stream), float(10 * np.log10(255**2 / ((levels - image) ** 2).mean()))


# The environments


def test_both_checkers_find_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made: Any = gymnasium.make(ENV_ID, images=Pictures(), settings=SETTINGS, render_mode="rgb_array")
        check_env(made.unwrapped)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        sb3_check_env(env_of())


def test_reward_is_quality_minus_the_weighted_bits_of_a_real_file() -> None:
    env = env_of()
    for uri, image in zip(PICTURES.uris, PICTURES.images, strict=True):
        for action, setting in enumerate(SETTINGS):
            env.reset(options={"uri": uri, "rate_weight": 7.0})
            _, reward, terminated, truncated, info = env.step(action)
            n_bytes, psnr = by_hand(image, setting)
            rate = 8 * n_bytes / (image.shape[0] * image.shape[1])
            assert terminated and not truncated
            assert (info["n_bytes"], info["scale"], info["quality"]) == (n_bytes, *setting)
            assert info["psnr"] == pytest.approx(psnr, abs=1e-4)
            assert info["bits_per_pixel"] == pytest.approx(rate)
            assert reward == pytest.approx(psnr - 7.0 * rate, abs=1e-4)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_vector_environment_equals_scalar_ones(mode: AutoresetMode) -> None:
    native = vector(autoreset_mode=mode)
    scalars = SyncVectorEnv([env_of] * 3, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    assert data_equivalence(native.reset(seed=5), scalars.reset(seed=5))
    for _ in range(6):
        actions = rng.integers(len(SETTINGS), size=3)
        one, other = native.step(actions), scalars.step(actions)
        for ours, theirs in zip(one[:4], other[:4], strict=True):
            assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
        assert set(one[4]) == set(other[4])
        for name in set(one[4]) - {"final_obs", "final_info"}:
            assert np.array_equal(one[4][name], other[4][name])
        if mode is AutoresetMode.SAME_STEP:
            assert all(map(np.array_equal, one[4]["final_obs"], other[4]["final_obs"]))
            assert {k: v.tolist() for k, v in one[4]["final_info"].items()} == {
                k: v.tolist() for k, v in other[4]["final_info"].items()
            }
        else:
            mask = {"reset_mask": np.array([True, True, True])}
            assert data_equivalence(native.reset(options=mask), scalars.reset(options=dict(mask)))


def test_a_seed_decides_everything_and_state_goes_on_exactly() -> None:
    one, other = vector(), vector()
    assert data_equivalence(one.reset(seed=3), other.reset(seed=3))
    state = json.loads(json.dumps(one.state_dict()))
    first = one.step(np.array([0, 1, 2]))
    fresh = pickle.loads(pickle.dumps(vector()))
    fresh.load_state_dict(state)
    again = fresh.step(np.array([0, 1, 2]))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(one.reset(seed=4)[0], other.reset(seed=3)[0])
    with pytest.raises(ValueError, match="of 3 environments, this one has 2"):
        vector(2).load_state_dict(state)


def test_observation_is_the_view_and_the_weight() -> None:
    env = env_of()
    obs, info = env.reset(options={"uri": "b", "rate_weight": 20.0})
    assert np.array_equal(obs[:-1], view_picture(PICTURES.images[1]))
    assert (obs[-1] == rate_weight_code(20.0)).all()
    assert info == {"rate_weight": 20.0}
    assert [rate_weight_code(weight) for weight in (0.0, 0.1, 10_000.0, 1e9)] == [0, 0, 255, 255]


def test_weights_are_drawn_evenly_on_a_logarithmic_scale() -> None:
    env = vector(400, rate_weight=(1.0, 100.0))
    env.reset(seed=0)
    logs = np.log10(env.rate_weights)
    assert logs.min() >= 0 and logs.max() <= 2
    assert abs(logs.mean() - 1) < 0.1 and abs(logs.std() - 2 / np.sqrt(12)) < 0.05
    fixed = vector(2, rate_weight=3.0)
    fixed.reset(seed=0)
    assert fixed.rate_weights.tolist() == [3.0, 3.0]


def test_id_makes_both_and_spec_survives_json() -> None:
    env: Any = gymnasium.make(ENV_ID, settings=[[2, 30], [4, 60]], rate_weight=[5.0, 50.0])
    assert env.spec is not None
    again: Any = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == gymnasium.spaces.Discrete(2)
    assert again.unwrapped.vector_env.rate_weight_range == (5.0, 50.0)
    assert isinstance(gymnasium.make_vec(ENV_ID, num_envs=2).unwrapped, RateControlVectorEnv)
    assert len(DEFAULT_SETTINGS) == gymnasium.make(ENV_ID).action_space.n  # type: ignore[attr-defined]


def test_docstring_has_gymnasiums_headings() -> None:
    text = inspect.getdoc(RateControlEnv) or ""
    for heading in (
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Arguments",
        "Version History",
    ):  # fmt: skip
        assert f"## {heading}\n" in text


def test_frame_shows_the_restored_picture_after_the_step() -> None:
    env = env_of(render_mode="rgb_array")
    env.reset(options={"uri": "a"})
    before = env.render()
    env.step(1)
    after = env.render()
    assert before is not None and after is not None and before.shape == after.shape == (270, 512, 3)
    assert np.array_equal(before[:256, :256], after[:256, :256])
    assert (before[:256, 256:] == 128).all() and after[:256, 256:].std() > 10
    assert env_of().render() is None


def test_outcomes_are_those_of_steps() -> None:
    env = vector(autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    qualities, rates = env.outcomes()
    for action in range(len(SETTINGS)):
        env.reset(seed=0)
        _, rewards, _, _, info = env.step(np.full(3, action))
        assert np.array_equal(info["psnr"], qualities[:, action])
        assert np.array_equal(rewards, qualities[:, action] - env.rate_weights * rates[:, action])
    with pytest.raises(ResetNeeded):
        env.outcomes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": []}, "no settings"),
        ({"settings": [(2, 0)]}, "quality of jpeg is 1 to 100"),
        ({"settings": [(0, 30)]}, "scale is at least 1"),
        ({"settings": [(2, 30), (2, 30)]}, "twice"),
        ({"settings": [(2, 30, 1)]}, "pair of scale and quality"),
        ({"base_codec": "bmp"}, "unknown base codec"),
        ({"metric": "ms_ssim"}, "needs pictures of 161"),
        ({"decibels": True}, "best at 1"),
        ({"decoder": {3: torch.nn.Identity()}}, "scales \\[3\\]"),
        ({"rate_weight": -1.0}, "not negative"),
        ({"rate_weight": (2.0, 1.0)}, "rate_weight"),
        ({"rate_weight": (0.0, 1.0)}, "rate_weight"),
        ({"rate_weight": float("nan")}, "rate_weight"),
        ({"num_envs": 0}, "1 or more"),
        ({"autoreset_mode": "NEXT_STEP"}, "not supported"),
        ({"render_mode": "human"}, "unknown render_mode"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    n = options.pop("num_envs", 1)
    with pytest.raises(ValueError, match=message):
        vector(n, **options)


def test_actions_and_options_that_cannot_be_are_refused() -> None:
    env = vector()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(3, dtype=np.int64))
    env.reset(seed=0)
    with pytest.raises(TypeError, match="integers"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(2, dtype=np.int64))
    for action in (-1, 4):
        with pytest.raises(ValueError, match=f"no setting {action}"):
            env.step(np.array([0, action, 0]))
    for options, message in (
        ({"uri": "d"}, "no picture 'd'"),
        ({"uri": ["a"]}, "one uri"),
        ({"rate_weight": -1}, "not negative"),
        ({"rate_weight": [1, 2]}, "one rate_weight"),
        ({"colour": 1}, "unknown reset options"),
        ({"reset_mask": np.zeros(3, dtype=np.bool_)}, "marks no environment"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    with pytest.raises(TypeError, match="reset_mask"):
        env.reset(options={"reset_mask": [True, False, False]})
    with pytest.raises(ValueError, match="one seed"):
        env.reset(seed=[1, 2])
    with pytest.raises(TypeError, match="must be an integer"):
        vector(True)
    with pytest.raises(TypeError, match="scale is an integer"):
        vector(settings=[(2.5, 30)])


# The source


def test_what_is_measured_is_remembered() -> None:
    calls: list[int] = []

    def file_bytes(stream: bytes, hr_size: tuple[int, int], scale: int) -> int:
        calls.append(scale)
        assert hr_size in [image.shape[:2] for image in PICTURES.images]
        return len(stream) + 1000

    pictures = source(file_bytes=file_bytes)
    assert pictures.measure(0, 1) == pictures.measure(0, 1)
    assert pictures.measure(0, 1)[0] == by_hand(PICTURES.images[0], SETTINGS[1])[0] + 1000
    assert calls == [2] and pictures.n_encodes == 1
    table = pictures.table()
    assert pictures.n_encodes == len(calls) == 12
    known = source(table=table, file_bytes=file_bytes)
    assert known.table().n_bytes.tolist() == table.n_bytes.tolist() and len(calls) == 12


def test_decoder_and_metric_can_be_chosen() -> None:
    def grey(lr_image: torch.Tensor, scale: int) -> torch.Tensor:
        return torch.full((1, 3, scale * lr_image.shape[2], scale * lr_image.shape[3]), 0.5)

    pictures = source(decoder={2: partial(grey, scale=2)}, metric="gmsd")
    lanczos = source(metric="gmsd")
    assert pictures.measure(0, 0) == lanczos.measure(0, 0)
    assert pictures.measure(0, 1)[1] < lanczos.measure(0, 1)[1] < 0  # lower is better, so it counts negatively
    with pytest.raises(ValueError, match="the decoder of scale 2 made"):
        source(decoder={2: torch.nn.Identity()}).measure(0, 1)
    with pytest.raises(TypeError, match="functions"):
        source(decoder={2: 7})


def test_decibels_of_ms_ssim() -> None:
    large = DecodedImages(("large",), (picture(176, 176, 1),), ())
    plain, in_decibels = (RateSource(large, [(2, 50)], metric="ms_ssim", decibels=flag) for flag in (False, True))
    assert in_decibels.measure(0, 0)[1] == pytest.approx(-10 * np.log10(1 - plain.measure(0, 0)[1]))


def test_metric_that_fails_names_picture_and_setting() -> None:
    broken = Metric("broken", lambda sr, hr: sr.flatten(1).mean(1) * float("nan"))
    with pytest.raises(ValueError, match=r"NaN.*b at scale 2, quality 80"):
        source(metric=broken).measure(1, 2)
    perfect = Metric("perfect", lambda sr, hr: sr.flatten(1).mean(1) + float("inf"))
    assert source(metric=perfect).measure(0, 0)[1] == 100.0
    assert "broken" not in METRICS


def test_table_survives_a_file_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    table = source().table()
    table.save(tmp_path / "table.npz")
    again = RateTable.load(tmp_path / "table.npz")
    assert again.uris == table.uris and again.settings == table.settings == checked_settings(SETTINGS)
    assert np.array_equal(again.n_bytes, table.n_bytes) and np.array_equal(again.values, table.values)
    with pytest.raises(ValueError, match="the table is of 3 pictures and 4 settings"):
        source(table=table, settings=SETTINGS[:2])
    with pytest.raises(FileNotFoundError):
        RateTable.load(tmp_path / "none.npz")
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "table.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"damaged.npz is no table"):
        RateTable.load(tmp_path / "damaged.npz")
    with pytest.raises(ValueError, match="needs pictures and settings"):
        RateTable((), np.zeros(0, int), (), np.zeros((0, 0), int), np.zeros((0, 0)))
    bad = table.values.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"quality of b at Setting\(scale=2, quality=80\) is nan"):
        RateTable(table.uris, table.n_pixels, table.settings, table.n_bytes, bad)


# Views and crops


def test_detail_of_each_octave_by_hand() -> None:
    flat = np.full((64, 64, 3), 90, dtype=np.uint8)
    view = view_picture(flat, 16)
    assert view.shape == (N_VIEW_CHANNELS, 16, 16) and (view[:3] == 90).all() and (view[3:] == 0).all()
    checks = flat.copy()
    checks[::2, ::2] = checks[1::2, 1::2] = 110  # 100 +- 10 within every 2 x 2 pixels, nothing beyond
    view = view_picture(checks, 16)
    assert (view[3] == detail_code(torch.tensor(10.0)).item()).all()
    assert (view[4:8] == 0).all()
    stripes = np.repeat(flat, 2, axis=0)
    stripes[::4] = stripes[1::4] = 110  # the same in pairs of rows: octave 2
    view = view_picture(np.ascontiguousarray(stripes), 16)
    assert (view[3] == 0).all() and (view[4] == detail_code(torch.tensor(10.0)).item()).all() and (view[5:8] == 0).all()


@given(st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=20, deadline=None)
def test_a_view_of_any_size(height: int, width: int) -> None:
    view = view_picture(picture(height, width, 1))
    assert view.shape == (N_VIEW_CHANNELS, 64, 64) and view.dtype == np.uint8


def test_view_refuses_what_is_no_picture() -> None:
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="a view is of a picture"):
            view_picture(image)
    with pytest.raises(ValueError, match="1 or more cells"):
        view_picture(np.zeros((4, 4, 3), np.uint8), 0)


def test_crops_are_parts_of_their_pictures_and_do_not_change() -> None:
    crops = CroppedImages(Pictures(), 20, per_image=3)
    assert crops.uris()[:4] == ["a#0", "a#1", "a#2", "b#0"]
    for uri in crops.uris():
        crop, whole = crops.load(uri), Pictures().load(uri[0])
        assert crop.shape == (20, 20, 3)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (20, 20, 3))[:, :, 0]
        assert (windows == crop).all(axis=(2, 3, 4)).any()
        assert np.array_equal(crop, CroppedImages(Pictures(), 20, 3).load(uri))
    assert not np.array_equal(crops.load("a#0"), crops.load("a#1"))
    assert CroppedImages(Pictures(), 20, n_images=2).uris() == ["a#0", "b#0"]
    assert CroppedImages(Pictures(), 999).load("a#0").shape == PICTURES.images[0].shape
    for uri in ("a", "a#3", "#0", "a#x"):
        with pytest.raises(ValueError, match="is not in the image set"):
            crops.load(uri)
    with pytest.raises(ValueError, match="1 or more"):
        CroppedImages(image_set("sample"), 0)


def test_settings_are_pairs() -> None:
    assert checked_settings([[2, np.int64(30)]]) == (Setting(2, 30),)
    assert len(checked_settings(DEFAULT_SETTINGS)) == len(DEFAULT_SETTINGS)
