"""Losses, matching and tiles on an NVIDIA GPU against the float64 definitions; `benchmarks/on_gpu.sh build-test`.

compute-sanitizer runs all tests that are not marked `unsanitized`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_bit_equal, assert_within_budget, loss_and_gradient
from helpers.classes import class_map
from helpers.inputs import layout, segmentation
from helpers.launch_sweep import calls
from helpers.op_spec import OpSpec
from helpers.op_specs import SPECS
from torch.utils._pytree import tree_map

from fastmtl import data, losses, ops
from fastmtl.reference import dice_bce, dice_ce, nt_xent, points, regression

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
DEVICE = "cuda"


def _lay(tensor: torch.Tensor, memory: str) -> torch.Tensor:
    """Inputs on the GPU; "misaligned" is made there, because a copy would start at an aligned address."""
    if memory != "misaligned":
        return layout(tensor, memory).to(DEVICE)
    flat = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=DEVICE)
    return flat[1:].view(tensor.shape).copy_(tensor)


def _check_loss(shape, dtype, target_dtype, memory: str, **options) -> None:
    input, target = (_lay(part, memory) for part in segmentation(shape, dtype, target_dtype))
    ours = loss_and_gradient(partial(ops.dice_bce_loss, target=target, backend="triton", **options), input)
    naive = loss_and_gradient(partial(dice_bce.dice_bce_loss, target=target, **options), input)
    truth = loss_and_gradient(partial(dice_bce.dice_bce_loss, target=target, **options), input.double())
    for found, plain, exact in zip(ours, naive, truth, strict=True):
        assert_within_budget(found, plain, exact, dtype)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "triton" in spec.kernels], ids=lambda spec: spec.name)
def test_every_setting_size_and_layout(spec: OpSpec):
    """What is compiled without a GPU (tests/benchmarks/test_launch_sweep.py) also gives the reference's results."""

    def run(inputs, rest, backend: str) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_(spec.differentiable) for x in inputs]
        found = spec.function(*leaves, **rest, backend=backend)
        found = [found] if isinstance(found, torch.Tensor) else list(found)
        gradients = torch.autograd.grad(sum(part.sum() for part in found), leaves) if spec.differentiable else []
        return [part.detach().double() for part in (*found, *gradients)]

    for name, call in calls(spec):
        call = tree_map(lambda x: x.to(DEVICE) if isinstance(x, torch.Tensor) else x, call)
        ours, exact = run(call.inputs, call.rest, "triton"), run(call.inputs, call.rest, "reference")
        half = any(x.dtype == torch.bfloat16 for x in call.inputs)
        for found, truth in zip(ours, exact, strict=True):
            scale = truth.nan_to_num(0.0).abs().max().item() + 1e-12
            tolerance = 2e-2 if half else 1e-4
            torch.testing.assert_close(
                found / scale, truth / scale, rtol=0, atol=tolerance, equal_nan=True, msg=lambda text: f"{name}: {text}"
            )


@pytest.mark.parametrize("batch", [False, True])
def test_dice_bce(batch):
    _check_loss((3, 2, 37, 23), torch.float32, torch.uint8, "contiguous", batch=batch)


@pytest.mark.unsanitized
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "misaligned"])
def test_dice_bce_dtypes_and_layouts(dtype, target_dtype, memory):
    _check_loss((4, 3, 256, 256), dtype, target_dtype, memory, squared_pred=True)


def _check_op(op, input, target, naive, **options) -> None:
    ours = loss_and_gradient(partial(op, target=target, backend="triton", **options), input)
    plain = loss_and_gradient(partial(naive, target=target, **options), input)
    exact = loss_and_gradient(partial(op, target=target, backend="reference", **options), input.double())
    for found, rough, true in zip(ours, plain, exact, strict=True):
        assert_within_budget(found, rough, true, input.dtype)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_focal(gamma, dtype):
    reference = partial(ops.focal_loss, backend="reference")
    input, target = (part.to(DEVICE) for part in segmentation((2, 3, 37, 23), dtype))
    _check_op(ops.focal_loss, input, target, reference, gamma=gamma)
    classes = torch.randint(0, 3, (2, 37, 23), dtype=torch.uint8, device=DEVICE)
    _check_op(ops.focal_loss, input, classes, reference, gamma=gamma, activation="softmax", reduction="none")


