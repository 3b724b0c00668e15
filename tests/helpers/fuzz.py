"""Runs a property on generated input: a few seconds of examples that are always the same, or new ones for a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

from .budget import limits

T = TypeVar("T")
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
"""Of a slow test; `make fuzz` sets it."""
_FEW, _MANY = 60, 100
_SECONDS_EACH = 30  # for an example


def fuzz(strategy: SearchStrategy[T], check: Callable[[T], Any], *, seconds: float = 0.0) -> None:
    """Run `check` on examples of `strategy`: on the same few, or on new ones for so many `seconds`.

    An example that fails is printed, and `seed` with it.
    """

    def one(value: T) -> None:
        with limits(_SECONDS_EACH, megabytes=1500):
            check(value)

    options = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    if not seconds:
        settings(options, max_examples=_FEW, derandomize=True)(given(strategy)(one))()
        return
    end, number = time.monotonic() + seconds, time.time_ns() % 2**32
    while time.monotonic() < end:
        print(f"seed {number}")  # shown for a failure
        seed(number)(settings(options, max_examples=_MANY)(given(strategy)(one)))()
        number += 1


def mutated(content: bytes) -> SearchStrategy[bytes]:
    """`content` with a few changes: cut short, bits flipped, pieces overwritten, left out, doubled or swapped."""
    from hypothesis import strategies as st

    size = max(len(content), 1)

    def change(edits: list[tuple[int, int, int, bytes]]) -> bytes:
        text = bytearray(content)
        for kind, at, other, junk in edits:
            at, other = at % (len(text) + 1), other % (len(text) + 1)
            low, high = min(at, other), max(at, other)
            if kind == 0:
                del text[at:]
            elif kind == 1 and at < len(text):
                text[at] ^= 1 << other % 8
            elif kind == 2:
                text[at : at + len(junk)] = junk
            elif kind == 3:
                del text[at : at + len(junk)]
            elif kind == 4:
                text[at:at] = junk
            elif kind == 5:
                text[at:at] = text[low:high][:4096]
            elif kind == 6:
                text[low : low + 8], text[high : high + 8] = text[high : high + 8], text[low : low + 8]
        return bytes(text)

    places = st.integers(0, size)
    return st.lists(
        st.tuples(st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 6]), places, places, st.binary(min_size=1, max_size=12)),
        min_size=1,
        max_size=4,
    ).map(change)
