"""Kills trainings with SIGKILL at chosen moments, which it recognises from outside by the files of the run."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..training.checkpoint_names import history
from ..training.run_dir import RunError, RunFolder, read_lines

_POLL = 0.001  # seconds
_JITTER = 0.02  # seconds; a kill in training is at a random moment of a step


@dataclass(frozen=True)
class Length:
    """What an uninterrupted run did: its step at the end of each epoch, and the stage of each epoch."""

    ends: tuple[int, ...]
    stages: tuple[str, ...]

    @classmethod
    def of(cls, run: Path) -> Length:
        records = RunFolder(run).records()
        return cls(tuple(one["step"] for one in records), tuple(one.get("stage", "") for one in records))

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """The epochs that are followed by another stage."""
        return tuple(epoch for epoch, (one, other) in enumerate(pairwise(self.stages), 1) if one != other)


@dataclass(frozen=True)
class Seen:
    """What the files of a run say: whether it was created, its last logged step (`training.log_every` is 1), its
    recorded epochs, its newest checkpoint's step (-1: none), and whether one is being written or removed."""

    created: bool = False
    step: int = 0
    epochs: int = 0
    saved: int = -1
    saving: bool = False

    @classmethod
    def of(cls, run: Path, leftovers: frozenset[tuple[str, int]] = frozenset()) -> Seen:
        """`leftovers`: see `unfinished`, of earlier processes."""
        folder = RunFolder(run)
        steps = [one.get("step", 0) for one in read_lines(run / "balance.jsonl")[0]]
        saved = history(folder.checkpoints)
        return cls(
            folder.exists,
            steps[-1] if steps else 0,
            len(folder.records()),
            saved[-1].step if saved else -1,
            bool(unfinished(run) - leftovers),
        )


def unfinished(run: Path) -> frozenset[tuple[str, int]]:
    """Checkpoints that are being written or removed, or whose process was killed: name and time of change."""
    found = set()
    for path in (run / "checkpoints").glob("*.tmp"):
        try:
            found.add((path.name, path.stat().st_ctime_ns))
        except FileNotFoundError:  # finished meanwhile
            continue
    return frozenset(found)


MOMENTS: dict[str, Callable[[Seen, Length], bool]] = {
    "before the first checkpoint": lambda seen, _: seen.created and seen.saved < 0,
    "in training": lambda seen, length: seen.step > 0 and seen.step not in length.ends,
    "in a save": lambda seen, _: seen.saving,
    "in a validation": lambda seen, length: (
        seen.step in length.ends and seen.saved == seen.step and seen.epochs <= length.ends.index(seen.step)
    ),
    "at a stage change": lambda seen, length: (
        seen.epochs in length.stage_ends and seen.step == length.ends[seen.epochs - 1]
    ),
}
"""Name -> whether a training is at this moment."""


@dataclass(frozen=True)
class Kill:
    """A kill: the moment and the step that were asked for, and where it struck, by the files that it left. `struck` is
    "" if the training ended before the moment came."""

    moment: str
    asked_step: int
    struck: str = ""
    step: int = 0


def moments(length: Length) -> list[str]:
    """The moments that the training has."""
    return [name for name in MOMENTS if name != "at a stage change" or length.stage_ends]


def plan(length: Length, kills: int) -> list[Kill]:
    """`kills` moments of all kinds that the training has, spread over its steps."""
    first, *others = moments(length)
    found = []
    for number in range(kills - 1):
        moment, step = others[number % len(others)], 1 + number * (length.ends[-1] - 1) // (kills - 1)
        if moment == "at a stage change":
            changes = [length.ends[epoch - 1] for epoch in length.stage_ends]
            step = next((end for end in changes if end >= step), changes[-1])
        found.append(Kill(moment, step))
    return [Kill(first, 0)][:kills] + sorted(found, key=lambda kill: kill.asked_step)


def carry_out(
    command: Sequence[str], run: Path, log: Path, length: Length, planned: Sequence[Kill], *, seed: int
) -> Iterator[Kill]:
    """Start `command`, kill it at the first of the `planned` moments that comes, start it again, ...; yields each kill,
    and at last those whose moment did not come. The caller runs the command once more.

    Raises:
        RunError: the training failed.
    """
    rng, pending = random.Random(seed), list(planned)
    while pending:
        leftovers, starts = unfinished(run), _starts(run)
        with started(command, log) as process:
            kill = None
            while kill is None and process.poll() is None:
                time.sleep(_POLL)
                if _starts(run) > starts:  # before, the files are those of the process that was killed
                    seen = Seen.of(run, leftovers)
                    due = (one for one in pending if seen.step >= one.asked_step and MOMENTS[one.moment](seen, length))
                    kill = next(due, None)
            if kill is None:
                wait_for_success(process, log)
                yield from pending
                return
            time.sleep(rng.uniform(0, _JITTER) * (kill.moment == "in training"))
            process.kill()
            process.wait()
        pending.remove(kill)
        seen = Seen.of(run, leftovers)
        yield replace(kill, struck=_where(seen, length, kill.moment), step=seen.step)


def _starts(run: Path) -> int:
    """How often a training in `run` has begun or continued."""
    return RunFolder(run).exists + len(RunFolder(run).resumes())


def run_to_end(command: Sequence[str], log: Path) -> None:
    """Run `command`.

    Raises:
        RunError: it failed.
    """
    with started(command, log) as process:
        wait_for_success(process, log)


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose messages are added to `log`; killed at the end of the block if it still runs."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_success(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the end of `process`; RunError, with its last line, unless it succeeded."""
    if code := process.wait():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = said[-1].removeprefix("fastmtl: ") if said else "it printed nothing"
        raise RunError(f"the training failed with exit code {code}: {last}")


def _where(seen: Seen, length: Length, asked: str) -> str:
    """The moment at which a run was killed; of several, the one that was `asked` for."""
    if not seen.created:
        return "before the run folder"
    for name in (asked, "in a save", "before the first checkpoint", "in a validation", "at a stage change"):
        if MOMENTS[name](seen, length) and (name != "in training" or not seen.saving):
            return name
    return "after the last epoch" if seen.epochs == len(length.ends) else "in training"
