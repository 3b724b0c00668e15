"""The gradient arena: what a loop may do to its parameters, and what `.grad` must contain afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers.gradients import textbook_pcgrad
from helpers.loop import Model, expected_gradients, first_order, flat_gradient, inputs, loss_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastmtl import balance


def test_existing_gradients_are_added_to():
    model, x = Model(), inputs()
    balance.PCGrad().backward(model.losses(x), model.encoder.parameters())
    once = flat_gradient(model).clone()
    kept = [p.grad for p in model.encoder.parameters()]
    balance.PCGrad().backward(model.losses(x), model.encoder.parameters())
    torch.testing.assert_close(flat_gradient(model), 2 * once)
    assert all(p.grad is grad for p, grad in zip(model.encoder.parameters(), kept, strict=True))


def test_new_gradients_are_views_of_one_buffer_that_changes_under_nobodys_hands():
    model, x, balancer = Model(), inputs(), balance.PCGrad()
    balancer.backward(model.losses(x), model.encoder.parameters())
    assert len({p.grad.untyped_storage().data_ptr() for p in model.encoder.parameters()}) == 1
    kept = next(model.encoder.parameters()).grad
    before = kept.clone()
    model.zero_grad()
    balancer.backward(model.losses(2 * x), model.encoder.parameters())
    assert torch.equal(kept, before)


def test_frozen_unused_and_tied_parameters():
    model, x = Model(), inputs()
    frozen = model.encoder[0].bias
    frozen.requires_grad_(False)
    balancer = balance.PCGrad()
    order = first_order(balancer)
    balancer.backward(model.losses(x), [*model.shared(), *model.encoder.parameters()])  # all encoder parameters twice
    assert frozen.grad is None
    assert all(p.grad is None for p in model.unused.parameters())  # AdamW must not decay them
    got = {name: p.grad.clone() for name, p in model.encoder.named_parameters() if p.grad is not None}
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoder, retain_graph=True)])
        for loss in model.losses(x).values()
    ]
    expected = textbook_pcgrad(torch.stack(rows), order)
    torch.testing.assert_close(torch.cat([g.flatten() for g in got.values()]), expected, rtol=1e-13, atol=1e-15)


def test_a_task_reaching_a_part_has_zeros_elsewhere():
    """Also after a step in which it reached everything."""
    first, second = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    balancer = balance.PCGrad()
    shared = [first, second]
    balancer.backward({"a": (first * second).sum(), "b": (first - second).sum()}, shared)
    first.grad = second.grad = None
    log = balancer.backward({"a": 2 * first.sum(), "b": second.sum()}, shared)
    assert first.grad.tolist() == [2.0] * 3
    assert second.grad.tolist() == [1.0] * 3
    assert log["cosines"][0, 1] == 0


def test_freezing_and_unfreezing_between_steps():
    model, x, balancer = Model(), inputs(), balance.PCGrad()
    for trainable in (True, False, True):
        for parameter in model.encoder[0].parameters():
            parameter.requires_grad_(trainable)
        model.zero_grad()
        order = first_order(balancer)
        balancer.backward(model.losses(x), model.encoder.parameters())
        assert (model.encoder[0].weight.grad is not None) == trainable
        if trainable:
            got = flat_gradient(model)
            torch.testing.assert_close(got, expected_gradients(model, x, order)[0], rtol=1e-12, atol=1e-15)


def test_micro_batches_equal_one_batch():
    model, x = Model(), inputs(n=8)
    balance.PCGrad().backward(model.losses(x), model.encoder.parameters())
    whole = flat_gradient(model).clone()
    heads = [p.grad.clone() for p in model.heads.parameters()]
    model.zero_grad()
    balancer = balance.PCGrad()
    halves = x.chunk(2)
    half = {name: loss / 2 for name, loss in model.losses(halves[0]).items()}
    assert balancer.backward(half, model.encoder.parameters(), last=False) == {}
    assert all(p.grad is None for p in model.encoder.parameters())
    half = {name: loss / 2 for name, loss in model.losses(halves[1]).items()}
    balancer.backward(half, model.encoder.parameters(), last=True)
    torch.testing.assert_close(flat_gradient(model), whole, rtol=1e-12, atol=1e-15)
    for parameter, gradient in zip(model.heads.parameters(), heads, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)


def test_parameters_may_not_change_between_micro_batches():
    model, x, balancer = Model(), inputs(), balance.PCGrad()
    balancer.backward(model.losses(x), model.encoder.parameters(), last=False)
    with pytest.raises(ValueError, match="micro-batch"):
        balancer.backward(model.losses(x), model.encoder[2].parameters())


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("broken")


def test_an_exception_leaves_the_old_gradients():
    model, x, balancer = Model(), inputs(), balance.PCGrad()
    old = [torch.ones_like(p) for p in model.encoder.parameters()]
    for parameter, grad in zip(model.encoder.parameters(), old, strict=True):
        parameter.grad = grad
    losses = model.losses(x)
    losses["b"] = Broken.apply(losses["b"])
    with pytest.raises(RuntimeError, match="broken"):
        balancer.backward(losses, model.encoder.parameters())
    assert all(p.grad is grad for p, grad in zip(model.encoder.parameters(), old, strict=True))
    assert all((grad == 1).all() for grad in old)
    model.zero_grad()
    expected, _ = expected_gradients(model, x, first_order(balancer))
    balancer.backward(model.losses(x), model.encoder.parameters())  # nothing of the broken step is left in the rows
    torch.testing.assert_close(flat_gradient(model), expected, rtol=1e-13, atol=1e-15)


def test_the_arena_is_freed_with_its_balancer():
    model, balancer = Model(), balance.PCGrad()
    balancer.backward(model.losses(inputs()), model.encoder.parameters())
    rows = weakref.ref(balancer.arena.rows)
    gc.collect()
    gc.disable()
    try:
        del balancer
        assert rows() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    model, x, balancer = Model(), inputs().requires_grad_(), balance.PCGrad()
    expected, _ = expected_gradients(model, x, first_order(balancer))
    features = checkpoint(model.encoder, x, use_reentrant=use_reentrant)
    balancer.backward(model.losses(x, features), model.encoder.parameters())
    torch.testing.assert_close(flat_gradient(model), expected, rtol=1e-12, atol=1e-15)


def test_autocast():
    model, x, balancer = Model(torch.float32), inputs(torch.float32), balance.PCGrad()
    expected, _ = expected_gradients(model.double(), x.double(), first_order(balancer))
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(x)
    balancer.backward(losses, model.encoder.parameters())
    got = flat_gradient(model)
    assert got.dtype == torch.float32
    assert (got - expected).norm() < 0.05 * expected.norm()


def test_half_precision_parameters_get_gradients_of_their_dtype():
    model, x = Model(torch.bfloat16), inputs(torch.bfloat16)
    balancer = balance.PCGrad()
    balancer.backward(model.losses(x), model.encoder.parameters())
    assert balancer.arena.rows.dtype == torch.float32
    assert all(p.grad.dtype == torch.bfloat16 for p in model.encoder.parameters())


@pytest.mark.long
def test_compiled_model():
    model, x, balancer = Model(), inputs(), balance.PCGrad()
    expected, _ = expected_gradients(model, x, first_order(balancer))
    compiled = torch.compile(model.encoder, fullgraph=True, backend="aot_eager")
    balancer.backward(model.losses(x, compiled(x)), model.encoder.parameters())
    torch.testing.assert_close(flat_gradient(model), expected, rtol=1e-12, atol=1e-15)


def test_gradients_keep_the_parameters_memory_format():
    convolution = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    images = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    z = convolution(images)
    balance.PCGrad().backward({"a": z.mean(), "b": 2 * z.mean()}, convolution.parameters())
    assert convolution.weight.grad.stride() == convolution.weight.stride()
    expected = torch.autograd.grad(3 * convolution(images).mean(), convolution.weight)
    torch.testing.assert_close(convolution.weight.grad, expected[0])


def test_sparse_gradients():
    embedding = nn.Embedding(10, 3, sparse=True)
    z = embedding(torch.tensor([1, 4, 4]))
    balance.PCGrad().backward({"a": z.sum(), "b": z.sum()}, embedding.parameters())
    assert embedding.weight.grad[[1, 4]].tolist() == [[2.0] * 3, [4.0] * 3]


def test_a_loss_that_reaches_nothing_shared():
    w, head = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    w.grad = old = torch.ones(3)
    with pytest.raises(ValueError, match=r"`losses\['cls'\]` must reach at least one parameter in `shared`"):
        balance.PCGrad().backward({"seg": w.sum(), "cls": head.sum()}, [w])
    assert w.grad is old
    assert old.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("shared", "error", "message"),
    [
        (lambda w: [], ValueError, "got none"),
        (lambda w: [w.detach()], ValueError, "got 1 frozen"),
        (lambda w: [w * 2], ValueError, "leaf"),
        (lambda w: w, TypeError, "iterable of parameters"),
        (lambda w: ["w"], TypeError, "got str"),
        (lambda w: [w, nn.Parameter(torch.ones(2, device="meta"))], ValueError, "one device"),
        (lambda w: [nn.Parameter(torch.ones(2, dtype=torch.complex64))], ValueError, "floating point"),
    ],
)
def test_errors_about_shared(shared, error, message):
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(error, match=message):
        balance.PCGrad().backward(loss_of(w), shared(w))
