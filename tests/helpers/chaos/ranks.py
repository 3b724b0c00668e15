"""One rank of two dies, hangs or has a full disk; and a run continues on another number of ranks."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fastmtl.api.killed_runs import Seen

from .attack import Outcome, attack, problems
from .disks import no_space_at
from .lab import USUAL, Ended, Lab, Victim

_TIMEOUT = 8.0
_STRATEGIES = {"ddp": ("FAMO", ()), "fsdp2": (USUAL, ("--set", "distributed.strategy=fsdp2"))}
"""Strategy -> the variant that is trained with it, and its options."""


def _start(
    lab: Lab,
    out: Path,
    ranks: int = 2,
    *,
    strategy: str = "ddp",
    hanging: bool = False,
    disk: Callable[[], None] | None = None,
) -> list[Victim]:
    """The processes of torchrun, without torchrun; the last one hangs in its sixth step if `hanging`, and `disk` is a
    hook of the first one, which writes the run folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(ranks):
        values = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        values |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        hook = partial(_enter, values, hanging and rank + 1 == ranks, None if rank else disk)
        log = out.with_name(f"{out.name}-{rank}.log")
        variant, more = _STRATEGIES[strategy]
        found.append(Victim(lab.arguments(variant, out, "--rank-timeout", str(_TIMEOUT), *more), log, hook))
    return found


def _enter(values: Mapping[str, str], hanging: bool, disk: Callable[[], None] | None) -> None:
    """A hook."""
    from fastmtl.training.trainer import Trainer

    os.environ.update(values)
    if disk is not None:
        disk()
    step = Trainer.step

    def stepping(trainer, batch):
        if hanging and trainer.step_count == 5:
            time.sleep(600)
        return step(trainer, batch)

    Trainer.step = stepping


def _finish(lab: Lab, out: Path, ranks: int = 2, strategy: str = "ddp") -> list[Ended]:
    return [lab.ended(victim, out) for victim in _start(lab, out, ranks, strategy=strategy)]


def _without_a_rank(lab: Lab, number: int, strategy: str = "ddp") -> Outcome:
    """Rank 1 gets a signal in the second epoch, or hangs (0); then both start again."""
    whole = _whole(lab, strategy)
    out = lab.out()
    victims = _start(lab, out, strategy=strategy, hanging=not number)
    assert victims[0].until(lambda: Seen.of(out).step >= 5), "the ranks ended too soon"
    if number:
        victims[1].send(number)
    began = time.monotonic()
    ended = lab.ended(victims[0], out)
    seconds = time.monotonic() - began
    victims[1].send(signal.SIGKILL)
    victims[1].wait()
    again = _finish(lab, out, strategy=strategy)
    return Outcome(
        f"“{ended.said}”; rank 0 ends with exit code {ended.code} after {seconds:.0f} s",
        problems(
            rank_named="rank 1" in ended.said,
            exit_code_1=ended.code == 1,
            trained_with_the_strategy=f"ranks: 2 ({strategy})" in ended.messages,
            in_time=seconds < (_TIMEOUT + 12) * lab.slowness,
            bit_equal=[one.code for one in again] == [0, 0] and lab.same(out, whole),
        ),
        "bit-equal at the end",
    )


def _whole(lab: Lab, strategy: str = "ddp") -> Path:
    """A run of two ranks that nothing interrupted."""

    def make() -> Path:
        out = lab.out()
        assert [one.code for one in _finish(lab, out, strategy=strategy)] == [0, 0]
        return out

    return lab.once(f"two ranks, {strategy}", make)


attack("SIGKILL of one rank of two")(partial(_without_a_rank, number=signal.SIGKILL))
attack("SIGKILL of one rank of two, fsdp2")(partial(_without_a_rank, number=signal.SIGKILL, strategy="fsdp2"))
attack("one rank of two is frozen (SIGSTOP)")(partial(_without_a_rank, number=signal.SIGSTOP))
attack("one rank of two hangs in a step")(partial(_without_a_rank, number=0))


@attack("the disk of two ranks is full")
def full(lab: Lab) -> Outcome:
    whole = _whole(lab)
    found, said = (), ""
    for number in (1, 9, 20):
        out = lab.out()
        victims = _start(lab, out, disk=partial(no_space_at, str(out), number, errno.ENOSPC))
        first, second = (lab.ended(victim, out) for victim in victims)
        again = _finish(lab, out)
        said = f"“{first.said}”; rank 1: “{second.said}”"
        found += problems(
            **{
                f"told_(operation_{number})": "No space left on device" in first.said,
                f"both_ended_(operation_{number})": [first.code, second.code] == [1, 1],
                f"without_a_traceback_(operation_{number})": "Traceback" not in first.messages + second.messages,
                f"bit_equal_(operation_{number})": [one.code for one in again] == [0, 0] and lab.same(out, whole),
            }
        )
    return Outcome(said, found, "bit-equal once there is space")


@attack("a run of two ranks continues on one")
def on_another_number(lab: Lab) -> Outcome:
    out = lab.out()
    victims = _start(lab, out)
    assert victims[0].until(lambda: Seen.of(out).step >= 5), "the ranks ended too soon"
    for victim in victims:
        victim.send(signal.SIGTERM)
    stopped = [lab.ended(victim, out).code for victim in victims]
    (ended,) = _finish(lab, out, ranks=1)
    note = next((line for line in ended.messages.splitlines() if "not bit-equal" in line), "")
    return Outcome(
        f"“{note[:160]} ...”",
        problems(both_stopped=stopped == [75, 75], finished=ended.code == 0, said_so=bool(note)),
    )
