"""The base class of all tasks: a column of `Batch.has_label`, and metrics over the labelled samples only."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from ..models import Output
from ..protocols import Batch, Target
from ..utils.deprecation import carry_over, warn_renamed
from ..utils.json_toml import JsonObject

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class BaseTask:
    """A task with one target. Subclasses define `loss`, `predict`, `metrics`, `target` and `output`.

    Attributes:
        name: the key in `Batch.targets` and in the model's outputs.
        column: this task's column of `Batch.has_label`.
        target: the kind of target that the loader reads.
        output: the logits that the model must return.
        primary_metric: the metric that chooses the best checkpoint, larger is better; "" for an auxiliary task.
        sets: the data sets with labels for it, if the run trains on several; () is one data set.
        higher_is_better: metric -> whether larger values are better, if its torchmetrics class does not declare it.
    """

    primary_metric: ClassVar[str] = ""
    higher_is_better: ClassVar[Mapping[str, bool]] = {}
    sets: tuple[str, ...] = ()
    output: Output
    target: Target

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        carry_over(cls, headline="primary_metric")

    def __init__(self, name: str, column: int) -> None:
        self.name, self.column = name, column

    def has_label(self, batch: Batch) -> Tensor:
        """bool [B]: the samples that have this task's label."""
        return batch.has_label[:, self.column]

    @property
    def headline(self) -> str:
        """The old name of `primary_metric`."""
        warn_renamed("BaseTask.headline", "BaseTask.primary_metric")
        return self.primary_metric

    def present(self, batch: Batch) -> Tensor:
        """The old name of `has_label`."""
        warn_renamed("BaseTask.present", "BaseTask.has_label")
        return self.has_label(batch)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Scalar mean over the labelled samples; 0, with a graph, if there are none."""
        raise NotImplementedError(f"{type(self).__name__} must define `loss`")

    def predict(self, output: Any, batch: Batch | None = None) -> Tensor:
        """The prediction from the model's output; pass `batch` if it depends on the samples' metadata."""
        raise NotImplementedError(f"{type(self).__name__} must define `predict`")

    def metrics(self) -> MetricCollection:
        """A torchmetrics.MetricCollection."""
        raise NotImplementedError(f"{type(self).__name__} must define `metrics`")

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            metrics.update(self.predict(output, batch)[rows], batch.targets[self.name][rows])

    def summary(self, metrics: MetricCollection) -> JsonObject:
        """`metrics` as plain numbers; None if nothing was added."""
        return {name: number(of(metric)) for name, metric in metrics.items()}


def of(metric: Any) -> Tensor:
    """The value of a torchmetrics metric; NaN, without a warning, if it is undefined for the samples seen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # AUROC of a single class; nothing added at all
        try:
            return metric.compute()
        except ValueError:  # AUROC without any sample
            return torch.tensor(float("nan"))


def number(value: Tensor) -> float | None:
    """The scalar, or None for NaN, which JSON cannot represent."""
    found = value.item()
    return found if found == found else None


def by_name(names: Iterable[str], values: Tensor) -> dict[str, float | None]:
    """A tensor [len(names)] as a dict of plain numbers by name."""
    return {name: number(value) for name, value in zip(names, values, strict=True)}


def class_weights_of(
    name: str, class_weights: Sequence[float], classes: Sequence[str], *, what: str = "class_weights"
) -> Tensor | None:
    """float32 [C], or None without weights; ValueError, with the task's name, unless every class has one."""
    if not class_weights:
        return None
    if len(class_weights) != len(classes):
        raise ValueError(
            f"task {name!r}: `{what}` must have one value for each of the {len(classes)} classes "
            f"({', '.join(classes)}); got {len(class_weights)}."
        )
    check_weights(name, **{what: class_weights})
    return torch.tensor(class_weights, dtype=torch.float32)


def check_weights(name: str, **values: Any) -> None:
    """Raise ValueError unless each value is a finite number of 0 or more, or a sequence of such numbers."""
    for what, value in values.items():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else (value,):
            if not is_number(one) or not 0 <= one < float("inf"):
                raise ValueError(f"task {name!r}: `{what}` must be 0 or more; got {value!r}.")


def is_number(value: object) -> TypeGuard[float]:
    """Whether an option is a real number, also NumPy's; true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def fraction(name: str, what: str, value: float) -> float:
    """Return `value` if it is in [0, 1); otherwise raise ValueError with the task and the option."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"task {name!r}: `{what}` must be in [0, 1); got {value!r}.")
    return value


def distinct(name: str, structures: Sequence[str]) -> tuple[str, ...]:
    """Return `structures`; raise ValueError unless they are distinct names, because they are the keys of metrics."""
    for structure in structures:
        if not isinstance(structure, str) or not structure or list(structures).count(structure) > 1:
            raise ValueError(f"task {name!r}: `structures` must be distinct names; got {list(structures)}.")
    return tuple(structures)


def exclusive(name: str, structures: Sequence[str]) -> tuple[str, ...]:
    """As `distinct`; also raise ValueError for more than 256 names, because maps are uint8."""
    if len(structures) > 256:
        raise ValueError(
            f"task {name!r}: `structures` must have at most 256 names because maps are uint8; got {len(structures)}."
        )
    return distinct(name, structures)


def positive(name: str, what: str, value: float) -> float:
    """Return `value` if it is above 0; otherwise raise ValueError with the task and the option."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise ValueError(f"task {name!r}: `{what}` must be above 0; got {value!r}.")
    return value
