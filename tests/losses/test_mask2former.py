"""`losses.Mask2FormerLoss` and its parts, held to transformers where that is installed."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from helpers.inputs import generator
from helpers.mask2former import CLASSES, POINTS, QUERIES, objects, predictions
from helpers.parity import transformers_mask2former
from torch import Tensor

from fastmtl.losses.mask2former import Mask2FormerLoss, Targets, pad_targets
from fastmtl.ops.matching import uncertain_points


class _FixedRandom:
    """torch, but `rand` gives every row the same points, whatever the number of rows: all draw alike."""

    def __init__(self) -> None:
        self._tables: dict[int, Tensor] = {}

    def rand(self, *shape, dtype=None, device=None, generator=None):
        number = shape[1]
        if number not in self._tables:
            self._tables[number] = torch.rand(number, 2, dtype=torch.float64, generator=_source(number))
        return self._tables[number].to(dtype or torch.get_default_dtype()).expand(*shape).clone()

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def fixed_points(monkeypatch, *modules):
    """Not torch.rand itself: torch.compile would not know it again."""
    with monkeypatch.context() as patch:
        for module in (uncertain_points, *modules):
            patch.setattr(module, "torch", _FixedRandom())
        yield


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def transformers_losses(layers, labels, masks) -> dict[str, Tensor]:
    config = SimpleNamespace(
        num_labels=CLASSES, no_object_weight=0.1, train_num_points=POINTS, oversample_ratio=3.0,
        importance_sample_ratio=0.75, class_weight=2.0, dice_weight=5.0, mask_weight=5.0,
    )  # fmt: skip
    dtype = layers[0][0].dtype
    criterion = transformers_mask2former().Mask2FormerLoss(config, {}).to(dtype)
    rest = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in layers[1:]]
    return criterion(layers[0][1], layers[0][0], [mask.to(dtype) for mask in masks], labels, rest)


@pytest.fixture
def double_by_default():
    """transformers draws its points in the default dtype, and cannot sample float64 maps at float32 points."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _gradients(losses: dict[str, Tensor], layers) -> list[Tensor]:
    total = sum((n + 1) * value for n, value in enumerate(losses.values()))
    return list(torch.autograd.grad(total, [tensor for layer in layers for tensor in layer]))


