"""PCGrad's order of the tasks: fixed by the seed and the step, resumed from a state, and which tasks it contains."""

from __future__ import annotations

import pytest
import torch
from helpers.gradients import gradients, textbook_pcgrad
from helpers.gram_weights import weights
from helpers.loop import Model, first_order, inputs

from fastmtl import balance

ORDERS = {
    (0, 3): [[[2, 1], [2, 0], [0, 1]], [[1, 2], [2, 0], [0, 1]]],
    (0, 4): [[[2, 3, 1], [2, 0, 3], [1, 3, 0], [0, 2, 1]], [[1, 2, 3], [2, 0, 3], [3, 1, 0], [0, 2, 1]]],
}


@pytest.mark.parametrize(("seed", "K"), ORDERS)
def test_the_orders_of_a_seed_do_not_change(seed, K):
    """A run that is repeated with another version of fastmtl draws and uses the same orders."""
    balancer, J = balance.PCGrad(seed=seed), gradients(K, 20, seed=2, dtype=torch.float64)
    J = J - 0.9 * J.mean(0)
    for order in ORDERS[seed, K]:
        assert first_order(balancer, K).tolist() == order
        update = balancer.weights(J @ J.T, {}) @ J
        torch.testing.assert_close(update, textbook_pcgrad(J, torch.tensor(order)), rtol=1e-10, atol=1e-10)


def test_without_options_the_seed_is_zero_and_the_weights_are_summed():
    assert repr(balance.PCGrad()) == "PCGrad(reduction='sum', seed=0, with_self=False)"


def test_resume_draws_the_same_orders():
    model, x = Model(), inputs()
    straight = balance.PCGrad(seed=3)
    for _ in range(2):
        straight.backward(model.losses(x), model.encoder.parameters())
    resumed = balance.PCGrad(seed=99)
    resumed.load_state_dict(straight.state_dict())
    for _ in range(3):
        expected = straight.backward(model.losses(x), model.encoder.parameters())["weights"]
        assert torch.equal(resumed.backward(model.losses(x), model.encoder.parameters())["weights"], expected)
    with pytest.raises(ValueError, match="must have the tasks"):
        resumed.backward({"a": model.losses(x)["a"]}, model.encoder.parameters())


def test_pcgrad_with_self_is_what_libmtl_computes():
    J = torch.tensor([[1.0, 0.0], [-10.0, 1.0], [-10.0, -1.0]], dtype=torch.float64)
    balancer = balance.PCGrad(with_self=True, seed=5)
    differs = False
    for _ in range(20):
        order = balancer.next_order(3, torch.device("cpu"))
        assert order.sort(1).values.tolist() == [[0, 1, 2]] * 3
        total = torch.zeros(2, dtype=torch.float64)
        for i in range(3):
            g = J[i].clone()
            for j in order[i].tolist():
                if torch.dot(g, J[j]) < 0:
                    g -= torch.dot(g, J[j]) / torch.dot(J[j], J[j]) * J[j]
            total += g
        w = balancer.weights(J @ J.T, {})
        torch.testing.assert_close(w @ J, total, rtol=1e-12, atol=1e-12)
        differs |= not torch.allclose(weights("pcgrad", J @ J.T, seed=5) @ J, total)
    assert differs
