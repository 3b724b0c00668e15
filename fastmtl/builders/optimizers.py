"""Builds a recipe's optimizer, with the learning rates of its groups, and its update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import balance, models
from ..balance.plain_step import PlainUpdate
from ..config import ConfigError, OptimizerConfig, Recipe
from ..protocols import Balancer, Update
from .components import empty_batch


def build_optimizer(
    recipe: Recipe,
    model: nn.Module,
    balancer: Balancer,
    config: OptimizerConfig | None = None,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of `config`, or of the recipe's [optimizer]. Weight decay applies to weights with two or more
    dimensions, not to biases, normalisation layers and the balancer's weights.

    A group's "lr_factor" is its learning rate relative to the recipe's; groups with 1 come first. `factors` are those
    of `lr_factors`, which finds them only before FSDP2 divides the model.
    """
    config = config or recipe.optimizer
    factors = lr_factors(recipe, model, config) if factors is None else factors
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: list[dict[str, Any]] = []
    for factor in sorted({1.0, *factors.values()}, reverse=True):
        own = [parameter for name, parameter in named.items() if factors.get(name, 1.0) == factor]
        rest = [p for p in own if p.ndim <= 1] + (list(balancer.parameters()) if factor == 1 else [])
        rate = {"lr": config.lr * factor, "lr_factor": factor}
        groups.append({"params": [p for p in own if p.ndim > 1], "weight_decay": config.weight_decay, **rate})
        groups.append({"params": rest, "weight_decay": 0.0, **rate})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError(f"recipe {recipe.name} has no parameter to train: all are frozen.")
    if config.optimizer in ("apex_adam", "apex_lamb"):
        return _apex(config.optimizer)(groups, lr=config.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, fused=True)


def lr_factors(recipe: Recipe, model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    """The learning rates of the encoder's parameters relative to the recipe's, by name; {} if they are all 1."""
    factors = _lr_factors(recipe, model, config)
    return {name: factors[parameter] for name, parameter in model.named_parameters() if parameter in factors}


def _lr_factors(recipe: Recipe, model: nn.Module, config: OptimizerConfig) -> dict[nn.Parameter, float]:
    """The factors of the encoder's parameters, where they are not all 1."""
    if config.encoder_lr_factor == config.layer_decay == 1:
        return {}
    if "encoder" not in getattr(model, "parts", {}):
        key = "layer_decay" if config.encoder_lr_factor == 1 else "encoder_lr_factor"
        raise ConfigError(
            f'recipe {recipe.name}: optimizer.{key} needs a model with `parts["encoder"]`; {recipe.model["name"]} has '
            "none."
        )
    if config.layer_decay == 1:
        encoder: nn.Module = model.parts["encoder"]  # type: ignore[index]  # a dict of modules
        return dict.fromkeys(encoder.parameters(), config.encoder_lr_factor)
    small = replace(recipe, data=replace(recipe.data, size=max(2 * getattr(model, "stride", 16), 32)))
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        depths = models.encoder_depths(model, empty_batch(small, 2, len(recipe.tasks), device))
    if depths and not any(depths.values()) and not getattr(model, "frozen", ()):
        raise ConfigError(
            f"recipe {recipe.name}: optimizer.layer_decay needs an encoder with several feature maps; that of "
            f"{recipe.model['name']} has one. Use optimizer.encoder_lr_factor."
        )
    return {p: config.encoder_lr_factor * config.layer_decay**depth for p, depth in depths.items()}


def build_update(recipe: Recipe, optimizer: torch.optim.Optimizer) -> Update:
    """The fused step if `training.fused_step` requires it, or allows it and the optimizer and device support it."""
    config = recipe.training
    reason = balance.FusedStep.why_not(optimizer)
    if config.fused_step is True and reason:
        raise ConfigError(f"recipe {recipe.name}: training.fused_step cannot be true: {reason}.")
    if config.fused_step is False or reason:
        return PlainUpdate(optimizer, config.clip_norm)
    return balance.FusedStep(optimizer, clip_norm=config.clip_norm)


def _apex(name: str) -> Callable[..., torch.optim.Optimizer]:
    try:
        from apex.optimizers import FusedAdam, FusedLAMB  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            f"optimizer {name!r} needs NVIDIA's apex, whose optimizers cannot be imported. Build it from NVIDIA's "
            "sources (the PyPI package apex is another project), or use optimizer = 'adamw', which needs no package."
        ) from None
    return FusedAdam if name == "apex_adam" else FusedLAMB
