"""Published weights of encoders, and the normalisation of images that belongs to weights.

Weights with a Hugging Face configuration beside them (preprocessor_config.json of transformers, config.json of timm and
of segmentation-models-pytorch) have that configuration's normalisation; other weights have that of the encoder's
published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..utils.json_toml import read_json
from ..utils.normalization import IMAGENET, Normalization

CONFIGURATIONS = ("preprocessor_config.json", "config.json")


class Published(NamedTuple):
    """Weights on the Hugging Face hub.

    Attributes:
        repository: OWNER/NAME.
        normalization: of the images they were trained on.
        revision: a commit; None is the newest.
    """

    repository: str
    normalization: Normalization = IMAGENET
    revision: str | None = None


def published_weights(model: nn.Module) -> Mapping[str, Published]:
    """Name for `weights`, such as "imagenet" -> the published weights: the attribute `published` of the model or of its
    encoder."""
    for part in (model, getattr(model, "encoder", None)):
        if isinstance(found := getattr(part, "published", None), Mapping):
            return found
    return {}


def normalization_of(model: nn.Module, weights: Path | None = None, name: str = "imagenet") -> Normalization:
    """The normalisation that `model` was or will be trained with.

    Args:
        model: it has that of its published weights; ImageNet's if it has none.
        weights: the file of weights; a configuration beside it takes precedence.
        name: of the published weights.

    Raises:
        ValueError: the configuration has a normalisation that images in 0..1 cannot have.
    """
    if weights is not None and (found := _declared_beside(weights)) is not None:
        return found
    known = published_weights(model)
    return known.get(name, known.get("imagenet", Published(""))).normalization


def _declared_beside(weights: Path) -> Normalization | None:
    """The normalisation in a Hugging Face configuration in the same folder; None if there is none."""
    for name in CONFIGURATIONS:
        try:
            values = read_json(weights.with_name(name))
        except (OSError, ValueError):
            continue
        if isinstance(values, Mapping) and (found := _read(values)) is not None:
            if not all(0 <= one <= 1 for one in found.mean) or not all(1e-6 <= one <= 1 for one in found.std):
                raise ValueError(
                    f"{weights.with_name(name)} has {found}; expected a mean in 0..1 and a std above 0, at most 1, of "
                    "images in 0..1. Correct the file, or remove it and set data.mean and data.std."
                )
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
