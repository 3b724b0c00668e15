"""`make chaos`: all attacks, with many kills, and the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from helpers.paths import ROOT

from . import ATTACKS, Lab
from .table import render, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills for each attack by random kills (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills")
    parser.add_argument("--only", default="", help="attacks whose name contains this; the table stays as it is")
    given = parser.parse_args()
    chosen = [one for one in ATTACKS if given.only in one.name]
    found = {}
    with tempfile.TemporaryDirectory(prefix="fastmtl-chaos-") as folder:
        lab = Lab(Path(folder), given.kills, given.seed)
        for one in chosen:
            began = time.monotonic()
            found[one.name] = outcome = one(lab)
            print(f"{one.name}: {outcome.verdict} ({time.monotonic() - began:.0f} s)\n    {outcome.story}", flush=True)
    if not given.only:
        write(ROOT / "docs" / "reliability.md", render(found, given.kills))
    return int(any(outcome.problems for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
