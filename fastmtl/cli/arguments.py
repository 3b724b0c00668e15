"""The parser of every command: argparse with `--set`, and one-line messages for missing positional arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from ..config import UsageError

if TYPE_CHECKING:
    from rich.console import Console


class Parser(argparse.ArgumentParser):
    """Parses `fastmtl COMMAND`. Options may come in any order and cannot be abbreviated; `--a_b` means `--a-b`."""

    def __init__(self, command: str, description: str, *, add_help: bool = True) -> None:
        super().__init__(prog=f"fastmtl {command}", description=description, allow_abbrev=False, add_help=add_help)
        self._needed: dict[str, str] = {}

    def need(self, name: str, what: str) -> None:
        """Add a required positional argument, such as RUN."""
        self.add_argument(name.lower(), nargs="?", metavar=name, help=what)
        self._needed[name] = what

    def add_set(self, purpose: str) -> None:
        """Add `--set KEY=VALUE`, which may be repeated or take several values; stored as `sets`."""
        self.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help=purpose)

    def add_json(self) -> None:
        """Add `--json`."""
        self.add_argument("--json", action="store_true", help="print JSON")

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line, without argparse's long usage text."""
        takes_set = any(action.dest == "sets" for action in self._actions)
        any_key = "; --set KEY=VALUE changes any key of a recipe" if takes_set else ""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists every option{any_key}.\n")

    def parse(self, arguments: Sequence[str], unless: Sequence[str] = ()) -> argparse.Namespace:
        """Return the parsed arguments; exits with code 2 if they are invalid.

        Raises:
            UsageError: an argument of `need` is missing, and none of the flags `unless` is given.
        """
        required = [action for action in self._actions if action.required and action.option_strings]
        for action in required:
            action.required = False  # a missing positional argument is reported first
        parsed = self.parse_intermixed_args(_normalized(arguments))
        for name, what in self._needed.items():
            if getattr(parsed, name.lower()) is None and not any(getattr(parsed, flag) for flag in unless):
                usage = f"{self.prog} {' '.join(self._needed)}"
                raise UsageError(f"{name} is missing: it comes first, {usage} ... ({what}).")
        for action in required:
            if getattr(parsed, action.dest) is None:
                self.error(f"the following arguments are required: {action.option_strings[0]}")
        return parsed


def _normalized(arguments: Sequence[str]) -> list[str]:
    """The arguments with hyphens in option names, and a `--set` before each KEY=VALUE that follows a `--set`."""
    found: list[str] = []
    setting = False
    for number, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
            setting = argument == "--set"
            if setting and all(one.startswith("-") for one in arguments[number + 1 : number + 2]):
                raise UsageError("--set needs KEY=VALUE, for example model.base_channels=8; got nothing.")
        elif setting and "=" in argument and found[-1] != "--set":
            found.append("--set")
        found.append(argument)
    return found


def progress_console() -> Console:
    """A console that prints to standard error without adding colours."""
    from rich.console import Console

    from ..training.progress import plain

    return plain(Console(file=sys.stderr, highlight=False, soft_wrap=True))
