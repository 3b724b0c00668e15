"""The base of all balancers: the order of the tasks, the losses of a step, the ranks, and the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import Module, Parameter

from ..utils.deprecation import carry_over
from .arena import GradientArena
from .join_ranks import join_ranks
from .single_process import SingleProcess

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class WeightedBalancer(ABC):
    """Base of gradient and loss methods."""

    state_names: tuple[str, ...] = ()  # the state's tensors, in attributes of these names with an underscore before
    needs_reevaluation = False  # whether `after_step` calls `reevaluate`
    # Whether the gradient is not linear in the losses. Then micro-batches are kept, graphs and all, until the last one:
    # exact, and no memory is saved.
    needs_all_losses = False
    split_state: tuple[str, ...] = ()  # of `state_dict`: what differs between ranks that divide the columns

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        carry_over(cls, held="state_names", looks_twice="needs_reevaluation")

    def __init__(self) -> None:
        self._tasks: list[str] | None = None
        self._kept: dict[str, Tensor] = {}  # sums of the losses of earlier micro-batches; detached but for the above
        self._kept_active: Tensor | None = None
        self._ranks: SingleProcess = SingleProcess()

    @abstractmethod
    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """The method itself: the tasks' weights w [K] from G [K, K] float64 (gradient methods) and the K losses."""

    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Nothing to do after the optimizer's step, for most methods."""
        return

    def on_epoch(self) -> None:
        """Call at the end of every epoch; for most methods nothing happens."""
        return

    def parameters(self) -> Iterable[Parameter]:
        """Nothing is learned."""
        return ()

    def distribute(
        self,
        model: Module | None,
        *,
        group: ProcessGroup | None = None,
        method: str = "reduce_scatter",
        overlap: bool = True,
    ) -> Self:
        """Balance the gradients of all ranks. Call it on every rank, after `load_state_dict`; returns the balancer.

        The balancer then averages the gradients of all of `model`'s parameters itself, heads included, as
        DistributedDataParallel would, and every rank gets the same ones. Losses count with their mean over the ranks:
        `global_losses` turns means over a rank's labelled samples into such losses. Every rank makes the same calls of
        `backward`; a task without labels on a rank has the loss `0.0 * output.sum()` there.

        Args:
            model: the module whose parameters the optimizer holds, equal on all ranks: a plain one, one wrapped in
                DistributedDataParallel (the wrapper or what is in it; its own averaging is switched off permanently, as
                by `no_sync`), or one sharded by FSDP2's `fully_shard`. None: this rank balances its own gradients, and
                averaging them is up to you. Without a call of `distribute`, `backward` raises where torch.distributed
                has several ranks.
            group: process group; None is the default one.
            method: of gradient methods, both exact: "reduce_scatter" sends (K+1) P numbers, each rank measures and
                combines its share of the columns; "all_reduce" sends 2 K P and leaves J on every rank. FSDP2 sends its
                own.
            overlap: send a task's gradient while the next task's backward runs.

        Raises:
            ValueError: an option is none of these, or parameters, options or state differ between the ranks.
        """
        if model is None:
            self._ranks = SingleProcess(meant=True)
            return self
        self._ranks = join_ranks(
            model,
            group,
            method,
            overlap,
            balancer=repr(self),
            state={name: value for name, value in self.state_dict().items() if name not in self.split_state},
            arena=self._rows_arena(),
            why_not_sharded=self._why_not_sharded(),
        )
        return self

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names in order, None before the first step. Take it after `last=True`: rows are not in it."""
        tensors = {name: getattr(self, f"_{name}") for name in self.state_names}
        copies = {name: None if tensor is None else tensor.detach().clone() for name, tensor in tensors.items()}
        return {"tasks": None if self._tasks is None else list(self._tasks)} | copies

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: it is another method's.
        """
        if missing := self.state_dict().keys() - state.keys() - {"reuse"}:
            lacking = ", ".join(sorted(missing))
            raise ValueError(f"`state` must be what `state_dict` of a {type(self).__name__} gave; it has no {lacking}.")
        self._tasks = None if state["tasks"] is None else list(state["tasks"])
        for name in self.state_names:
            tensor = state[name]
            setattr(self, f"_{name}", None if tensor is None else tensor.detach().clone())

    def _hold(self, name: str, start: Tensor) -> Tensor:
        """The state tensor `name`, with `start`'s shape, dtype and device; a missing one starts as `start`.

        Methods write to it in place: a CUDA graph that is replayed reads and writes where it did when it was captured.
        """
        tensor = getattr(self, f"_{name}")
        if tensor is None or tensor.shape != start.shape:
            tensor = start.detach().clone()
        elif tensor.device != start.device or tensor.dtype != start.dtype:
            tensor = tensor.to(start.device, start.dtype, non_blocking=True)
        setattr(self, f"_{name}", tensor)
        return tensor

    def _step_losses(
        self, losses: Mapping[str, Tensor], active: Tensor | None, last: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Each task's loss, and whether it has labels, in this step so far; the last micro-batch ends the step."""
        graphs = self.needs_all_losses
        total = {
            name: (loss if graphs else loss.detach()) + self._kept[name] if self._kept else loss
            for name, loss in losses.items()
        }
        if active is not None:
            active = _check_active(active, losses)
            active = active if self._kept_active is None else active | self._kept_active
        if last:
            self._kept, self._kept_active = {}, None
        else:
            self._kept = {name: loss if graphs else loss.detach() for name, loss in total.items()}
            self._kept_active = active
        return total, active

    def _rows_arena(self) -> GradientArena | None:
        """Where the rows of a gradient method are."""
        return None

    def _why_not_sharded(self) -> str:
        """Why the balancer cannot work under FSDP2; "" if it can."""
        return ""

    def _abort(self) -> None:
        """A step failed: half of it must not leak into the next one."""
        self._forget()
        self._ranks.abort()

    def _forget(self) -> None:
        """Drop the micro-batches of a step that failed."""
        self._kept, self._kept_active = {}, None

    def _check_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Raise unless `losses` are scalars with a graph, of the same tasks in the same order as before."""
        if not isinstance(losses, Mapping) or not losses:
            found = type(losses).__name__ if losses else "no loss"
            raise ValueError(
                f"`losses` must map each task's name to its loss, {{'mask': mask_loss, ...}}; got {found}."
            )
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"`losses[{name!r}]` must be a scalar tensor; got {found}. Reduce it first.")
            if not loss.is_floating_point():
                raise ValueError(f"`losses[{name!r}]` must be floating point; got {loss.dtype}.")
            if not loss.requires_grad:
                raise ValueError(
                    f"`losses[{name!r}]` must carry a graph; got a tensor with requires_grad=False. For a task without "
                    "labels in the batch return `0.0 * output.sum()`, and never a detached loss."
                )
        devices = {loss.device: name for name, loss in losses.items()}
        if len(devices) > 1:
            found = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
            raise ValueError(f"`losses` must be on one device; got {found}. Move them with loss.to(device).")
        if self._tasks is not None and list(losses) != self._tasks:
            raise ValueError(
                f"`losses` must have the tasks {self._tasks}, in this order, at every step; got {list(losses)}."
            )


def values(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses as one detached vector [K] float64.

    Of plain Tensors: a MONAI MetaTensor would bring its metadata into state and log.
    """
    with torch._C.DisableTorchFunctionSubclass():
        return torch.stack([loss.detach().reshape(()).double() for loss in losses.values()])


def check_scale(scale: object) -> None:
    """Raise unless `scale` is None, a positive number or a tensor of one element (whose value is not read)."""
    if scale is None or (isinstance(scale, Tensor) and scale.numel() == 1):
        return
    if isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < float("inf"):
        return
    found = f"a tensor {list(scale.shape)}" if isinstance(scale, Tensor) else repr(scale)
    if isinstance(scale, GradScaler):
        found = "the GradScaler itself. Take scaler.scale(torch.ones((), device=device)), or a FusedStep"
    raise ValueError(f"`scale` must be a positive number or a scalar tensor; got {found}.")


def _check_active(active: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(active, Tensor) or active.dtype != torch.bool or active.shape != (len(losses),):
        found = f"{list(active.shape)} {active.dtype}" if isinstance(active, Tensor) else type(active).__name__
        raise ValueError(
            f"`active` must be a bool tensor [{len(losses)}], one flag per task; got {found}. "
            "Take it from batch.has_label.any(0)."
        )
    return active
