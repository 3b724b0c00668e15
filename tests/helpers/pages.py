"""The fenced blocks of README.md and of the pages below docs/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from helpers.paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def before(self) -> str:
        """A diff's old side."""
        return self._side("-")

    @property
    def after(self) -> str:
        """A diff's new side."""
        return self._side("+")

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block; comments are left out."""
        lines = [shlex.split(line, comments=True) for line in self.text.splitlines()]
        return [words for words in lines if words]

    def _side(self, sign: str) -> str:
        return "\n".join(line[2:] for line in self.text.splitlines() if not line or line[0] in f"{sign} ")


def blocks() -> list[Block]:
    """All blocks but drawings."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M):
            line = text.count("\n", 0, match.start()) + 1
            if match[1] != "mermaid":
                found.append(Block(page.name, line, match[1], match[2]))
    return found


def is_of_a_loop(block: Block) -> bool:
    """Whether the block stands in a training loop of one's own: the Python and the diffs of these pages."""
    pages = ("README.md", "balancing.md", "distributed.md", "losses.md")
    return block.page in pages and block.language in ("python", "diff")


def claim(every: Sequence[Block], claimed: list[Block], page: str, words: str) -> Block:
    """The one block among `every` that is of the page and has these words; it is added to `claimed`."""
    (found,) = [block for block in every if block.page == page and words in block.text]
    claimed.append(found)
    return found
