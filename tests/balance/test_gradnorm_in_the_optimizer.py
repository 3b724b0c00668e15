"""GradNorm whose weights the model's optimizer moves, without a clamp: algorithm 1, as the joint U-Net's authors run
it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from helpers.loop import Model, inputs, losses_of
from torch import Tensor, nn
from torch.nn import functional as F

from fastmtl import balance
from fastmtl.builders import components, optimizers
from fastmtl.config import ConfigError, load_recipe


def _adam(model: Model, weights, lr: float) -> torch.optim.Adam:
    """The weights move fast, so that one becomes negative within a few steps."""
    return torch.optim.Adam([{"params": list(model.parameters())}, {"params": list(weights), "lr": 0.4}], lr=lr)


def _by_the_book(model: Model, xs, alpha: float, lr: float, first_epoch: int) -> tuple[list[Tensor], Model]:
    """Algorithm 1 with autograd through L_grad and one Adam for everything; L(0) is set until step `first_epoch`."""
    w = nn.Parameter(torch.ones(3))
    adam = _adam(model, [w], lr)
    layer, seen, first = model.encoder[0].weight, [], torch.ones(3)
    for number, x in enumerate(xs):
        losses = torch.stack(list(losses_of(model, x).values()))
        if number < first_epoch:
            first = losses.detach()
        seen.append(w.detach().double().clone())
        adam.zero_grad()
        (w.detach() * losses).sum().backward(retain_graph=True)
        gradients = [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses]
        lengths = torch.stack([(w[k] * gradients[k]).norm() for k in range(3)])
        rates = losses.detach() / first
        target = lengths.detach().mean() * (rates / rates.mean()) ** alpha
        (w.grad,) = torch.autograd.grad((lengths - target).abs().sum(), w)
        adam.step()
        w.data *= 3 / w.data.sum()
    return seen, model


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize(("initial", "first_epoch"), [("step", 1), ("epoch", 4)])
def test_it_is_algorithm_1_with_one_adam(fused, scale, initial, first_epoch):
    xs = [inputs(torch.float32, seed=number) for number in range(12)]
    expected, trained = _by_the_book(Model(torch.float32), xs, 6.0, 0.02, first_epoch)
    model = Model(torch.float32)
    layer = model.encoder[0].weight
    balancer = balance.GradNorm(6.0, layer=layer, optimizer="model", clamp=False, initial=initial)
    adam = _adam(model, balancer.parameters(), 0.02)
    step, seen = balance.FusedStep(adam), []
    for number, x in enumerate(xs):
        if number and number % 4 == 0:
            balancer.on_epoch()
        if fused:
            seen.append(step(balancer, losses_of(model, x), model.encoder.parameters(), scale=scale)["weights"])
            continue
        adam.zero_grad()
        seen.append(balancer.backward(losses_of(model, x), model.encoder.parameters(), scale=scale)["weights"])
        for parameter in (*model.parameters(), *balancer.parameters()):
            if scale is not None and parameter.grad is not None:
                parameter.grad /= scale
        adam.step()
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected), rtol=1e-3, atol=1e-4)
    if initial == "step":
        assert min(w.min() for w in seen) < 0
    assert all(w.sum().item() == pytest.approx(3.0, abs=1e-4) for w in seen)
    for ours, theirs in zip(model.encoder.parameters(), trained.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def _train(alpha: float, *, clamp: bool = False, steps: int = 150) -> dict[str, list[float]]:
    """Two tasks that are learned well beside one whose loss stays high, as the mask's does; losses by step."""
    torch.manual_seed(0)
    source = torch.Generator().manual_seed(0)
    encoder = nn.Linear(4, 8)
    heads = nn.ModuleDict({"mask": nn.Linear(8, 1), "label": nn.Linear(8, 3), "intensity": nn.Linear(8, 1)})
    balancer = balance.GradNorm(alpha, clamp=clamp, optimizer="model")
    adam = torch.optim.Adam([*encoder.parameters(), *heads.parameters(), *balancer.parameters()], lr=0.05)
    seen: dict[str, list[float]] = {name: [] for name in heads}
    for _ in range(steps):
        x = torch.randn(32, 4, generator=source)
        z = encoder(x).tanh()
        noisy = x[:, 0] + torch.randn(32, generator=source)
        losses = {
            "mask": (heads["mask"](z)[:, 0] - noisy).square().mean(),
            "label": F.cross_entropy(heads["label"](z), x[:, :3].argmax(1)),
            "intensity": F.binary_cross_entropy_with_logits(heads["intensity"](z), (x[:, 3:] > 0).float()),
        }
        adam.zero_grad()
        balancer.backward(losses, encoder.parameters())
        adam.step()
        for name, loss in losses.items():
            seen[name].append(loss.item())
    return seen


