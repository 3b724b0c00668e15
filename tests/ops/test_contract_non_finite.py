"""The contract of every op for numbers that are not finite: what does not count has no effect, on any backend."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.op_backends import BACKENDS, device_of, dirty_memory
from helpers.op_contract import cases, over, run, to
from helpers.op_inputs import Call

from fastmtl import ops

pytestmark = dirty_memory
INFINITY, NAN = float("inf"), float("nan")
SHAPES = ((2, 3, 6, 5), (2, 3, 9, 8))  # few pixels, which have a path of their own on a CPU, and more
WEIGHTS = {  # the options that weight channels or classes, by op
    "dice_bce_loss": ("weight", "pos_weight"),
    "bce_with_logits": ("weight", "pos_weight"),
    "overlap_sums": ("pos_weight",),
    "tversky_loss": ("weight",),
    "focal_loss": ("weight", "alpha"),
    "focal_loss softmax": ("weight", "alpha"),
    "deep_supervision_loss": ("pos_weight",),
}


@over(lambda spec: spec.name in WEIGHTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by", ["pixel", "plane"])
def test_an_infinite_weight_of_masked_elements_changes_nothing(spec, backend, by):
    for shape in (spec.small,) if spec.stem == "deep_supervision" else SHAPES:
        call = to(spec.make(shape, torch.float32, 0), device_of(backend))
        target = call.rest["target"]
        if spec.of_classes:
            mask = target != 1
        else:
            mask = torch.ones_like(target, dtype=torch.bool)
            mask[:, 1] = False
            mask = mask if by == "pixel" else mask[:, :, 0, 0]
        for name in WEIGHTS[spec.name]:
            usual = torch.linspace(0.5, 1.5, 3 if spec.of_classes else target.shape[1], device=device_of(backend))
            results = []
            for value in (1.0, INFINITY):
                weight = usual.clone()
                weight[1] = value
                weight = weight.view(-1, 1, 1) if (spec.stem, name) == ("bce", "weight") else weight
                results.append(run(spec, call, mask=mask, backend=backend, **{name: weight}))
            assert all(part.isfinite().all() for part in results[0])
            assert_bit_equal(results)


@over(lambda spec: spec.by_channel and spec.name == "dice_bce_loss")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_nan_in_a_segment_without_a_dice_term_stays_where_it_is(spec, backend, shape):
    """With empty="skip", a segment whose target is empty has none."""
    call = to(spec.make(shape, torch.float32, 0), device_of(backend))
    x, target = call.inputs[0].clone(), call.rest["target"].clone()
    target[0, 1], x[0, 1, 2, 3] = 0, NAN
    for options in cases(spec, call):
        options = {key: value for key, value in options.items() if key not in ("mask", "batch")} | {"empty": "skip"}
        loss, gradient = run(spec, Call((x,), {"target": target}), **to(options, device_of(backend)), backend=backend)
        assert loss.isnan().any()
        assert gradient.isfinite().logical_not().nonzero().tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 9, 8), (3, 40, 9, 8), (6, 70, 1, 1)], ids=str)
def test_nan_is_neither_positive_nor_the_largest_in_counts(backend, shape):
    source = torch.Generator().manual_seed(0)
    x, values = torch.randn(shape, generator=source), torch.tensor([NAN, INFINITY, -INFINITY])
    places = torch.rand(shape, generator=source) < 0.1
    x[places] = values[torch.randint(0, 3, shape, generator=source)][places]
    for number, value in enumerate((NAN, INFINITY, -INFINITY)):
        x[0 if shape[2] > 1 else number, :, 0, number if shape[3] > 1 else 0] = value
    x[-1, 0, -1, -1] = NAN
    classes = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=source, dtype=torch.uint8)
    channels = torch.arange(shape[1]).view(-1, 1, 1)
    target = classes.unsqueeze(1) == channels
    chosen = x.nan_to_num(-INFINITY, INFINITY, -INFINITY).argmax(1, keepdim=True) == channels
    for op, given, predicted in (
        (ops.dice_bce_loss, target.to(torch.uint8), x > 0),
        (ops.dice_ce_loss, classes, chosen),
    ):
        counts = op(x.to(device_of(backend)), given.to(device_of(backend)), return_counts=True, backend=backend)[1]
        expected = predicted & target, predicted & ~target, ~predicted & target
        for found, exact in zip(counts, expected, strict=False):
            assert found.tolist() == exact.sum((2, 3)).tolist()
        odd = ~x.isfinite()
        odd = odd.sum((1, 2, 3)) if op is ops.dice_bce_loss else odd.any(1).sum((1, 2))
        assert counts.non_finite.tolist() == odd.tolist()
