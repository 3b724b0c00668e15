"""Shares of data sets that follow their gradients: what `balance.pike` needs, measured in a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..balance.pike import pike_shares
from ..config import Recipe
from ..distributed import World
from ..protocols import Batch, MixingLoader
from ..utils.phases import phase
from .gradient_stats import gradient_row

Loss = Callable[[Batch], Tensor]


class SetShares:
    """Measures the gradients of each set on some batches, and sets the loader's shares after each epoch.

    A probe takes two halves of a set's batch, n images each, whose losses have the gradients a and b. Without bias,
    <a, b> estimates the squared norm of the set's gradient, and n/2 |a - b|^2 the variance of an image's gradient. An
    epoch's estimates are the means over its probes. A set without a probe in an epoch keeps its last estimates; shares
    change once each set has some.

    Args:
        names: of the sets; images are named "SET/ID".
        mixed: whether a batch has images of all sets.
        zeta, floor: see `pike_shares`; `floor` is relative to equal shares.
        every: of each set every `every`-th batch of an epoch is probed, from the first on.
        device: of the batches.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        mixed: bool,
        zeta: tuple[float, float],
        floor: float,
        every: int,
        device: torch.device,
    ) -> None:
        self.names, self.mixed, self.zeta, self.floor, self.every = tuple(names), mixed, zeta, floor, every
        self._seen = dict.fromkeys(self.names, 0)  # batches with images of a set in this epoch, the same on all ranks
        # float64 [S, 3] of this rank in this epoch: squared norms, variances, and the number of probes
        self._sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=device)
        self._estimates: list[list[float] | None] = [None] * len(self.names)  # [squared norm, variance] of each set

    def look(self, batch: Batch, model: nn.Module, shared: Sequence[Tensor], loss: Loss) -> None:
        """Probe the sets of a training batch that are due; does not wait for the device.

        The network is in evaluation mode: the gradient of an image does not depend on the others, and neither
        statistics nor random numbers change.

        Args:
            batch: of this rank.
            model: the network.
            shared: its parameters that the sets share.
            loss: batch -> sum of the task losses, in full precision and without communication.
        """
        due = [name for name in (self.names if self.mixed else (batch.set,)) if self._is_due(name)]
        if not due:
            return
        rows = {name: [row for row, one in enumerate(batch.ids) if one.startswith(f"{name}/")] for name in due}
        training = {module: module.training for module in model.modules()}
        model.eval()
        try:
            for name, own in rows.items():
                if len(own) > 1:
                    self._probe(self.names.index(name), batch, own, shared, loss)
        finally:
            for module, mode in training.items():
                module.training = mode

    def _is_due(self, name: str) -> bool:
        self._seen[name] += 1
        return (self._seen[name] - 1) % self.every == 0

    @phase("gradient stats")
    def _probe(self, number: int, batch: Batch, rows: list[int], shared: Sequence[Tensor], loss: Loss) -> None:
        inputs, half = [parameter for parameter in shared if parameter.requires_grad], len(rows) // 2
        halves = [rows_of(batch, part) for part in (rows[:half], rows[half : 2 * half])]
        G = ops.gram(torch.stack([gradient_row(loss(one), inputs) for one in halves]))
        apart = (G[0, 0] + G[1, 1] - 2 * G[0, 1]).clamp(min=0)  # below 0 by rounding alone
        found = torch.stack([G[0, 1], half / 2 * apart, torch.ones_like(apart)]).detach()
        self._sums[number] += torch.where(found.isfinite().all(), found, 0.0)

    def close_epoch(self, loader: MixingLoader, world: World) -> dict[str, dict[str, Any]]:
        """Set the shares of the next epoch, the same on all ranks; returns those of this epoch, by set, and what they
        follow from (None for a set that was not probed). All ranks call it, after the last batch."""
        shares, found = loader.shares, []
        sums = world.broadcast(world.sum(self._sums).tolist())  # the same bits on all ranks
        for number, (square, variance, count) in enumerate(sums):
            found.append([square / count, variance / count] if count else [None, None])
            if count:
                self._estimates[number] = [max(square / count, 0.0), variance / count]
        known = [one for one in self._estimates if one is not None]
        if len(known) == len(self.names):
            squares, variances = zip(*known, strict=True)
            after = pike_shares(
                shares,
                squares,
                variances,
                zeta=self.zeta,
                batch=loader.global_batch,
                floor=self.floor / len(self.names),
            )
            if all(map(math.isfinite, after)):  # sums of very large gradients may not be
                shares = after
        record = {
            name: {"share": share, "squared_norm": square, "variance": variance}
            for name, share, (square, variance) in zip(self.names, loader.shares, found, strict=True)
        }
        loader.set_shares(shares)
        self._sums.zero_()
        self._seen = dict.fromkeys(self.names, 0)
        return record

    def state_dict(self, world: World) -> dict[str, Any]:
        """The state of all ranks; all of them call it."""
        return {"seen": dict(self._seen), "estimates": list(self._estimates), "sums": world.gather(self._sums)}

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Restore what `state_dict` returned, also of another number of ranks."""
        self._seen, self._estimates, sums = dict(state["seen"]), list(state["estimates"]), state["sums"]
        if len(sums) == world.size:
            self._sums.copy_(sums[world.rank])
        else:  # their sum is what counts
            self._sums.copy_(sums.sum(0) if world.rank == 0 else torch.zeros_like(self._sums))


def set_shares_of(recipe: Recipe, device: torch.device) -> SetShares | None:
    """What moves the shares of the recipe's sets; None if they are constant."""
    data = recipe.data
    if not data.sets_zeta:
        return None
    gradient, noise = data.sets_zeta
    return SetShares(
        [one.name for one in data.sets],
        mixed=data.sets_batches == "mixed",
        zeta=(gradient, noise),
        floor=data.sets_floor,
        every=data.sets_probe_every,
        device=device,
    )


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch of some of its rows."""
    at = torch.tensor(rows, device=batch.images.device)
    return replace(
        batch,
        images=batch.images[at],
        targets={name: target[at] for name, target in batch.targets.items()},
        has_label=batch.has_label[at],
        metadata={name: value[at] for name, value in batch.metadata.items()},
        ids=[batch.ids[row] for row in rows],
        groups=[batch.groups[row] for row in rows],
    )
