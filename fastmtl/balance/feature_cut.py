"""Where the K backwards of the strategy "features" stop: a leaf in the place of the shared part's output."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .replay import still_buffers

_ORIGIN = "_fastmtl_cut_from"  # attribute of the leaf: the tensor it replaces


def cut(features: Tensor) -> Tensor:
    """A leaf that replaces the shared part's output, where the K backwards of the strategy "features" stop.

    Feed it to the heads and give it to `backward(..., features=)`, which continues into the shared part.

    >>> from fastmtl import balance
    >>> encoder, head_a, head_b = (torch.nn.Linear(4, n) for n in (4, 1, 2))
    >>> z = cut(encoder(torch.ones(8, 4)))
    >>> losses = {"a": head_a(z).mean(), "b": head_b(z).square().mean()}
    >>> log = balance.PCGrad().use("features").backward(losses, encoder.parameters(), features=z)
    >>> encoder.weight.grad.shape
    torch.Size([4, 4])
    """
    if not features.requires_grad:
        raise ValueError("`features` must carry a graph; got a tensor with requires_grad=False.")
    leaf = features.detach().requires_grad_()
    setattr(leaf, _ORIGIN, features)
    return leaf


def check_cuts(features: Tensor | Iterable[Tensor] | None) -> list[Tensor]:
    """The leaves that `cut` made, as a list.

    Raises:
        ValueError: there are none, or tensors of another origin.
    """
    cuts = [] if features is None else [features] if isinstance(features, Tensor) else list(features)
    if not cuts or not all(hasattr(leaf, _ORIGIN) for leaf in cuts):
        found = "none" if not cuts else "tensors that `cut` did not make"
        raise ValueError(
            f"`features` must be what `balance.cut` made of the shared part's outputs, in every call; got {found}. "
            "Write z = balance.cut(encoder(x)), give z to the heads, and features=z to backward."
        )
    return cuts


def backward_from_cuts(gradients: list[tuple[Tensor, Tensor]]) -> None:
    """Continue the backward from each leaf, with its gradient, into the graph it was cut from."""
    if gradients:
        origins = [getattr(leaf, _ORIGIN) for leaf, _ in gradients]
        with torch.enable_grad(), still_buffers():
            torch.autograd.backward(origins, [gradient for _, gradient in gradients])
