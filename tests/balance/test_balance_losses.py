"""Methods that weigh losses: uncertainty, IMTL-L, GLS, DWA, RLW, decay, FAMO, GradNorm, each against its paper."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import textbook
from helpers.loop import Model, flat_gradient, inputs
from torch import Tensor, nn

from fastmtl import balance
from fastmtl.balance.replay import Replay


def leaves(*values: float) -> tuple[Tensor, dict[str, Tensor]]:
    """A parameter [K], and losses that are its elements: a task's weight is the gradient of its element."""
    parameter = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    return parameter, {name: parameter[k] for k, name in enumerate("abcdef"[: len(values)])}


def test_uncertainty_forms():
    """LibMTL and TorchJD use the regression form for every task."""
    parameter, losses = leaves(2.0, 3.0)
    balancer = balance.Uncertainty({"a": "regression", "b": "classification"}, initial=[0.5, -0.5])
    balancer.backward(losses)
    (s,) = balancer.parameters()
    torch.testing.assert_close(parameter.grad, torch.tensor([0.5 * math.exp(-0.5), math.exp(0.5)]).double())
    expected = torch.tensor([-0.5 * math.exp(-0.5) * 2 + 0.5, -math.exp(0.5) * 3 + 0.5])
    torch.testing.assert_close(s.grad, expected)


def test_the_pets_papers_initial_values():
    """It learns s' = log sigma from 0, 0, 4: a reconstruction weight of exp(-8)/2, 1/5962."""
    for options in ({"initial": [0.0, 0.0, 8.0]}, {"initial": [0.0, 0.0, 4.0], "log": "deviation"}):
        parameter, losses = leaves(1.0, 1.0, 1.0)
        balancer = balance.Uncertainty(["classification", "classification", "regression"], **options)
        weights = balancer.backward(losses)["weights"]
        torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, math.exp(-8) / 2]).double())
        assert round(1 / weights[2].item()) == 5962
        torch.testing.assert_close(parameter.grad, weights)
    (s,) = balancer.parameters()
    assert s.grad[2].item() == pytest.approx(1 - math.exp(-8))  # of exp(-2 s')/2 L + s'


def test_learned_weights_are_the_optimizers_before_the_tasks_are_known():
    model, x = Model(), inputs()
    balancer = balance.Uncertainty()
    optimizer = torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=0.01, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        losses = {name: loss.square() for name, loss in model.losses(x).items()}
        balancer.backward(losses)
        optimizer.step()
    (s,) = balancer.parameters()
    assert s.shape == (3,)
    assert (s != 0).all()


def test_a_task_without_labels_does_not_move_its_uncertainty():
    for balancer in (balance.Uncertainty(), balance.IMTLL()):
        parameter, losses = leaves(2.0, 3.0)
        losses["b"] = losses["b"] * 0
        balancer.backward(losses)
        (s,) = balancer.parameters()
        assert s.grad[1] == 0
        assert s.grad[0] != 0
        assert parameter.grad[1] == 0


def test_imtl_l():
    parameter, losses = leaves(2.0, 0.5)
    balancer = balance.IMTLL(initial=0.3)
    balancer.backward(losses)
    (s,) = balancer.parameters()
    torch.testing.assert_close(parameter.grad, torch.full((2,), math.exp(0.3)).double())
    torch.testing.assert_close(s.grad, torch.tensor([2 * math.exp(0.3) - 1, 0.5 * math.exp(0.3) - 1]))


@pytest.mark.parametrize("scale", [1.0, 1e-200])
def test_gls_is_the_gradient_of_the_geometric_mean(scale):
    parameter, losses = leaves(2.0 * scale, 3.0 * scale, 5.0 * scale)
    balance.GLS().backward(losses)
    mean = 30 ** (1 / 3)
    torch.testing.assert_close(parameter.grad, torch.tensor([mean / 6, mean / 9, mean / 15]).double())


def test_dwa_follows_the_epochs_means():
    balancer = balance.DWA()
    epochs = [[(4.0, 2.0), (2.0, 2.0)], [(1.0, 2.0), (2.0, 1.0)], [(1.0, 1.0)]]
    for number, epoch in enumerate(epochs):
        for values in epoch:
            w = balancer.backward(leaves(*values)[1])["weights"]
            assert number == 2 or w.tolist() == [1.0, 1.0]
        balancer.on_epoch()
    ratio = torch.tensor([1.5 / 3.0, 1.5 / 2.0]).double()
    torch.testing.assert_close(w, 2 * (ratio / 2).softmax(0))


