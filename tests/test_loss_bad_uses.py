"""Uses that once went wrong: copies that must outlive a kernel, views of coefficients, shared memory, odd options."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.ops._recycled import WORTHWHILE, Recycled


def _gradient(loss: Callable[..., Tensor], input: Tensor, target: Tensor) -> Tensor:
    leaf = input.clone().requires_grad_()
    loss(leaf, target).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(
    "loss",
    [
        ops.dice_ce_loss,
        ops.cross_entropy,
        lambda input, target: ops.tversky_loss(input, target, activation="softmax"),
        lambda input, target: ops.focal_loss(input, target, activation="softmax"),
    ],
)
def test_a_copied_target_lives_as_long_as_the_backward(loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    input, target = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    transposed = target.transpose(1, 2)  # no single pixel stride: the op makes a copy
    expected = _gradient(loss, input, transposed.contiguous())
    for _ in range(5):  # a freed copy is often, not always, overwritten by the gradient
        assert torch.equal(_gradient(loss, input, transposed), expected)


def test_jacobian_of_one_sample() -> None:
    torch.manual_seed(0)
    input, target = torch.randn(1, 3, 5), torch.rand(1, 3, 5)

    def loss(input: Tensor) -> Tensor:
        return ops.dice_bce_loss(input, target, reduction="none")

    jacobian = torch.func.jacrev(loss)
    torch.testing.assert_close(jacobian(input).double(), jacobian(input.double()), rtol=1e-5, atol=1e-7)


def test_shared_memory_is_not_handed_out_again() -> None:
    recycled, size = Recycled(), torch.Size((WORTHWHILE // 4,))
    made = recycled.empty_strided(size, (1,), torch.float32, torch.device("cpu"))
    made.share_memory_()  # as torch.multiprocessing does with what goes through a queue
    address = made.data_ptr()
    del made
    assert recycled.empty_strided(size, (1,), torch.float32, torch.device("cpu")).data_ptr() != address


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_sum_of_an_infinite_cross_entropy_is_infinite(backend: str) -> None:
    input, target = torch.tensor([[math.inf, 1.0]]), torch.tensor([[0.0, 1.0]])
    assert ops.bce_with_logits(input, target, reduction="sum", backend=backend) == math.inf


@pytest.mark.parametrize("value", ["3", [1.0], True, math.nan, 1e300, torch.ones(3) * 1j])
@pytest.mark.parametrize("name", ["pos_weight", "weight"])
def test_odd_channel_weights_are_named(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        ops.dice_bce_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), **{name: value})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", "a"), ("alpha", [0.5]), ("ignore_index", None), ("ignore_index", 1.0)]
)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_odd_focal_options_are_named(name: str, value: object, activation: str) -> None:
    target = torch.zeros(1, 3, 2) if activation == "sigmoid" else torch.zeros(1, 2, dtype=torch.long)
    options: dict[str, object] = {"activation": activation, name: value}
    with pytest.raises(TypeError, match=f"`{name}`"):
        ops.focal_loss(torch.zeros(1, 3, 2), target, **options)  # type: ignore[arg-type]


def test_odd_squared_pred_is_named() -> None:
    with pytest.raises(TypeError, match="`squared_pred`"):
        ops.overlap_sums(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), squared_pred=2)  # type: ignore[arg-type]
