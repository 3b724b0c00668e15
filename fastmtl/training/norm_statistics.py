"""Running statistics of normalisation layers, kept free of steps that were skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Taken = list[tuple[list[Tensor], Tensor]]
"""The statistics of each dtype and shape: the tensors themselves, and their values joined to one vector."""


class NormStatistics:
    """Undoes the update that the forward pass of a skipped step made to running statistics.

    A forward pass updates them before anyone knows that a loss is not finite: one NaN image would stay in the mean for
    good. A step takes them before its forward pass and puts them back on the device where it was skipped. Frozen
    layers (evaluation mode) do not change and are left out.

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
        found = [t for layer in self._layers if layer.training for t in layer._buffers.values() if t is not None]
        kinds: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        for tensor in found:
            kinds.setdefault((tensor.dtype, tensor.ndim), []).append(tensor)
        return [(tensors, _joined(tensors)) for tensors in kinds.values()]

    @torch.no_grad()
    def undo(self, before: Taken, skipped: Tensor) -> None:
        """Put back what `take` returned if `skipped` (bool); a GPU decides that by itself."""
        if skipped.device.type == "cpu" and not skipped:
            return
        for tensors, old in before:
            kept = torch.where(skipped, old, _joined(tensors))
            torch.split_with_sizes_copy(kept, [tensor.numel() for tensor in tensors], out=[_flat(t) for t in tensors])


def _joined(tensors: list[Tensor]) -> Tensor:
    """Scalars or vectors as one vector."""
    return torch.cat(tensors) if tensors[0].ndim else torch.stack(tensors)


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim else tensor.view(1)
