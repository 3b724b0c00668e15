"""`make chaos`: all attacks, with many kills, and the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from helpers.paths import ROOT

from . import ATTACKS, Lab
from .attack import Outcome
from .table import at_commit, circumstances, lines, stored, stored_circumstances, write

_labs: list[Lab] = []  # one in each process


def _prepare(folder: str, kills: int, seed: int) -> None:
    own = Path(folder, str(os.getpid()))
    own.mkdir()
    _labs.append(Lab(own, kills, seed))


def _carry_out(number: int) -> tuple[Outcome, float]:
    began = time.monotonic()
    return ATTACKS[number](_labs[0]), time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills for each attack by random kills (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="attacks at the same time (default: a core each)"
    )
    parser.add_argument("--only", default="", help="attacks whose name contains this; the others keep their lines")
    given = parser.parse_args()
    chosen = [number for number, one in enumerate(ATTACKS) if given.only in one.name]
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="fastmtl-chaos-") as folder,
        ProcessPoolExecutor(
            given.jobs,
            mp_context=get_context("spawn"),
            initializer=_prepare,
            initargs=(folder, given.kills, given.seed),
        ) as pool,
    ):
        for number, (outcome, seconds) in zip(chosen, pool.map(_carry_out, chosen), strict=True):
            found[ATTACKS[number].name] = outcome
            print(f"{ATTACKS[number].name}: {outcome.verdict} ({seconds:.0f} s)\n    {outcome.story}", flush=True)
    page = ROOT / "docs" / "reliability.md"
    table = stored(page) | lines(found)
    measured = circumstances(given.kills)
    if given.only:
        measured = f"{stored_circumstances(page)}; “{given.only}” later{at_commit()}"
    write(page, {one.name: table[one.name] for one in ATTACKS if one.name in table}, measured)
    return int(any(outcome.problems for outcome in found.values()))
