"""What all vector environments keep about their episodes; that they use it is tested with each of them."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from rlsr_env.episodes import Episodes, final_infos, masked, picture_numbers


def drawn(episodes: Episodes) -> list[float]:
    return [rng.random() for _, rng in episodes.begin(np.ones(len(episodes), dtype=bool))]


def test_nothing_runs_before_it_begins_and_only_disabled_ends_for_good() -> None:
    for mode, still_running in ((AutoresetMode.SAME_STEP, True), (AutoresetMode.DISABLED, False)):
        episodes = Episodes(2, mode)
        with pytest.raises(ResetNeeded, match=r"environments \[0, 1\]"):
            episodes.require_running()
        drawn(episodes)
        episodes.require_running()
        episodes.end(np.array([False, True]))
        assert (not episodes.finished.any()) == still_running
        if not still_running:
            with pytest.raises(ResetNeeded, match=r"environments \[1\]"):
                episodes.require_running()


def test_seeds_count_up_and_only_the_marked_are_seeded_anew() -> None:
    episodes = Episodes(3, "DISABLED")
    assert episodes.reset(5, {}, []).all()
    first = drawn(episodes)
    assert first == [np.random.Generator(np.random.PCG64(5 + i)).random() for i in range(3)]
    mask = np.array([False, True, False])
    assert np.array_equal(episodes.reset([0, 6, 0], {"reset_mask": mask}, []), mask)
    ((number, rng),) = episodes.begin(mask)
    assert number == 1 and rng.random() == first[1]


def test_state_goes_on_exactly() -> None:
    episodes, other = Episodes(2, "DISABLED"), Episodes(2, "DISABLED")
    episodes.reset(0, {}, [])
    episodes.begin(np.array([True, False]))
    other.load_state_dict({"anything": 1, **episodes.state_dict()})
    assert other.finished.tolist() == [False, True]
    assert drawn(other) == drawn(episodes)


def test_unknown_options_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"unknown reset options \['url'\]; known: reset_mask, uri"):
        Episodes(2, "DISABLED").reset(0, {"url": "a"}, ["uri"])


def test_infos_keep_their_dtype_and_are_zero_where_they_do_not_count() -> None:
    infos = masked({"n_bytes": np.array([3, 4])}, np.array([False, True]))
    assert infos["n_bytes"].dtype == np.int64 and infos["n_bytes"].tolist() == [0, 4]
    assert infos["_n_bytes"].tolist() == [False, True]
    assert masked({"n_bytes": np.array([3, 4])}, np.array([False, False])) == {}


def test_final_infos_tell_of_the_ended_and_the_others_apart() -> None:
    obs = np.arange(6).reshape(2, 3)
    infos = final_infos(obs, {"psnr": np.array([1.0, 2.0])}, np.array([True, False]))
    assert infos["final_obs"][0].tolist() == [0, 1, 2] and infos["final_obs"][1] is None
    assert not np.shares_memory(infos["final_obs"][0], obs)
    assert infos["final_info"]["psnr"].tolist() == [1, 0] and infos["psnr"].tolist() == [0, 2]


def test_pictures_go_by_name() -> None:
    uris = ["a", "b"]
    assert picture_numbers(None, uris, 2) is None
    assert picture_numbers("b", uris, 2) == [1, 1]
    assert picture_numbers(("b", "a"), uris, 2) == [1, 0]
    with pytest.raises(ValueError, match="no picture 'c' in the image set, which has 2: a, b"):
        picture_numbers("c", uris, 2)
    with pytest.raises(ValueError, match="one for each of 2 environments, got 1"):
        picture_numbers(["a"], uris, 2)
