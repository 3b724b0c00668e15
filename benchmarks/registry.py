"""What is measured: a case declares its inputs once, its contenders (ours first), and the bytes nobody can avoid."""

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
        op: the public name it measures.
        shape: the inputs in words, shapes and dtypes.
        mode: what is timed, for example "forward + backward".
        make: device -> inputs; random and never zeros, seeded.
        contenders: name -> inputs -> a function that runs once and returns what must agree. "fastmtl" comes first. A
            contender that raises is named and left out, ImportError as "not installed". One whose name begins with
            "read " or "decode " is a floor: it does nothing but what everybody has to.
        min_bytes: bytes that must cross memory at least once; 0 where that says nothing.
        tolerance: largest relative difference from the first of `truth`, or from fastmtl without one.
        truth: inputs -> the exact answer in float64.
        figures: contender -> speed-up that is aimed at, shown beside the measured one.
        items: images that one run handles, where images/s is what people compare; else 0.
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
    """Whether it is no peer but what nobody can avoid; by its name, which is all that a stored row has."""
    return contender.startswith(_FLOORS)


def register(case: Case) -> Case:
    """Add `case` to what `fastmtl bench` measures."""
    _CASES.append(case)
    return case


def cases(pattern: str = "") -> list[Case]:
    """Registered cases whose title contains `pattern`, in capitals or not."""
    from . import load_cases

    load_cases()
    return [case for case in _CASES if pattern.lower() in case.title.lower()]
