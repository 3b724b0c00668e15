"""Small trainings to attack, each in a process of its own that runs `fastmtl train`."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fastmtl.api.killed_runs import MOMENTS, Length, Seen, unfinished
from fastmtl.training.fingerprint import fingerprint
from helpers.tiles import write_folder

PATIENCE = 300.0  # seconds, on a machine that is busy with other tests

SMALL = ["--epochs", "2", "--size", "32", "--log-every", "1", "--precision", "float32"]
SMALL += ["--set", "model.base_channels=2", "training.checkpoint_steps=2"]
TILES = ["demo", *SMALL, "--batch-size", "2"]
STAGED = """
extends = "demo"
[[stages]]
name = "both"
epochs = 1
[[stages]]
name = "frozen"
epochs = 1
tasks = ["classification"]
freeze = ["encoder"]
start = "best"
"""
SLIDES = ["demo_slides", *SMALL, "--batch-size", "8", "--set", "data.tile_size=64", "data.min_tissue=0.4"]
VARIANTS: dict[str, list[str]] = {
    "constant weights": [*TILES, "--set", "balancer.name=linear"],
    "PCGrad, EMA": [*TILES, "--set", "training.average=ema", "training.average_decay=0.5"],
    "FAMO": [*TILES, "--set", "balancer.name=famo"],
    "GradNorm": [*TILES, "--set", "balancer.name=gradnorm"],
    "MoCo": [*TILES, "--set", "balancer.name=moco"],
    "two stages, SWA": ["STAGED", *TILES[3:], "--set", "training.average=swa"],
    "interleaved slides": [*SLIDES, "--set", "data.open_slides=2"],
}
"""Name -> the options of `fastmtl train`, without its folders."""
USUAL = "PCGrad, EMA"


class Victim:
    """A process that runs `fastmtl train`; its messages are in the file `log`."""

    _context = multiprocessing.get_context("forkserver")  # it starts in a second, because all is imported already

    def __init__(self, arguments: Sequence[str], log: Path, hook: Callable[[], None] | None) -> None:
        self._context.set_forkserver_preload(["helpers.chaos.preload"])
        self.log = log
        log.touch()
        self.process = self._context.Process(target=_run, args=(list(arguments), str(log), hook), daemon=True)
        self.process.start()

    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; AssertionError if it does not end in time."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"still runs after {seconds:.0f} s")
        return code

    def until(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; False if the process ends before."""
        end = time.monotonic() + PATIENCE
        while self.alive() and time.monotonic() < end:
            if holds():
                return True
            time.sleep(0.001)
        return False


@dataclass(frozen=True)
class Ended:
    """How a training ended: its exit code, all of its messages, and the last one as a user reads it."""

    code: int
    messages: str
    said: str


