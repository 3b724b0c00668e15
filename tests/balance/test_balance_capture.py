"""A step of every method as a CUDA graph requires it: no number read by the host, all state and draws on the device."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from helpers.capture import GraphCapture
from helpers.loop import Model, all_gradients, assert_steps_equal, inputs, losses_of, shared_of
from torch.utils._pytree import tree_leaves

from fastmtl import balance
from fastmtl.balance import cagrad

METHODS = balance.list_balancers()


def _step(model: Model, balancer, x: torch.Tensor) -> dict[str, torch.Tensor]:
    for parameter in model.parameters():
        parameter.grad = None
    return balancer.backward(losses_of(model, x), shared_of(model), active=x[:3, 0] > -100.0)


def _ready(method: str):
    """A model and balancer after their first steps, as torch requires before a capture."""
    model, balancer = Model(), balance.create_balancer(method)
    for seed in (1, 2):
        _step(model, balancer, inputs(seed=seed))
        balancer.after_step(lambda: losses_of(model, inputs(seed=seed)))
        balancer.on_epoch()
    return model, balancer


@pytest.mark.parametrize("method", METHODS)
def test_replays_are_steps(method, monkeypatch):
    """Three replays on other inputs equal three steps: gradients, weights and state; between them an epoch ends."""
    monkeypatch.setattr(cagrad, "_STOPS_EARLY", ())  # as on a GPU
    model, balancer = _ready(method)
    twin, alone = deepcopy(model), deepcopy(balancer)
    x = inputs(seed=3).clone()
    with GraphCapture() as graph:
        log = _step(model, balancer, x)
    _step(twin, alone, inputs(seed=3))
    drawn = []
    for seed in (4, 5, 6):
        for each, network in ((balancer, model), (alone, twin)):
            each.after_step(lambda network=network, seed=seed: losses_of(network, inputs(seed=seed)))
            each.on_epoch()
        x.copy_(inputs(seed=seed))
        graph.replay()
        expected = _step(twin, alone, inputs(seed=seed))
        assert_steps_equal([[*all_gradients(model), *log.values()]], [[*all_gradients(twin), *expected.values()]])
        drawn.append(log["weights"].clone())
    found, wanted = (tree_leaves(each.state_dict()) for each in (balancer, alone))
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)
        else:
            assert one == other
    if method in ("pcgrad", "rlw", "graddrop", "gradvac"):
        assert not torch.equal(drawn[0], drawn[1]) or not torch.equal(drawn[1], drawn[2])


def test_a_capture_refuses_what_a_graph_cannot_do():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="the host waits"), GraphCapture():
        x.sum().item()
    with pytest.raises(AssertionError, match="the host waits"), GraphCapture():
        bool(x.sum() > 2)
    with pytest.raises(AssertionError, match=r"nonzero|mask"), GraphCapture():
        x[x > 0]


def test_a_capture_repeats_what_the_host_decided():
    """A random number drawn on the host is the same in every replay; the methods' own draws must avoid this."""
    source, x = torch.Generator().manual_seed(0), torch.zeros(3)
    order = torch.randperm(3, generator=source).tolist()
    with GraphCapture() as graph:
        y = x + torch.tensor(order)
    seen = y.clone()
    graph.replay()
    assert torch.equal(y, seen)
