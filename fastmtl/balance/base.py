"""The base of all balancers: task order, the losses of a step, ranks and state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import Module, Parameter

from ..utils.deprecation import carry_over, warn_renamed
from .arena import GradientArena
from .join_ranks import join_ranks
from .single_process import SingleProcess

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class WeightedBalancer(ABC):
    """Base of gradient and loss methods."""

    state_names: tuple[str, ...] = ()  # the tensors of the state; attribute names with a leading underscore
    needs_reevaluation = False  # whether `after_step` calls `reevaluate`
    # Whether the gradient is not linear in the losses. Then the graphs of all micro-batches are kept until the last
    # one: the result is exact, but micro-batches save no memory.
    needs_all_losses = False
    split_state: tuple[str, ...] = ()  # keys of `state_dict` that differ between ranks that divide the columns

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        carry_over(cls, held="state_names", looks_twice="needs_reevaluation")

    def __init__(self) -> None:
        self._tasks: list[str] | None = None
        self._kept: dict[
            str, Tensor
        ] = {}  # sums of the losses of earlier micro-batches; detached unless needs_all_losses
        self._kept_active: Tensor | None = None
        self._ranks: SingleProcess = SingleProcess()

    @property
    def looks_twice(self) -> bool:
        """The old name of `needs_reevaluation`."""
        warn_renamed("looks_twice", "needs_reevaluation")
        return self.needs_reevaluation

    @property
    def held(self) -> tuple[str, ...]:
        """The old name of `state_names`."""
        warn_renamed("held", "state_names")
        return self.state_names

    @held.setter
    def held(self, names: tuple[str, ...]) -> None:
        warn_renamed("held", "state_names")
        self.state_names = names

    @abstractmethod
    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """The method itself: task weights w [K] float64 from G [K, K] float64 (gradient methods) and the K losses."""

    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Call after the optimizer step; most methods do nothing."""
        return

    def on_epoch(self) -> None:
        """Call at the end of every epoch; most methods do nothing."""
        return

    def parameters(self) -> Iterable[Parameter]:
        """The learned parameters; most methods have none."""
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

        The balancer then averages the gradients of all parameters of `model`, heads included, as
        DistributedDataParallel would; every rank gets the same gradients. Each loss counts with its mean over the
        ranks: `global_losses` converts means over a rank's labelled samples into such losses. Every rank must make the
        same calls of `backward`; a task without labels on a rank has the loss `0.0 * output.sum()` there.

        Args:
            model: the module whose parameters the optimizer holds, equal on all ranks: a plain module, one wrapped in
                DistributedDataParallel (pass the wrapper or the inner module; its own averaging is switched off
                permanently, as by `no_sync`), or one sharded by FSDP2's `fully_shard`. With None this rank balances
                its own gradients and you average them yourself. If torch.distributed has several ranks and
                `distribute` was not called, `backward` raises an error.
            group: process group; None uses the default group.
            method: how gradient methods communicate; both are exact. "reduce_scatter" sends (K+1) P numbers, and each
                rank computes with its share of the columns; "all_reduce" sends 2 K P numbers and leaves J on every
                rank. FSDP2 communicates in its own way.
            overlap: send a task's gradient while the next task's backward runs.

        Raises:
            ValueError: an option is not supported, or parameters, options or state differ between the ranks.
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
            why_not_sharded=self.why_not_sharded(),
        )
        return self

    def release(self) -> None:
        """Free the buffers in which ranks exchange gradients: another balancer takes the next step."""
        self._ranks.release()

    def state_dict(self) -> dict[str, Any]:
        """The state, with the task names in order under "tasks" (None before the first step).

        Call it after a step with `last=True`: gradients of earlier micro-batches are not part of it.
        """
        tensors = {name: getattr(self, f"_{name}") for name in self.state_names}
        copies = {name: None if tensor is None else tensor.detach().clone() for name, tensor in tensors.items()}
        return {"tasks": None if self._tasks is None else list(self._tasks)} | copies

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: `state` comes from another method.
        """
        if missing := self.state_dict().keys() - state.keys() - {"reuse"}:
            lacking = ", ".join(sorted(missing))
            raise ValueError(f"`state` must come from `state_dict` of a {type(self).__name__}; it has no {lacking}.")
        self._tasks = None if state["tasks"] is None else list(state["tasks"])
        for name in self.state_names:
            tensor = state[name]
            setattr(self, f"_{name}", None if tensor is None else tensor.detach().clone())

    def _hold(self, name: str, start: Tensor) -> Tensor:
        """The state tensor `name`, with `start`'s shape, dtype and device; a missing tensor is a copy of `start`.

        Methods write to it in place, because a replayed CUDA graph uses the addresses of its capture.
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
        """Each task's loss in this step so far, and which tasks have labels; the last micro-batch ends the step."""
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
        """The arena that holds the rows of a gradient method."""
        return None

    def why_not_sharded(self) -> str:
        """Why the balancer cannot work under FSDP2; "" if it can."""
        return ""

    def _abort(self) -> None:
        """Discard a failed step, so that no part of it reaches the next one."""
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
                    f"`losses[{name!r}]` must have a graph; got a tensor with requires_grad=False. For a task without "
                    "labels in the batch return `0.0 * output.sum()`, not a detached loss."
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

    A plain Tensor is returned: a MONAI MetaTensor would carry its metadata into state and log.
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