class Lab:
    """Data, and runs that nothing interrupted, made when they are first needed.

    Args:
        folder: everything is in it.
        kills: of each attack by random kills.
        seed: of the random kills.
    """

    def __init__(self, folder: Path, kills: int = 4, seed: int = 0) -> None:
        self.folder, self.kills, self.seed = folder, kills, seed
        self._whole: dict[tuple[str, ...], tuple[Path, float]] = {}
        self._made: dict[str, Path] = {}
        self._runs = 0
        self._tiles = folder / "tiles"

    @cached_property
    def tiles(self) -> Path:
        """Ten tiles to train: five steps in an epoch."""
        write_folder(self._tiles, {"a": 8, "b": 6}, size=32)
        return self._tiles

    @cached_property
    def slides(self) -> Path:
        from fastmtl import data

        return data.generate_slides(self.folder / "slides", num_patients=4, slide_size=512)

    def out(self) -> Path:
        """A new run folder."""
        self._runs += 1
        return self.folder / f"run-{self._runs}"

    def arguments(self, variant: str, out: Path, *more: str, data: Path | None = None) -> list[str]:
        """Of `fastmtl` for a training of this variant."""
        recipe, *options = VARIANTS[variant]
        if recipe == "STAGED":
            recipe = str(self.folder / "staged.toml")
            Path(recipe).write_text(STAGED)
        if data is None:
            data = self.slides if "slides" in recipe else self.tiles
        return ["train", recipe, "--data", str(data), "--out", str(out), *options, *more]

    def start(
        self, variant: str, out: Path, *more: str, data: Path | None = None, hook: Callable[[], None] | None = None
    ) -> Victim:
        """Begin or continue a training."""
        return Victim(self.arguments(variant, out, *more, data=data), out.with_suffix(".log"), hook)

    def run(
        self, variant: str, out: Path, *more: str, data: Path | None = None, hook: Callable[[], None] | None = None
    ) -> Ended:
        """The same, to its end."""
        victim = self.start(variant, out, *more, data=data, hook=hook)
        return self.ended(victim, out)

    def begin(self, arguments: Sequence[str], out: Path, log: str = ".log") -> Victim:
        """Any `fastmtl` command; its messages beside `out`."""
        return Victim(arguments, out.with_suffix(log), None)

    def command(self, arguments: Sequence[str], out: Path) -> Ended:
        """The same, to its end."""
        return self.ended(self.begin(arguments, out), out)

    def ended(self, victim: Victim, out: Path, seconds: float = PATIENCE) -> Ended:
        code = victim.wait(seconds)
        text = victim.log.read_text(errors="replace")
        lines = [line.removeprefix("fastmtl: ") for line in text.splitlines()]
        return Ended(code, text, self.shown(lines[-1] if lines else "", out))

    def shown(self, line: str, out: Path) -> str:
        """A line without the paths and the name of this machine."""
        for path, name in ((out, "RUN"), (self._tiles, "DATA"), (self.folder, "FOLDER")):
            line = line.replace(str(path), name)
        return re.sub(r"tfevents\.[\w.-]+", "tfevents...", line)

    @property
    def slowness(self) -> float:
        """By how much other work on this machine may lengthen a time."""
        return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))

    def once(self, name: str, make: Callable[[], Path]) -> Path:
        """What `make` returned when this was first called with this name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def whole(self, variant: str, *more: str) -> Path:
        """A run of this variant that nothing interrupted."""
        return self._uninterrupted(variant, more)[0]

    def seconds(self, variant: str) -> float:
        """How long that took."""
        return self._uninterrupted(variant, ())[1]

    def length(self, variant: str) -> Length:
        return Length.of(self.whole(variant))

    def equal(self, out: Path, variant: str, *more: str) -> bool:
        """Whether a run ended bit-equal to an uninterrupted one of its variant."""
        return fingerprint(out) == fingerprint(self.whole(variant, *more))

    def same(self, out: Path, other: Path) -> bool:
        return fingerprint(out) == fingerprint(other)

    def reach(self, variant: str, out: Path, moment: str, *, step: int = 1, **options: Any) -> Victim:
        """A training that is at a moment of `killed_runs.MOMENTS`, at or after a step. AssertionError if it passed."""
        length, leftovers = self.length(variant), unfinished(out)
        victim = self.start(variant, out, **options)

        def there() -> bool:
            seen = Seen.of(out, leftovers)
            return seen.step >= step and MOMENTS[moment](seen, length)

        assert victim.until(there), f"the training ended before it was {moment}"
        return victim

    def killed(self, variant: str = USUAL, moment: str = "in training", *, step: int = 6, **options: Any) -> Path:
        """The folder of a run that SIGKILL ended in its second epoch."""
        out = self.out()
        victim = self.reach(variant, out, moment, step=step, **options)
        victim.send(signal.SIGKILL)
        victim.wait()
        return out

    def _uninterrupted(self, variant: str, more: Sequence[str]) -> tuple[Path, float]:
        key = (variant, *more)
        if key not in self._whole:
            self.command(["--version"], self.out())  # the first process takes longer
            out, began = self.out(), time.monotonic()
            ended = self.run(variant, out, *more)
            assert ended.code == 0, ended.messages
            self._whole[key] = out, time.monotonic() - began
        return self._whole[key]


def _run(arguments: list[str], log: str, hook: Callable[[], None] | None) -> None:
    """In the process: as the command `fastmtl`, with signals as a terminal leaves them."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.argv = ["fastmtl", *arguments]
    if hook is not None:
        hook()
    from fastmtl.cli import main

    sys.exit(main())
