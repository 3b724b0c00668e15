"""What the fused step reads from a torch optimizer: options, and state in the parameters' memory order."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fastmtl.ops.gradients import fused_step as kernel

from .arena import is_dense, same_order

_MOMENTS = ("exp_avg", "exp_avg_sq")


def unsupported(optimizer: object) -> str | None:
    """Why the fused step cannot replace `optimizer.step`; None if it can."""
    if type(optimizer) not in (AdamW, Adam, SGD):
        return f"got {type(optimizer).__module__}.{type(optimizer).__qualname__}"
    assert isinstance(optimizer, Optimizer)
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize", "differentiable"):
            if group.get(option):
                return f"got {option}=True"
        host_steps = "betas" in group and not group["fused"] and not group["capturable"]
        if host_steps and any(parameter.is_cuda for parameter in group["params"]):
            return f"got {type(optimizer).__name__} on a GPU with its step counts on the host: use fused=True"
    for hook in (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()):
        if not isinstance(hook, StepGuard):
            return f"got one with the step hook {hook}, which would not run"
    return None


def read_groups(optimizer: Optimizer) -> list[kernel.Group]:
    """The current options of each group, read at every step because schedulers change them.

    Raises:
        ValueError: an option was changed to an unsupported value, or is a tensor on the device.
    """
    if reason := unsupported(optimizer):
        raise ValueError(f"`optimizer` has changed: {reason}.")
    groups = []
    for group in optimizer.param_groups:
        lr, decay = group["lr"], _number("weight_decay", group["weight_decay"])
        lr = lr.float() if isinstance(lr, Tensor) and lr.is_cuda else float(lr)
        if "betas" in group:
            decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
            beta1, beta2 = (_number("betas", beta) for beta in group["betas"])
            rule = kernel.ADAMW if decoupled else kernel.ADAM
            groups.append(kernel.Group(rule, lr, decay, beta1, beta2, _number("eps", group["eps"])))
        else:
            momentum, dampening = (_number(name, group[name]) for name in ("momentum", "dampening"))
            groups.append(kernel.Group(kernel.SGD, lr, decay, momentum, dampening, nesterov=group["nesterov"]))
    return groups


def _number(name: str, value: Tensor | float) -> float:
    if isinstance(value, Tensor) and value.is_cuda:
        raise ValueError(f"`{name}` must be a number or a tensor on the host; got a tensor on {value.device}.")
    return float(value)


def state_of(
    optimizer: Optimizer, parameter: Tensor, group: dict[str, Any], counts: dict[Tensor, Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The moments and the step count of `parameter`; missing ones are created as torch creates them.

    `counts` holds the steps of SGD parameters with dampening whose buffer is created here: the first step may be
    skipped, and then the next one is the first. Only the device knows whether it was.

    Raises:
        ValueError: the parameter is not dense in memory.
    """
    if not is_dense(parameter.size(), parameter.stride()):
        raise ValueError(
            f"`optimizer` holds a parameter {list(parameter.shape)} with strides {list(parameter.stride())}, which are "
            "not dense. Make it contiguous, or use balancer.backward(...) and optimizer.step()."
        )
    state = optimizer.state[parameter]
    if "betas" in group:
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        if state["step"].dtype != torch.float32 or state["step"].device != parameter.device:
            state["step"] = state["step"].to(parameter.device, torch.float32, non_blocking=True)
        first, second = (_moment(state, name, parameter) for name in _MOMENTS)
        return first, second, state["step"]
    if group["momentum"] == 0:
        return None, None, None
    if state.get("momentum_buffer") is None and group["dampening"] != 0:
        counts[parameter] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return _moment(state, "momentum_buffer", parameter), None, counts.get(parameter)


def _moment(state: dict[str, Any], name: str, parameter: Tensor) -> Tensor:
    """The moment in the parameter's memory order, as the kernel needs it; a checkpoint may have another order."""
    moment = state.get(name)
    if moment is None:
        moment = state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    elif moment.dtype != parameter.dtype or moment.device != parameter.device or not same_order(moment, parameter):
        moment = state[name] = torch.empty_like(parameter).copy_(moment)
    return moment


class StepGuard:
    """Raises at an `optimizer.step()` that comes right after a fused step, and with it at `GradScaler.step`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._done = False
        self._optimizer = weakref.ref(optimizer)
        optimizer.register_step_pre_hook(self)

    def stepped(self) -> None:
        """Record that a fused step was taken."""
        self._done = True
        if (optimizer := self._optimizer()) is not None:
            optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers check it

    def __call__(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        graded = any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
        if self._done and not graded:
            raise RuntimeError(
                "optimizer.step() was called right after a FusedStep, which has already taken this step. Remove it; "
                "with a GradScaler pass `scale=scaler` to the FusedStep and call scaler.update() after it."
            )
        self._done = False