@pytest.mark.unsanitized
@pytest.mark.parametrize("channels", [2, 14, 128, 1000])
def test_softmax_focal(channels):
    input = torch.randn(2, channels, 96, 101, device=DEVICE)
    classes = torch.randint(0, channels, (2, 96, 101), device=DEVICE)
    options = {"activation": "softmax", "alpha": torch.rand(channels, device=DEVICE)}
    _check_op(ops.focal_loss, input, classes, partial(ops.focal_loss, backend="reference"), **options)


def test_overlap_sums_bce_and_counts():
    input, target = (part.to(DEVICE) for part in segmentation((2, 3, 37, 23)))
    for op in (ops.tversky_loss, ops.bce_with_logits):
        _check_op(op, input, target, partial(op, backend="reference"))
    loss, counts = ops.dice_bce_loss(input, target, return_counts=True)
    expected = ops.dice_bce_loss(input.cpu(), target.cpu(), return_counts=True)
    torch.testing.assert_close(loss.cpu(), expected[0])
    for found, exact in zip(counts, expected[1], strict=True):
        assert torch.equal(found.cpu(), exact)


def _check_classes(shape, dtype, target_dtype, memory: str, **options) -> None:
    input, target = (part.to(DEVICE) for part in class_map(shape, dtype, target_dtype))
    input = _lay(input.cpu(), memory)
    ours = loss_and_gradient(partial(ops.dice_ce_loss, target=target, backend="triton", **options), input)
    naive = loss_and_gradient(partial(dice_ce.dice_ce_loss, target=target, **options), input)
    truth = loss_and_gradient(partial(dice_ce.dice_ce_loss, target=target, **options), input.double())
    for found, plain, exact in zip(ours, naive, truth, strict=True):
        assert_within_budget(found, plain, exact, dtype)


@pytest.mark.parametrize("C", [2, 6, 14, 32, 40, 128])
def test_dice_ce(C):
    _check_classes((2, C, 37, 23), torch.float32, torch.uint8, "contiguous", label_smoothing=0.1)


@pytest.mark.unsanitized
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "misaligned"])
def test_dice_ce_dtypes_and_layouts(dtype, target_dtype, memory):
    _check_classes((4, 6, 256, 256), dtype, target_dtype, memory, squared_pred=True, include_background=False)


@pytest.mark.parametrize("C", [6, 40])
def test_dice_ce_counts_and_strange_class_numbers(C):
    input, target = (part.to(DEVICE) for part in class_map((2, C, 65, 31)))
    loss, counts = ops.dice_ce_loss(input, target, reduction="none", return_counts=True)
    for found, exact in zip(counts, ops.dice_ce_loss(input.cpu(), target.cpu(), return_counts=True)[1], strict=True):
        assert found.tolist() == exact.tolist()
    target[1, 3, 3] = 200
    assert ops.dice_ce_loss(input, target, reduction="none").isnan().tolist() == [False, True]
    assert loss.isfinite().all()


