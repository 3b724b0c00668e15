"""Cross-entropy and softmax focal loss of samples that are one row of many classes: what their forward keeps, and the
backward that reads the row once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.op_backends import needs_cpp
from torch import Tensor

from fastmtl import ops
from fastmtl.ops.losses import dice_ce_backends, focal_softmax_backends

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    needs_cpp,
]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": ops.cross_entropy,
    "focal": partial(ops.focal_loss, activation="softmax", alpha=None),
}


def _rows(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(shape, generator=generator)).to(dtype)
    return x, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("shape", "numbers"), [((6, 64), 18), ((6, 80, 1), 18), ((1, 700), 3), ((6, 63), 6), ((6, 80, 2), 6)], ids=str
)
def test_backward_keeps_three_numbers_a_row(name, shape, numbers):
    x, t = _rows(shape)
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = LOSSES[name](x, t)
    addresses = {x.data_ptr(), t.data_ptr()}
    extra = [tensor.numel() for tensor in saved if tensor is not None and tensor.data_ptr() not in addresses]
    assert extra == [numbers]
    loss.backward()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 67), (130, 80), (3, 1030), (2, 5000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_references(name, shape, dtype):
    x, t = _rows(shape, dtype)
    weight, has_label = torch.rand(shape[1]), torch.arange(shape[0]) % 4 != 1
    x[~has_label] = float("nan")
    for options in ({}, {"weight": weight}, {"reduction": "sum"}, {"reduction": "none"}):
        doubled = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
        expected = loss_and_gradient(lambda x, o=doubled: LOSSES[name](x, t, mask=has_label, **o).sum(), x.double())
        found = loss_and_gradient(lambda x, o=options: LOSSES[name](x, t, mask=has_label, **o).sum(), x)
        tolerance = {"rtol": 2e-6, "atol": 2e-7} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-5}
        torch.testing.assert_close(found[0].double(), expected[0], rtol=5e-6, atol=1e-6)
        torch.testing.assert_close(found[1].double(), expected[1].double(), **tolerance)
        assert (found[1][~has_label] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_sure_networks_gradients_lose_no_digit(name):
    """Far from 0 a stored log-sum would be off by its last digit."""
    x, t = _rows((40, 80))
    x = x + 1000
    x[torch.arange(40), t] += torch.linspace(0, 25, 40)
    for layout in (x, x.t().contiguous().t()):
        expected = loss_and_gradient(partial(LOSSES[name], target=t), layout.double())[1]
        found = loss_and_gradient(partial(LOSSES[name], target=t), layout)[1]
        torch.testing.assert_close(found.double(), expected, rtol=5e-6, atol=0)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype):
    x, t = _rows((3, 70, 1), dtype)
    x.requires_grad_()
    mask = torch.tensor([True, False, True]).view(3, 1, 1)
    entropy = (1.0, 0.0, -100, 0.1, True, False, False, False, 0.0, 0.0, "one", "none", False, "auto")
    for name, tensors, options in (
        ("dice_ce", (x, t.unsqueeze(1), torch.rand(70), mask), dice_ce_backends.Options(*entropy)),
        (
            "softmax_focal",
            (x, t.unsqueeze(1), torch.rand(70), mask),
            focal_softmax_backends.Options(2.0, -100, "none", "auto"),
        ),
    ):
        op, back = (getattr(torch.ops.fastmtl, n).default for n in (name, f"{name}_backward"))
        torch.library.opcheck(op, (*tensors, *options))
        loss, coefficients, *_ = op(*tensors, *options)
        grad = torch.rand_like(loss).detach().requires_grad_()
        torch.library.opcheck(back, (grad, *tensors, coefficients.detach(), *options))


def test_backends_keep_the_same_numbers():
    x, t = _rows((5, 70, 1))
    t[2] = -100
    for op, options in (
        (torch.ops.fastmtl.softmax_focal, (2.0, -100, "mean")),
        (torch.ops.fastmtl.dice_ce, (1.0, 0.0, -100, 0.0, True, False, False, False, 0.0, 0.0, "one", "mean", False)),
    ):
        found, expected = (op(x, t.unsqueeze(1), None, None, *options, name)[1] for name in ("cpp", "reference"))
        assert found.shape[0] == 3
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
