"""What there is to choose from: environments, metrics, rewards and image sets, as plain data."""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import MISSING, dataclass, fields
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Space

from rlsr_env.images import ImageSet, image_set, image_set_names
from rlsr_env.metrics import METRICS
from rlsr_env.rewards import REWARDS

NAMESPACE = "rlsr"
# Arguments of the vector environment that `gymnasium.make` does not take, and the one that makes the difference
# between the ids.
NOT_OF_AN_ID = ("num_envs", "autoreset_mode", "task")


@dataclass(frozen=True)
class Argument:
    """A keyword argument of `gymnasium.make(id, ...)`.

    Attributes:
        name: Its name.
        default: Its value where it is not given.
        description: What it means.
    """

    name: str
    default: Any
    description: str


@dataclass(frozen=True)
class EnvironmentFacts:
    """What `rlsr envs` says of one environment.

    Attributes:
        id: The id that `gymnasium.make` takes.
        summary: What an action is, in one sentence.
        description: More about it.
        observation_space: Of one environment, at the default settings.
        action_space: Of one environment, at the default settings.
        episode_length: Steps of an episode.
        metric: Name of the metric.
        reward: Name of the reward.
        arguments: What every environment takes.
        task_options: What this one takes besides.
    """

    id: str
    summary: str
    description: str
    observation_space: Space
    action_space: Space
    episode_length: int
    metric: str
    reward: str
    arguments: tuple[Argument, ...]
    task_options: tuple[Argument, ...]

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {
            "id": self.id,
            "summary": self.summary,
            "description": self.description,
            "observation_space": _space_as_json(self.observation_space),
            "action_space": _space_as_json(self.action_space),
            "episode_length": self.episode_length,
            "metric": self.metric,
            "reward": self.reward,
            "arguments": [_argument_as_json(argument) for argument in self.arguments],
            "task_options": [_argument_as_json(argument) for argument in self.task_options],
        }


class _Blank(ImageSet):
    """One black picture: enough to build an environment whose spaces are asked for, without reading a file."""

    name, version, licence, description = "blank", "1", "none", "one black picture"
    side = 512

    def uris(self) -> list[str]:
        """The only picture."""
        return ["blank"]

    def load(self, uri: str) -> np.ndarray:
        """All black."""
        return np.zeros((self.side, self.side, 3), dtype=np.uint8)


def environment_ids() -> list[str]:
    """The registered ids of this project, sorted."""
    return sorted(key for key, spec in gymnasium.registry.items() if spec.namespace == NAMESPACE)


def environment_facts(id: str) -> EnvironmentFacts:
    """Everything about one environment at its default settings; it is built on a blank picture.

    Args:
        id: One of `environment_ids`.

    Raises:
        ValueError: For an id that is not registered.
    """
    known = environment_ids()
    if id not in known:
        near = difflib.get_close_matches(id, known, n=1, cutoff=0.4)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown environment {id!r}{meant} Known: {', '.join(known)}")
    spec = gymnasium.registry[id]
    entry: Any = spec.entry_point
    env_class = load_env_creator(entry) if isinstance(entry, str) else entry
    vector_env: Any = gymnasium.make_vec(id, num_envs=1, images=_Blank()).unwrapped
    # An environment without tasks is described by its own class.
    task = type(vector_env.task) if hasattr(vector_env, "task") else None
    arguments = _arguments(type(vector_env), spec.kwargs)
    defaults = {argument.name: argument.default for argument in arguments}
    return EnvironmentFacts(
        id=id,
        summary=_paragraphs(task or env_class)[0],
        description="\n\n".join([*_paragraphs(task or env_class)[1:], *_paragraphs_about(id, env_class)]),
        observation_space=vector_env.single_observation_space,
        action_space=vector_env.single_action_space,
        episode_length=vector_env.episode_length,
        metric=vector_env.metric.name,
        reward=defaults["reward"] if task else vector_env.reward_name,
        arguments=arguments,
        task_options=_task_options(task, spec.kwargs) if task else (),
    )


def catalogue() -> dict[str, Any]:
    """All environments, metrics, rewards and image sets, in JSON's types."""
    return {
        "environments": [environment_facts(id).as_json() for id in environment_ids()],
        "metrics": [
            {
                "name": judge.name,
                "unit": judge.unit,
                "higher_is_better": judge.higher_is_better,
                "min_size": judge.min_size,
                "block_map": judge.block_map is not None,
                "source": judge.source,
            }
            for judge in METRICS.values()
        ],
        "rewards": [{"name": name, "description": _paragraphs(type(REWARDS[name]))[0]} for name in REWARDS],
        "image_sets": [
            {"name": images.name, "description": images.description, "licence": images.licence}
            for images in map(image_set, image_set_names())
        ],
    }


def _arguments(vector_env_class: Any, settings: dict[str, Any]) -> tuple[Argument, ...]:
    """Keyword arguments of an environment, with the defaults of an id."""
    described = _described(vector_env_class.__init__, "Args:")
    parameters = inspect.signature(vector_env_class).parameters.values()
    return tuple(
        Argument(entry.name, settings.get(entry.name, entry.default), described.get(entry.name, ""))
        for entry in parameters
        if entry.kind is not entry.VAR_KEYWORD and entry.name not in NOT_OF_AN_ID
    )


def _task_options(task: Any, settings: dict[str, Any]) -> tuple[Argument, ...]:
    """The settings of a task, which is a dataclass."""
    described = _described(task, "Attributes:")
    options = []
    for entry in fields(task):
        if entry.init:
            default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            options.append(Argument(entry.name, settings.get(entry.name, default), described.get(entry.name, "")))
    return tuple(options)


def _paragraphs(thing: Any) -> list[str]:
    """The paragraphs of a docstring before its first section, each in one line."""
    text = re.split(r"\n\n(?:[A-Z]\w+:\n|```|## )", inspect.getdoc(thing) or "")[0]
    return [re.sub(r"\s+", " ", paragraph) for paragraph in text.split("\n\n")]


def _paragraphs_about(id: str, env_class: Any) -> list[str]:
    """The paragraphs of an environment's description that begin with the id."""
    paragraphs = (inspect.getdoc(env_class) or "").split("\n\n")
    return [re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs if paragraph.startswith(f"`{id}`")]


def _described(thing: Any, section: str) -> dict[str, str]:
    """What a section of a docstring, as `Args:`, says of each name."""
    _, _, rest = (inspect.getdoc(thing) or "").partition(f"{section}\n")
    entries: dict[str, str] = {}
    name = ""
    for line in rest.split("\n\n")[0].splitlines():
        start = re.match(r" {4}\*{0,2}(\w+): (.*)", line)
        if start:
            name = start[1]
            entries[name] = start[2]
        elif name:
            entries[name] += " " + line.strip()
    return entries


def _space_as_json(space: Space) -> dict[str, Any]:
    """A space as Gymnasium prints it, and its shape and dtype by themselves."""
    return {"space": str(space), "shape": list(space.shape or ()), "dtype": str(space.dtype)}


def _argument_as_json(argument: Argument) -> dict[str, Any]:
    """An argument; a default that JSON has no type for, as a text."""
    plain = argument.default is None or isinstance(argument.default, bool | int | float | str)
    default = argument.default if plain else str(argument.default)
    return {"name": argument.name, "default": default, "description": argument.description}
