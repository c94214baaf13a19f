"""What the options of the runs that can be gone on with have in common; imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

Options = TypeVar("Options", bound="RunOptions")


class RunOptions:
    """Base of a command's options, a frozen dataclass whose fields are numbers, texts, paths, and tuples of these.

    Attributes:
        command: The command's name.
        out: Folder to write to.
        resume: Folder of a run to go on with.
    """

    command: ClassVar[str]
    out: Path | None
    resume: Path | None

    def to_json(self) -> str:
        """All options but where to write, for config.json."""
        values = asdict(self)  # type: ignore[call-overload]
        del values["out"], values["resume"]
        return json.dumps(values, indent=2, default=str) + "\n"

    def check(self) -> None:
        """Check what can be checked without reading a picture.

        Raises:
            ValueError: For an option out of range.
        """
        raise NotImplementedError

    @classmethod
    def from_json(cls: type[Options], text: str) -> Options:
        """Options that `to_json` wrote, now or before there were some of the options: these get their defaults.

        Raises:
            ValueError: For a text that it did not write.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or not values:
                raise TypeError("it holds no options")
            hints = get_type_hints(cls)
            return cls(**{name: _from_json(hints.get(name), value) for name, value in values.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.json is not one of rlsr {cls.command} ({error})") from error


def _from_json(hint: Any, value: Any) -> Any:
    """A value of a field, from what JSON made of it."""
    if get_origin(hint) is tuple:
        return tuple(_from_json(get_args(hint)[0], entry) for entry in value)
    if value is not None and (hint is Path or Path in get_args(hint)):
        return Path(value)
    return value
