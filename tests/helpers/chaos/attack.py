"""What an attack is, and the list of all."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab import Lab


@dataclass(frozen=True)
class Outcome:
    """What an attack found.

    Attributes:
        seen: what the user sees.
        problems: what broke the promise; none if it held.
        promise: the rest of the story, true if there are no problems.
        skipped: why the attack is impossible on this machine.
    """

    seen: str
    problems: tuple[str, ...] = ()
    promise: str = ""
    skipped: str = ""

    @property
    def story(self) -> str:
        return "; ".join(filter(None, [self.seen, self.promise if not self.problems else ""]))

    @property
    def verdict(self) -> str:
        if self.skipped:
            return f"not tried: {self.skipped}"
        return f"**BROKEN**: {'; '.join(self.problems)}" if self.problems else "holds"


@dataclass(frozen=True)
class Attack:
    """An attack; a `fast` one takes seconds, and `make test` runs it."""

    name: str
    run: Callable[[Lab], Outcome]
    fast: bool

    def __call__(self, lab: Lab) -> Outcome:
        """Carry it out; an error of the attack itself breaks the promise too."""
        try:
            return self.run(lab)
        except Exception as error:
            traceback.print_exc()
            return Outcome("", (f"{type(error).__name__}: {' '.join(str(error).split())}",))


ATTACKS: list[Attack] = []


def attack(name: str, *, fast: bool = False) -> Callable[[Callable[[Lab], Outcome]], Callable[[Lab], Outcome]]:
    """Add a function to the list."""

    def add(function: Callable[[Lab], Outcome]) -> Callable[[Lab], Outcome]:
        ATTACKS.append(Attack(name, function, fast))
        return function

    return add


def problems(**checks: bool) -> tuple[str, ...]:
    """The names of the checks that failed, in words.

    >>> problems(bit_equal_at_the_end=False, exit_code_75=True)
    ('not bit equal at the end',)
    """
    return tuple(f"not {name.replace('_', ' ')}" for name, holds in checks.items() if not holds)