@pytest.mark.parametrize("counts", [[3, 5], [4, 0], [1, 1, 2], [QUERIES + 3, 2]], ids=str)
def test_equals_transformers_in_float64(counts, monkeypatch, double_by_default):
    """Values and gradients, auxiliary layers included; more targets than queries and images without any."""
    labels, masks = objects(counts)
    layers = [predictions(len(counts), seed=seed) for seed in range(3)]
    loss = Mask2FormerLoss(CLASSES, num_points=POINTS)
    with fixed_points(monkeypatch, transformers_mask2former()):
        expected = transformers_losses(layers, labels, masks)
        found = loss(*layers[0], labels, masks, auxiliary=layers[1:])
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    for a, b in zip(_gradients(found, layers), _gradients(expected, layers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["dicts", "tensors", "bool", "float"])
def test_equals_transformers_in_float32(kind, monkeypatch):
    labels, masks = objects([3, 5])
    layers = [predictions(2, torch.float32, seed) for seed in range(2)]
    targets = pad_targets(labels, [mask.bool() if kind == "bool" else mask for mask in masks])
    targets = targets._replace(masks=targets.masks.float()) if kind == "float" else targets
    rest = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in layers[1:]]
    with fixed_points(monkeypatch, transformers_mask2former()):
        expected = transformers_losses(layers, labels, masks)
        found = Mask2FormerLoss(CLASSES, num_points=POINTS)(
            *layers[0], *targets, auxiliary=rest if kind == "dicts" else layers[1:]
        )
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=2e-5, atol=1e-6)
    for a, b in zip(_gradients(found, layers), _gradients(expected, layers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_masks_of_several_sizes_are_padded_as_in_transformers_losses():
    labels, masks = objects([2, 1])
    masks[1] = masks[1][:, :30, :25]
    padded = pad_targets(labels, masks)
    assert padded.masks.shape == (2, 2, 40, 40)
    assert padded.masks.dtype == torch.uint8
    assert torch.equal(padded.masks[1, 0, :30, :25], masks[1][0])
    assert padded.masks[1].sum() == masks[1].sum()
    assert padded.num_targets.tolist() == [2, 1]


def test_padding_takes_part_in_nothing(monkeypatch):
    """Labels, masks and their number of targets alone count, whatever stands in the padding."""
    labels, masks = objects([3, 1])
    targets = pad_targets(labels, [mask.float() for mask in masks])
    wild = Targets(targets.labels.clone(), targets.masks.clone(), targets.num_targets)
    wild.labels[1, 1:] = -7
    wild.masks[1, 1:] = math.nan
    loss = Mask2FormerLoss(CLASSES, num_points=POINTS)
    layer = predictions(2, torch.float32)
    with fixed_points(monkeypatch):
        clean, dirty = loss(*layer, *targets), loss(*layer, *wild)
    assert clean == dirty
    for a, b in zip(_gradients(clean, [layer]), _gradients(dirty, [layer]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("most", [0, 2])
def test_a_batch_without_any_target(most):
    """Mask losses 0 with gradients of 0; every query learns "no object"."""
    layer = predictions(2, torch.float32)
    targets = (torch.zeros(2, most, dtype=torch.int64), torch.ones(2, most, 20, 20, dtype=torch.uint8))
    losses = Mask2FormerLoss(CLASSES, num_points=POINTS)(*layer, *targets, torch.zeros(2, dtype=torch.int64))
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    of_classes, of_masks = _gradients(losses, [layer])
    assert of_masks.count_nonzero() == 0
    assert (of_classes[..., -1] < 0).all()


def test_half_precision_is_close_to_double(monkeypatch):
    labels, masks = objects([3, 5])
    layer = predictions(2, torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in layer]
    loss = Mask2FormerLoss(CLASSES, num_points=POINTS)
    with fixed_points(monkeypatch):
        found, expected = loss(*layer, labels, masks), loss(*exact, labels, masks)
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(_gradients(found, [layer]), _gradients(expected, [exact]), strict=True):
        assert (a.double() - b).abs().max() < 2**-7 * b.abs().max()  # the gradient itself is bfloat16


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_prediction_ends_the_matching_and_is_not_overlooked(value):
    """transformers' matcher treats such costs as very large ones; the loss then shows what is wrong."""
    labels, masks = objects([3, 2])
    classes, maps = predictions(2, torch.float32)
    loss, layer = Mask2FormerLoss(CLASSES, num_points=POINTS), (classes, maps.detach().clone())
    layer[1][0] = value
    assert not loss(*layer, labels, masks)["loss_mask"].isfinite()
    layer[1][0] = maps.detach()[0]
    layer[1][0, :2] = value  # queries to spare: the broken ones are left out
    assert loss(*layer, labels, masks)["loss_mask"].isfinite()


def test_the_same_generator_gives_the_same_losses():
    labels, masks = objects([3, 5])
    layer, loss = predictions(2, torch.float32), Mask2FormerLoss(CLASSES, num_points=POINTS)
    first, again, other = (loss(*layer, labels, masks, generator=generator(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["loss_mask"] != other["loss_mask"]


@pytest.mark.long
def test_compiles_whole(monkeypatch):
    labels, masks = objects([3, 5])
    targets, layers = pad_targets(labels, masks), [predictions(2, torch.float32, seed) for seed in range(2)]
    loss = Mask2FormerLoss(CLASSES, num_points=POINTS)

    def total(classes, maps, *rest):
        return loss.total(loss(classes, maps, *targets, auxiliary=[rest]))

    torch.manual_seed(0)
    expected = total(*layers[0], *layers[1])
    torch.manual_seed(0)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(*layers[0], *layers[1])
    torch.testing.assert_close(compiled, expected)


def test_the_number_of_masks_is_reduced_before_it_is_raised_to_one(monkeypatch):
    labels, masks = objects([3, 5])
    layer, seen = predictions(2, torch.float32), []

    def halve(number: Tensor) -> Tensor:
        seen.append(number)
        return number / 2

    plain, halved, tiny = (
        Mask2FormerLoss(CLASSES, num_points=POINTS, reduce_num_masks=reduce)
        for reduce in (None, halve, lambda number: number * 0)
    )
    with fixed_points(monkeypatch):
        values = [loss(*layer, labels, masks)["loss_dice"] for loss in (plain, halved, tiny)]
    assert seen == [torch.tensor(8.0)]
    torch.testing.assert_close(torch.stack(values[1:]), torch.stack([2 * values[0], 8 * values[0]]))


def test_total_weights_every_layer():
    loss = Mask2FormerLoss(CLASSES, class_weight=1.0, mask_weight=10.0, dice_weight=100.0)
    names = ("loss_mask", "loss_dice", "loss_cross_entropy", "loss_mask_0", "loss_dice_0", "loss_cross_entropy_0")
    assert loss.total({name: torch.tensor(1.0) for name in names}) == 222
