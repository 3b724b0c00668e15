"""LibMTL's own PCGrad, called with gradients instead of losses (to time only the surgery) or with losses."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmtl.utils.torchvision_guard import make_torchvision_importable


def _pcgrad_class() -> Any:
    make_torchvision_importable()
    # LibMTL 1.1.5 imports a module that torchvision removed in 0.13; the function it needs is in torch.hub.
    moved = types.ModuleType("torchvision.models.utils")
    moved.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules.setdefault("torchvision.models.utils", moved)
    from LibMTL.weighting import PCGrad

    return PCGrad


def pcgrad(J: Tensor, order: list[list[int]]):
    """A function that runs LibMTL's PCGrad once on J [K, P] with the given orders and returns its gradient [P]."""

    class OnGradients(_pcgrad_class()):
        rep_grad = False
        task_num = len(J)

        def _compute_grad_dim(self) -> None:
            pass

        def _compute_grad(self, *_args: object, **_options: object) -> Tensor:
            return J

        def _reset_grad(self, new_grads: Tensor) -> None:
            self.result = new_grads

    method = OnGradients()
    losses = list(range(len(J)))

    def run() -> tuple[Tensor, ...]:
        draws = iter(order)
        shuffle = random.shuffle

        def ours(tasks: list[int]) -> None:
            tasks[:] = next(draws)  # LibMTL shuffles all tasks, including the task itself

        random.shuffle = ours  # type: ignore[assignment]
        try:
            method.backward(losses)
        finally:
            random.shuffle = shuffle
        return (method.result,)

    return run


def pcgrad_backward(model: Any, num_tasks: int):
    """A function from losses to `.grad` on every parameter of `model`, as set by LibMTL's trainer. It flattens
    gradients with `view`, so the model must not be in channels-last layout."""

    class OnModel(_pcgrad_class()):
        rep_grad = False
        task_num = num_tasks
        device = next(model.parameters()).device

        def get_share_params(self) -> Any:
            return model.shared_parameters()

        def zero_grad_share_params(self) -> None:
            for parameter in model.shared_parameters():
                parameter.grad.zero_()

    method = OnModel()

    def backward(losses: Mapping[str, Tensor]) -> None:
        method.backward(list(losses.values()))

    return backward
