"""Other strategies for the K gradients than K backwards: exact ones are equal, others match their own definition."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch
import torch._functorch.config as functorch_config
from helpers.loop import CLOSE, Model, check_heads, first_order, flat_gradient, inputs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmtl import balance, losses, ops

METHODS = [name for name in balance.list_balancers() if hasattr(balance.create_balancer(name), "use")]


class Joint(nn.Module):
    """Two convolutions, a mask with our fused loss and a label; in float64, in which ops use their reference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))
        self.mask, self.label = nn.Conv2d(4, 1, 1), nn.Linear(4, 2)
        self.double()

    def losses(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = self.encoder(x)
        label = nn.functional.cross_entropy(self.label(z.mean((2, 3))), y[:, 0, 0, 0].long())
        return {"mask": losses.DiceBCELoss()(self.mask(z), y), "label": label}


def flat_gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def layer_rows(model: Model, x: Tensor) -> Tensor:
    layer = model.encoder[2].weight
    return torch.stack([torch.autograd.grad(loss, layer)[0].flatten() for loss in model_losses_each(model, x)])


def model_losses_each(model: Model, x: Tensor):
    """Each loss with a separate graph."""
    return (model.losses(x)[name] for name in "abc")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [None, torch.tensor(64.0)], ids=["plain", "scaled"])
def test_batched_equals_sequential(method, scale):
    """All gradients and logs of two steps with two micro-batches each."""
    results = []
    for strategy in ("sequential", "batched"):
        model, balancer = Model(), balance.create_balancer(method, strategy=strategy)
        for number in range(2):
            model.zero_grad()
            positive = [
                {k: v.square() + 0.1 for k, v in model.losses(inputs(seed=2 * number + i)).items()} for i in (0, 1)
            ]
            balancer.backward(positive[0], model.shared(), scale=scale, last=False)
            log = balancer.backward(positive[1], model.shared(), scale=scale)
        assert all(p.grad is None for p in model.unused.parameters())
        results.append([flat_gradients(model), *log.values()])
    for sequential, batched in zip(*results, strict=True):
        torch.testing.assert_close(batched, sequential, **CLOSE)


def test_batched_through_a_fused_loss():
    x = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[:, :1] > 0).double()
    results = []
    for strategy in ("sequential", "batched"):
        model = Joint()
        balance.PCGrad().use(strategy).backward(model.losses(x, y), model.encoder.parameters())
        results.append(flat_gradients(model))
    torch.testing.assert_close(*results, **CLOSE)


def test_batched_adds_to_gradients_and_tells_tasks_apart():
    """A task that reaches a part has zeros elsewhere, as with K backwards."""
    first, second, head = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
    head.grad = torch.ones(3, dtype=torch.float64)
    first.grad = torch.ones(3, dtype=torch.float64)
    balancer = balance.PCGrad().use("batched")
    log = balancer.backward({"a": 2 * first.sum(), "b": (second * head).sum()}, [first, second])
    assert first.grad.tolist() == [3.0] * 3
    assert second.grad.tolist() == [1.0] * 3
    assert head.grad.tolist() == [2.0] * 3
    assert log["cosines"][0, 1] == 0
    with pytest.raises(ValueError, match=r"`losses\['b'\]` must reach"):
        balancer.backward({"a": first.sum(), "b": head.sum()}, [first, second])


@pytest.mark.parametrize("options", [{"strategy": "batched"}, {"strategy": "last_layer"}, {"reuse": 2}], ids=str)
def test_checkpointing(options):
    """The error for reentrant checkpoints names them: they hide their parameters. Other checkpoints work."""
    model, x = Model(), inputs().requires_grad_()
    shared = list(model.encoder.parameters())
    results = []
    for use_reentrant in (None, False):
        model.zero_grad()
        balancer = balance.create_balancer("pcgrad", **options)
        for _ in range(2):
            inside = model.encoder(x) if use_reentrant is None else checkpoint(model.encoder, x, use_reentrant=False)
            balancer.backward(model.losses(x, inside), shared)
        results.append(flat_gradients(model))
    torch.testing.assert_close(*results, **CLOSE)
    balancer = balance.create_balancer("pcgrad", **options)
    if "reuse" in options:
        balancer.backward(model.losses(x), shared)  # K backwards: its own
    hidden = model.losses(x, checkpoint(model.encoder, x, use_reentrant=True))
    with pytest.raises(RuntimeError, match="use_reentrant=False, or use the strategy 'sequential'"):
        balancer.backward(hidden, shared)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Inductor imports
