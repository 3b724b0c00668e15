"""How deep each parameter of an encoder is: the first of its feature maps that depends on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..utils.encoder_outputs import encoder_outputs


def encoder_depths(model: nn.Module, batch: Any) -> dict[nn.Parameter, int]:
    """Trainable parameter of `model.parts["encoder"]` -> feature maps that come after the first that depends on it.

    The deepest stage has 0. Found by backward passes from each feature map, so it is valid for any architecture.
    Parameters that no feature map depends on have 0 too. The model is not changed.

    Args:
        model: on the device of `batch`.
        batch: a few small images, what the model's forward takes.
    """
    encoder: nn.Module = model.parts["encoder"]  # type: ignore[index]  # a dict of modules
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        maps = [one for one in encoder_outputs(model, batch) if one.requires_grad]
    maps.sort(key=lambda one: -one.shape[-1])  # fine to coarse; stable
    depths = dict.fromkeys(parameters, 0)
    for after, one in enumerate(reversed(maps)):
        gradients = torch.autograd.grad(one.sum(), parameters, retain_graph=True, allow_unused=True)
        depths |= {
            parameter: after for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None
        }
    return depths
