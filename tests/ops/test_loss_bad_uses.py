"""Regression tests of past bugs: copies that must outlive a kernel, views of coefficients, shared memory, odd
options."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from helpers.inputs import segmentation
from torch import Tensor

from fastmtl import ops
from fastmtl.ops.core.buffer_cache import WORTHWHILE, Recycled


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
    made.share_memory_()  # as torch.multiprocessing does with tensors in a queue
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
    ("name", "value"), [("alpha", "a"), ("alpha", [0.5]), ("ignore_index", "1"), ("ignore_index", 1.0)]
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


@pytest.mark.parametrize("name", ["reduction", "empty", "backend"])
@pytest.mark.parametrize("value", [np.array(["mean", "sum"]), torch.ones(2), ["mean"], None], ids=repr)
def test_what_is_no_name_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be one of"):
        ops.dice_bce_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), **{name: value})  # type: ignore[call-overload]


def test_batch_of_a_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="`batch` must be True or False"):
        ops.dice_ce_loss(torch.zeros(1, 3, 2), torch.zeros(1, 2).long(), batch=torch.ones(2))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(2, 3, 4).to_sparse(),
        torch.zeros(2, 3, 4).to_mkldnn(),
        torch.nested.nested_tensor([torch.zeros(3)], layout=torch.jagged),
    ],
    ids=["sparse", "mkldnn", "nested"],
)
def test_tensors_that_are_not_dense_are_named(odd: Tensor) -> None:
    with pytest.raises(ValueError, match="`input` must be a dense Tensor; got"):
        ops.dice_bce_loss(odd, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("ignored", [-1, -100, 255])
def test_overlap_sums_of_a_sigmoid_ignore_no_class(ignored: int) -> None:
    with pytest.raises(ValueError, match=f"`ignore_index` names a class.*mask=target != {ignored}"):
        ops.overlap_sums(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), ignore_index=ignored)


@pytest.mark.parametrize("temperature", [1e-300, 1e-31, 1e31, 1e300])
def test_a_temperature_beyond_float32_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"`temperature` must lie in 1e-30 to 1e\+30"):
        ops.nt_xent_loss(torch.eye(2), torch.eye(2), temperature=temperature)


@pytest.mark.parametrize("beta", [1e31, 1e300])
def test_a_beta_beyond_float32_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"`beta` must lie in 0 to 1e\+30"):
        ops.smooth_l1_loss(torch.zeros(2), torch.ones(2), beta=beta)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_class_156_of_a_byte_map_is_not_minus_100(backend: str) -> None:
    """torch compares uint8 with -100 as if it were 156."""
    torch.manual_seed(0)
    input, target = torch.randn(1, 160, 4), torch.full((1, 4), 156, dtype=torch.uint8)
    expected = ops.focal_loss(input.double(), target.long(), activation="softmax")
    loss = ops.focal_loss(input, target, activation="softmax", backend=backend)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert _gradient(
        lambda x, t: ops.focal_loss(x, t, activation="softmax", backend=backend), input, target
    ).count_nonzero()
    with pytest.raises(ValueError, match="they must lie in 0 to 2"):
        ops.focal_loss(input[:, :3], target, activation="softmax", backend=backend)


def test_a_number_beyond_bytes_ignores_nothing_in_a_byte_map() -> None:
    target = torch.tensor([[[0, 1], [2, 0]]], dtype=torch.uint8)
    losses = [
        ops.deep_supervision_loss(
            [torch.zeros(1, 3, 1, 1)], target, activation="softmax", downsample="max", ignore_index=ignored
        )
        for ignored in (None, 256 + 2)
    ]
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("ignored", [None, 3, -100])
def test_none_ignores_no_class(ignored: int | None) -> None:
    input, target = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), torch.arange(10).view(2, 5) % 3
    for loss in (ops.dice_ce_loss, ops.cross_entropy, partial(ops.focal_loss, activation="softmax")):
        assert torch.equal(loss(input, target, ignore_index=ignored), loss(input, target))


def test_all_class_losses_take_the_same_targets_and_masks() -> None:
    input, target = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, 4, 5).bool()
    row = torch.tensor([True, False, True, True, False]).view(1, 1, 1, 5)
    for loss in (
        ops.dice_ce_loss,
        ops.cross_entropy,
        partial(ops.focal_loss, activation="softmax"),
        partial(ops.tversky_loss, activation="softmax"),
    ):
        expected = loss(input, target.long(), mask=row.expand_as(target))
        for given in (target, target[:, 0], target.byte()):
            assert torch.equal(loss(input, given, mask=row), expected)
            assert torch.equal(loss(input, given, mask=row[0]), expected)


@pytest.mark.long
def test_weights_of_channels_compile_with_symbolic_sizes() -> None:
    input, target = segmentation((2, 3, 8, 6))

    def loss(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return ops.dice_bce_loss(input, target, pos_weight=weight, weight=weight)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    weight = torch.tensor([1.0, 2.0, 0.5])
    for width in (6, 5):
        arguments = input[..., :width].contiguous(), target[..., :width].contiguous(), weight
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))
