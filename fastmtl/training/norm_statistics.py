"""Running statistics of normalisation layers: kept free of skipped steps, and equal on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import World

Taken = list[tuple[list[Tensor], Tensor]]
"""The statistics of each dtype and shape: the tensors themselves, and their values joined to one vector."""


class NormStatistics:
    """The running statistics of the BatchNorm layers of `model`.

    A forward pass updates them before it is known that a loss is not finite: one NaN image would stay in the mean for
    good. A step takes them before its forward pass, and puts them back if it was skipped. Frozen layers (evaluation
    mode) are left out: they do not change, and averaging could change them by rounding.

    >>> layer = nn.BatchNorm1d(1)
    >>> statistics = NormStatistics(layer)
    >>> before = statistics.take()
    >>> _ = layer(torch.tensor([[1.0], [float("nan")]]))
    >>> statistics.undo(before, torch.tensor(True))
    >>> layer.running_mean, layer.num_batches_tracked
    (tensor([0.]), tensor(0))
    """

    def __init__(self, model: nn.Module) -> None:
        kind = nn.modules.batchnorm._NormBase
        self._layers = [layer for layer in model.modules() if isinstance(layer, kind) and layer.track_running_stats]

    @torch.no_grad()
    def take(self) -> Taken:
        """The statistics as they are now."""
        return [(tensors, _joined(tensors)) for tensors in self._groups()]

    @torch.no_grad()
    def undo(self, before: Taken, skipped: Tensor) -> None:
        """Put back what `take` returned if `skipped` (bool); the host does not wait for a GPU."""
        if skipped.device.type == "cpu" and not skipped:
            return
        for tensors, old in before:
            _write(torch.where(skipped, old, _joined(tensors)), tensors)

    @torch.no_grad()
    def share(self, world: World) -> None:
        """Average them over the ranks, so that all ranks evaluate the same model."""
        if world.size == 1:
            return
        for tensors in self._groups():
            if tensors[0].is_floating_point():  # the number of batches is equal anyway
                _write(world.sum(_joined(tensors)) / world.size, tensors)

    def _groups(self) -> list[list[Tensor]]:
        """The tensors by dtype and dimensions."""
        groups: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        for layer in self._layers:
            for tensor in layer._buffers.values() if layer.training else ():
                if tensor is not None:
                    groups.setdefault((tensor.dtype, tensor.ndim), []).append(tensor)
        return list(groups.values())


def _joined(tensors: list[Tensor]) -> Tensor:
    """Scalars or vectors as one vector."""
    return torch.cat(tensors) if tensors[0].ndim else torch.stack(tensors)


def _write(joined: Tensor, tensors: list[Tensor]) -> None:
    """Undo `_joined`: copy each part of the vector to its tensor."""
    flat = [tensor if tensor.ndim else tensor.view(1) for tensor in tensors]
    torch.split_with_sizes_copy(joined, [tensor.numel() for tensor in tensors], out=flat)
