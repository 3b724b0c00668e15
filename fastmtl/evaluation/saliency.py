"""Gradient saliency: how much each input pixel changes a task's output.

Simonyan, Vedaldi and Zisserman, Deep inside convolutional networks, ICLR workshop 2014, section 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..protocols import Batch

_KINDS = ("map", "queries", "vector", "box")  # the other kinds are auxiliary tasks


def has_saliency(task: Any) -> bool:
    """Whether saliency is defined for the task: it predicts something about the image."""
    return task.output.kind in _KINDS


def saliency(model: nn.Module, task: Any, batch: Batch) -> Tensor:
    """max over colours of |d score / d input|, float32 [B, H, W]; the `.grad` of parameters is unchanged.

    The score of

    - a class is the logit of the predicted class, for a finding its single logit;
    - a map is the sum of the foreground logits over the pixels predicted as foreground, or over all pixels if there
      are none; with several classes a pixel's highest foreground logit counts;
    - queries is the same for log c, c being the score of the class at the pixel;
    - numbers and boxes is their sum.

    Args:
        model: run in evaluation mode, so that images of a batch do not affect each other.
        task: one that `has_saliency`.
        batch: images in float32.
    """
    training = model.training
    model.eval()
    images = batch.images.detach().clone().requires_grad_()
    with torch.enable_grad():
        seen = replace(batch, images=images)
        score = _score(task, model(seen)[task.name], seen)
        (gradient,) = torch.autograd.grad(score, images)
    model.train(training)
    return gradient.abs().amax(1)


def _score(task: Any, output: Any, batch: Batch) -> Tensor:
    kind = task.output.kind
    if kind == "vector":
        has_classes = getattr(task, "class_names", ()) and output.shape[1] > 1
        return output.amax(1).sum() if has_classes else output.sum()
    if kind == "box":
        return output.sum()
    logits = output
    if kind == "queries":
        logits = task.scores(output, batch.images.shape[-2:]).clamp(min=1e-6).log()
    predicted = task.predict(output, batch)
    if predicted.dtype != torch.bool:  # a map of classes, the background first
        logits, predicted = logits[:, 1:].amax(1, keepdim=True), predicted > 0
    there = predicted.flatten(1).any(1)[:, None, None, None]
    return (logits * (predicted | ~there)).sum()