def test_alpha_6_collapses_without_a_clamp_and_alpha_0_6_does_not():
    """The paper's table VIII: the label's loss falls, then a weight becomes negative, and it is maximised."""
    found = _train(6.0)["label"]
    assert min(found) < 0.7 * found[0]
    assert found[-1] > 50 * found[0]
    for losses in (_train(0.6), _train(6.0, clamp=True)):
        assert all(of[-1] < 0.8 * of[0] and max(of) < 2 * of[0] for of in losses.values())


def test_its_state_goes_on_bit_for_bit():
    model = Model(torch.float32)
    options = {"optimizer": "model", "clamp": False, "initial": "epoch"}

    def made(of):
        balancer = balance.GradNorm(6.0, **options)
        return balancer, torch.optim.Adam([*of.parameters(), *balancer.parameters()], lr=0.05)

    def step(balancer, of, adam, seed):
        adam.zero_grad()
        log = balancer.backward(losses_of(of, inputs(torch.float32, seed=seed)), of.encoder.parameters())
        adam.step()
        return log["weights"]

    balancer, adam = made(model)
    for seed in range(5):
        step(balancer, model, adam, seed)
        if seed == 3:
            balancer.on_epoch()
    buffer = io.BytesIO()
    torch.save(balancer.state_dict(), buffer)
    buffer.seek(0)
    twin = copy.deepcopy(model)
    resumed, other = made(twin)
    resumed.load_state_dict(torch.load(buffer))
    other.load_state_dict(copy.deepcopy(adam.state_dict()))
    for seed in range(5, 9):
        assert torch.equal(step(balancer, model, adam, seed), step(resumed, twin, other, seed))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_its_options_are_checked():
    for option in ("optimizer", "initial"):
        with pytest.raises(ValueError, match=f"`{option}` must be"):
            balance.GradNorm(**{option: "other"})
    model = Model()
    with pytest.raises(ValueError, match="`layer` must be the parameter itself outside recipes; got its name, 'w'"):
        balance.GradNorm(layer="w").backward(losses_of(model, inputs()), model.encoder.parameters())


def test_a_recipe_names_the_layer():
    """down4's first 3x3 convolution, not its 1x1 shortcut, which is the last shared parameter."""
    recipe = load_recipe("joint_unet/dice_alpha_6", scale="tiny")
    tasks = components.build_tasks(recipe, ("a", "b"), {"intensity": ("intermediate", "positive")})
    model = components.build_model(recipe, tasks, torch.device("cpu"))
    balancer = components.build_balancer(recipe, None, model)
    assert balancer._layer is model.encoder.stages[4].conv1.weight
    assert balancer._layer.shape[2:] == (3, 3)
    assert (balancer.optimizer, balancer.clamp, balancer.initial, balancer.alpha) == ("model", False, "epoch", 6.0)
    assert list(balancer.parameters())
    adam = optimizers.build_optimizer(recipe, model, balancer)
    assert any(parameter is next(iter(balancer.parameters())) for parameter in adam.param_groups[1]["params"])
    wrong = load_recipe("joint_unet/bce_15", {"balancer": {"layer": "encoder.stages.4.conv3.weight"}}, "tiny")
    with pytest.raises(ConfigError, match=r"balancer.layer must be a weight of joint_unet; did you mean '.*conv1"):
        components.build_balancer(wrong, None, model)
    model.encoder.stages[4].conv1.weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"balancer.layer names 'encoder.stages.4.conv1.weight', which is frozen"):
        components.build_balancer(recipe, None, model)
