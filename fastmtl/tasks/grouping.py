"""Groups of samples with their own thresholds and scores, for example organs or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..protocols import Batch
from ..utils.suggestions import nearest


class Grouping:
    """The values of label columns, read from `Batch.metadata[column]` (class indices, [B] or [B, 1]).

    Args:
        task: its name, for messages.
        group_by: the column whose classes are scored apart; "" puts all samples in one group.
        columns: the data set's label columns and their class names.
        thresholds: class name -> probability, for classes with their own threshold; "CLASS, CLASS" is for samples that
            are in both, of two columns. Of the names that fit a sample the one with the most classes decides, and of
            several such names the last.
        threshold_by: the columns of these classes; `group_by` if empty.

    Raises:
        ValueError: an unknown column or class, or a threshold outside 0 to 1.
    """

    def __init__(
        self,
        task: str,
        group_by: str,
        columns: Mapping[str, Sequence[str]],
        thresholds: Mapping[str, float],
        threshold_by: Sequence[str] = (),
    ) -> None:
        by = tuple(threshold_by) or ((group_by,) if group_by else ())
        for option, column in [("group_by", group_by), *(("threshold_by", each) for each in by)]:
            if column and column not in columns:
                known = nearest(column, list(columns))
                raise ValueError(f"task {task!r}: `{option}` must be a label column; {known}")
        if not isinstance(thresholds, Mapping):
            raise ValueError(f"task {task!r}: `thresholds` must map groups to probabilities; got {thresholds!r}.")
        if thresholds and not by:
            raise ValueError(f"task {task!r}: `thresholds` of single groups need `group_by`, the column they are in.")
        self.group_by, self.names = group_by, tuple(columns[group_by]) if group_by else ()
        classes = {column: tuple(columns[column]) for column in by}
        found = [(_indices(task, name, classes), value) for name, value in thresholds.items()]
        for name, value in thresholds.items():
            if not 0 < value < 1:
                raise ValueError(f"task {task!r}: the threshold of {name!r} must be between 0 and 1; got {value}.")
        self._own = sorted(found, key=lambda one: len(one[0]))
        used = {group_by, *(column for indices, _ in found for column in indices)}
        self.columns = tuple(column for column in dict.fromkeys((group_by, *by)) if column and column in used)

    def __len__(self) -> int:
        return max(1, len(self.names))

    def of(self, batch: Batch) -> Tensor | None:
        """int64 [B], the group of each sample; None without groups."""
        return _values(batch, self.group_by) if self.group_by else None

    def thresholds(self, batch: Batch | None, default: Tensor, device: torch.device) -> Tensor:
        """`default` [C, 1, 1], or [B, C, 1, 1] if classes have their own thresholds."""
        if batch is None or not self._own:
            return default
        values = {column: _values(batch, column).to(device) for column in self.columns}
        table = default.to(device).repeat(len(batch), 1, 1, 1)
        for indices, value in self._own:
            fits = torch.stack([values[column] == index for column, index in indices.items()]).all(0)
            table = torch.where(fits[:, None, None, None], value, table)
        return table


def _values(batch: Batch, column: str) -> Tensor:
    return batch.metadata[column].reshape(-1).long()


def _indices(task: str, name: str, classes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Column -> class index, for "CLASS" or "CLASS, CLASS", each of another column."""
    known = [one for names in classes.values() for one in names]
    found: dict[str, int] = {}
    for part in [name] if name in known else name.split(", "):
        column = next((column for column, names in classes.items() if part in names and column not in found), None)
        if column is None:
            raise ValueError(
                f"task {task!r}: `thresholds` names {name!r}, no class of {' and '.join(map(repr, classes))}; "
                f"{nearest(part, known)}"
            )
        found[column] = classes[column].index(part)
    return found
