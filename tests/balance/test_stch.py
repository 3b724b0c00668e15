"""STCH against autograd through its formula, and its warm-up against the authors' steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastmtl import balance


def leaves(values: Tensor) -> tuple[nn.Parameter, dict[str, Tensor]]:
    """A parameter [K], and losses that are its elements: a task's weight is the gradient of its element."""
    parameter = nn.Parameter(values.clone())
    return parameter, {name: parameter[k] for k, name in enumerate("abcdef"[: len(values)])}


def gradient(balancer: balance.STCH, values: Tensor) -> Tensor:
    parameter, losses = leaves(values)
    log = balancer.backward(losses)
    torch.testing.assert_close(parameter.grad, log["weights"])
    return log["weights"]


@pytest.mark.parametrize("mu", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("given", [False, True])
def test_equals_autograd_through_its_formula(mu, given):
    values = torch.tensor([0.5, 2.0, 1.9], dtype=torch.float64)
    preference, best = ([0.2, 0.3, 0.5], [0.1, 0.2, 0.3]) if given else (None, None)
    leaf = values.clone().requires_grad_()
    y = leaf / 3
    if given:
        y = torch.tensor(preference, dtype=torch.float64) * (leaf - torch.tensor(best, dtype=torch.float64))
    (mu * (y / mu).logsumexp(0)).backward()
    found = gradient(balance.STCH(mu, weights=preference, reference=best), values)
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-14)


def test_huge_losses_and_a_small_mu_do_not_overflow():
    w = gradient(balance.STCH(1e-6), torch.tensor([1e30, 2e30, 1.0], dtype=torch.float64))
    torch.testing.assert_close(w, torch.tensor([0.0, 1 / 3, 0.0], dtype=torch.float64))


def test_warm_up_is_the_authors_code():
    """Two epochs of the sum of logs; the second one's means then divide the losses."""
    balancer, mu = balance.STCH(0.5, warmup=2), 0.5
    epochs = torch.rand(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2
    mean = epochs[1].mean(0)
    for number, epoch in enumerate(epochs):
        for values in epoch:
            leaf = values.clone().requires_grad_()
            logs = leaf.log() if number < 2 else (leaf / mean).log()
            (logs.sum() if number < 2 else 3 * mu * (logs / mu).logsumexp(0)).backward()
            torch.testing.assert_close(gradient(balancer, values), leaf.grad, rtol=1e-9, atol=0)
        balancer.on_epoch()


def test_a_task_without_labels_in_the_warm_up_has_its_own_loss_as_mean():
    balancer = balance.STCH(1.0, warmup=1)
    balancer.backward(leaves(torch.tensor([2.0, 0.0, 4.0]))[1])
    balancer.on_epoch()
    found = gradient(balancer, torch.tensor([4.0, 3.0, 2.0], dtype=torch.float64))
    share = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64) / 3.5
    torch.testing.assert_close(found, 3 * share / torch.tensor([4.0, 3.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("options", [{"weights": [1.0, 1.0]}, {"reference": {"a": 0.0, "b": 0.0}}])
def test_the_mean_of_the_warm_up_replaces_preferences(options):
    with pytest.raises(ValueError, match="`warmup` must be 0 with `weights` or `reference`; got 3"):
        balance.STCH(warmup=3, **options)


def test_preferences_are_of_the_tasks():
    with pytest.raises(ValueError, match="must name the tasks"):
        balance.STCH(weights={"a": 1.0}).backward(leaves(torch.ones(2))[1])


@pytest.mark.parametrize("make", [balance.STCH, balance.ExcessMTL], ids=lambda make: make.__name__)
@pytest.mark.parametrize("warmup", [1.5, float("inf")])
def test_a_warm_up_is_a_whole_number(make, warmup):
    with pytest.raises(ValueError, match="`warmup` a whole number"):
        make(warmup=warmup)


def test_a_negative_loss_is_not_increased():
    parameter = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    balancer = balance.STCH(warmup=1)
    losses = {"a": parameter[0], "b": parameter[1] - 3}
    assert balancer.backward(losses)["weights"].isnan().all()
    state = balancer.state_dict()
    assert not any(state[name].any() for name in balancer.state_names)
