"""What a trained network does with a few images: its answers, saliency maps and feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..protocols import Batch
from ..utils.normalization import Normalization
from . import panels
from .feature_maps import convolution_maps, has_encoder
from .per_image import class_probabilities, structures
from .saliency import has_saliency, saliency
from .tta import Views


@dataclass(frozen=True)
class Masks:
    """True and predicted masks of a task, bool [C, H, W]; `true` is None without a label."""

    names: Sequence[str]
    true: NDArray[np.bool_] | None
    predicted: NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """The class of an image: `true` is "" without a label."""

    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Sample:
    """One image and what one network makes of it.

    Attributes:
        image: uint8 [H, W, 3], as the network sees it.
        masks, answers: by task.
        saliency_maps: task -> the image with its saliency as yellow light, uint8 [h, w, 3].
        maps: of the encoder's convolutions, the mean over the channels, uint8 [h, w].
    """

    id: str
    image: NDArray[np.uint8]
    masks: Mapping[str, Masks] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    saliency_maps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    maps: Sequence[NDArray[np.uint8]] = ()


def look(
    model: nn.Module,
    tasks: Sequence[Any],
    batch: Batch,
    *,
    normalization: Normalization,
    saliency_of: Sequence[str] = (),
    convolutions: bool = False,
) -> Sample:
    """A sample of one image.

    Args:
        model: trained, in float32; with test-time augmentation the answers are those over all views.
        tasks: the model's.
        batch: of one image, on the model's device.
        normalization: of the batch's images.
        saliency_of: tasks whose saliency is wanted.
        convolutions: whether feature maps are wanted; a model that names no encoder has none.
    """
    training = model.training
    with torch.no_grad():
        outputs = model.eval()(batch)
    model.train(training)
    plain = model.model if isinstance(model, Views) else model
    masks, answers, saliency_maps = {}, {}, {}
    for task in tasks:
        if task.output.kind in ("map", "queries"):
            masks[task.name] = _masks(task, outputs[task.name], batch)
        elif task.output.kind == "vector" and getattr(task, "class_names", ()):
            answers[task.name] = _answer(task, outputs[task.name], batch)
        if task.name in saliency_of and has_saliency(task):
            shown = panels.lit(batch.images[0], saliency(plain, task, batch)[0].double(), normalization)
            saliency_maps[task.name] = np.asarray(shown)
    maps = convolution_maps(plain, batch) if convolutions and has_encoder(plain) else []
    shown = [panels.grey(one.mean(0)) for one in maps]
    return Sample(batch.ids[0], panels.original(batch.images[0], normalization), masks, answers, saliency_maps, shown)


def _masks(task: Any, output: Any, batch: Batch) -> Masks:
    predicted, target = structures(task, task.predict(output, batch), batch.targets[task.name])
    names = list(getattr(getattr(task, "scoring", None), "names", ()))[-predicted.shape[1] :]
    there = bool(batch.has_label[0, task.column])
    return Masks(names, _array(target) if there else None, _array(predicted))


def _array(masks: Tensor) -> NDArray[np.bool_]:
    return masks[0].bool().cpu().numpy()


def _answer(task: Any, output: Tensor, batch: Batch) -> Answer:
    shares = class_probabilities(task, output.float())[0]
    found = int(task.predict(output, batch)[0])
    there = bool(batch.has_label[0, task.column])
    true = task.class_names[int(batch.targets[task.name][0])] if there else ""
    return Answer(true, task.class_names[found], float(shares[found]))
