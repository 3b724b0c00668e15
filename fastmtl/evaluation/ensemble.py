"""Ensembles: the mean of several networks' outputs for the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..protocols import Batch
from ..utils.normalization import Normalization


class Ensemble(nn.Module):
    """The mean of the members' outputs, before sigmoid or softmax as in `tta.Views`; takes a `Batch`.

    Args:
        members: networks with the outputs `tasks`; others are left out.
        normalizations: of the images that each member was trained on. Batches have the first one's.
        tasks: names of the outputs.
    """

    def __init__(
        self, members: Sequence[nn.Module], normalizations: Sequence[Normalization], tasks: Sequence[str]
    ) -> None:
        super().__init__()
        self.members, self.tasks = nn.ModuleList(members), list(tasks)
        self.normalizations = list(normalizations)

    def forward(self, batch: Batch) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for member, own in zip(self.members, self.normalizations, strict=True):
            outputs = member(batch if own == self.normalizations[0] else self._renormalised(batch, own))
            for name in filter(batch.concerns, self.tasks):
                output = outputs[name].float()
                sums[name] = sums[name] + output if name in sums else output
        return {name: total / len(self.members) for name, total in sums.items()}

    def _renormalised(self, batch: Batch, wanted: Normalization) -> Batch:
        given = self.normalizations[0]
        mean, std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float32, device=batch.images.device)[:, None, None]
            for values in (given.mean, given.std, wanted.mean, wanted.std)
        )
        return replace(batch, images=(batch.images.float() * std + (mean - new_mean)) / new_std)
