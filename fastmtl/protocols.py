"""What the trainer expects of the things it drives: batches, models, tasks, balancers, loaders.

Shape suffixes: B samples, K tasks, H and W pixels, M metadata values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """What the loader gives a task, and from which column of the data set.

    Attributes:
        kind: one of

            - "mask": uint8 [B, 1, H, W] of 0 and 1.
            - "masks": uint8 [B, size, H, W] of 0 and 1, one map a structure; they may overlap.
            - "classes": uint8 [B, 1, H, W] of class indices, resampled by nearest neighbour.
            - "label": int64 [B], a class index.
            - "number": float32 [B].
            - "vector": float32 [B, size].
            - "box": float32 [B, 4], centre x, centre y, width, height in 0..1 of the image the network sees; it follows
              the image's geometry.
            - "pair": int64 [B], the row of the sample's partner in the batch, as the sampler of pairs drew them.
            - "none": nothing; the task learns from the images themselves.
        column: where the data set keeps it; "" is the tile's own mask or label.
        size: channels of "masks", length of "vector".

    A sample without the value has 0 there (a label -100, a pair -1) and False in `Batch.has_label`.
    """

    kind: Literal["mask", "masks", "classes", "label", "number", "vector", "box", "pair", "none"]
    column: str = ""
    size: int = 1


MAPS = ("mask", "masks", "classes")
"""Kinds of targets that are pictures."""


@dataclass(frozen=True)
class Batch:
    """One training batch, images and every task's target side by side.

    Attributes:
        images: [B, 3, H, W] float32 or float16, normalised.
        targets: task name -> target; maps ([B, 1, H, W]) and labels ([B]) keep their integer dtype.
        has_label: bool [B, K], which tasks each sample is labelled for; columns in the tasks' fixed order.
        metadata: named [B, ...] tensors, for example a FiLM vector [B, M] or slide positions.
        ids: the B samples' names.
        groups: the B samples' patients (what a split must not divide).
    """

    images: Tensor
    targets: dict[str, Tensor]
    has_label: Tensor
    metadata: dict[str, Tensor] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.images.shape[0]

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
    """Yields one epoch's batches; remembers its place, to the batch."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Model(Protocol):
    """One output per task."""

    def __call__(self, batch: Batch) -> dict[str, Any]: ...
    def shared_parameters(self) -> Iterable[Parameter]: ...


class Task(Protocol):
    """A loss and its metrics."""

    name: str
    column: int  # of `Batch.has_label`
    target: Target  # what the loader reads for it
    output: Output  # the logits it asks the model for
    primary_metric: str  # the metric that stands for the task when the best checkpoint is chosen; larger is better

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Scalar; divides by the number of labelled samples and is 0 when there are none."""
        ...

    def predict(self, output: Any, batch: Batch | None = None) -> Tensor:
        """The answer itself, from what the model gave: bool masks [B, C, H, W], uint8 class maps [B, 1, H, W], classes
        int64 [B], numbers or boxes float32 [B, N]. With a batch, where the answer depends on the samples' metadata."""
        ...

    def metrics(self) -> torchmetrics.MetricCollection: ...

    def update(self, metrics: Any, output: Any, batch: Batch) -> None:
        """Add a batch's labelled samples to what `metrics()` gave."""
        ...

    def summary(self, metrics: Any) -> dict[str, Any]:
        """Plain numbers under their public names, for summary.json."""
        ...


class Balancer(Protocol):
    """Turns K losses into one `.grad` per parameter."""

    needs_reevaluation: bool  # whether `after_step` wants the losses again; False spares remembering the random state

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Parameter],
        *,
        scale: Tensor | None = None,
        last: bool = True,
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Leave `.grad` on every parameter and return what was done, for the log."""
        ...

    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Called after the optimizer's step; `reevaluate` gives the losses on the same batch again, under the same
        random state and without moving running statistics (`replay.Replay`)."""
        ...

    def on_epoch(self) -> None:
        """Called at the end of every epoch."""
        ...

    def distribute(self, model: Any, *, method: str) -> Any:
        """From now on work on the gradients of all ranks; called after `load_state_dict`, and only with several."""
        ...

    def parameters(self) -> Iterable[Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Update(Protocol):
    """From K losses to moved parameters: `PlainUpdate`, or the faster `balance.FusedStep`."""

    def __call__(
        self,
        balancer: Balancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Parameter],
        *,
        scale: GradScaler | None = None,
        active: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """Afterwards no `.grad` is left. Returns what the balancer did, "gradient_norm" before clipping, and "skipped",
        whether losses or gradients were not finite. With a GradScaler only its `update` is left to call."""
        ...


class Observer(Protocol):
    """Sees what happens; the progress line, metrics.jsonl and TensorBoard are observers."""

    def on_step(self, step: int, epoch: int, batch: int, num_batches: int, record: Mapping[str, Any]) -> None:
        """Every `log_every` steps: "loss" by task, "balance" (what the balancer did), and of the epoch so far
        "images_per_second" and "waiting", the share of time spent waiting for data."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """After each epoch and its validation: the line of metrics.jsonl."""