def test_batched_names_inductors_backward():
    model, x = Model(), inputs()
    z = torch.compile(model.encoder)(x)
    with pytest.raises(RuntimeError) as caught:
        balance.PCGrad().use("batched").backward(model.losses(x, z), model.encoder.parameters())
    assert "Inductor" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("strategy", ["batched", "features", "last_layer"])
@functorch_config.patch(donated_buffer=False)  # as the error for K backwards says
def test_compiled_encoder(strategy):
    """Of what a compiler makes: aot_eager's backward is torch ops, which vmap; Inductor's is not (the test below)."""
    model, x, results = Model(), inputs(), []
    for encoder in (model.encoder, torch.compile(model.encoder, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        z = encoder(x)
        z = balance.cut(z) if strategy == "features" else z
        extra = {"features": z} if strategy == "features" else {}
        balance.PCGrad().use(strategy).backward(model.losses(x, z), model.encoder.parameters(), **extra)
        results.append(flat_gradients(model))
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("scale", [None, 64.0])
def test_last_layer_measures_one_layer_and_weighs_all(scale):
    model, x = Model(), inputs()
    balancer = balance.PCGrad().use("last_layer")
    w = ops.pcgrad_weights(ops.gram(layer_rows(model, x)), first_order(balancer))
    log = balancer.backward(model.losses(x), model.encoder.parameters(), scale=scale)
    torch.testing.assert_close(log["weights"], w, **CLOSE)
    weighted = sum(weight * loss for weight, loss in zip(w, model.losses(x).values(), strict=True))
    expected = torch.autograd.grad(weighted, list(model.encoder.parameters()))
    got = flat_gradient(model) / (scale or 1.0)
    torch.testing.assert_close(got, torch.cat([g.flatten() for g in expected]), **CLOSE)
    if scale is None:
        check_heads(model, x)


def test_last_layer_of_micro_batches_and_a_given_layer():
    x, results = inputs(), []
    for parts in (1, 2):
        model = Model()
        balancer = balance.MGDA().use("last_layer", layer=model.encoder[0].weight)
        for number, part in enumerate(x.chunk(parts)):
            found = {name: loss / parts for name, loss in model.losses(part).items()}
            log = balancer.backward(found, model.encoder.parameters(), last=number + 1 == parts)
        results.append([flat_gradients(model), *log.values()])
    for whole, split in zip(*results, strict=True):
        torch.testing.assert_close(split, whole, **CLOSE)
    with pytest.raises(ValueError, match=r"must depend on the layer \[2, 2\]"):
        balance.MGDA().use("last_layer", layer=model.unused.weight).backward(model.losses(x), model.shared())
    with pytest.raises(ValueError, match="two or more dimensions"):
        balance.MGDA().use("last_layer").backward(model.losses(x), [model.encoder[0].bias])


@pytest.mark.parametrize("strategy", ["sequential", "batched", "features", "last_layer"])
def test_reuse_takes_the_weights_of_the_first_of_n_steps(strategy):
    """Also through a state_dict in between, in micro-batches, and with plain gradients for heads."""
    model, balancer, logs = Model(), balance.PCGrad().use(strategy, reuse=3), []
    for number in range(7):
        if number == 4:
            buffer = io.BytesIO()
            torch.save(balancer.state_dict(), buffer)
            buffer.seek(0)
            balancer = balance.PCGrad(seed=9).use(strategy, reuse=3)
            balancer.load_state_dict(torch.load(buffer))
        model.zero_grad()
        x, parts = inputs(seed=number), 2
        for place, part in enumerate(x.chunk(parts)):
            cut = balance.cut(model.encoder(part)) if strategy == "features" else None
            found = {name: loss / parts for name, loss in model.losses(part, cut).items()}
            log = balancer.backward(found, model.encoder.parameters(), features=cut, last=place + 1 == parts)
        assert log.keys() == {"weights", "norms", "cosines"}
        check_heads(model, x)
        if number % 3:
            losses = sum(w * loss for w, loss in zip(log["weights"], model.losses(x).values(), strict=True))
            expected = torch.autograd.grad(losses, list(model.encoder.parameters()))
            torch.testing.assert_close(flat_gradient(model), torch.cat([g.flatten() for g in expected]), **CLOSE)
        logs.append(log["weights"])
    equal = [torch.equal(a, b) for a, b in pairwise(logs)]
    assert equal == [True, True, False, True, True, False]


def test_reuse_keeps_no_weights_of_a_step_that_is_skipped_or_has_no_labels():
    model, balancer = Model(), balance.PCGrad().use(reuse=2)
    first = balancer.backward(model.losses(inputs()), model.encoder.parameters())["weights"]
    balancer.backward(model.losses(inputs()), model.encoder.parameters())
    for factor in (float("nan"), 0.0):
        spoilt = model.losses(inputs(seed=3))
        spoilt["b"] = spoilt["b"] * factor
        log = balancer.backward(spoilt, model.encoder.parameters())
        assert log["weights"].isfinite().all() == (factor == 0.0)
        served = balancer.backward(model.losses(inputs()), model.encoder.parameters())["weights"]
        assert served.isfinite().all()
        assert served[1] == first[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", ["batched", "features", "last_layer", "reuse"])
def test_every_method_works_or_says_why_not(method, strategy):
    balancer, model, x = balance.create_balancer(method), Model(), inputs()
    options = {"reuse": 2} if strategy == "reuse" else {"strategy": strategy}
    if strategy not in (*balancer.strategies, "reuse") or (strategy == "reuse" and not balancer.reusable):
        with pytest.raises(ValueError, match=f"of {type(balancer).__name__}|for {type(balancer).__name__}"):
            balance.create_balancer(method, **options)
        return
    balancer = balance.create_balancer(method, **options)
    for _ in range(2):
        model.zero_grad()
        z = model.encoder(x)
        z = balance.cut(z) if strategy == "features" else z
        found = {name: loss.square() for name, loss in model.losses(x, z).items()}
        extra = {"features": z} if strategy == "features" else {}
        log = balancer.backward(found, model.encoder.parameters(), **extra)
        assert log.keys() == {"weights", "norms", "cosines"}  # the telemetry is there whatever the strategy
        assert all(value.isfinite().all() for value in log.values())
        assert flat_gradient(model).isfinite().all()


def test_errors_about_strategies():
    with pytest.raises(ValueError, match="did you mean 'batched'"):
        balance.PCGrad().use("batchd")
    with pytest.raises(ValueError, match="`reuse` must be an integer number"):
        balance.PCGrad().use(reuse=0)
    with pytest.raises(ValueError, match="`layer` requires"):
        balance.PCGrad().use("batched", layer=torch.ones(2))
    with pytest.raises(ValueError, match="balancer 'linear' runs one backward per step"):
        balance.create_balancer("linear", strategy="batched")
    with pytest.raises(ValueError, match="unknown `strategy`"):
        balance.create_balancer("pcgrad", strategy="none")


@pytest.mark.parametrize("options", [{"strategy": "batched"}, {"strategy": "last_layer"}, {"reuse": 2}], ids=str)
def test_the_fused_step_knows_what_a_strategy_leaves(options):
    """Rows in the arena, or a gradient in `.grad`: the parameters are updated in the same way."""
    results = []
    for fused in (False, True):
        model, balancer = Model(), balance.create_balancer("pcgrad", **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = balance.FusedStep(optimizer)
        for seed in range(3):
            found = model.losses(inputs(seed=seed))
            if fused:
                step(balancer, found, model.encoder.parameters())
            else:
                optimizer.zero_grad()
                balancer.backward(found, model.encoder.parameters())
                optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results, **CLOSE)
