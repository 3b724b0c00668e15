"""Running statistics of normalisation layers, kept free of steps that were skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    def take(self) -> list[tuple[list[Tensor], Tensor]]:
        """The statistics, and for each dtype a copy of all of them as one vector."""
        found = [
            tensor
            for layer in self._layers
            if layer.training
            for tensor in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            if tensor is not None
        ]
        groups = {dtype: [t for t in found if t.dtype == dtype] for dtype in dict.fromkeys(t.dtype for t in found)}
        return [(tensors, _joined(tensors)) for tensors in groups.values()]

    @torch.no_grad()
    def undo(self, before: list[tuple[list[Tensor], Tensor]], skipped: Tensor) -> None:
        """Put back what `take` returned, all of it if `skipped` (bool), else only what is not finite now."""
        for tensors, old in before:
            new = _joined(tensors)
            kept = torch.where(skipped | ~new.isfinite(), old, new).split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                tensors, [part.view_as(tensor) for part, tensor in zip(kept, tensors, strict=True)]
            )


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
