"""SIGKILL at random instants, and at single file operations."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from .attack import Outcome, attack
from .lab import USUAL, VARIANTS, Lab

_CHAIN = 4  # kills of one run


def _random_kills(lab: Lab, variant: str) -> Outcome:
    """Runs that are killed up to four times each, at instants that are equally likely from the start to the end."""
    rng, landed, equal = random.Random(f"{lab.seed} {variant}"), 0, 0
    seconds, codes = lab.seconds(variant), set[int]()
    while landed < lab.kills:
        out, struck = lab.out(), 0
        for _ in range(min(_CHAIN, lab.kills - landed)):
            began, victim = time.monotonic(), lab.start(variant, out)
            victim.process.join(rng.uniform(0, seconds))
            victim.send(signal.SIGKILL)
            code = victim.wait()
            struck += code == -signal.SIGKILL
            if code == 0:  # it had ended
                if not struck:
                    seconds = min(seconds, time.monotonic() - began)
                break
        codes.add(lab.run(variant, out).code)
        landed, equal = landed + struck, equal + struck * lab.equal(out, variant)
    found = f"{equal} of {landed} kills end bit-equal"
    return Outcome(found, () if equal == landed and codes == {0} else (f"{landed - equal} kills, exit codes {codes}",))


for _variant in VARIANTS:
    attack(f"SIGKILL at random instants: {_variant}", fast=_variant == USUAL)(partial(_random_kills, variant=_variant))


@attack("SIGKILL at single file operations in the run folder")
def at_file_operations(lab: Lab) -> Outcome:
    """Before each operation in turn (create, sync, rename, remove), or before a random choice of them. A second kill
    strikes the process that continues."""
    count = lab.folder / "operations"
    lab.run(USUAL, out := lab.out(), hook=partial(die_at_operation, str(out), 0, str(count)))
    number = int(count.read_text())
    rng, landed, equal = random.Random(lab.seed), 0, 0
    chosen = rng.sample(range(1, number + 1), min(number, (lab.kills + 1) // 2))
    for at in chosen:
        out, struck = lab.out(), 0
        for operation in (at, rng.randrange(1, number + 1)):
            ended = lab.run(USUAL, out, hook=partial(die_at_operation, str(out), operation, ""))
            struck += ended.code == -signal.SIGKILL
        lab.run(USUAL, out)
        landed, equal = landed + struck, equal + struck * lab.equal(out, USUAL)
    found = f"{equal} of {landed} kills end bit-equal ({number} operations in a run)"
    return Outcome(found, () if equal == landed > 0 else (f"{landed - equal} of {landed} kills",))


def die_at_operation(folder: str, number: int, count: str) -> None:
    """A hook: SIGKILL before the `number`-th operation of this process in `folder`; writes their number to `count`."""
    done = 0
    sync = os.fsync

    def operation(path: Any) -> None:
        nonlocal done
        if isinstance(path, (str, bytes, os.PathLike)) and Path(os.fsdecode(path)).is_relative_to(folder):
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            if count:
                with os.fdopen(os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                    file.write(str(done))

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if written or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            operation(arguments[0])

    def synced(descriptor: int) -> None:
        operation(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    os.fsync = synced
    sys.addaudithook(heard)
