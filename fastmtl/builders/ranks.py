"""What a recipe's [distributed] asks of the ranks, and BatchNorm over all of them."""

from __future__ import annotations

import torch
from torch import nn

from ..config import ConfigError, Recipe
from ..distributed import World
from ..models.encoders import library


def check_ranks(recipe: Recipe, device: torch.device, world: World) -> None:
    """Raise ConfigError if [distributed] does not fit these ranks; one rank alone ignores it."""
    distributed, size = recipe.distributed, world.size
    if size == 1:
        return
    if distributed.sync_batchnorm and device.type != "cuda":
        raise ConfigError(
            f"recipe {recipe.name}: distributed.sync_batchnorm needs GPUs, because torch.nn.SyncBatchNorm has no "
            f"version for CPUs; the device is {device}. Set it to false, or train in one process."
        )
    replicas = distributed.replicas
    if size % replicas or (replicas > 1 and size == replicas):
        fitting = [str(number) for number in range(1, size // 2 + 1) if size % number == 0]
        raise ConfigError(
            f"recipe {recipe.name}: distributed.replicas is {replicas}, which must divide the {size} ranks into groups "
            f"of two or more; set it to {' or '.join(fitting)}."
        )


def with_synced_batchnorm(recipe: Recipe, model: nn.Module, world: World) -> nn.Module:
    """`model` with torch's SyncBatchNorm instead of BatchNorm, on the same tensors, if the recipe says so."""
    if not recipe.distributed.sync_batchnorm or world.size == 1:
        return model
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        # timm's BatchNorm contains the activation, which torch's conversion loses without a word.
        return library("timm", "distributed.sync_batchnorm").layers.convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
