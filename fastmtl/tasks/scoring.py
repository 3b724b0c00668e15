"""How segmentations are scored: what an empty mask counts as, and over what the scores are taken."""

from __future__ import annotations

from collections.abc import Mapping

EMPTY: dict[str, float | None] = {"one": 1.0, "zero": 0.0, "skip": None}
"""The option `empty` of the tasks -> the score of an empty prediction of an empty mask; None leaves the image out."""

Aggregate = str | Mapping[str, str]


def check_scoring(task: str, empty: str, aggregate: Aggregate) -> None:
    """Raise ValueError for a policy or an aggregation that there is not: metrics are built after the first epoch."""
    if empty not in EMPTY:
        raise ValueError(f"task {task!r}: `empty` must be one of {', '.join(EMPTY)}; got {empty!r}.")
    how = aggregate if isinstance(aggregate, Mapping) else {"dice": aggregate}
    if not set(how) <= {"dice", "jaccard"} or not set(how.values()) <= {"image", "batch"}:
        raise ValueError(
            f"task {task!r}: `aggregate` must be 'image' or 'batch', or a mapping of dice and jaccard to them; "
            f"got {aggregate!r}."
        )
