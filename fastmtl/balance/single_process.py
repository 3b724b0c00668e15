"""The communication of a step for one process: nothing is sent. `collectives.Ranks` overrides it for several ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor

from .arena import GradientArena


class SingleProcess:
    """The communication that a balancer needs, in the order of a step.

    Args:
        meant: whether the user chose that this process works alone although there are other ranks.
    """

    rank, size = 0, 1
    splits = False  # whether `collect` gives each rank a part of the columns
    shards_parameters = False  # FSDP2: each rank holds a part of every parameter

    def __init__(self, meant: bool = False) -> None:
        self._meant = meant

    def begin(self, written: Iterable[Tensor], learned: Iterable[Tensor]) -> None:
        """Called at each micro-batch. The balancer writes the gradients of all ranks to `written`; `learned` are the
        balancer's own parameters.

        Raises:
            RuntimeError: there are other ranks, and `distribute` was not called.
        """
        if self._meant or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        raise RuntimeError(
            f"there are {dist.get_world_size()} ranks and this balancer was not distributed: the models would diverge. "
            "Call balancer.distribute(model) on every rank, after wrapping it in DistributedDataParallel if you use "
            "that; or balancer.distribute(None) if each rank should balance its own gradients."
        )

    def abort(self) -> None:
        """Discard a failed step."""
        return

    def release(self) -> None:
        """Free buffers: other tasks come next."""
        return

    def losses(self, losses: dict[str, Tensor], active: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses with the mean values of all ranks and the graphs of this rank; which tasks have labels on any rank."""
        return losses, active

    def scaled(self, loss: Tensor, scale: Tensor | float | None) -> Tensor:
        """The scalar to backpropagate for `loss` so that the sum of the ranks' gradients is the full gradient."""
        return loss if scale is None else loss * scale

    def launch(self, arena: GradientArena, task: int) -> None:
        """Row `task` is complete and can be sent."""
        return

    def collect(self, arena: GradientArena) -> Tensor:
        """The rows summed over all ranks: J [K, P], or this rank's columns of it if `splits`."""
        return arena.complete()

    def copied(self, arena: GradientArena) -> Tensor:
        """As `collect`, between the micro-batches of a step; do not write to the result."""
        return arena.complete()

    def offset(self) -> int:
        """The first of this rank's columns."""
        return 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks of values that were summed over each rank's columns."""
        return values

    def mean(self, gradients: Tensor) -> Tensor:
        """Mean over ranks, for gradients of losses that were not passed through `scaled`."""
        return gradients

    def total(self, gradients: Tensor) -> Tensor:
        """Sum over ranks, for gradients of losses that were passed through `scaled`."""
        return gradients

    def spread(self, flat: Tensor) -> Tensor:
        """The full combined gradient, if each rank has its columns of it."""
        return flat

    def agree(self, key: object, flags: list[bool]) -> list[bool]:
        """For each parameter, whether any rank has a gradient for it."""
        return flags

    def reduce_others(self) -> None:
        """Sum over the ranks the gradients that the balancer does not combine."""
        return
