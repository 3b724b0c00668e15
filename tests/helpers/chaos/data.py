"""Data that move, change or are damaged, losses that are not finite, and hostile names."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

from helpers.tiles import write_folder

from .attack import Outcome, attack, problems
from .lab import USUAL, Lab


def _killed_on_a_copy(lab: Lab) -> tuple[Path, Path]:
    """A run that was killed, and the folder of its own data."""
    data = lab.folder / f"data-of-{lab.out().name}"
    shutil.copytree(lab.tiles, data)
    return lab.killed(data=data), data


@attack("the data were moved")
def moved(lab: Lab) -> Outcome:
    out, data = _killed_on_a_copy(lab)
    there = data.rename(data.with_name(f"{data.name}-moved"))
    lost = lab.command(["train", "--resume", "--out", str(out)], out)
    found = lab.command(["train", "--resume", "--out", str(out), "--data", str(there)], out)
    return Outcome(
        f"“{lost.said}”",
        problems(told="give --data the folder" in lost.said, bit_equal=found.code == 0 and lab.equal(out, USUAL)),
        "with --data it ends bit-equal",
    )


@attack("a tile is missing when the run continues")
def changed(lab: Lab) -> Outcome:
    out, data = _killed_on_a_copy(lab)
    tile = min((data / "a" / "image").iterdir())
    away = tile.rename(lab.folder / tile.name)
    refused = lab.run(USUAL, out, data=data)
    away.rename(tile)
    again = lab.run(USUAL, out, data=data)
    return Outcome(
        f"“{refused.said}”",
        problems(
            refused=refused.code == 1 and "1 missing" in refused.said,
            bit_equal=again.code == 0 and lab.equal(out, USUAL),
        ),
        "with the tile again it ends bit-equal",
    )


@attack("a damaged tile")
def damaged(lab: Lab) -> Outcome:
    out, data = lab.out(), lab.folder / "damaged-tiles"
    write_folder(data, {"a": 24, "b": 20}, size=32)  # more than 5% are never skipped
    tile = min((data / "a" / "image").iterdir())
    tile.write_bytes(tile.read_bytes()[:200])
    refused = lab.run(USUAL, out, data=data)
    begun = out.exists()
    skipped = lab.run(USUAL, out, "--on-damaged", "skip", data=data)
    return Outcome(
        f"“{refused.said}”",
        problems(
            refused=refused.code == 1 and tile.name in refused.said,
            refused_before_the_run_folder=not begun,
            trained_without_it=skipped.code == 0 and _num_images(out) == 43,
        ),
        "with --on-damaged skip it trains without it",
    )


def _num_images(out: Path) -> int:
    facts = json.loads((out / "run.json").read_text())
    return facts["training_images"] + facts["validation_images"]


@attack("a loss that is not finite")
def not_finite(lab: Lab) -> Outcome:
    out = lab.out()
    ended = lab.run(USUAL, out, "--lr", "1e30", "--clip-norm", "0")
    again = lab.command(["train", "--resume", "--out", str(out), "--lr", "1e-3"], out)
    finite = all(
        value == value and abs(value) != float("inf")
        for line in (out / "metrics.jsonl").read_text().splitlines()
        for value in json.loads(line)["loss"].values()
    )
    return Outcome(
        f"“{ended.said}”",
        problems(
            stopped=ended.code == 1 and "NaN or infinite" in ended.said,
            goes_on_with_a_lower_rate=again.code == 0 and finite,
        ),
        "with a lower rate it ends",
    )


@attack("names that are HTML, hidden or out of the folder")
def hostile_names(lab: Lab) -> Outcome:
    out, data = lab.out(), lab.folder / "hostile"
    names = ["<script>alert(1)</script>", "..%2f..%2fetc", "a\u202egnp.exe", "';--", "[red]b[/red]"]
    names = [name.replace("/", "\u2215") for name in names]
    write_folder(data, dict.fromkeys(names, 4), size=32)
    before = {path.name for path in lab.folder.iterdir()}
    ended = lab.run(USUAL, out, data=data)
    page = (out / "report.html").read_text(encoding="utf-8") if ended.code == 0 else ""
    after = {path.name for path in lab.folder.iterdir()} - before - {out.name, f"{out.name}.log"}
    return Outcome(
        "",
        problems(
            trained=ended.code == 0,
            escaped="<script>" not in page and "&lt;script&gt;" in page and "\u202e" not in page,
            inside_the_run_folder=not after,
        ),
        "it trains; the report shows the names as text",
    )


@attack("SIGKILL while the data are generated")
def generating(lab: Lab) -> Outcome:
    """Twice: the second start finds what the first left."""
    home = lab.folder / "generated"
    home.mkdir()
    out = home / "run"
    options = ["train", "demo_slides", "--out", str(out), "--epochs", "1", "--size", "32", "--batch-size", "32"]
    options += ["--set", "model.base_channels=2", "training.precision=float32", "data.max_tiles=64"]
    victim = lab.begin(options, out)
    assert victim.until(lambda: any(home.glob("*generated-slides*"))), "the data were there at once"
    victim.send(signal.SIGKILL)
    victim.wait()
    ended = lab.command(options, out)
    return Outcome("", problems(trained=ended.code == 0), "the same command generates them again")
