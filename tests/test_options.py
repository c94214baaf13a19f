import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.options import QUICK, ReproduceOptions

NAN, INF = float("nan"), float("inf")


def test_defaults_and_those_under_quick_are_valid() -> None:
    ReproduceOptions().check()
    ReproduceOptions(**QUICK).check()


def test_quick_is_less_work_in_every_respect() -> None:
    default = asdict(ReproduceOptions())
    assert QUICK
    assert all(value < default[name] for name, value in QUICK.items())


@pytest.mark.parametrize(
    "name",
    ["pretrain_updates", "updates", "seeds", "batch_size", "n_envs", "rollout_steps", "discriminator_channels"],
)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_1_or_more(name: str, value: int) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"{flag} must be 1 or more, got {value}"):
        replace(ReproduceOptions(), **{name: value}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1, 0, -4])
def test_scale_is_2_or_more(scale: int) -> None:
    with pytest.raises(ValueError, match=f"--scale must be an integer of 2 or more, got {scale}"):
        ReproduceOptions(scale=scale, hr_patch_size=96).check()


@pytest.mark.parametrize(
    ("scale", "patch", "advice"), [(4, 97, 96), (4, 99, 100), (3, 64, 63), (8, 3, 8), (2, 0, 2), (4, -8, 4)]
)
def test_patch_is_a_multiple_of_the_scale_and_the_nearest_one_is_named(scale: int, patch: int, advice: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of the scale {scale}, got {patch}; take {advice}$"):
        ReproduceOptions(scale=scale, hr_patch_size=patch).check()


def test_patch_is_large_enough_for_the_content_loss_where_there_is_one() -> None:
    options = ReproduceOptions(scale=2, hr_patch_size=12)
    with pytest.raises(ValueError, match="--hr-patch-size must be 16 or more for the content loss, got 12"):
        options.check()
    replace(options, content_loss="none").check()
    replace(options, content_weight=0.0).check()
    replace(options, hr_patch_size=16).check()


@pytest.mark.parametrize(("updates", "steps", "advice"), [(7, 5, 10), (1, 5, 5), (101, 2, 102)])
def test_updates_are_a_multiple_of_the_rollout_and_the_next_one_is_named(updates: int, steps: int, advice: int) -> None:
    with pytest.raises(ValueError, match=f"--rollout-steps = {steps}, got {updates}; take {advice}$"):
        ReproduceOptions(updates=updates, rollout_steps=steps).check()


@pytest.mark.parametrize("value", [0.0, -1e-4, INF, NAN])
def test_learning_rate_is_above_0(value: float) -> None:
    with pytest.raises(ValueError, match="--learning-rate must be above 0"):
        ReproduceOptions(learning_rate=value).check()


@pytest.mark.parametrize("name", ["mse_weight", "content_weight", "adversarial_weight"])
@pytest.mark.parametrize("value", [-1.0, NAN, INF])
def test_loss_weights_are_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be 0 or more, got {value}"):
        replace(ReproduceOptions(), **{name: value}).check()  # type: ignore[arg-type]


def test_something_must_be_trained_for() -> None:
    nothing = ReproduceOptions(mse_weight=0, content_weight=0, adversarial_weight=0)
    with pytest.raises(ValueError, match="all loss weights are 0"):
        nothing.check()
    with pytest.raises(ValueError, match="all loss weights are 0"):
        replace(nothing, content_weight=1, content_loss="none").check()
    for name in ("mse_weight", "content_weight", "adversarial_weight"):
        replace(nothing, **{name: 0.1}).check()  # type: ignore[arg-type]


def test_one_patch_is_enough_only_without_batch_norm() -> None:
    with pytest.raises(ValueError, match="--batch-size must be 2 or more"):
        ReproduceOptions(batch_size=1).check()
    with pytest.raises(ValueError, match="--batch-size must be 2 or more"):
        ReproduceOptions(batch_size=1, generator="paper", adversarial_weight=0).check()
    ReproduceOptions(batch_size=1, adversarial_weight=0).check()


options = st.builds(
    ReproduceOptions,
    data=st.none() | st.just(Path("some where/ä")),
    eval_data=st.lists(st.sampled_from([Path("a"), Path("/b/c")]), max_size=2).map(tuple),
    vgg_weights=st.none() | st.just(Path("vgg.pth")),
    scale=st.integers(),
    base_codec=st.text(),
    generator=st.sampled_from(["fast", "paper"]),
    content_weight=st.floats(allow_nan=False),
    learning_rate=st.floats(allow_nan=False, allow_infinity=False),
    quick=st.booleans(),
)


@settings(deadline=None, max_examples=50)
@given(options)
def test_json_round_trip(given_options: ReproduceOptions) -> None:
    assert ReproduceOptions.from_json(given_options.to_json()) == given_options


def test_json_holds_every_option_but_where_to_write() -> None:
    values = json.loads(ReproduceOptions(out=Path("a"), resume=Path("b"), data=Path("c")).to_json())
    assert set(values) == {field.name for field in fields(ReproduceOptions)} - {"out", "resume"}
    assert values["data"] == "c"


def change(**values: Any) -> str:
    return json.dumps(json.loads(ReproduceOptions().to_json()) | values)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"abc"', "{}", change(unknown=1), change(data=3), change(eval_data=None)],
)
def test_foreign_config_is_one_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json is not one of rlsr reproduce \("):
        ReproduceOptions.from_json(text)


def test_a_patch_that_is_too_small_for_the_agent_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="--hr-patch-size must be at least 4 x the scale 16, got 32"):
        ReproduceOptions(scale=16, hr_patch_size=32, content_loss="none").check()
