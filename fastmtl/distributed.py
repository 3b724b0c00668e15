"""The processes of one training run, as `torchrun` starts them: their ranks and their communication.

Everything here also works with one process, without communication. Gloo sends CPU tensors, NCCL sends GPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError
from .heartbeat import Heartbeat
from .rank_store import open_store

K = TypeVar("K")
T = TypeVar("T")


class LostRank(UserError, RuntimeError):
    """Another rank of this training run has ended, or hangs."""


class UnequalRanks(UserError, ValueError):
    """The ranks of this training run have different code, recipes or data."""


class Distributable(Protocol):
    """An object that averages gradients itself; see `protocols.Balancer`."""

    def distribute(self, model: nn.Module, *, method: str) -> object: ...


class World:
    """The processes that train one model, as seen from this process.

    Args:
        rank: index of this process; rank 0 writes files and prints.
        size: number of processes.
        local_rank: index of this process on its machine, which selects its GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._reducing: tuple[Any, Tensor] | None = None  # of `delayed_max`: the collective, and its tensor
        self._heartbeat: Heartbeat | None = None
        self._group: dist.ProcessGroup | None = None  # of objects; None is torch's default group

    @classmethod
    def from_environment(cls) -> World:
        """Read the environment variables that `torchrun` sets; without them there is one process."""
        return cls(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))

    @contextmanager
    def initialize(self, device: torch.device, timeout: float, *, patience: float | None = None) -> Iterator[None]:
        """Inside, the ranks can communicate.

        Args:
            device: of the model.
            timeout: seconds to wait for a rank that runs but does not answer; one that has ended is noticed within
                seconds.
            patience: the same for `broadcast` and `gather_entries`, if ranks may be further apart there.

        Raises:
            LostRank: another rank has ended, or did not answer in time; the message names it.
        """
        if self.size == 1:
            yield
            return
        try:
            self._connect(device, timeout, patience)
            yield
        except BaseException as error:
            if not is_of_communication(error):
                self._leave(error)
                raise
            if self._heartbeat is None:
                raise LostRank(
                    f"the {self.size} ranks could not connect, for which they have {timeout:g} s "
                    f"({_first_line(error)}); see the errors of the others."
                ) from error
            raise LostRank(f"{self._heartbeat.find_lost(timeout)}.") from error
        finally:
            self.close()

    def _connect(self, device: torch.device, timeout: float, patience: float | None) -> None:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, host, port = open_store(self.rank, self.size, timeout)
        wait = timedelta(seconds=timeout)
        dist.init_process_group(backend, timeout=wait, store=store, rank=self.rank, world_size=self.size)
        if patience is not None:
            group = dist.new_group(timeout=timedelta(seconds=patience), backend="gloo")
            self._group = group if isinstance(group, dist.ProcessGroup) else None  # this rank is always in it
        self._heartbeat = Heartbeat(self.rank, self.size, host, port)

    def _leave(self, error: BaseException) -> None:
        if self._heartbeat is not None:
            self._heartbeat.leave(_first_line(error))

    def close(self) -> None:
        """Leave the group; this process continues alone. Rank 0 uses it to evaluate and report after training."""
        self._reducing = self._group = None
        self.size = 1
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def require_equal(self, facts: Mapping[str, str]) -> None:
        """Compare `facts` (what -> a short text) with those of rank 0; all ranks call it.

        Raises:
            UnequalRanks: on all ranks; names the first rank that differs, and in what.
        """
        found = self.gather_entries({self.rank: dict(facts)})
        for rank in range(1, self.size):
            names = dict.fromkeys([*found[0], *found[rank]])
            values = {name: (found[rank].get(name, "none"), found[0].get(name, "none")) for name in names}
            differences = [f"{name} {own} (rank 0: {first})" for name, (own, first) in values.items() if own != first]
            if differences:
                more = f" and {len(differences) - _SHOWN} more" * (len(differences) > _SHOWN)
                raise UnequalRanks(
                    f"rank {rank} differs from rank 0: {'; '.join(differences[:_SHOWN])}{more}. "
                    "Give all ranks the same code, recipe and data."
                )

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value` on all ranks; the others wait for it."""
        shared = [value]
        if self.size > 1:
            dist.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]

    def send(self, value: object, rank: int) -> None:
        """Send `value` to a rank, which calls `receive`; waits until it has it."""
        dist.send_object_list([value], dst=rank, group=self._group)

    def receive(self, rank: int) -> Any:
        """Return what `rank` sends next."""
        found: list[Any] = [None]
        dist.recv_object_list(found, src=rank, group=self._group)
        return found[0]

    def gather_entries(self, own: Mapping[K, T]) -> dict[K, T]:
        """Return the entries of all ranks on all ranks; if several ranks have a key, the last rank wins."""
        parts: list[Mapping[K, T]] = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(parts, dict(own), group=self._group)
        return {key: value for part in parts for key, value in part.items()}

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks; a new tensor if there are several."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        """[ranks, *shape]: the `values` of every rank."""
        parts = [torch.empty_like(values) for _ in range(self.size)]
        if self.size == 1:
            return values[None]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    def delayed_max(self, value: int) -> int:
        """The largest `value` of the ranks, on all ranks. With several ranks it is that of the previous call, so that
        no rank waits for the others at every step."""
        if self.size == 1:
            return value
        largest = torch.tensor([value])
        before, self._reducing = self._reducing, (dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True), largest)
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])

    def losses(self, losses: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
        """See `global_losses`."""
        return dict(losses) if self.size == 1 else global_losses(losses, counts)

    def distribute(self, balancer: Distributable, model: nn.Module) -> None:
        """Let `balancer` balance the gradients of all ranks. State that could be split over the ranks is kept whole,
        because only rank 0 writes checkpoints."""
        if self.size > 1:
            balancer.distribute(
                model, method="all_reduce" if getattr(balancer, "split_state", ()) else "reduce_scatter"
            )


_SHOWN = 3  # differences named


_OF_GLOO = ("gloo", "pair closure")  # the second one if the other rank is frozen: its connection stays open


def is_of_communication(error: BaseException) -> bool:
    """Whether `error` came from a collective, so that another rank may be the cause."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _OF_GLOO)
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def global_losses(
    losses: Mapping[str, Tensor], counts: Tensor, *, total: Tensor | None = None, group: dist.ProcessGroup | None = None
) -> dict[str, Tensor]:
    r"""Scale losses so that their mean over the ranks is the mean over the labelled samples of all ranks.

    :math:`L_k n_k R / \sum_r n_k^{(r)}` for R ranks; a task without labels on any rank gets 0 L_k. Without
    `torch.distributed` R is 1. The loss of a task without labels must be 0, not NaN. A loss that is not finite on one
    rank becomes NaN on all ranks, so that all skip the step.

    Args:
        losses: task -> mean loss over this rank's labelled samples in this micro-batch.
        counts: [K] number of these samples, on the losses' device: `batch.has_label.sum(0)`.
        total: [K] number of labelled samples in all micro-batches of this step on this rank; `counts` if None. The sum
            of the micro-batches' losses is then the loss of the step.
        group: process group; None uses the default group.

    Returns:
        task -> loss with a graph, for the `backward` of a distributed balancer.

    Raises:
        ValueError: `counts` or `total` is not [K].

    >>> means = {"a": torch.tensor(3.0), "b": torch.tensor(5.0)}
    >>> global_losses(means, torch.tensor([2, 1]), total=torch.tensor([4, 1]))
    {'a': tensor(1.5000), 'b': tensor(5.)}
    """
    for name, given in (("counts", counts), ("total", total)):
        if given is not None and given.shape != (len(losses),):
            raise ValueError(
                f"`{name}` must be [{len(losses)}], labelled samples of each task; got {list(given.shape)}. "
                "Take batch.has_label.sum(0)."
            )
    everyone = (counts if total is None else total).double()
    spoilt, ranks = torch.zeros_like(everyone), 1
    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size(group)
        values = torch.stack([loss.detach().reshape(()).double() for loss in losses.values()])
        both = torch.cat([everyone, (~values.isfinite()).to(everyone)])
        dist.all_reduce(both, group=group)
        everyone, spoilt = both.chunk(2)
    shares = counts * ranks / everyone.clamp(min=1)
    spoilt = torch.where(spoilt > 0, torch.nan, 0.0)
    return {
        name: loss * share.to(loss.dtype) + bad.to(loss.dtype)
        for (name, loss), share, bad in zip(losses.items(), shares.unbind(), spoilt.unbind(), strict=True)
    }
