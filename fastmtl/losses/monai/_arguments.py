"""The common arguments of MONAI's losses, interpreted as MONAI does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from .. import _plain

Weights = Sequence[float] | float | int | Tensor | None
REDUCTIONS = ("mean", "sum", "none")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """The option as a plain string; MONAI's enums are strings too."""
    for option in allowed:
        if value == option:
            return option
    raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def with_channels(name: str, wanted: bool, input: Tensor) -> bool:
    """Whether an option for several channels is on; with a single channel it is off, with a warning as in MONAI."""
    if wanted and input.shape[1] == 1:
        warnings.warn(f"`{name}` is ignored: the prediction has a single channel.", stacklevel=4)
        return False
    return bool(wanted)


def ignore_mask(target: Tensor, ignore_index: int | None) -> Tensor | None:
    """[B, 1, *spatial]: bool if it selects pixels; floating if a soft target's channel is partly ignored.

    A target of several channels marks an ignored pixel in channel `ignore_index`, or, without such a channel, by
    zeros in all channels.
    """
    if ignore_index is None:
        return None
    if target.shape[1] == 1:
        return target != ignore_index
    if not 0 <= ignore_index < target.shape[1]:
        return target.sum(1, keepdim=True) > 0
    channel = target[:, ignore_index : ignore_index + 1]
    return channel == 0 if _plain.is_hard(channel) else 1 - channel


def check_index(target: Tensor) -> None:
    if target.shape[1] != 1:
        raise AssertionError(f"`target` must have one channel of class numbers with to_onehot_y=True; "
                             f"got {list(target.shape)}.")  # fmt: skip


def has_negative(weight: Tensor | None) -> bool:
    return weight is not None and bool((weight < 0).any())
