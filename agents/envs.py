"""What `rlsr envs` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlsr_env  # noqa: F401 (registers the ids)
from agents.envs_options import EnvsOptions
from rlsr_env.catalogue import catalogue, environment_facts


class EnvsListing:
    """The list of all environments, or one of them in full."""

    how_to_go_on = "nothing was written"

    def __init__(self, options: EnvsOptions, *, command: str, console: Console | None = None) -> None:
        """Collect the facts.

        Args:
            options: What to show.
            command: The command line.
            console: Where the tables go.

        Raises:
            ValueError: For an id that is not registered.
        """
        options.check()
        self.options = options
        self.console = console or Console()
        self.facts = catalogue() if options.id is None else environment_facts(options.id).as_json()

    def run(self) -> str:
        """Print tables, or return JSON."""
        if self.options.json:
            return json.dumps(self.facts, indent=2)
        if self.options.id is None:
            self._show_all()
        else:
            self._show_one()
        return ""

    def _show_all(self) -> None:
        """A table of each kind."""
        facts = self.facts
        rows = [(env["id"], _summary(env)) for env in facts["environments"]]
        self._print("Environments (rlsr envs ID says more)", ("id", "what it is"), rows, lines=True)
        better = {True: "higher", False: "lower"}
        metrics = (
            (judge["name"], judge["unit"], better[judge["higher_is_better"]], str(judge["min_size"]), judge["source"])
            for judge in facts["metrics"]
        )
        self._print("Metrics (metric=...)", ("name", "unit", "better", "least side", "source"), metrics)
        rewards = ((reward["name"], reward["description"]) for reward in facts["rewards"])
        self._print("Rewards (reward=...)", ("name", "what it pays"), rewards)
        images = [(images["name"], images["description"]) for images in facts["image_sets"]]
        images.append(("folder:PATH", "all pictures in a folder and its subfolders"))
        self._print("Image sets (images=...; --json has their terms)", ("name", "pictures"), images)

    def _show_one(self) -> None:
        """Everything about one environment."""
        facts = self.facts
        self.console.print(Text(facts["id"], style="bold"))
        self.console.print(_summary(facts))
        self.console.print()
        if facts["description"]:
            self.console.print(Text(facts["description"] + "\n"))
        for title, key in (("Arguments of its own", "task_options"), ("Arguments of all", "arguments")):
            rows = [(entry["name"], repr(entry["default"]), entry["description"]) for entry in facts[key]]
            if rows:
                self._print(title, ("name", "default", "what it means"), rows)

    def _print(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], lines: bool = False
    ) -> None:
        """Print a table whose cells are taken literally."""
        table = Table(title=title, title_justify="left", show_lines=lines)
        for number, name in enumerate(columns):
            table.add_column(name, no_wrap=number == 0, overflow="fold")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        self.console.print(table)


def _summary(facts: dict[str, Any]) -> Text:
    """An environment in six lines."""
    steps = "1 step" if facts["episode_length"] == 1 else f"{facts['episode_length']} steps"
    options = ", ".join(f"{option['name']}={option['default']!r}" for option in facts["task_options"])
    lines = [
        facts["summary"],
        f"action: {facts['action_space']['space']}",
        f"observation: {facts['observation_space']['space']}",
        f"episode: {steps}",
        f"reward: {facts['reward']} of {facts['metric']}",
        *([f"its own options: {options}"] if options else []),
    ]
    return Text("\n".join(lines))