def test_dwa_without_labels_for_a_task():
    balancer = balance.DWA()
    for values in ((4.0, 2.0, 1.0), (1.0, 0.0, 1.0), (1.0, 0.0, 1.0)):
        for _ in range(2):
            w = balancer.backward(leaves(*values)[1])["weights"]
        balancer.on_epoch()
    # The second task has one mean alone, and goes along at weight 1.
    expected = 2 * (torch.tensor([0.25, 1.0]).double() / 2).softmax(0)
    torch.testing.assert_close(w, torch.stack([expected[0], torch.ones(()).double(), expected[1]]))


def test_random_weights():
    balancer = balance.RLW(seed=3)
    drawn = torch.stack([balancer.backward(leaves(1.0, 2.0)[1])["weights"] for _ in range(400)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(400).double())
    assert (drawn.mean(0) - 0.5).abs().max() < 0.06
    logits = (drawn[:, 0] / drawn[:, 1]).log()  # the difference of two standard normal numbers
    assert logits.std().item() == pytest.approx(2**0.5, rel=0.15)


def test_constant_and_decay():
    losses = leaves(1.0, 1.0, 1.0)[1]
    assert balance.Constant(0.2).backward(losses)["weights"].tolist() == [1.0, 0.2, 0.2]
    several = balance.Constant(0.2, main=["c", "a"]).backward(leaves(1.0, 1.0, 1.0)[1])
    assert several["weights"].tolist() == [1.0, 0.2, 1.0]
    balancer = balance.Decay(0.6, main="b")
    for epoch in (1, 2, 3):
        w = balancer.backward(leaves(1.0, 1.0, 1.0)[1])["weights"]
        assert w.tolist() == [0.6 / epoch, 1.0, 0.6 / epoch]
        balancer.on_epoch()
    with pytest.raises(ValueError, match="`main` must be one of the tasks"):
        balance.Constant(main="z").backward(leaves(1.0, 1.0)[1])


# GradNorm


def gradnorm_run(balancer, steps: int = 5) -> tuple[list[Tensor], list[Tensor]]:
    model, x = Model(), inputs(n=16)
    layer = model.encoder[2].weight
    rows, seen = [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(steps):
        z = model.encoder(x)
        losses = {name: (head(z) - 1).square().mean() for name, head in model.heads.items()}
        gradients = [torch.autograd.grad(loss, layer, retain_graph=True)[0].flatten() for loss in losses.values()]
        rows.append((torch.stack(gradients), torch.stack([loss.detach() for loss in losses.values()])))
        optimizer.zero_grad()
        seen.append(balancer.backward(losses, model.encoder.parameters())["weights"])
        optimizer.step()
    return rows, [*seen[1:], balancer.weights(None, losses)]


@pytest.mark.parametrize("exponent", [1, -1])
def test_gradnorm_follows_autograd_through_its_loss(exponent):
    """gradnorm-pytorch uses the exponent -alpha."""
    rows, found = gradnorm_run(balance.GradNorm(1.5, lr=0.02, exponent=exponent))
    w = torch.ones(3).double()
    for (J, losses), after in zip(rows, found, strict=True):
        w = textbook.gradnorm(w, J, losses, rows[0][1], exponent * 1.5, 0.02)
        torch.testing.assert_close(after, w, rtol=1e-10, atol=0)
    assert (w != 1).all()


def test_gradnorm_leaves_the_models_gradients_alone():
    """gradnorm-pytorch's second backward adds the gradient of its own loss to the model's."""
    model, x, balancer = Model(), inputs(), balance.GradNorm()
    balancer.backward(model.losses(x), model.encoder.parameters())
    model.zero_grad()
    w = balancer.backward(model.losses(x), model.encoder.parameters())["weights"]
    total = sum(weight * loss for weight, loss in zip(w.tolist(), model.losses(x).values(), strict=True))
    parameters = [*model.encoder.parameters(), *model.heads.parameters()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_gradnorm_keeps_weights_positive_and_their_sum():
    """The closed form changes its sign for a negative weight."""
    balancer = balance.GradNorm(lr=100.0)
    for _ in range(4):
        w = gradnorm_run(balancer, 1)[1][-1]
        assert (w > 0).all()
        assert w.sum().item() == pytest.approx(3.0)


def test_gradnorm_without_labels_for_a_task():
    model, x, balancer = Model(), inputs(), balance.GradNorm(lr=0.1)
    for _ in range(3):
        losses = {name: loss.square() + 0.1 for name, loss in model.losses(x).items()}
        losses["b"] = losses["b"] * 0
        balancer.backward(losses, model.encoder.parameters())
    w = balancer.weights(None, losses)
    assert w[1] == 1.0
    assert w[[0, 2]].sum().item() == pytest.approx(2.0)
    assert w[0] != 1.0


def test_gradnorm_errors():
    model, x = Model(), inputs()
    with pytest.raises(ValueError, match="two or more dimensions"):
        balance.GradNorm().backward(model.losses(x), [model.encoder[0].bias])
    with pytest.raises(ValueError, match=r"`losses\['a'\]` must depend on the layer \[2, 2\]"):
        balance.GradNorm(layer=model.unused.weight).backward(model.losses(x))


def test_gradnorm_scaled():
    model, x, plain, scaled = Model(), inputs(), balance.GradNorm(), balance.GradNorm()
    for _ in range(3):
        plain.backward(model.losses(x), model.encoder.parameters())
        scaled.backward(model.losses(x), model.encoder.parameters(), scale=1024.0)
    torch.testing.assert_close(*(b.weights(None, model.losses(x)) for b in (plain, scaled)), rtol=1e-13, atol=0)


# FAMO


def test_famo_is_its_paper_with_torchs_adam():
    torch.manual_seed(0)
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.025, weight_decay=1e-3)
    balancer = balance.FAMO()
    for _ in range(6):
        before, after = torch.rand(2, 3, dtype=torch.float64) + 0.1
        parameter, losses = leaves(*before.tolist())
        w = balancer.backward(losses)["weights"]
        z = xi.softmax(0).detach()
        torch.testing.assert_close(w, z / (before + 1e-8) / (z / (before + 1e-8)).sum())
        torch.testing.assert_close(parameter.grad, w)
        balancer.after_step(lambda after=after: leaves(*after.tolist())[1])
        delta = (before + 1e-8).log() - (after + 1e-8).log()
        xi.grad = torch.autograd.grad(xi.softmax(0), xi, delta)[0]
        adam.step()
    torch.testing.assert_close(balancer.state_dict()["adam"][0], xi.detach())


def test_famo_clips_the_shared_gradients_alone():
    model, x = Model(), inputs()
    losses = {name: loss.square() + 0.1 for name, loss in model.losses(x).items()}
    balance.FAMO(max_norm=0.01).backward(losses, model.encoder.parameters(), scale=8.0)
    assert flat_gradient(model).norm().item() == pytest.approx(0.08, rel=1e-4)
    assert torch.stack([p.grad.norm() for p in model.heads.parameters()]).norm() > 0.08


def test_famo_learns_nothing_from_a_skipped_step_or_a_task_without_labels():
    balancer = balance.FAMO()
    balancer.backward(leaves(1.0, 2.0, 0.0)[1])
    balancer.after_step(lambda: leaves(0.5, 2.0, 0.0)[1])
    state = balancer.state_dict()["adam"].clone()
    assert (state[:, 2] == 0).all()
    assert (state[0, :2] != 0).all()
    for after in (float("nan"), float("inf")):
        balancer.backward(leaves(1.0, 2.0, 0.0)[1])
        balancer.after_step(lambda after=after: leaves(after, 2.0, 0.0)[1])
    assert torch.equal(balancer.state_dict()["adam"], state)
    balancer.after_step(lambda: leaves(0.1, 2.0, 0.0)[1])  # a second look without a step
    assert torch.equal(balancer.state_dict()["adam"], state)
    balance.FAMO().after_step(lambda: pytest.fail("there was no step"))


def test_a_replay_has_the_same_dropout_and_moves_no_statistics():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    x = torch.randn(16, 4)
    again = Replay(model, "cpu")
    first = model(x)
    statistics = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.rand(1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    second = again(lambda: model(x))
    assert torch.equal(first, second)
    assert not second.requires_grad
    assert torch.equal(torch.rand(1), expected)  # the random state goes on
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())
    assert model[1].track_running_stats
    assert drawn != expected
