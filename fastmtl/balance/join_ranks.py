"""How a balancer joins several ranks, and what must be equal on all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .arena import GradientArena, local
from .collectives import Ranks, Replicated, Scattered, Sharded, wrappers
from .shards import is_shard

METHODS = ("reduce_scatter", "all_reduce")


def join_ranks(
    model: nn.Module,
    group: dist.ProcessGroup | None,
    method: str,
    overlap: bool,
    *,
    balancer: str,
    state: Mapping[str, Any],
    arena: GradientArena | None,
    why_not_sharded: str,
) -> Ranks:
    """The ranks of `WeightedBalancer.distribute`; see there.

    Args:
        model, group, method, overlap: as for `distribute`.
        balancer: its repr, which must be equal on all ranks, as `state` must be.
        state: its `state_dict`, without what differs between ranks that divide the columns.
        arena: the arena of a gradient method; None for loss methods.
        why_not_sharded: why the balancer cannot work under FSDP2; "" if it can.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}.")
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("`distribute` needs a process group: call torch.distributed.init_process_group first.")
    around = wrappers(model)
    if any(wrapper.static_graph for wrapper in around):
        raise ValueError(
            "DistributedDataParallel(static_graph=True) cannot stop averaging, but a balancer averages instead. "
            "Wrap the model without static_graph."
        )
    for wrapper in around:
        wrapper.require_backward_grad_sync = False  # as `no_sync`: K backwards would confuse its reducer
    _check_balancer(balancer, state, next(iter(model.parameters()), torch.empty(0)).device, group)
    if any(map(is_shard, model.parameters())):
        _check_sharded(model, why_not_sharded)
        return Sharded(model, group)
    _check_parameters(model, group)
    if method == "all_reduce" or arena is None:
        return Replicated(model, group, overlap)
    arena.shares = dist.get_world_size(group)
    return Scattered(model, group, overlap)


def _check_parameters(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    named = list(model.named_parameters())
    if not named:
        raise ValueError("`model` must have parameters; got none.")
    sums = torch.stack(
        [torch.stack([p.detach().double().sum(), p.detach().double().abs().sum()]) for _, p in named]
    ).nan_to_num()
    low, high = sums.clone(), sums.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    different = (low != high).any(1).tolist()
    if any(different):
        raise ValueError(
            f"`model` must be equal on all ranks; parameter {named[different.index(True)][0]!r} differs. Use the same "
            "seed on all ranks, or broadcast the parameters from rank 0."
        )


def _check_sharded(model: nn.Module, why_not: str) -> None:
    shards: list[Any] = [parameter for parameter in model.parameters() if is_shard(parameter)]
    found = {(shard.device_mesh, shard.placements) for shard in shards}
    (_, placements), *others = found
    *before, last = placements
    if others or not last.is_shard() or len(before) > 1 or not all(one.is_replicate() for one in before):
        raise ValueError(
            "`model` must be sharded by FSDP2 over one mesh of one dimension, or of two (copies, shards: HSDP); got "
            f"{', '.join(sorted(str(one) for _, one in found))}."
        )
    if why_not:
        raise ValueError(why_not)


def _check_balancer(
    balancer: str, state: Mapping[str, Any], device: torch.device, group: dist.ProcessGroup | None
) -> None:
    digest = hashlib.sha256(f"{balancer} {_plain(state)}".encode()).digest()
    low = torch.tensor(list(digest), dtype=torch.int32, device=device)
    high = low.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    if not torch.equal(low, high):
        raise ValueError(
            f"{balancer} must have the same options and state on all ranks (seeds, orders, learned weights); they "
            "differ. Give all ranks the same options, or load the same `state_dict` before `distribute`."
        )


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return local(value.detach()).tolist()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return value