@pytest.mark.parametrize("sizes", [(37, 20, 0.1), (300, 128, 0.1), (300, 128, 0.01), (65, 700, 0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nt_xent(sizes, dtype):
    pairs, dim, temperature = sizes
    source = torch.Generator().manual_seed(pairs)
    z = torch.randn(2 * pairs, dim, generator=source).to(DEVICE, dtype)
    mask = (torch.rand(pairs, generator=source) < 0.8).to(DEVICE)
    ours = loss_and_gradient(
        lambda z: ops.nt_xent_loss(*z.chunk(2), temperature=temperature, mask=mask, backend="triton"), z
    )
    naive = loss_and_gradient(lambda z: nt_xent.nt_xent_loss(z, temperature, mask), z)
    exact = loss_and_gradient(lambda z: nt_xent.nt_xent_loss(z, temperature, mask), z.double())
    for found, plain, truth in zip(ours, naive, exact, strict=True):
        scale = truth.abs().max()
        torch.testing.assert_close(found.isfinite(), plain.isfinite())
        # An error of 1e-7 in a similarity is one of 1e-7 / T in its exponent.
        error = (found.double() - truth).abs().max() / scale
        assert error <= 2 * (plain.double() - truth).abs().max() / scale + 3e-7 / temperature


@pytest.mark.parametrize("error", ["squared", "absolute", "smooth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "misaligned"])
def test_regression(error, dtype, memory):
    input, target = (_lay(part, memory) for part in segmentation((4, 3, 65, 50), dtype, torch.uint8))
    has_label = torch.tensor([True, False, True, True], device=DEVICE)
    function = {"squared": ops.mse_loss, "absolute": ops.l1_loss, "smooth": ops.smooth_l1_loss}[error]
    ours = loss_and_gradient(partial(function, target=target, mask=has_label, backend="triton"), input)
    plain = partial(regression.regression_loss, target=target, mask=has_label.view(-1, 1, 1, 1), error=error)
    naive, truth = loss_and_gradient(plain, input), loss_and_gradient(plain, input.double())
    for found, other, exact in zip(ours, naive, truth, strict=True):
        assert_within_budget(found, other, exact, dtype)


def _check_heads(size, strides, dtype, memory: str, **options) -> None:
    logits, target = segmentation((2, 2, *size), dtype)
    heads = [_lay(logits[(..., *[slice(0, size[0] // s) for s in [stride] * len(size)])], memory) for stride in strides]
    target = _lay(target, memory)

    def run(leaves, function, **more) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in leaves]
        loss = function(leaves, target, **more)
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)

    weights = torch.linspace(0, 1, len(heads), device=DEVICE)
    for given in (weights, weights.tolist()):
        ours = run(heads, ops.deep_supervision_loss, weights=given, backend="triton", **options)
        naive = run(heads, ops.deep_supervision_loss, weights=given, backend="reference", **options)
        exact = run([x.double() for x in heads], ops.deep_supervision_loss, weights=given, **options)
        for found, plain, true in zip(ours, naive, exact, strict=True):
            assert_within_budget(found, plain, true, dtype)


@pytest.mark.parametrize("downsample", ["nearest", "area", "max"])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_deep_supervision(downsample, memory):
    _check_heads((32, 32), (1, 2, 4, 2, 8), torch.float32, memory, downsample=downsample, reduction="none")


@pytest.mark.unsanitized
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("downsample", ["nearest", "area", "max"])
def test_deep_supervision_dtypes_and_masks(dtype, downsample):
    _check_heads((256, 256), (1, 2, 4, 8), dtype, "contiguous", downsample=downsample, batch=True)
    valid = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)).lt(0.7).to(DEVICE)
    _check_heads((32, 32, 32), (1, 2, 4), dtype, "misaligned", downsample=downsample, mask=valid, jaccard=True)


@pytest.mark.unsanitized
def test_deep_supervision_is_captured_in_a_graph_and_its_weights_move():
    heads, target = [torch.randn(2, 1, 64 // s, 64 // s, device=DEVICE) for s in (1, 2, 4)], torch.ones(2, 1, 64, 64)
    target, weights = target.to(DEVICE, torch.uint8), torch.ones(3, device=DEVICE)

    def work() -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in heads]
        loss = ops.deep_supervision_loss(leaves, target, weights=weights, downsample="max")
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # compiles, which is not allowed during capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    weights[1] = 0.0
    heads[0].mul_(-0.5)
    heads[1].fill_(float("nan"))
    graph.replay()
    assert_bit_equal([captured, work()])
    assert captured[0].isfinite()


@pytest.mark.unsanitized
def test_tiles_decoded_on_the_gpu_are_those_decoded_on_the_cpu(tmp_path):
    """Image files and stitched JPEG tiles of one slide, with deformation, colour and noise."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    root = data.generate(tmp_path / "colon", num_patients=3, tiles_per_patient=4, num_slides=1)
    slide = next((root / "slides").glob("*.tiff"))
    regions = [data.Tile(f"r{i}", data.Region(slide, 90 * i - 30, 70 * i, 200, 200), None, None, "p") for i in range(8)]
    tiles = [*data.read_tile_folder(root).tiles, *regions]
    bent = data.Augmentation(elastic=0.2, grid=0.1, noise=5)
    options = {"targets": {"mask": "mask"}, "size": 96, "batch_size": 4, "augmentation": bent, "seed": 3}
    pairs = zip(*(data.TileLoader(tiles, device=device, **options) for device in ("cpu", "gpu")), strict=True)
    for on_cpu, on_gpu in pairs:
        assert on_gpu.images.device.type == "cuda"
        assert on_gpu.has_label.device.type == "cuda"
        # JPEG decoders round differently: on average less than two of 255 levels, over the standard deviation.
        assert (on_cpu.images - on_gpu.images.cpu()).abs().mean() < 2 / 255 / 0.22
        assert (on_cpu.targets["mask"] != on_gpu.targets["mask"].cpu()).float().mean() < 0.005


@pytest.mark.parametrize(("Q", "T"), [(100, 20), (20, 100), (300, 100), (1, 1), (700, 3)])
def test_linear_assignment(Q, T):
    """The same queries as the definition, ties and broken costs included."""
    source = torch.Generator().manual_seed(Q + T)
    cost = torch.randn(4, Q, T, generator=source)
    cost[1] = torch.randint(5, (Q, T), generator=source).float()
    cost[2, torch.rand(Q, T, generator=source) < 0.3] = float("nan")
    cost[3, torch.rand(Q, T, generator=source) < 0.3] = float("inf")
    numbers = torch.tensor([T, T, T // 2, T])
    found = ops.linear_assignment(cost.to(DEVICE), numbers.to(DEVICE), backend="triton")
    assert torch.equal(found.cpu(), ops.linear_assignment(cost, numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_sample_points(dtype):
    source = torch.Generator().manual_seed(0)
    maps = (torch.rand(3, 2, 40, 30, generator=source) * 2).to(dtype)
    coordinates = torch.rand(3, 1000, 2, generator=source) * 1.2 - 0.1
    exact = points.sample_points(maps, coordinates.double())
    maps, coordinates = maps.to(DEVICE), coordinates.to(DEVICE)
    found = ops.sample_points(maps, coordinates, backend="triton")
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-5, atol=1e-5)
    if dtype == torch.float32:
        leaf = maps.requires_grad_()
        gradients = [torch.autograd.grad(ops.sample_points(leaf, coordinates).sum(), leaf) for _ in range(3)]
        assert_bit_equal(gradients)


@pytest.mark.unsanitized
def test_mask2former_loss_never_waits_for_the_device():
    loss = losses.Mask2FormerLoss(5, num_points=256).to(DEVICE)
    classes = torch.randn(2, 30, 6, device=DEVICE, requires_grad=True)
    maps = torch.randn(2, 30, 32, 32, device=DEVICE, requires_grad=True)
    labels, masks = torch.ones(2, 7, dtype=torch.int64, device=DEVICE), torch.ones(2, 7, 64, 64, device=DEVICE)
    numbers = torch.tensor([7, 3], device=DEVICE)

    def step() -> tuple[torch.Tensor, ...]:
        layers = loss(classes, maps, labels, masks.to(torch.uint8), numbers, auxiliary=[(classes, maps)])
        return torch.autograd.grad(loss.total(layers), (classes, maps))

    step()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients = step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(gradient.isfinite().all() for gradient in gradients)
