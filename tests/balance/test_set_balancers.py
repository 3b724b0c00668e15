"""Batches from data sets with tasks of their own: each group of tasks has its balancer, one buffer serves all."""

from __future__ import annotations

import pytest
import torch
from helpers.loop import Model, inputs, losses_of

from fastmtl import balance
from fastmtl.balance.gradient_balancer import GradientBalancer
from fastmtl.balance.set_balancers import SetBalancers, options_for

METHODS = balance.list_balancers()
GROUPS = (("a", "b"), ("b", "c"), ("c",))


def _made(method):
    return SetBalancers(lambda tasks: balance.create_balancer(method), GROUPS)


def _losses(model, group, x):
    return {name: loss for name, loss in losses_of(model, x).items() if name in group}


def _run(balancer_of, steps, model, optimizer):
    """Steps with the groups in turn; what each left in the weights."""
    logs = []
    for number in steps:
        group = GROUPS[number % 3]
        balancer, x = balancer_of(group), inputs(seed=number)
        optimizer.zero_grad()
        log = balancer.backward(_losses(model, group, x), model.encoder.parameters())
        optimizer.step()
        balancer.after_step(lambda group=group, x=x: _losses(model, group, x))
        logs.append(log["weights"])
    return logs


def _optimizer(model, balancers):
    return torch.optim.SGD([*model.parameters(), *balancers.parameters()], lr=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_each_group_is_balanced_as_if_it_were_alone(method):
    model, other = Model(), Model()
    balancers, alone = _made(method), {group: balance.create_balancer(method) for group in GROUPS}
    own = torch.optim.SGD([*other.parameters(), *(p for one in alone.values() for p in one.parameters())], lr=0.05)
    found = _run(balancers.for_tasks, range(9), model, _optimizer(model, balancers))
    wanted = _run(alone.__getitem__, range(9), other, own)
    assert [len(one) for one in found] == [2, 2, 1] * 3
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_state_continues_bit_for_bit(method):
    model, balancers = Model(), _made(method)
    optimizer = _optimizer(model, balancers)
    _run(balancers.for_tasks, range(4), model, optimizer)
    balancers.on_epoch()
    again, restored = Model(), _made(method)
    restored.load_state_dict(balancers.state_dict())
    again.load_state_dict(model.state_dict())
    rest = range(4, 8)
    found = _run(restored.for_tasks, rest, again, _optimizer(again, restored))
    assert all(torch.equal(a, b) for a, b in zip(found, _run(balancers.for_tasks, rest, model, optimizer), strict=True))


def test_the_rows_are_one_buffer_of_the_step_before():
    model, balancers = Model(), _made("pcgrad")
    _run(balancers.for_tasks, range(3), model, _optimizer(model, balancers))
    (arena,) = {one.arena for one in balancers.balancers.values() if isinstance(one, GradientBalancer)}
    assert arena.rows.shape[0] == 1  # of the last group, which has one task


def test_heads_of_other_groups_get_no_gradient():
    model, balancers = Model(), _made("pcgrad")
    balancers.backward(_losses(model, ("b", "c"), inputs()), model.encoder.parameters())
    assert [head.weight.grad is None for head in model.heads.values()] == [True, False, False]


def test_a_group_that_no_set_has_is_refused():
    with pytest.raises(ValueError, match=r"one of the groups \(a, b; b, c; c\); got a, c"):
        _made("linear").for_tasks(["a", "c"])
    with pytest.raises(ValueError, match="must be of the tasks a, b; b, c; c; got a"):
        _made("linear").load_state_dict({"tasks": None, "sets": {"a": {}}})


def test_options_by_task_are_those_of_the_group():
    every, weights = ["a", "b", "c"], {"a": 1.0, "b": 2.0, "c": 3.0}
    assert options_for({"weights": weights}, ["b", "c"], every) == {"weights": {"b": 2.0, "c": 3.0}}
    assert options_for({"weights": [1.0, 2.0, 3.0]}, ["c"], every) == {"weights": [3.0]}
    assert options_for({"main": 1, "lr": 0.1}, ["b", "c"], every) == {"main": "b", "lr": 0.1}
    assert options_for({"main": "a"}, ["b", "c"], every) == {"main": []}
    assert options_for({"main": ["a", "c"]}, ["b", "c"], every) == {"main": ["c"]}


def test_constant_weights_are_those_of_each_task():
    made = SetBalancers(
        lambda tasks: balance.create_balancer("linear", weights=[{"a": 2.0, "b": 3.0, "c": 4.0}[t] for t in tasks]),
        GROUPS,
    )
    losses = {name: torch.ones((), dtype=torch.float64) for name in "abc"}
    assert made.constant_weights(losses).tolist() == [2.0, 3.0, 4.0]
    assert _made("pcgrad").constant_weights(losses).tolist() == [1.0, 1.0, 1.0]
