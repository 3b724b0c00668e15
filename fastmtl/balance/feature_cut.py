"""A leaf that replaces the shared part's output: the K backwards of the strategy "features" stop there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..utils.phases import phase
from .replay import still_buffers

_ORIGIN = "_fastmtl_cut_from"  # attribute of the leaf: the tensor it replaces


def cut(features: Tensor) -> Tensor:
    """Return a leaf that replaces the shared part's output: the K backwards of the strategy "features" stop there.

    Pass it to the heads and to `backward(..., features=)`, which then continues into the shared part. The leaf has the
    shape, dtype and device of `features`.

    Raises:
        ValueError: `features` has no graph.

    >>> from fastmtl import balance
    >>> encoder, head_a, head_b = (torch.nn.Linear(4, n) for n in (4, 1, 2))
    >>> z = cut(encoder(torch.ones(8, 4)))
    >>> losses = {"a": head_a(z).mean(), "b": head_b(z).square().mean()}
    >>> log = balance.PCGrad().use("features").backward(losses, encoder.parameters(), features=z)
    >>> encoder.weight.grad.shape
    torch.Size([4, 4])
    """
    if not features.requires_grad:
        raise ValueError("`features` must have a graph; got a tensor with requires_grad=False.")
    leaf = features.detach().requires_grad_()
    setattr(leaf, _ORIGIN, features)
    return leaf


def check_cuts(features: Tensor | Iterable[Tensor] | None) -> list[Tensor]:
    """The leaves that `cut` made, as a list.

    Raises:
        ValueError: there are none, or some were not made by `cut`.
    """
    cuts = [] if features is None else [features] if isinstance(features, Tensor) else list(features)
    if not cuts or not all(hasattr(leaf, _ORIGIN) for leaf in cuts):
        found = "none" if not cuts else "tensors that `cut` did not make"
        raise ValueError(
            f"`features` must be made by `balance.cut` from the shared part's outputs, in every call; got {found}. "
            "Write z = balance.cut(encoder(x)), pass z to the heads and features=z to backward."
        )
    return cuts


@phase("backward")
def backward_from_cuts(gradients: list[tuple[Tensor, Tensor]]) -> None:
    """Continue the backward from each leaf, with its gradient, into the graph it was cut from."""
    if gradients:
        origins = [getattr(leaf, _ORIGIN) for leaf, _ in gradients]
        with torch.enable_grad(), still_buffers():
            torch.autograd.backward(origins, [gradient for _, gradient in gradients])
