"""The normalisation of images that belongs to pretrained weights.

Weights with a Hugging Face configuration beside them (preprocessor_config.json of transformers, config.json of timm and
of segmentation-models-pytorch) have that configuration's; other weights have that of the encoder's published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..utils.json_toml import read_json
from ..utils.normalization import IMAGENET, Normalization

CONFIGURATIONS = ("preprocessor_config.json", "config.json")


def normalization_of(model: nn.Module, weights: Path | None = None) -> Normalization:
    """The normalisation that `model` was or will be trained with.

    Args:
        model: its attribute `normalization`, or its encoder's, is that of the published weights; ImageNet's without.
        weights: the file of weights; a configuration beside it takes precedence.
    """
    if weights is not None and (found := declared_beside(weights)) is not None:
        return found
    for part in (model, getattr(model, "encoder", None)):
        if isinstance(found := getattr(part, "normalization", None), Normalization):
            return found
    return IMAGENET


def declared_beside(weights: Path) -> Normalization | None:
    """The normalisation in a Hugging Face configuration in the same folder; None if there is none."""
    for name in CONFIGURATIONS:
        try:
            values = read_json(weights.with_name(name))
        except (OSError, ValueError):
            continue
        if isinstance(values, Mapping) and (found := _read(values)) is not None:
            return found
    return None


def _read(values: Mapping[str, Any]) -> Normalization | None:
    if isinstance(inner := values.get("pretrained_cfg"), Mapping):  # timm's
        values = inner
    mean, std = values.get("image_mean", values.get("mean")), values.get("image_std", values.get("std"))
    if not (_is_colour(mean) and _is_colour(std)):
        return None
    # transformers' EfficientNet divides by std twice: its std is the square root of ImageNet's.
    if "EfficientNet" in str(values.get("image_processor_type", "")) and values.get("include_top", True):
        std = [value**2 for value in std]
    return Normalization.of(mean, std)


def _is_colour(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(one, int | float) for one in values)
