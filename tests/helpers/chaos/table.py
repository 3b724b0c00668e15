"""The table of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fastmtl.training.run_dir import environment

from .attack import Outcome

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"

_LONGEST = 240  # characters of a message


def lines(found: Mapping[str, Outcome]) -> dict[str, str]:
    """Attack -> its line of the table."""
    return {name: f"| {name} | {_cell(one.story)} | {_cell(one.verdict)} |" for name, one in found.items()}


def stored(page: Path) -> dict[str, str]:
    """The same, as the page has them."""
    table = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows[1:]}


def write(page: Path, table: Mapping[str, str], measured: str) -> None:
    """Put the table between the marks of the page; `measured` says how."""
    held = sum(line.endswith("| holds |") for line in table.values())
    head = [
        f"{held} of {len(table)} promises held ({measured}).",
        "",
        "| attack | what the user sees | verdict |",
        "|---|---|---|",
    ]
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text("\n".join([f"{before}{BEGIN}", *head, *table.values(), f"{END}{after}"]), encoding="utf-8")


def circumstances(kills: int) -> str:
    """Of a run of all attacks in this process."""
    facts = environment()
    versions = f"fastmtl {facts['fastmtl']}{at_commit()}, torch {torch.__version__}, Python {facts['python']}"
    return f"{versions}, {kills} kills for each attack by random kills"


def at_commit() -> str:
    commit = environment()["commit"]
    return f" at commit {commit[:12]}" if commit else ""


def stored_circumstances(page: Path) -> str:
    """The same, as the page has them."""
    return page.read_text(encoding="utf-8").partition(BEGIN)[2].partition("held (")[2].partition(")")[0]


def _cell(text: str) -> str:
    quoted, mark, rest = text.rpartition("”")
    if len(quoted) > _LONGEST:
        text = f"{quoted[:_LONGEST].rpartition(' ')[0]} ...{mark}{rest}"
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
