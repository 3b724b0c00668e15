"""Optional counts from the pass that computes a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, cast, overload

from torch import Tensor

P = ParamSpec("P")


class Counts(NamedTuple):
    """Counts per sample. With a sigmoid a logit above 0 is a positive prediction, and a target of 0.5 or more a
    positive; a softmax predicts the first class of the largest logit. NaN is neither positive nor the largest."""

    true_positive: Tensor  # int64 [B, C]: predicted and in the target
    false_positive: Tensor  # int64 [B, C]
    false_negative: Tensor  # int64 [B, C]
    non_finite: Tensor  # int64 [B]: elements (softmax: pixels) with a logit that is NaN or infinite


class WithCounts(Protocol[P]):
    """A loss with the option `return_counts`, as type checkers see it: a tensor, or a tuple with the counts."""

    @overload
    def __call__(self, *tensors: Any, return_counts: Literal[True], **options: Any) -> tuple[Tensor, Counts]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...


def with_counts(loss: Callable[P, Tensor | tuple[Tensor, Counts]]) -> WithCounts[P]:
    """The same function, with a type that depends on `return_counts`."""
    return cast("WithCounts[P]", loss)
