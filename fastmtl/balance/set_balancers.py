"""A balancer for each group of tasks that are trained together, when the steps of a training have different tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from .arena import GradientArena
from .gradient_balancer import GradientBalancer
from .loss_base import LossBalancer

Method = GradientBalancer | LossBalancer


class SetBalancers:
    """The balancers of a training whose batches come from data sets with tasks of their own.

    A step balances the tasks of its batch alone. The balancers of other groups, with their weights and averages, are
    not touched, and the rows of the gradients are one buffer, as large as the largest group needs.

    Args:
        create: tasks -> their balancer.
        groups: the tasks of each set, in the order of the losses; equal groups share a balancer.

    >>> from fastmtl.balance import PCGrad
    >>> balancers = SetBalancers(lambda tasks: PCGrad(), [("mask", "grade"), ("grade",)])
    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> balancers.backward({"grade": parameter.sum()}, [parameter])["weights"]
    tensor([1.], dtype=torch.float64)
    """

    def __init__(self, create: Callable[[tuple[str, ...]], Method], groups: Iterable[Sequence[str]]) -> None:
        self._balancers = {tasks: create(tasks) for tasks in dict.fromkeys(map(tuple, groups))}
        self._last: Method | None = None
        self.needs_reevaluation = any(balancer.needs_reevaluation for balancer in self._balancers.values())
        arena = GradientArena()
        for balancer in self._balancers.values():
            if isinstance(balancer, GradientBalancer):
                balancer.use_arena(arena)

    def __repr__(self) -> str:
        return f"SetBalancers({list(self._balancers.values())!r})"

    @property
    def balancers(self) -> dict[tuple[str, ...], Method]:
        """Tasks -> their balancer."""
        return dict(self._balancers)

    def for_tasks(self, tasks: Iterable[str]) -> Method:
        """The balancer of a step with these tasks. The balancer of the step before frees its buffers.

        Raises:
            ValueError: no group has exactly these tasks in this order.
        """
        tasks = tuple(tasks)
        if tasks not in self._balancers:
            known = "; ".join(", ".join(group) for group in self._balancers)
            raise ValueError(f"`tasks` must be one of the groups ({known}); got {', '.join(tasks)}.")
        found = self._balancers[tasks]
        if self._last is not None and self._last is not found:
            self._last.release()
        self._last = found
        return found

    def backward(self, losses: Mapping[str, Tensor], shared: Iterable[Tensor], **options: Any) -> dict[str, Tensor]:
        """Call `backward` of the balancer of these losses; arguments and result as there."""
        return self.for_tasks(losses).backward(losses, shared, **options)

    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Call after the optimizer's step, for the balancer of this step."""
        if self._last is not None:
            self._last.after_step(reevaluate)

    @property
    def split_state(self) -> tuple[str, ...]:
        """As `WeightedBalancer.split_state`."""
        return next(iter(self._balancers.values())).split_state

    def parameters(self) -> Iterable[Parameter]:
        """The learned parameters of all balancers."""
        return [parameter for balancer in self._balancers.values() for parameter in balancer.parameters()]

    def on_epoch(self) -> None:
        """Call at the end of every epoch."""
        for balancer in self._balancers.values():
            balancer.on_epoch()

    def distribute(self, model: nn.Module | None, **options: Any) -> Self:
        """As `WeightedBalancer.distribute`: the batches of all ranks in a step must be of one group."""
        for balancer in self._balancers.values():
            balancer.distribute(model, **options)
        return self

    def why_not_sharded(self) -> str:
        """As `WeightedBalancer.why_not_sharded`."""
        return "the heads of other data sets have no gradient in a step, which FSDP2 does not allow"

    def constant_weights(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64: for each task the mean over its balancers of the weights that do not change in an epoch; 1 for
        balancers without such weights."""
        device = next(iter(losses.values())).device
        total, count = torch.zeros(2, len(losses), dtype=torch.float64, device=device)
        names = list(losses)
        for tasks, balancer in self._balancers.items():
            places = [names.index(task) for task in tasks]
            constant = getattr(balancer, "constant_weights", None)
            own = None if constant is None else constant({task: losses[task] for task in tasks})
            total[places] += 1.0 if own is None else own
            count[places] += 1
        return total / count

    def state_dict(self) -> dict[str, Any]:
        """The states of all balancers, by their tasks, under "sets"; "tasks" is None, as before a first step."""
        own = {", ".join(tasks): balancer.state_dict() for tasks, balancer in self._balancers.items()}
        return {"tasks": None, "sets": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is of other tasks or of another method.
        """
        own = {", ".join(tasks): balancer for tasks, balancer in self._balancers.items()}
        states = state.get("sets", {})
        if own.keys() != states.keys():
            raise ValueError(f"`state` must be of the tasks {'; '.join(own)}; got {'; '.join(states) or 'none'}.")
        for name, balancer in own.items():
            balancer.load_state_dict(states[name])


def options_for(options: Mapping[str, Any], tasks: Sequence[str], every: Sequence[str]) -> dict[str, Any]:
    """The options of a balancer of all tasks, `every`, for some of them: values by task, or one for each in order, are
    reduced to theirs; the main tasks are those among them.

    >>> options_for({"weights": {"a": 1.0, "b": 2.0}, "main": ["a"], "lr": 0.1}, ["b"], ["a", "b"])
    {'weights': {'b': 2.0}, 'main': [], 'lr': 0.1}
    """
    found = dict(options)
    for name, value in options.items():
        if isinstance(value, Mapping) and set(value) == set(every):
            found[name] = {task: value[task] for task in tasks}
        elif name == "main":
            alone = isinstance(value, str | int)
            mains = [every[one] if isinstance(one, int) else one for one in ([value] if alone else value)]
            mine = [one for one in mains if one in tasks]
            found[name] = mine[0] if alone and mine else mine
        elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(every):
            found[name] = [value[every.index(task)] for task in tasks]
    return found
