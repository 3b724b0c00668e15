"""Strategies that do not pay K backwards of the shared part, and are approximate: features and the last layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._autograd import backward, last_layer, layer_row, leaves, unreached
from .exact_strategies import Strategy

if TYPE_CHECKING:
    from .gradient_balancer import GradientBalancer


class Features(Strategy):
    """Gradients of the shared part's outputs stand for those of its parameters; one backward goes on from there.

    APPROXIMATE: G_z is not G_theta. Rows of several micro-batches, or ranks, stand side by side: they are gradients of
    different samples' features.
    """

    name = "features"

    def __init__(self, reuse: int = 1) -> None:
        super().__init__(reuse)
        self._pieces: list[tuple[Tensor, list[tuple[Tensor, Any]]]] = []  # [K, P_i] and (leaf, its slot)

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        cuts, arena = _cuts(features), balancer._arena
        with arena.open(cuts, len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with arena.record(task) as reached:
                    backward(balancer._ranks.scaled(loss, scale), retain_graph=task + 1 < len(losses))
                if not reached:
                    raise ValueError(unreached(name, "`features`", "a tensor of"))
        rows = arena.finish()
        slots = [slot for slot in zip(arena.parameters, arena.slots, arena.reached(), strict=True) if slot[2]]
        # The arena's rows are written again at the next micro-batch.
        self._pieces.append((rows if last else rows.clone(), [(leaf, slot) for leaf, slot, _ in slots]))
        arena.clear()

    def rows(self, balancer: GradientBalancer) -> Tensor:
        balancer._split = balancer._ranks.size > 1 and not balancer._ranks.local
        rows = [rows for rows, _ in self._pieces]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        parts = flat.split([rows.shape[1] for rows, _ in self._pieces])
        with torch.enable_grad():
            for part, (_, slots) in zip(parts, self._pieces, strict=True):
                _continue([(leaf, slot.view(part).to(leaf.dtype)) for leaf, slot in slots])
        self.forget()

    def forget(self) -> None:
        self._pieces = []

    def _weigh(self, balancer, losses, shared, scale, w, features=None) -> None:
        cuts = _cuts(features)
        super()._weigh(balancer, losses, cuts, scale, w)
        gradients = [(leaf, leaf.grad) for leaf in cuts if leaf.grad is not None]
        for leaf in cuts:
            leaf.grad = None
        _continue(gradients)


class LastLayer(Strategy):
    """Weights from the gradients of one layer, K short backwards; then one weighted backward of everything.

    APPROXIMATE for every method that is defined on all shared parameters. Micro-batches are kept, graphs and all.
    """

    name = "last_layer"
    needs_all_losses = True

    def __init__(self, reuse: int = 1, layer: Tensor | None = None) -> None:
        super().__init__(reuse)
        self.layer = layer
        self._step: tuple[Any, ...] = ()
        self._J: Tensor | None = None

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        layer = last_layer(shared) if self.layer is None else self.layer
        leaves(losses.values())  # before any work: raises where a graph hides parameters
        rows = [layer_row(name, balancer._ranks.scaled(loss, scale), layer) for name, loss in losses.items()]
        self._J = balancer._ranks.total(torch.stack(rows))
        self._step = (losses, shared, scale)

    def rows(self, balancer: GradientBalancer) -> Tensor:
        assert self._J is not None
        balancer._split = False
        return self._J

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        losses, shared, scale = self._step
        self.forget()
        with torch.enable_grad():
            self._weigh(balancer, losses, shared, scale, w)

    def forget(self) -> None:
        self._step, self._J = (), None


def cut(features: Tensor) -> Tensor:
    """A leaf in the place of the shared part's output, where the K backwards of the strategy "features" stop.

    Feed it to the heads and give it to `backward(..., features=)`, which goes on into the shared part.

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
    leaf._fastmtl_cut_from = features  # type: ignore[attr-defined]
    return leaf


def _cuts(features: Tensor | Iterable[Tensor] | None) -> list[Tensor]:
    cuts = [] if features is None else [features] if isinstance(features, Tensor) else list(features)
    if not cuts or not all(hasattr(leaf, "_fastmtl_cut_from") for leaf in cuts):
        found = "none" if not cuts else "tensors that `cut` did not make"
        raise ValueError(
            f"`features` must be what `balance.cut` made of the shared part's outputs, in every call; got {found}. "
            "Write z = balance.cut(encoder(x)), give z to the heads, and features=z to backward."
        )
    return cuts


def _continue(gradients: list[tuple[Tensor, Tensor]]) -> None:
    if gradients:
        origins = [leaf._fastmtl_cut_from for leaf, _ in gradients]  # type: ignore[attr-defined]
        torch.autograd.backward(origins, [gradient for _, gradient in gradients])
