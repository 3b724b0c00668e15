"""Feature maps of an encoder at every stride, and the filters of its first convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..protocols import Batch
from ..utils.encoder_outputs import encoder_outputs


class FeatureMap(NamedTuple):
    """One of an encoder's outputs: [B, C, H / stride, W / stride]."""

    stride: int
    values: Tensor


@torch.no_grad()
def feature_maps(model: nn.Module, batch: Batch) -> list[FeatureMap]:
    """Outputs of `model.parts["encoder"]` for `batch`, from fine to coarse, without the input image.

    Raises:
        ValueError: the model has no such part, or it returns no feature maps.
    """
    _encoder(model)
    maps = [one for one in encoder_outputs(model, batch) if one.dim() == 4]
    height, images = batch.images.shape[-2], batch.images
    maps = [one for one in maps if one.shape != images.shape or not torch.equal(one, images)]
    if not maps:
        raise ValueError(f"the encoder of {type(model).__name__} gives no feature maps [B, C, h, w]")
    return [FeatureMap(round(height / one.shape[-2]), one) for one in maps]


@torch.no_grad()
def convolution_maps(model: nn.Module, batch: Batch, most: int = 10) -> list[Tensor]:
    """Outputs [C, h, w] of the encoder's convolutions larger than 1 x 1 for the first image, in the order of their
    computation; `most` of them, evenly spaced, if there are more.

    Raises:
        ValueError: the model has no such part, or it has no such convolution.
    """
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: found.append(output[0].detach().float().cpu()))
        for module in _encoder(model).modules()
        if isinstance(module, nn.Conv2d) and min(module.kernel_size) > 1
    ]
    training = model.training
    try:
        model.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not found:
        raise ValueError(f"the encoder of {type(model).__name__} has no convolution larger than 1 x 1")
    count = min(most, len(found))
    places = [round(number * (len(found) - 1) / max(count - 1, 1)) for number in range(count)]
    return [found[place] for place in places]


def first_filters(model: nn.Module) -> Tensor:
    """Weights [C, 3, k, k] of the first convolution of RGB in the model's encoder, k above 1.

    Raises:
        ValueError: there is no such convolution.
    """
    for module in _encoder(model).modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and min(module.kernel_size) > 1:
            return module.weight.detach()
    raise ValueError(f"the encoder of {type(model).__name__} has no convolution of RGB images")


def has_encoder(model: nn.Module) -> bool:
    """Whether the model names its encoder: `parts["encoder"]`."""
    return "encoder" in _parts(model)


def _parts(model: nn.Module) -> Mapping[str, nn.Module]:
    return getattr(model, "parts", {})


def _encoder(model: nn.Module) -> nn.Module:
    if not has_encoder(model):
        raise ValueError(f'{type(model).__name__} has no `parts["encoder"]`')
    return _parts(model)["encoder"]
