"""What the contract suite needs to know of an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from helpers.op_inputs import Make, Shape, classes, features_of_classes, heads_of_classes, sigmoid

TINY, SMALL = (2, 3, 2, 2), (2, 3, 6, 5)
PIXELS = "pixels"  # replaced by a mask of the target's shape with about two of three elements valid


@dataclass(frozen=True)
class OpSpec:
    """The contract of one op, or of one variant of it: `function(*inputs, **rest)` is the public function.

    Attributes:
        name: as in `fastmtl.ops`; the variant follows after a space.
        stem: common stem of the names of its files.
        make: (shape, dtype, seed) -> Call; the op defines what the shape means.
        cases: settings to try besides the defaults, each a function of the number of channels (or rows).
        tiny, small, large: shapes for finite differences, for most tests, and with several chunks.
        batches, maps: whether the first input has a batch dim to mask, and spatial dims whose memory layout can change.
        kernels: the backends besides the reference.
        differentiable: whether the op has a gradient; forward: whether also in forward mode.
        kept: numbers the backward may keep besides the arguments, at `small`.
        naive: (input, target) -> loss in a common formulation, in the inputs' dtype.
        tolerance: error of float32 results against float64, relative to the largest.
        batched: whether vmap works; argument: name of the first input in messages.
        shares: stems of the ops whose definition and kernels this one uses, if it has none.
    """

    name: str
    stem: str
    function: Callable[..., Any]
    make: Make
    cases: Sequence[Callable[[int], Mapping[str, Any]]] = ()
    tiny: Shape = TINY
    small: Shape = SMALL
    large: Shape = (3, 4, 150, 101)
    batches: bool = True
    maps: bool = True
    kernels: tuple[str, ...] = ("cpp", "triton")
    differentiable: bool = True
    forward: bool = True
    kept: int | None = None
    naive: Callable[[Tensor, Tensor], Tensor] | None = None
    tolerance: float = 5e-6
    batched: bool = True
    argument: str = "input"
    shares: tuple[str, ...] = ()

    @property
    def by_channel(self) -> bool:
        """Whether each channel has a loss of its own."""
        return self.make is sigmoid

    @property
    def of_classes(self) -> bool:
        """Whether the target holds class numbers."""
        return self.make in (classes, heads_of_classes, features_of_classes)
