"""Losses fused with the linear layer before them: the values and gradients of the layer and the loss of its logits."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.ops.losses import linear_blocks, linear_dice_ce

SOFTMAX = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, weights, ignored": {"label_smoothing": 0.2, "class_weight": torch.rand(7) + 0.5, "ignore_index": 2},
    "batch, squared": {"batch": True, "squared_pred": True},
    "jaccard, of samples": {"jaccard": True, "reduction": "none"},
    "sum, no background": {"reduction": "sum", "include_background": False},
    "ignored, empty skipped": {"ignore_index": 3, "empty": "skip"},
    "cross-entropy alone": {"dice_weight": 0.0, "ce_weight": 2.0},
    "empty is zero": {"empty": "zero", "smooth_nr": 0.0},
}
SIGMOID = {
    "plain": {},
    "weights": {"pos_weight": torch.rand(7) + 0.5, "channel_weight": torch.rand(7)},
    "batch, squared": {"batch": True, "squared_pred": True},
    "batch, of channels": {"batch": True, "reduction": "none"},
    "jaccard, of segments": {"jaccard": True, "reduction": "none"},
    "sum, empty skipped": {"reduction": "sum", "empty": "skip"},
}
OTHER_NAMES = {"class_weight": "weight", "channel_weight": "weight"}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(linear_blocks, "_BLOCK_BYTES", 1)  # of 256 pixels: several, the last one smaller


def _layer(spatial=(20, 31), channels=7, features=5, dtype=torch.float32, batch=2):
    x = torch.randn(batch, features, *spatial, dtype=dtype)
    weight = torch.randn(channels, features, *(1 for _ in spatial), dtype=dtype)
    return [one.requires_grad_() for one in (x, weight, torch.randn(channels, dtype=dtype))]


def _logits(x, weight, bias):
    return F.conv1d(x.flatten(2), weight.flatten(1).unsqueeze(2), bias).unflatten(2, x.shape[2:])


def _of_logits(loss, layer, target, settings):
    settings = {OTHER_NAMES.get(name, name): value for name, value in settings.items()}
    return loss(_logits(*layer), target, backend="reference", **settings)


def _same(fused, stored, layer, **tolerance):
    torch.testing.assert_close(fused, stored, **tolerance)
    upstream = torch.rand_like(stored)
    given = [one for one in layer if one is not None]
    gradients = [torch.autograd.grad(loss, given, upstream) for loss in (fused, stored)]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, **(tolerance or {"rtol": 1e-4, "atol": 1e-6}))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", SOFTMAX)
def test_softmax_equals_the_loss_of_the_logits(case, backend):
    layer, settings = _layer(), SOFTMAX[case] | {"mask": torch.rand(2, 20, 31) > 0.2}
    target = torch.randint(0, 6, (2, 20, 31), dtype=torch.uint8)  # the last class is empty
    fused = ops.linear_dice_ce_loss(*layer, target, fuse=True, backend=backend, **settings)
    _same(fused, _of_logits(ops.dice_ce_loss, layer, target, settings), layer)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", SIGMOID)
@pytest.mark.parametrize("mask", [(2, 1, 20, 31), (2, 7, 1, 1), (1, 1, 20, 31), (2,)])
def test_sigmoid_equals_the_loss_of_the_logits(case, backend, mask):
    layer, settings = _layer(), SIGMOID[case] | {"mask": torch.rand(mask) > 0.2}
    target = torch.randint(0, 2, (2, 7, 20, 31), dtype=torch.uint8)
    target[0, 3] = 0
    fused = ops.linear_dice_bce_loss(*layer, target, fuse=True, backend=backend, **settings)
    _same(fused, _of_logits(ops.dice_bce_loss, layer, target, settings), layer)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probabilities_as_target(smoothing):
    layer, target = _layer(), torch.rand(2, 7, 20, 31).softmax(1)
    settings = {"label_smoothing": smoothing, "mask": torch.tensor([True, False])}
    fused = ops.linear_dice_ce_loss(*layer, target, fuse=True, **settings)
    _same(fused, _of_logits(ops.dice_ce_loss, layer, target, settings), layer)


@pytest.mark.parametrize("spatial", [(700,), (20, 31), (7, 9, 11), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_dims(spatial, bias):
    layer = _layer(spatial)
    layer = layer if bias else [*layer[:2], None]
    target = torch.randint(0, 7, (2, *spatial))
    _same(ops.linear_dice_ce_loss(*layer, target, fuse=True), _of_logits(ops.dice_ce_loss, layer, target, {}), layer)
    target = (torch.rand(2, 7, *spatial) > 0.5).float()
    _same(ops.linear_dice_bce_loss(*layer, target, fuse=True), _of_logits(ops.dice_bce_loss, layer, target, {}), layer)


@pytest.mark.parametrize("layout", ["channels_last", "channels_last_3d", "crop", "expanded"])
def test_layouts_of_features(layout):
    x, weight, bias = _layer((8, 9, 10) if layout == "channels_last_3d" else (20, 31))
    given = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "channels_last_3d": lambda: x.to(memory_format=torch.channels_last_3d),
        "crop": lambda: F.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2],
        "expanded": lambda: x[:1].expand(2, -1, -1, -1),
    }[layout]()
    target = torch.randint(0, 7, (2, *x.shape[2:]))
    _same(
        ops.linear_dice_ce_loss(given, weight, bias, target, fuse=True),
        _of_logits(ops.dice_ce_loss, (given, weight, bias), target, {}),
        (x, weight, bias),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype):
    layer = _layer(dtype=dtype)
    target = torch.randint(0, 7, (2, 20, 31))
    fused = ops.linear_dice_ce_loss(*layer, target, fuse=True)
    exact = [one.detach().float().requires_grad_() for one in layer]
    stored = _of_logits(ops.dice_ce_loss, exact, target, {})
    torch.testing.assert_close(fused, stored)
    ours, theirs = torch.autograd.grad(fused, layer), torch.autograd.grad(stored, exact)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_float64_agrees_with_finite_differences():
    layer = _layer((4, 5), channels=3, features=2, dtype=torch.float64, batch=1)
    target = torch.randint(0, 3, (1, 4, 5))
    assert torch.autograd.gradcheck(lambda *given: ops.linear_dice_ce_loss(*given, target, fuse=True), layer)
    mask = torch.rand(1, 3, 4, 5) > 0.3
    assert torch.autograd.gradcheck(
        lambda *given: ops.linear_dice_bce_loss(*given, mask, fuse=True, squared_pred=True), layer
    )


def test_only_the_wanted_gradients():
    x, weight, bias = _layer()
    target = torch.randint(0, 7, (2, 20, 31))
    ops.linear_dice_ce_loss(x.detach(), weight, bias.detach(), target, fuse=True).backward()
    assert weight.grad is not None
    assert x.grad is bias.grad is None


def test_second_derivatives():
    layer = _layer((3, 4), channels=3, features=2, dtype=torch.float64, batch=1)
    target, mask = torch.randint(0, 3, (1, 3, 4)), torch.rand(1, 3, 3, 4) > 0.3
    for loss, of in ((ops.linear_dice_ce_loss, target), (ops.linear_dice_bce_loss, mask)):
        assert torch.autograd.gradgradcheck(lambda *given: loss(*given, of, fuse=True), layer)


@pytest.mark.parametrize(("loss", "soft"), [(ops.linear_dice_ce_loss, False), (ops.linear_dice_bce_loss, True)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks there itself
def test_compiled_it_is_one_graph(loss, soft):
    layer = _layer()
    target = torch.rand(2, 7, 20, 31) if soft else torch.randint(0, 7, (2, 20, 31))
    compiled = torch.compile(partial(loss, fuse=True), backend="aot_eager", fullgraph=True)
    _same(compiled(*layer, target), loss(*layer, target, fuse=True), layer)


@pytest.mark.parametrize("fuse", [False, True])
def test_counts_are_those_of_the_logits(fuse):
    layer, target = _layer(), torch.randint(0, 7, (2, 20, 31))
    target[:, :3] = -100
    _, found = ops.linear_dice_ce_loss(*layer, target, return_counts=True, fuse=fuse)
    _, expected = ops.dice_ce_loss(_logits(*layer), target, return_counts=True)
    masks = torch.rand(2, 7, 20, 31) > 0.5
    _, found_masks = ops.linear_dice_bce_loss(*layer, masks, return_counts=True, fuse=fuse)
    _, expected_masks = ops.dice_bce_loss(_logits(*layer), masks, return_counts=True)
    for one, other in ((found, expected), (found_masks, expected_masks)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_modules_keep_the_settings():
    layer, target, mask = _layer(), torch.randint(0, 7, (2, 20, 31)), torch.rand(2, 20, 31) > 0.5
    loss = losses.LinearDiceCELoss(class_weight=torch.rand(7), batch=True, fuse=True)
    assert set(loss.settings) >= {"class_weight", "ignore_index", "fuse"}
    assert not {"weight", "bias", "features"} & set(loss.settings)
    expected = ops.linear_dice_ce_loss(*layer, target, mask=mask, class_weight=loss.class_weight, batch=True)
    torch.testing.assert_close(loss(*layer, target, mask), expected)
    soft = torch.rand(2, 7, 20, 31)
    torch.testing.assert_close(
        losses.LinearDiceBCELoss(pos_weight=2.0, fuse=True)(*layer, soft),
        ops.linear_dice_bce_loss(*layer, soft, pos_weight=2.0),
    )
    with pytest.raises(TypeError, match="`weight` is not a setting of LinearDiceCELoss"):
        losses.LinearDiceCELoss(weight=torch.rand(7))


def test_mixed_precision_and_repeated_runs_are_the_same():
    x, weight, bias = _layer()
    target = torch.randint(0, 7, (2, 20, 31))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.linear_dice_ce_loss(x.bfloat16(), weight, bias, target, fuse=True)
    loss.backward()
    assert weight.grad.dtype == torch.float32
    again = [
        torch.autograd.grad(ops.linear_dice_ce_loss(x, weight, bias, target, fuse=True), (x, weight, bias))
        for _ in range(2)
    ]
    for one, other in zip(*again, strict=True):
        assert torch.equal(one, other)


def test_no_tensor_of_the_size_of_the_logits_is_made(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            for one in made if isinstance(made, tuple | list) else [made]:
                if isinstance(one, torch.Tensor):
                    own = one.untyped_storage().nbytes() // one.element_size()
                    self.numel = max(self.numel, own)
            return made

    x, weight, bias = _layer((64, 64), channels=40)
    target = torch.randint(0, 40, (2, 64, 64), dtype=torch.uint8)
    with Largest() as made:
        ops.linear_dice_ce_loss(x, weight, bias, target, fuse=True).backward()
    assert made.numel <= max(x.numel(), 40 * 256, target.numel())


def test_logits_of_small_features_are_stored(monkeypatch):
    calls = []
    run = linear_dice_ce._linear_dice_ce
    monkeypatch.setattr(linear_dice_ce, "_linear_dice_ce", lambda *given: calls.append(given) or run(*given))
    features, of_40 = 2 * 5 * 20 * 31 * 4, 2 * 40 * 20 * 31 * 4
    limits = (2, features, 1), (2, features + 1, 0), (40, of_40, 1), (40, of_40 + 1, 0)
    for channels, small, expected in limits:
        calls.clear()
        monkeypatch.setattr(linear_blocks, "_SMALL_BYTES", small)
        target = torch.randint(0, channels, (2, 20, 31))
        ops.linear_dice_ce_loss(*_layer(channels=channels), target)
        assert len(calls) == expected


def test_stored_logits_have_the_same_loss():
    layer, target = _layer(), torch.randint(0, 7, (2, 20, 31))
    _same(ops.linear_dice_ce_loss(*layer, target, fuse=False), _of_logits(ops.dice_ce_loss, layer, target, {}), layer)
    soft = torch.rand(2, 7, 20, 31)
    _same(ops.linear_dice_bce_loss(*layer, soft, fuse=False), _of_logits(ops.dice_bce_loss, layer, soft, {}), layer)


def test_nothing_valid_is_a_loss_of_zero():
    layer = _layer()
    target = torch.full((2, 20, 31), 255, dtype=torch.uint8)
    loss = ops.linear_dice_ce_loss(*layer, target, ignore_index=255, fuse=True)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, layer))


X, W, B, T = torch.rand(2, 5, 4, 6), torch.rand(7, 5), torch.rand(7), torch.zeros(2, 4, 6, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "settings", "error", "message"),
    [
        ((X[0, 0], W, B, T), {}, ValueError, r"`features` must be \[B, F, \*spatial\] .* got \[4, 6\]"),
        ((X.long(), W, B, T), {}, ValueError, "`features` must be float"),
        ((X, W[:, :4], B, T), {}, ValueError, r"`weight` must be \[C, 5\], .* got \[7, 4\]"),
        ((X, W[..., None, None].expand(7, 5, 3, 3), B, T), {}, ValueError, r"got \[7, 5, 3, 3\]"),
        ((X, W[:1], None, T), {}, ValueError, "a row for each of 2 or more classes"),
        ((X, W, B[:6], T), {}, ValueError, r"`bias` must be \[7\], one for each row .* got \[6\]"),
        ((X, W, 0.0, T), {}, TypeError, "`bias` must be a Tensor; got float"),
        ((X, "head", B, T), {}, TypeError, "`weight` must be a Tensor; got str"),
        ((X, W, B, T[:, :3]), {}, ValueError, r"`target` must be class numbers \[2, 4, 6\]"),
        ((X, W, B, T + 7), {}, ValueError, r"`target` holds class numbers .* \(48 pixels\).* 0 to 6"),
        ((X, W, B, T), {"mask": torch.ones(3, dtype=torch.bool)}, ValueError, "`mask` must be"),
        ((X, W, B, T), {"class_weight": torch.ones(6)}, ValueError, r"`class_weight` must be \[7\], one per class"),
        ((X, W, B, T), {"batch": True, "reduction": "none"}, ValueError, "`reduction` must be 'mean' with batch"),
        ((X, W, B, T), {"fuse": 1}, TypeError, "`fuse` must be True or False"),
        ((X, W, B, T), {"reduction": "average"}, ValueError, "`reduction` must be one of"),
    ],
)
@pytest.mark.parametrize("fuse", [True, False])
def test_bad_arguments_are_named(given, settings, error, message, fuse):
    with pytest.raises(error, match=message):
        ops.linear_dice_ce_loss(*given, **({"fuse": fuse} | settings))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("ignored", [None, -100, 2**40 + 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_ignored_number_beyond_the_targets_dtype_is_no_class(dtype, ignored, smoothing):
    torch.manual_seed(0)
    features, weight, target = torch.randn(2, 6, 300), torch.randn(5, 6), torch.randint(0, 5, (2, 300))
    options = {"ignore_index": ignored, "label_smoothing": smoothing, "fuse": True}
    found = ops.linear_dice_ce_loss(features, weight, None, target.to(dtype), **options)
    torch.testing.assert_close(found, ops.linear_dice_ce_loss(features, weight, None, target, **options))
