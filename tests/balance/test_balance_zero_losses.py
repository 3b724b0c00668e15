"""Losses that are exactly 0, with a zero gradient: nothing to learn, or no labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmtl import balance
from fastmtl.balance.gradient_balancer import GradientBalancer

TASKS = "abc"
# The tasks whose loss is 0 at step t of 6, three to an epoch.
WHEN = {
    "one, ever": lambda t: "b",
    "one, in the first epoch": lambda t: "b" if t < 3 else "",
    "all but one": lambda t: "bc",
    "all, at first": lambda t: "abc" if t == 0 else "",
    "all, ever": lambda t: "abc",
    "each in turn": lambda t: TASKS[t % 3],
}


def variants() -> list[Any]:
    found = [pytest.param(name, {}, id=name) for name in balance.list_balancers()]
    found.append(pytest.param("pcgrad", {"reuse": 2}, id="pcgrad-reuse"))
    for strategy in ("batched", "last_layer", "features"):
        found.append(pytest.param("cagrad", {"strategy": strategy}, id=f"cagrad-{strategy}"))
    return found


def check_finite(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            check_finite(f"{name}.{key}", entry)
    elif isinstance(value, Tensor):
        assert value.isfinite().all(), name


@pytest.mark.parametrize("labelled", ["unsaid", "none", "all"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize(("name", "options"), variants())
def test_a_loss_of_0_spoils_no_weight_and_no_state(name, options, when, labelled):
    """Whether `active` excludes the task, includes it, or is not given: the other tasks continue to learn."""
    torch.manual_seed(0)
    balancer = balance.create_balancer(name, **options)
    encoder, heads = nn.Linear(4, 5), nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD([*parameters, *balancer.parameters()], lr=0.05)

    def losses(x: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        z = encoder(x)
        more = {}
        if options.get("strategy") == "features":
            z = balance.cut(z)
            more = {"features": z}
        zero = [0.0 if task in nothing else 1.0 for task in TASKS]
        return {task: k * (heads[task](z) - 1).square().mean() for k, task in zip(zero, TASKS, strict=True)}, more

    for t in range(6):
        nothing = WHEN[when](t)
        optimizer.zero_grad()
        x = torch.randn(8, 4)
        found, more = losses(x)
        if labelled != "unsaid":
            more["active"] = torch.tensor([labelled == "all" or task not in nothing for task in TASKS])
        log = balancer.backward(found, encoder.parameters(), **more)
        check_finite("log", log)
        for number, parameter in enumerate(parameters):
            assert parameter.grad is None or parameter.grad.isfinite().all(), number
        for task in set(TASKS) - set(nothing):
            assert heads[task].weight.grad.abs().sum() > 0, f"{task} stands still at step {t}"
        optimizer.step()
        with torch.no_grad():
            balancer.after_step(lambda x=x: losses(x)[0])
        if t % 3 == 2:
            balancer.on_epoch()
    state = balancer.state_dict()
    if name == "dwa":  # NaN where an epoch has no mean yet
        state = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    check_finite("state", state)


def test_gradnorm_begins_with_the_first_loss_that_is_one():
    """L / L(0) of a task whose first loss was 0 does not stay infinite."""
    balancer, x = balance.GradNorm(), nn.Parameter(torch.ones(2, 2))
    for loss in (0.0, 3.0):
        balancer.backward({"a": x.sum(), "b": loss * x.square().sum()}, [x])
    assert balancer.state_dict()["first"].tolist() == [4.0, 12.0]


def test_every_gradient_balancer_weighs_the_others_as_if_it_were_not_there():
    for name in balance.list_balancers():
        results = []
        for tasks in ("ac", "abc"):
            x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
            balancer = balance.create_balancer(name)
            if not isinstance(balancer, GradientBalancer):
                break
            parts = {"a": x[:2].square().sum(), "b": 0.0 * x.sum(), "c": (x[1:] - 7).square().sum()}
            balancer.backward({task: parts[task] for task in tasks}, [x])
            results.append(x.grad)
        if results and name not in ("graddrop",):  # its draws are of another place
            assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(*map(Tensor.tolist, results), strict=True)), (
                name
            )
