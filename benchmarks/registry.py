"""Benchmark cases: a case declares its inputs, its contenders (ours first), and the least bytes that must be moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Any]
Run = Callable[[], tuple[Tensor, ...]]
Contender = Callable[[Inputs], Run]

_CASES: list[Case] = []
_FLOORS = ("read ", "decode ")


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        op: the public name of what is measured.
        shape: a description of the inputs: shapes and dtypes.
        mode: what is timed, for example "forward + backward".
        make: device -> inputs; seeded random numbers, never zeros.
        contenders: name -> inputs -> a function that runs once and returns the outputs to compare. "fastmtl" comes
            first. A contender that raises an error is reported and skipped, ImportError as "not installed". A contender
            whose name begins with "read " or "decode " is a floor: it does only what every contender must do.
        min_bytes: bytes that must be read or written at least once; 0 if memory is not the limit.
        tolerance: largest relative difference from `truth`.
        truth: inputs -> the exact outputs in float64.
        figures: contender -> target speed-up, shown next to the measured one.
        items: images per run, if images/s is of interest; else 0.
    """

    op: str
    shape: str
    mode: str
    make: Callable[[torch.device], Inputs]
    contenders: Mapping[str, Contender]
    min_bytes: int
    tolerance: float
    truth: Callable[[Inputs], tuple[Tensor, ...]]
    figures: Mapping[str, float] = field(default_factory=dict)
    items: int = 0

    @property
    def title(self) -> str:
        return f"{self.op}  {self.shape}  {self.mode}"


def is_floor(contender: str) -> bool:
    """Whether a contender is a floor (see `Case.contenders`) and not a peer; stored rows have only its name."""
    return contender.startswith(_FLOORS)


def register(case: Case) -> Case:
    """Add `case` to the cases of `fastmtl bench`."""
    _CASES.append(case)
    return case


def cases(pattern: str = "") -> list[Case]:
    """Registered cases whose title contains `pattern`, ignoring case."""
    from . import load_cases

    load_cases()
    return [case for case in _CASES if pattern.lower() in case.title.lower()]
