"""The table of docs/reliability.md."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from fastmtl import __version__

from .attack import Attack, Outcome

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"

_LONGEST = 240  # characters of a message


def render(found: Mapping[str, Outcome], kills: int) -> str:
    """Markdown of the outcomes, attack -> outcome."""
    held = sum(one.verdict == "holds" for one in found.values())
    versions = f"fastmtl {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        f"{held} of {len(found)} promises held ({versions}, {kills} kills for each attack by random kills).",
        "",
        "| attack | what the user sees | verdict |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {_cell(one.story)} | {_cell(one.verdict)} |" for name, one in found.items()]
    return "\n".join(lines)


def write(page: Path, table: str) -> None:
    """Put the table between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def rows(page: Path) -> dict[str, str]:
    """Attack -> verdict, in the table of the page."""
    table = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in cells[1:]}


def named(attacks: list[Attack]) -> list[str]:
    return [one.name for one in attacks]


def _cell(text: str) -> str:
    quoted, mark, rest = text.rpartition("”")
    if len(quoted) > _LONGEST:
        text = f"{quoted[:_LONGEST].rpartition(' ')[0]} ...{mark}{rest}"
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
