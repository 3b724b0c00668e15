"""The communication of a step, for one process: nothing is sent. `collectives.Ranks` overrides it for several ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor

from .arena import GradientArena


class SingleProcess:
    """What a balancer asks of the other ranks, in the order of a step.

    Args:
        meant: whether this process works by itself although there are other ranks.
    """

    rank, size = 0, 1
    splits = False  # whether `collect` gives each rank a part of the columns
    shards_parameters = False  # FSDP2: each rank holds a part of every parameter

    def __init__(self, meant: bool = False) -> None:
        self._meant = meant

    def begin(self, written: Iterable[Tensor], learned: Iterable[Tensor]) -> None:
        """At each micro-batch: `written` will get gradients of all ranks from the balancer, `learned` are its own
        parameters.

        Raises:
            RuntimeError: there are other ranks, and `distribute` was not called.
        """
        if self._meant or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        raise RuntimeError(
            f"this balancer sees {dist.get_world_size()} ranks and was not distributed: models would drift apart. "
            "Call balancer.distribute(model) on every rank, after wrapping it in DistributedDataParallel if that is "
            "done; or balancer.distribute(None) if each rank is to work on its own gradients."
        )

    def abort(self) -> None:
        """The step failed."""
        return

    def losses(self, losses: dict[str, Tensor], active: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses with the values of all ranks and the graphs of this one; which tasks any rank has labels for."""
        return losses, active

    def scaled(self, loss: Tensor, scale: Tensor | float | None) -> Tensor:
        """What to backpropagate for `loss` so that the ranks' gradients add up to the whole one."""
        return loss if scale is None else loss * scale

    def launch(self, arena: GradientArena, task: int) -> None:
        """Row `task` is complete and may leave."""
        return

    def collect(self, arena: GradientArena) -> Tensor:
        """The rows over all ranks: J [K, P], or if `splits` this rank's columns of it."""
        return arena.complete()

    def copied(self, arena: GradientArena) -> Tensor:
        """The same in the middle of a step, whose rows go on growing; not to be written to."""
        return arena.complete()

    def offset(self) -> int:
        """Where this rank's columns begin."""
        return 0

    def sum(self, values: Tensor) -> Tensor:
        """Over ranks, for what was summed over this rank's columns."""
        return values

    def mean(self, gradients: Tensor) -> Tensor:
        """Over ranks, for gradients of losses that did not pass through `scaled`."""
        return gradients

    def total(self, gradients: Tensor) -> Tensor:
        """Over ranks, for gradients of losses that did."""
        return gradients

    def spread(self, flat: Tensor) -> Tensor:
        """The whole of a combined gradient of which each rank has its columns."""
        return flat

    def agree(self, key: object, flags: list[bool]) -> list[bool]:
        """Which parameters have a gradient on any rank."""
        return flags

    def reduce_others(self) -> None:
        """Add up over the ranks the gradients that the balancer does not combine."""
        return
