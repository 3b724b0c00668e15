"""Bad input raises an error at once that names the argument or the task, and leaves no state behind."""

from __future__ import annotations

import pytest
import torch
from helpers.loop import Model, inputs
from torch import nn
from torch.utils._pytree import tree_leaves

from fastmtl import balance


def _meta() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, device="meta"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": nn.Parameter(torch.ones((), dtype=torch.complex64)) * 1}, r"`losses\['b'\]` must be floating point"),
        ({"b": _meta().sum()}, "`losses` must be on one device; got 'c' on cpu, 'b' on meta"),
    ],
)
@pytest.mark.parametrize("method", ["pcgrad", "linear"])
def test_losses(method, change, message):
    model = Model()
    with pytest.raises(ValueError, match=message):
        balance.create_balancer(method).backward(model.losses(inputs()) | change, model.shared())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("shared", "error", "message"),
    [
        (None, TypeError, "`shared` must hold parameters; got NoneType. Pass module.parameters()"),
        (nn.Linear(2, 2), TypeError, "`shared` must hold parameters; got Linear"),
        ("encoder", TypeError, "`shared` must hold parameters; got str"),
        ([_meta()], ValueError, "on the meta device"),
    ],
)
def test_shared(shared, error, message):
    model = Model()
    with pytest.raises(error, match=message):
        balance.PCGrad().backward(model.losses(inputs()), shared)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.amp.GradScaler("cpu"), "got the GradScaler itself. Take scaler.scale"),
        (0.0, "got 0.0"),
        (float("nan"), "got nan"),
        ("1", "got '1'"),
        (torch.ones(2), r"got a tensor \[2\]"),
    ],
)
@pytest.mark.parametrize("method", ["pcgrad", "linear"])
def test_scale(method, scale, message):
    model = Model()
    with pytest.raises(ValueError, match=f"`scale` must be a positive number or a scalar tensor; {message}"):
        balance.create_balancer(method).backward(model.losses(inputs()), model.shared(), scale=scale)


@pytest.mark.parametrize(
    ("method", "state", "message"),
    [
        ("pcgrad", {}, "of a PCGrad; it has no draws, tasks"),
        ("moco", balance.PCGrad().state_dict(), "of a MoCo; it has no average, moves, steps, w"),
    ],
)
def test_states_of_another_method(method, state, message):
    with pytest.raises(ValueError, match=message):
        balance.create_balancer(method).load_state_dict(state)


@pytest.mark.parametrize("method", ["pcgrad", "gradvac", "graddrop", "rlw"])
def test_seeds(method):
    with pytest.raises(ValueError, match="`seed` must be an integer; got 'a'"):
        balance.create_balancer(method, seed="a")
    balance.create_balancer(method, seed=2**70)


def test_names_in_other_capitals():
    with pytest.raises(ValueError, match="unknown balancer 'PCGrad'; did you mean 'pcgrad'"):
        balance.create_balancer("PCGrad")


@pytest.mark.parametrize("method", balance.list_balancers())
def test_a_state_is_a_copy(method):
    """Later steps write in place, and must not change what a caller keeps."""
    model, balancer = Model(), balance.create_balancer(method)

    def losses():
        return {name: loss.square() + 1 for name, loss in model.losses(inputs()).items()}

    balancer.backward(losses(), model.encoder.parameters())
    state = balancer.state_dict()
    kept = [leaf.clone() for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    other = balance.create_balancer(method)
    other.load_state_dict(state)
    for each in (balancer, other):
        log = each.backward(losses(), model.encoder.parameters())
        each.after_step(losses)
        each.on_epoch()
    assert log["weights"].isfinite().all()
    found = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    assert all(torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in zip(found, kept, strict=True))


@pytest.mark.parametrize("method", ["pcgrad", "linear"])
def test_losses_without_names(method):
    model = Model()
    with pytest.raises(ValueError, match=r"`losses` must map each task's name to its loss, \{.*\}; got list"):
        balance.create_balancer(method).backward(list(model.losses(inputs()).values()), model.shared())


@pytest.mark.parametrize("method", ["pcgrad", "linear"])
def test_a_backward_of_ones_own_before_the_balancers_is_explained(method):
    model = Model()
    losses = model.losses(inputs())
    sum(losses.values()).backward()
    with pytest.raises(RuntimeError, match="second time") as caught:
        balance.create_balancer(method).backward(losses, model.shared())
    assert any("Remove `loss.backward()`" in note for note in caught.value.__notes__)


class Tagged(torch.Tensor):
    """Like MONAI's MetaTensor: results computed from one have the same type."""


@pytest.mark.parametrize("method", balance.list_balancers())
def test_a_subclass_of_tensor_does_not_enter_state_or_log(method):
    model, balancer = Model(), balance.create_balancer(method)
    losses = model.losses(inputs().as_subclass(Tagged))
    assert all(type(loss) is Tagged for loss in losses.values())
    log = balancer.backward(losses, model.encoder.parameters())
    found = [leaf for leaf in tree_leaves([log, balancer.state_dict()]) if isinstance(leaf, torch.Tensor)]
    assert {type(leaf) for leaf in found} == {torch.Tensor}
