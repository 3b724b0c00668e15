"""`ops.dice_ce_loss` at the edges: confident, infinite and NaN logits, pixels and classes that count for nothing."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.classes import class_map, pixel_mask
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory

from fastmtl import ops

pytestmark = dirty_memory


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, backend="reference", **doubled), x.double())


@pytest.mark.parametrize("backend", KERNELS)
def test_confident_logits_keep_their_small_losses_and_gradients(backend):
    """1 - p_y and log p_y from p_y rounded in float32 would both be 0 here."""
    x, t = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2, 0]])
    x.scatter_add_(1, t.unsqueeze(1), torch.tensor([[[16.0, 18.0, 20.0, 22.0]]]))
    for options in ({"dice_weight": 0.0}, {"ce_weight": 0.0, "dice_weight": 1.0, "smooth_nr": 1.0, "smooth_dr": 1.0}):
        _, gradient = loss_and_gradient(lambda x, o=options: ops.dice_ce_loss(x, t, backend=backend, **o), x)
        _, true_gradient = truth(x, t, **options)
        torch.testing.assert_close(gradient.double(), true_gradient, rtol=2e-5, atol=1e-37)
    value, _ = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, dice_weight=0.0, backend=backend), x)
    torch.testing.assert_close(value.double(), truth(x, t, dice_weight=0.0)[0], rtol=1e-5, atol=0)
    wrong = ops.dice_ce_loss(x, (t + 1) % 3, dice_weight=0.0, ce_weight=1.0, backend=backend)
    assert wrong.item() == pytest.approx((16 + 18 + 20 + 22) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_logits(backend):
    x, t = class_map((1, 3, 2, 8))
    excluded = x.clone()
    excluded[:, 2] = -float("inf")
    value, gradient = loss_and_gradient(
        lambda x: ops.dice_ce_loss(x, t.clamp(max=1), include_background=False, backend=backend), excluded
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, 2] == 0).all()
    assert ops.dice_ce_loss(excluded, torch.full_like(t, 2), backend=backend).item() == float("inf")
    x[0, 1, 0, 0] = float("inf")
    assert ops.dice_ce_loss(x, t, backend=backend).isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_sample(backend):
    x, t = class_map((3, 3, 6, 6))
    x[1, 0, 2, 2] = float("nan")
    value, gradient = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, reduction="none", backend=backend), x)
    assert value.isnan().tolist() == [False, True, False]
    assert gradient.isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["sample", "pixel", "ignored"])
def test_invalid_pixels_take_part_in_nothing(backend, kind):
    shape = (3, 4, 9, 8)
    x, t = class_map(shape)
    valid = pixel_mask("sample" if kind == "sample" else "pixel", shape, seed=3)
    full = valid.view(3, *(1, 1) if kind == "sample" else (9, 8)).expand(3, 9, 8)
    dirty_x = torch.where(full.unsqueeze(1), x, float("nan"))
    dirty_t = torch.where(full, t, torch.tensor(250, dtype=torch.uint8))
    options = {"ignore_index": 250} if kind == "ignored" else {"mask": valid}
    for reduction in ("mean", "sum", "none"):
        settings = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
        clean = loss_and_gradient(lambda x, s=settings: ops.dice_ce_loss(x, t, mask=valid, **s), x)
        dirty = loss_and_gradient(lambda x, s=settings: ops.dice_ce_loss(x, dirty_t, **options, **s), dirty_x)
        assert_bit_equal([clean, dirty])
        assert (clean[1][~full.unsqueeze(1).expand(shape)] == 0).all()
        assert clean[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("how", ["mask", "ignore_index"])
def test_nothing_valid_is_zero(backend, reduction, how):
    x, t = torch.full((2, 3, 5, 5), float("nan")), torch.full((2, 5, 5), -100)
    options = {"mask": torch.zeros(2, dtype=torch.bool)} if how == "mask" else {}
    value, gradient = loss_and_gradient(
        lambda x: ops.dice_ce_loss(x, t, reduction=reduction, smooth_dr=0.0, backend=backend, **options), x
    )
    assert (value == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_policies(backend):
    x, t = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    x[:, 2] = -float("inf")  # class 2 is nowhere, in the target nor the prediction; class 1 in the prediction alone

    def dice(**options):
        return ops.dice_ce_loss(x, t, ce_weight=0.0, dice_weight=3.0, backend=backend, **options).item()

    first, second = 1 - (16 + 1e-5) / (24 + 1e-5), 1 - 1e-5 / (8 + 1e-5)
    assert dice(empty="one") == pytest.approx(first + second)
    assert dice(empty="zero") == pytest.approx(first + second + 1)
    assert dice(empty="skip") == pytest.approx(3 * first)
    assert dice(empty="skip", include_background=False) == 0.0
