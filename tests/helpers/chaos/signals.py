"""Signals that ask a training to stop, at every kind of moment."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

from .attack import Outcome, attack, problems
from .lab import USUAL, Ended, Lab, Victim

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_WITHIN = {"in training": 10.0, "in a save": 10.0, "in a validation": 30.0, "at the start": 30.0}  # seconds


def _signalled(lab: Lab, moment: str) -> Outcome:
    """Each signal once; then the same command to the end."""
    found, slowest = [], 0.0
    codes, said = set[int](), ""
    for number in _SIGNALS:
        out = lab.out()
        victim = _starting(lab, out) if moment == "at the start" else lab.reach(USUAL, out, moment, step=3)
        ended, seconds = _ended_by(lab, victim, out, lambda victim=victim, number=number: victim.send(number))
        slowest, said = max(slowest, seconds), ended.said
        codes.add(ended.code)
        again = lab.run(USUAL, out)
        found += problems(
            **{
                f"{number.name}_exits_with_75_(but_{ended.code})": ended.code == 75,
                f"{number.name}_stops_within_{_WITHIN[moment]:.0f}_s": seconds < _WITHIN[moment] * lab.slowness,
                f"{number.name}_is_bit_equal": again.code == 0 and lab.equal(out, USUAL),
            }
        )
    names = ", ".join(number.name for number in _SIGNALS)
    shown = " or ".join(map(str, sorted(codes)))
    return Outcome(
        f"“{said}”; exit code {shown} after at most {slowest:.1f} s ({names})", tuple(found), "bit-equal at the end"
    )


for _moment in _WITHIN:
    attack(f"SIGTERM, SIGINT, SIGUSR1 {_moment}", fast=_moment == "in training")(partial(_signalled, moment=_moment))


@attack("a second Ctrl-C")
def twice(lab: Lab) -> Outcome:
    victim = lab.reach(USUAL, out := lab.out(), "in training", hook=_slow_saves)

    def interrupt() -> None:
        victim.send(signal.SIGINT)
        time.sleep(0.5)
        victim.send(signal.SIGINT)

    ended, seconds = _ended_by(lab, victim, out, interrupt)
    again = lab.run(USUAL, out)
    return Outcome(
        f"“{ended.said}”; exit code {ended.code} after {seconds:.1f} s",
        problems(
            exit_code_130=ended.code == 130,
            at_once=seconds < 5 * lab.slowness,
            bit_equal=again.code == 0 and lab.equal(out, USUAL),
        ),
        "bit-equal at the end",
    )


def _slow_saves() -> None:
    """A hook: a save takes 20 seconds, which the first Ctrl-C waits for."""
    from fastmtl.training import checkpoint

    write = checkpoint.write

    def slow(*arguments, **options) -> None:
        time.sleep(20)
        write(*arguments, **options)

    checkpoint.write = slow


def _starting(lab: Lab, out) -> Victim:
    victim = lab.start(USUAL, out)
    assert victim.until(lambda: "data: " in victim.log.read_text(errors="replace")), "it ended at the start"
    return victim


def _ended_by(lab: Lab, victim: Victim, out, act: Callable[[], None]) -> tuple[Ended, float]:
    """How it ends after `act`, and in how many seconds."""
    began = time.monotonic()
    act()
    return lab.ended(victim, out), time.monotonic() - began
