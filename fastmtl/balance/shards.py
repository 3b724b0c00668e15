"""Sums over the ranks among which FSDP2 divides each parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .arena import local

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_shard(tensor: Tensor) -> bool:
    """Whether this rank has only a part of `tensor` (a DTensor of FSDP2)."""
    return hasattr(tensor, "to_local")


def mesh_of(tensors: Iterable[Tensor]) -> Any:
    """The device mesh of the first shard; None without any."""
    return next((tensor.device_mesh for tensor in tensors if is_shard(tensor)), None)  # type: ignore[attr-defined]


def shard_group(mesh: Any) -> ProcessGroup:
    """The ranks among which the parameters are divided: the last dimension of the mesh. The other one has copies."""
    return mesh.get_group(mesh.ndim - 1)


def sum_over_shards(value: Tensor, mesh: Any) -> Tensor:
    """The sum of what each rank computed from its shards, in place; `value` itself without a mesh."""
    if mesh is not None:
        dist.all_reduce(value, group=shard_group(mesh))
    return value


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all `gradients`, float64: shards, and whole tensors that are equal on all ranks."""
    parts = [torch.zeros((), dtype=torch.float64, device=gradients[0].device) for _ in range(2)]
    for gradient in gradients:
        parts[is_shard(gradient)] += torch.linalg.vector_norm(local(gradient), dtype=torch.float64).square()
    whole, shards = parts
    return (whole + sum_over_shards(shards, mesh_of(gradients))).sqrt()


def scale_to_norm(gradients: list[Tensor], norm: Tensor, max_norm: Tensor | float, eps: Tensor | float) -> None:
    """As torch's clip_grads_with_norm_, which does not accept a mix of shards and whole tensors."""
    factor = (max_norm / (norm + eps)).clamp(max=1.0)
    for gradient in map(local, gradients):
        gradient.mul_(factor.to(gradient.dtype))
