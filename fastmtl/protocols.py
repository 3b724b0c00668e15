"""The interfaces that the trainer expects: batches, models, tasks, balancers, loaders and observers.

Shape suffixes: B samples, K tasks, H and W pixels, M metadata values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from .utils.deprecation import accept_renamed, warn_renamed

if TYPE_CHECKING:
    import torchmetrics
    from torch.amp.grad_scaler import GradScaler

    from .models import Output


@dataclass(frozen=True)
class Target:
    """The target of a task: what the loader returns, and the column of the data set that it comes from.

    Attributes:
        kind: one of

            - "mask": uint8 [B, 1, H, W] of 0 and 1.
            - "masks": uint8 [B, size, H, W] of 0 and 1, one map per structure; maps may overlap.
            - "classes": uint8 [B, 1, H, W] of class indices, resampled by nearest neighbour.
            - "label": int64 [B], a class index.
            - "number": float32 [B].
            - "vector": float32 [B, size].
            - "box": float32 [B, 4], centre x, centre y, width, height as fractions (0..1) of the network's input image;
              geometric augmentations apply to it.
            - "pair": int64 [B], the row of the sample's partner in the batch, as drawn by the pair sampler.
            - "none": no target; the task learns from the images alone.
        column: column of the data set; "" is the tile's own mask or label.
        size: number of channels of "masks", length of "vector".

    A sample without a value has the target 0 (a label -100, a pair -1) and False in `Batch.has_label`.
    """

    kind: Literal["mask", "masks", "classes", "label", "number", "vector", "box", "pair", "none"]
    column: str = ""
    size: int = 1


MAPS = ("mask", "masks", "classes")
"""Kinds of targets that are images."""


@dataclass(frozen=True)
class Batch:
    """One training batch: images and the targets of every task.

    Attributes:
        images: [B, 3, H, W] float32 or float16, normalised.
        targets: task name -> target; maps ([B, 1, H, W]) and labels ([B]) keep their integer dtype.
        has_label: bool [B, K], whether each sample has a label for each task; columns in the order of the tasks.
        metadata: named [B, ...] tensors, for example a FiLM vector [B, M] or slide positions.
        ids: the B samples' names.
        groups: the B samples' groups (for example patients), which a split keeps together.
        set: the data set that all samples of the step, on all ranks, are of; "" if they are of several, or there is
            only one.
        tasks: the tasks that the samples can have labels for, and a model needs to compute; None: all.
    """

    images: Tensor
    targets: dict[str, Tensor]
    has_label: Tensor
    metadata: dict[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    ids: list[str] = field(default_factory=list[str])
    groups: list[str] = field(default_factory=list[str])
    set: str = ""
    tasks: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def concerns(self, task: str) -> bool:
        """Whether the samples can have labels for the task."""
        return self.tasks is None or task in self.tasks

    @property
    def present(self) -> Tensor:
        """The old name of `has_label`."""
        warn_renamed("Batch.present", "Batch.has_label")
        return self.has_label

    def to(self, device: torch.device | str, **options: Any) -> Batch:
        """The same batch with every tensor on `device` (`options` as for `Tensor.to`)."""
        return replace(
            self,
            images=self.images.to(device, **options),
            targets={name: target.to(device, **options) for name, target in self.targets.items()},
            has_label=self.has_label.to(device, **options),
            metadata={name: value.to(device, **options) for name, value in self.metadata.items()},
        )


Batch.__init__ = accept_renamed(present="has_label")(Batch.__init__)


class Loader(Protocol):
    """Yields the batches of one epoch; its state is its position, exact to the batch."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class MixingLoader(Loader, Protocol):
    """A loader of several data sets, each with a share of the samples."""

    @property
    def global_batch(self) -> int:
        """Samples in a full batch of all ranks."""
        ...

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each set in the current epoch, with sum 1."""
        ...

    def set_shares(self, shares: Sequence[float]) -> None:
        """Draw the sets by these shares from the current epoch on, which must not have begun."""
        ...


class Model(Protocol):
    """One output per task."""

    def __call__(self, batch: Batch) -> dict[str, Any]: ...
    def shared_parameters(self) -> Iterable[Parameter]: ...


class Task(Protocol):
    """A loss and its metrics."""

    name: str
    column: int  # of `Batch.has_label`
    target: Target  # what the loader reads
    output: Output  # the logits that the model computes for it
    primary_metric: str  # the metric that chooses the best checkpoint; higher is better

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Scalar: the mean over labelled samples, 0 if there are none."""
        ...

    def predict(self, output: Any, batch: Batch | None = None) -> Tensor:
        """The prediction from the model's output: bool masks [B, C, H, W], uint8 class maps [B, 1, H, W], classes
        int64 [B], numbers or boxes float32 [B, N]. Only predictions that depend on metadata need `batch`."""
        ...

    def metrics(self) -> torchmetrics.MetricCollection: ...

    def update(self, metrics: Any, output: Any, batch: Batch) -> None:
        """Add a batch's labelled samples to the `metrics()`."""
        ...

    def summary(self, metrics: Any) -> dict[str, Any]:
        """The metrics by their public names, for summary.json."""
        ...


class Balancer(Protocol):
    """Turns K losses into one `.grad` per parameter."""

    needs_reevaluation: bool  # whether `after_step` reevaluates the losses; False saves the random state's copy

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Parameter],
        *,
        scale: Tensor | None = None,
        last: bool = True,
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Set `.grad` of every parameter; returns statistics for the log."""
        ...

    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Called after the optimizer's step; `reevaluate` computes the losses on the same batch again, with the same
        random state and without changing running statistics (`replay.Replay`)."""
        ...

    def on_epoch(self) -> None:
        """Called at the end of every epoch."""
        ...

    def distribute(self, model: torch.nn.Module, *, method: str) -> object:
        """Combine the gradients of all ranks from now on; called after `load_state_dict` if there are several ranks."""
        ...

    def parameters(self) -> Iterable[Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Update(Protocol):
    """From K losses to updated parameters: `PlainUpdate`, or the faster `balance.FusedStep`."""

    def __call__(
        self,
        balancer: Balancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Parameter],
        *,
        scale: GradScaler | None = None,
        active: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """Sets every `.grad` to None. Returns the balancer's statistics, "gradient_norm" before clipping, and
        "skipped": whether losses or gradients were not finite. With a GradScaler the caller only calls its `update`."""
        ...


class Observer(Protocol):
    """Receives records; the progress line, metrics.jsonl and TensorBoard are observers.

    An observer may also have `on_restore(step, epoch, why)`, called after the training went back to the checkpoint of
    this step and epoch (from 0): what was recorded after it will be recorded again.
    """

    def on_step(self, step: int, epoch: int, batch: int, num_batches: int, record: Mapping[str, Any]) -> None:
        """Called every `log_every` steps. `record` has "loss" by task, "balance" (the balancer's statistics), and for
        the epoch so far "skipped" steps, and what `training.step_clock.StepClock.so_far` returns."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Called after each epoch and its validation; `record` is the line of metrics.jsonl."""
