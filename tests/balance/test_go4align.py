"""GO4Align against a loop over its steps, and its groups against every assignment."""

from __future__ import annotations

import pytest
import torch
from helpers import textbook
from torch import nn

from fastmtl import balance
from fastmtl.balance.go4align import group_means

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("K", [1, 2, 5])
def test_groups_are_the_best_of_all_assignments(K, groups):
    for seed in range(6):
        v = torch.rand(K, generator=torch.Generator().manual_seed(seed), **DOUBLE) ** 3
        expected = textbook.best_groups(v, min(groups, K))
        torch.testing.assert_close(group_means(v, torch.ones(K, dtype=torch.bool), groups), expected)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_groups_do_not_depend_on_the_scale_or_the_order(scale):
    v = torch.tensor([1.0, 5.0, 1.1, 4.9, 0.9], **DOUBLE)
    expected = torch.tensor([1.0, 4.95, 1.0, 4.95, 1.0], **DOUBLE)
    torch.testing.assert_close(group_means(v * scale, torch.ones(5, dtype=torch.bool), 2), expected * scale)
    place = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(group_means(v[place], torch.ones(5, dtype=torch.bool), 2), expected[place])


@pytest.mark.parametrize("off", [0, 1, 3])
def test_a_task_without_labels_is_in_no_group(off):
    v = torch.tensor([1.0, 5.0, 1.2, 4.8], **DOUBLE)
    active = torch.arange(4) != off
    found = group_means(torch.where(active, v, 0.0), active, 2)
    assert found[off] == 0
    torch.testing.assert_close(found[active], textbook.best_groups(v[active], 2))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_its_loop(groups):
    balancer, p = balance.GO4Align(groups, lr=0.3), torch.full((4,), 0.25, **DOUBLE)
    for seed in range(5):
        values = torch.rand(4, generator=torch.Generator().manual_seed(seed), **DOUBLE) + 0.1
        parameter = nn.Parameter(values.clone())
        w = balancer.backward({name: parameter[k] for k, name in enumerate("abcd")})["weights"]
        p = p * torch.exp(-0.3 * values)
        p = p / p.sum()
        torch.testing.assert_close(w, textbook.best_groups(values.sum() / values * p, groups))
        torch.testing.assert_close(parameter.grad, w)


def test_groups_are_a_whole_number():
    with pytest.raises(ValueError, match="`groups` must be a whole number"):
        balance.GO4Align(1.5)


def test_a_negative_loss_is_not_increased():
    parameter = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    balancer = balance.GO4Align()
    losses = {"a": parameter[0], "b": parameter[1] - 3}
    assert balancer.backward(losses)["weights"].isnan().all()
    state = balancer.state_dict()
    assert not any(state[name].any() for name in balancer.state_names)
