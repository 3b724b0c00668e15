"""Several ranks: how a balancer joins them, and what must be equal there before it may."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import global_losses as global_losses
from .arena import local
from .collectives import Local, Ranks, Replicated, Scattered, Sharded, wrappers

if TYPE_CHECKING:
    from .gradient_balancer import WeightedBalancer

METHODS = ("reduce_scatter", "all_reduce")
SCOPES = ("global", "local")


def join(balancer: WeightedBalancer, model: nn.Module, group: Any, method: str, scope: str, overlap: bool) -> Ranks:
    """What `distribute` puts into a balancer; see there."""
    for name, value, known in (("method", method, METHODS), ("scope", scope, SCOPES)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}; got {value!r}.")
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("`distribute` needs a process group: call torch.distributed.init_process_group first.")
    around = wrappers(model)
    if any(wrapper.static_graph for wrapper in around):
        raise ValueError(
            "DistributedDataParallel(static_graph=True) cannot stop averaging, and a balancer averages in its place. "
            "Wrap the model without static_graph."
        )
    for wrapper in around:
        wrapper.require_backward_grad_sync = False  # as `no_sync`: K backwards would confuse its reducer
    sharded = any(hasattr(parameter, "to_local") for parameter in model.parameters())
    _check_balancer(balancer, group)
    if sharded:
        _check_sharded(balancer, model, scope)
        return Sharded(model, group)
    _check_parameters(model, group)
    if scope == "local":
        return Local(model, group)
    arena = getattr(balancer, "_arena", None)
    if method == "all_reduce" or arena is None:
        return Replicated(model, group, overlap)
    arena.shares = dist.get_world_size(group)
    return Scattered(model, group, overlap)


def _check_parameters(model: nn.Module, group: Any) -> None:
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
            f"`model` must be equal on all ranks; parameter {named[different.index(True)][0]!r} differs. Seed alike, "
            "or broadcast the parameters from rank 0."
        )


def _check_sharded(balancer: WeightedBalancer, model: nn.Module, scope: str) -> None:
    if scope == "local":
        raise ValueError("`scope` must be 'global' under FSDP2: its gradients are averaged before anybody sees them.")
    if any(len(p.device_mesh.shape) != 1 for p in model.parameters() if hasattr(p, "to_local")):  # type: ignore
        raise ValueError("`model` must be sharded over a mesh of one dimension; got more (HSDP).")
    strategy = getattr(balancer, "_strategy", None)
    if strategy is not None and (strategy.name != "sequential" or strategy.reuse > 1):
        raise ValueError(f"`model` is sharded by FSDP2: use('sequential', reuse=1); got {strategy.name!r}.")
    if type(balancer).__name__ == "GradNorm":
        raise ValueError("GradNorm measures one layer's gradients through autograd, which FSDP2 hides from it.")


def _check_balancer(balancer: WeightedBalancer, group: Any) -> None:
    split = getattr(balancer, "split_state", ())
    state = {name: value for name, value in balancer.state_dict().items() if name not in split}
    mine = hashlib.sha256(f"{balancer!r} {_plain(state)}".encode()).hexdigest()
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    if len(set(everyone)) > 1:
        raise ValueError(
            f"{balancer!r} must have the same options and state on all ranks (seeds, orders, learned weights); they "
            "differ. Make it alike, or load the same `state_dict` before `distribute`."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return local(value.detach()).tolist()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return value
