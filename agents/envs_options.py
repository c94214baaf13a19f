"""The options of `rlsr envs`; imports nothing heavy, so that help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class EnvsOptions:
    """List the environments: their spaces, metrics, rewards and options; with an id, everything about one of them.

    The table is for reading; --json has the same for programs. No picture is read and nothing is downloaded.
    """

    id: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ID")] = None
    """An environment, as in rlsr/DetailControl-v0; all of them where not given."""
    json: bool = False
    """Print JSON instead of tables."""

    def check(self) -> None:
        """Check what can be checked without importing an environment.

        Raises:
            ValueError: For an empty id.
        """
        if self.id == "":
            raise ValueError("the id is empty; leave it out for a list of all environments")
