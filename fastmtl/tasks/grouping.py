"""Groups of samples with their own thresholds and scores, for example organs or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..protocols import Batch
from ..utils.suggestions import nearest


class Grouping:
    """The values of one label column, read from `Batch.metadata[group_by]` (class indices, [B] or [B, 1]).

    Args:
        task: its name, for messages.
        group_by: the column; "" puts all samples in one group.
        columns: the data set's label columns and their class names.
        thresholds: class name -> probability, for classes with their own threshold.

    Raises:
        ValueError: an unknown column or class, or a threshold outside 0 to 1.
    """

    def __init__(
        self, task: str, group_by: str, columns: Mapping[str, Sequence[str]], thresholds: Mapping[str, float]
    ) -> None:
        if group_by and group_by not in columns:
            raise ValueError(f"task {task!r}: `group_by` must be a label column; {nearest(group_by, list(columns))}")
        if not isinstance(thresholds, Mapping):
            raise ValueError(f"task {task!r}: `thresholds` must map groups to probabilities; got {thresholds!r}.")
        if thresholds and not group_by:
            raise ValueError(f"task {task!r}: `thresholds` of single groups need `group_by`, the column they are in.")
        self.group_by, self.names = group_by, tuple(columns[group_by]) if group_by else ()
        for name, value in thresholds.items():
            if name not in self.names:
                raise ValueError(
                    f"task {task!r}: `thresholds` names {name!r}, no class of {group_by!r}; {nearest(name, self.names)}"
                )
            if not 0 < value < 1:
                raise ValueError(f"task {task!r}: the threshold of {name!r} must be between 0 and 1; got {value}.")
        self._own = {self.names.index(name): value for name, value in thresholds.items()}

    def __len__(self) -> int:
        return max(1, len(self.names))

    def of(self, batch: Batch) -> Tensor | None:
        """int64 [B], the group of each sample; None without groups."""
        return batch.metadata[self.group_by].reshape(-1).long() if self.group_by else None

    def thresholds(self, batch: Batch | None, default: Tensor, device: torch.device) -> Tensor:
        """`default` [C, 1, 1], or [B, C, 1, 1] if groups have their own thresholds."""
        group = self.of(batch) if batch is not None and self._own else None
        if group is None:
            return default
        table = default.repeat(len(self), 1, 1, 1)
        for index, value in self._own.items():
            table[index] = value
        return table.to(device)[group.to(device)]
