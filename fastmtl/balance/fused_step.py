"""The fused step: everything after the K backwards, in one pass over gradients, parameters and moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

from fastmtl.balance.replay import still_buffers
from fastmtl.ops.core.backends import check_backend
from fastmtl.ops.gradients import fused_step as kernel

from ..utils.phases import active_clock, phase
from .arena import local, same_order
from .base import values
from .gradient_balancer import GradientBalancer, Rows
from .optimizer_state import StepGuard, read_groups, state_of, unsupported
from .shards import is_shard, mesh_of, sum_over_shards

T = TypeVar("T")
_LIMIT = torch.finfo(torch.float32).max / 2
_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s


class FusedStep:
    """`balancer.backward`, unscaling, clipping and `optimizer.step()` in one call, and nearly in one pass.

    If the update of a gradient method is w^T J, the combined gradient is never written: the kernel reads the K rows of
    the arena, reads other gradients from `.grad`, and updates parameters and moments in place. For K tasks and P shared
    parameters, (2K + 6) P numbers are read or written instead of (2K + 13) P. The norm for clipping is sqrt(w^T G w +
    the squares of the other gradients), in float64. These gradients go through `.grad`: those of loss methods and
    GradDrop, and of shared parameters that are not in the optimizer or already have a `.grad`.

    The optimizer keeps its state (torch's keys, formats and memory order): checkpoints, learning-rate
    schedulers and `optimizer.step()` itself keep working. Results equal those of `optimizer.step()` up to rounding. On
    a CPU they do not depend on the number of threads, to the last bit.

    A step whose gradients or losses are not finite, or whose combination could overflow, is skipped on the device:
    parameters, moments and step counts do not change. The host never waits for a GPU.

    Args:
        optimizer: torch.optim.AdamW, Adam or SGD (momentum, dampening, nesterov), on one device, float32 or float64,
            without amsgrad, maximize or differentiable. On a GPU Adam and AdamW need fused=True or capturable=True.
        clip_norm: largest norm of the whole gradient, as in torch.nn.utils.clip_grad_norm_; 0 does not clip.
        backend: "auto", "reference", "cpp" or "cuda".

    Raises:
        ValueError: the optimizer or one of its options is not supported. `balancer.backward` and
            `optimizer.step()` work with any optimizer.

    >>> from fastmtl.balance import PCGrad
    >>> encoder, head_a, head_b = (torch.nn.Linear(4, n) for n in (4, 1, 2))
    >>> parameters = [*encoder.parameters(), *head_a.parameters(), *head_b.parameters()]
    >>> step = FusedStep(torch.optim.AdamW(parameters, lr=1e-3), clip_norm=1.0)
    >>> features = encoder(torch.ones(8, 4))
    >>> losses = {"a": head_a(features).mean(), "b": head_b(features).square().mean()}
    >>> sorted(step(PCGrad(), losses, shared=encoder.parameters()))
    ['cosines', 'gradient_norm', 'norms', 'skipped', 'weights']
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, clip_norm: float = 0.0, backend: str = "auto") -> None:
        if reason := unsupported(optimizer):
            raise ValueError(
                f"`optimizer` must be torch.optim.AdamW, Adam or SGD without amsgrad, maximize and differentiable; "
                f"{reason}. balancer.backward(...) and optimizer.step() work with any optimizer."
            )
        if isinstance(clip_norm, bool) or not isinstance(clip_norm, int | float) or not 0 <= clip_norm < float("inf"):
            raise ValueError(f"`clip_norm` must be finite and not negative (0 does not clip); got {clip_norm!r}.")
        check_backend(backend)
        self.optimizer, self.clip_norm = optimizer, float(clip_norm)
        self._backend = backend
        self._guard = StepGuard(optimizer)
        self._moved: tuple[object, int] = (None, 0)  # number of parameters and shape of the rows; bytes of a step
        self._sound: Tensor | None = None  # whether the losses of earlier micro-batches were finite
        self._counts: dict[
            Tensor, Tensor
        ] = {}  # steps of SGD parameters with dampening, which may not have been updated yet

    @staticmethod
    def why_not(optimizer: object) -> str | None:
        """Why this machine has no fast step for `optimizer`; None if it has one."""
        if reason := unsupported(optimizer):
            return reason
        assert isinstance(optimizer, torch.optim.Optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kinds = {(parameter.device.type, parameter.dtype) for parameter in parameters}
        if len({device for device, _ in kinds}) > 1:
            return "it holds parameters of several devices"
        reasons = (kernel.why_slow(device, dtype) for device, dtype in kinds)
        return next((reason for reason in reasons if reason), None)

    def __repr__(self) -> str:
        return f"FusedStep({type(self.optimizer).__name__}, clip_norm={self.clip_norm})"

    def __call__(
        self,
        balancer: Any,
        losses: Mapping[str, Tensor] | Tensor,
        shared: Iterable[Tensor] = (),
        *,
        scale: GradScaler | Tensor | float | None = None,
        last: bool = True,
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One step, from the losses to updated parameters. Afterwards `.grad` of all optimizer parameters is None.

        Args:
            balancer: any balancer; None uses the plain gradient of `losses`, a scalar or the sum of several.
            losses, shared, last, active: as for `balancer.backward`; with last=False gradients only accumulate.
            scale: the torch.amp.GradScaler itself (do not scale the losses with it): the step scales, unscales and
                skips. Do not call `scaler.step(optimizer)`, only `scaler.update()` afterwards. Or a number or scalar
                tensor by which the losses are multiplied.

        Returns:
            What the balancer returns; with last=True also "gradient_norm" float64, before clipping, and "skipped" bool.

        Raises:
            RuntimeError: the GradScaler has unscaled or stepped this optimizer since its last update.
            TypeError, ValueError: as `balancer.backward`; parameters on several devices or of half precision.
        """
        scaler = scale if isinstance(scale, GradScaler) and scale.is_enabled() else None
        factor = None if isinstance(scale, GradScaler) else scale
        if scaler is not None:
            factor = self._scale_of(scaler, losses)
        rows: Rows | None = None
        try:
            if balancer is None:
                with still_buffers():
                    _total(losses, factor).backward()
                log = {}
            elif isinstance(balancer, GradientBalancer):
                found = balancer.gradients(
                    cast(Mapping[str, Tensor], losses), shared, scale=factor, last=last, active=active
                )
                rows = found if isinstance(found, Rows) and found.are_whole else None
                log = found.write() if rows is None else {}
            else:
                options = {} if active is None else {"active": active}
                log = balancer.backward(losses, shared, scale=factor, last=last, **options)
            self._sound = self._finite(losses)
            if not last:
                return log
            taken = self._take(rows, factor, self._sound)
        except BaseException:
            self._sound = None
            raise
        if rows is not None:
            log = rows.log
        self._sound = None
        if scaler is not None:
            state = scaler._per_optimizer_states[id(self.optimizer)]
            state["found_inf_per_device"] = {taken["skipped"].device: taken["skipped"].float()}
            state["stage"] = OptState.STEPPED  # so that `unscale_` and `step` raise until the next `update`
        return log | taken

    def _finite(self, losses: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Whether all losses of the step so far are finite."""
        found = losses.detach() if isinstance(losses, Tensor) else values(losses)
        sound = found.isfinite().all()
        return sound if self._sound is None else sound & self._sound

    def _scale_of(self, scaler: GradScaler, losses: Mapping[str, Tensor] | Tensor) -> Tensor:
        stage = scaler._per_optimizer_states[id(self.optimizer)]["stage"]
        if stage is not OptState.READY:
            what = "unscale_()" if stage is OptState.UNSCALED else "step(), or a FusedStep,"
            raise RuntimeError(
                f"`scale`: {what} was called for this optimizer since the GradScaler's last update(). FusedStep "
                "scales, unscales and steps itself: of the scaler call only update(), after each step."
            )
        found = losses if isinstance(losses, Tensor) else next(iter(losses.values()), None)
        device = found.device if isinstance(found, Tensor) else "cpu"
        return scaler.scale(torch.ones((), device=device))

    @phase("optimizer")
    @torch.no_grad()
    def _take(self, rows: Rows | None, scale: Tensor | float | None, sound: Tensor) -> dict[str, Tensor]:
        """Everything after the backwards."""
        groups = read_groups(self.optimizer)
        columns: dict[Tensor, int] = {}  # empty with several ranks
        if rows is not None:
            columns = self._columns(rows)
            if not columns:
                with phase("balance"):
                    rows.write()
        pairs = [
            (self._move(parameter, index, group, columns), is_shard(parameter))
            for index, group in enumerate(self.optimizer.param_groups)
            for parameter in group["params"]
            if parameter.numel() and (parameter in columns or parameter.grad is not None)
        ]
        empty = [move.step for move, _ in pairs if not move.parameter.numel()]  # a rank's shard may be
        pairs = [(move, is_one) for move, is_one in pairs if move.parameter.numel()]
        moves = [move for move, _ in pairs]
        _check_alike([move.parameter for move in moves])
        square = torch.zeros((), dtype=torch.float64, device=sound.device)
        for shards in (True, False):  # first the shards, for their sum over the ranks
            gradients = [move.gradient for move, is_one in pairs if is_one is shards]
            whole = [gradient for gradient in gradients if isinstance(gradient, Tensor)]
            for same in _by_dtype(whole, lambda gradient: gradient.dtype):
                square = square + kernel.sum_of_squares(same, self._backend)
            if shards:
                square = sum_over_shards(square, mesh_of(self._parameters()))
        J = w = None
        if rows is not None and columns:
            with phase("balance"):
                J, w, own, largest = rows.combined()
            square = square + own
            sound = sound & (largest < _LIMIT)
        factor = torch.ones_like(square)
        if scale is not None:
            factor = factor / (scale.double() if isinstance(scale, Tensor) else scale)
        if (clock := active_clock.get()) is not None:
            shape = (len(moves), None if J is None else J.shape)
            if shape != self._moved[0]:  # counted once: the parameters of a training are always the same
                self._moved = shape, _bytes_moved(moves, J)
            clock.moved(self._moved[1])
        norm = square.sqrt() * factor
        skipped = ~((norm < _LIMIT) & sound)  # so that no sum in the kernel can overflow; NaN is not less
        if self.clip_norm:
            factor = factor * (self.clip_norm / (norm + _EPS)).clamp(max=1.0)
        for same in _by_dtype(moves, lambda move: move.parameter.dtype):
            kernel.take_step(kernel.Step(same, groups, factor, skipped.float(), J, w), self._backend)
        for step in empty:
            if step is not None:
                step += (~skipped).to(step.dtype)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._guard.stepped()
        return {"gradient_norm": norm, "skipped": skipped}

    def _columns(self, rows: Rows) -> dict[Tensor, int]:
        """The first column of each reached parameter in the rows; empty if one of them must go through `.grad`."""
        ours, columns = set(self._parameters()), {}
        for parameter, column in rows.places():
            if column is None or parameter.grad is not None or parameter not in ours:
                return {}
            if parameter.dtype != torch.promote_types(rows.J.dtype, torch.float32):
                return {}
            columns[parameter] = column
        return columns

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _move(self, parameter: Tensor, index: int, group: dict[str, Any], columns: dict[Tensor, int]) -> kernel.Move:
        first, second, step = state_of(self.optimizer, parameter, group, self._counts)
        gradient: Tensor | int | None = columns.get(parameter)
        if gradient is None:
            assert parameter.grad is not None
            gradient, own = local(parameter.grad), local(parameter)
            if not same_order(gradient, own):
                gradient = torch.empty_like(own).copy_(gradient.to_dense() if gradient.is_sparse else gradient)
        first, second = (None if moment is None else local(moment) for moment in (first, second))
        return kernel.Move(local(parameter), first, second, step, gradient, index)


def _total(losses: Mapping[str, Tensor] | Tensor, scale: Tensor | float | None) -> Tensor:
    total = losses if isinstance(losses, Tensor) else torch.stack(list(losses.values())).sum()
    if total.numel() != 1 or not total.requires_grad:
        raise ValueError(
            f"`losses` must be a scalar with a graph; got {list(total.shape)}, requires_grad={total.requires_grad}."
        )
    return total if scale is None else total * scale


def _bytes_moved(moves: Sequence[kernel.Move], J: Tensor | None) -> int:
    """Bytes that a step reads and writes: parameters and moments both ways, gradients twice (for the norm, and for the
    update), and the K rows once."""
    total = 0
    for move in moves:
        both_ways = 1 + (move.first is not None) + (move.second is not None)
        size = move.parameter.element_size() * (2 * both_ways + 2 * isinstance(move.gradient, Tensor))
        if J is not None and not isinstance(move.gradient, Tensor):
            size += J.shape[0] * J.element_size()
        total += move.parameter.numel() * size
    return total


def _check_alike(parameters: list[Tensor]) -> None:
    kinds = {(parameter.device, parameter.dtype) for parameter in parameters}
    if len({device for device, _ in kinds}) > 1 or any(dtype not in kernel.DTYPES for _, dtype in kinds):
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise ValueError(
            f"`optimizer` must hold float32 or float64 parameters of one device; got {found}. Half precision needs "
            "float32 master weights, which a torch optimizer does not keep: use autocast with float32 parameters, or "
            "balancer.backward(...) and optimizer.step()."
        )


def _by_dtype(items: Sequence[T], dtype_of: Callable[[T], torch.dtype]) -> list[list[T]]:
    """Group by dtype: one kernel call handles one dtype."""
    parts = ([item for item in items if dtype_of(item) == dtype] for dtype in kernel.DTYPES)
    return [part for part in parts if part]
