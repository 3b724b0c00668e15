"""`ops.stain_normalize`: every backend against the exact definition, and the definition against torchstain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.op_backends import needs_cpp
from helpers.stain import odd_tiles, tissue
from helpers.tiles import shared_data
from PIL import Image

from fastmtl import data, ops
from fastmtl.ops.core import backends
from fastmtl.ops.stain.arguments import METHODS
from fastmtl.ops.stain.fit import Stains, are_two, estimate, table
from fastmtl.ops.stain.passes import CppPasses, TorchPasses
from fastmtl.ops.stain.pixels import new_output, readable
from fastmtl.reference import stain_normalize as exact
from fastmtl.reference.stain_conventions import CONVENTIONS, HEMATOXYLIN_EOSIN, MAX_CONCENTRATION

pytestmark = pytest.mark.usefixtures("poisoned_memory")
STAINED = ("macenko", "vahadane", "ruifrok")


def definition(image: torch.Tensor, method: str, convention: str) -> torch.Tensor:
    """The exact result of one image [3, H, W], float64."""
    chosen, pixels = CONVENTIONS[convention], image.flatten(1)
    found = exact.estimate(pixels, method, chosen)
    known = exact.RUIFROK if convention == "histomicstk" else HEMATOXYLIN_EOSIN
    target = torch.tensor(known).double(), torch.tensor(MAX_CONCENTRATION).double()
    return exact.restain(pixels, found, chosen, target).view(image.shape)


def real_image(name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(shared_data("stain") / name).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", STAINED)
def test_histograms_meet_the_exact_definition(method, convention):
    images = tissue(number=2)
    made = ops.stain_normalize(images, method, convention=convention, dtype=torch.float32)
    for image, result in zip(images, made, strict=True):
        error = (result - definition(image, method, convention)).abs().flatten()
        assert error.median() <= 0.2
        assert error.kthvalue(int(0.99 * len(error)))[0] <= 1


@needs_cpp
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_cpp_and_torch_passes_agree(convention):
    """The passes of a GPU without CuPy are these; they must tell the same of the same pixels."""
    chosen = CONVENTIONS[convention]
    images = tissue(number=3, size=40)
    inside = torch.rand(3, 40, 40) < 0.8
    pixels = readable(images, inside.view(torch.uint8))
    found = []
    for passes in (CppPasses(), TorchPasses()):
        stains = estimate(passes, pixels, "macenko", chosen, min_tissue=10).stains
        found.append((stains.vectors, stains.maxima))
    torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=2e-3)
    coefficients = torch.rand(3, 44) * 0.1
    coefficients[:, 13], coefficients[:, 24:33] = 1.0, torch.eye(3).flatten()
    coefficients[:, 42] = torch.tensor([0.0, 0.0, 1.0])
    coefficients[:, 9:12], coefficients[:, 20:23], coefficients[:, 36:39], coefficients[:, 39:42] = 6.0, 6.0, 0.0, 255.0
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.uint8):
        outs = [new_output(images, dtype) for _ in range(2)]
        for passes, out in zip((CppPasses(), TorchPasses()), outs, strict=True):
            passes.apply(pixels, table(chosen, images.device), coefficients, chosen.solver == "lasso", out, True)
        tolerance = 1.0 if dtype in (torch.uint8, torch.bfloat16) else 0.13 if dtype == torch.float16 else 2e-3
        torch.testing.assert_close(outs[0].float(), outs[1].float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_layouts_give_the_same_pixels(method):
    images, target = tissue(number=2, size=32), tissue(seed=5)[0]
    expected = ops.stain_normalize(images, method, target=target)
    wider = torch.zeros(2, 3, 32, 40, dtype=torch.uint8)
    wider[..., 4:-4] = images
    for other in (images.contiguous(memory_format=torch.channels_last), wider[..., 4:-4]):
        assert torch.equal(ops.stain_normalize(other, method, target=target), expected)
    last = images.permute(0, 2, 3, 1).contiguous()
    result = ops.stain_normalize(last, method, target=target)
    assert result.shape == last.shape
    assert torch.equal(result.permute(0, 3, 1, 2), expected)


def test_mean_and_std_are_of_the_same_pass():
    images, mean, std = tissue(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    grey = ops.stain_normalize(images, dtype=torch.float32)
    expected = (grey / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    made = ops.stain_normalize(images, mean=mean, std=std)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        half = ops.stain_normalize(images, mean=mean, std=std, dtype=dtype)
        torch.testing.assert_close(half, expected.to(dtype), rtol=1e-2, atol=1e-2)


def test_a_known_matrix_gives_the_same_as_the_estimate_it_came_from():
    images = tissue(number=2)
    first = ops.stain_normalize(images, return_stains=True)
    again = ops.stain_normalize(
        images, stain_matrix=first.stain_matrix, max_concentration=first.max_concentration, return_stains=True
    )
    assert torch.equal(first.images, again.images)
    measured = ops.stain_normalize(images, stain_matrix=first.stain_matrix, return_stains=True)
    torch.testing.assert_close(measured.max_concentration, first.max_concentration, rtol=1e-3, atol=1e-3)
    alone = ops.stain_normalize(
        images[1:], stain_matrix=first.stain_matrix[1], max_concentration=first.max_concentration[1]
    )
    assert torch.equal(alone, first.images[1:])


@pytest.mark.parametrize("convention", ["torchstain", "staintools"])
def test_stain_images_multiply_to_the_whole(convention):
    """Light passes one stain and then the other: out / Io = (H / Io) (E / Io)."""
    result = ops.stain_normalize(tissue(), convention=convention, dtype=torch.float32, return_stains=True)
    light = CONVENTIONS[convention].light
    product = result.hematoxylin * result.eosin / light
    dark = (result.hematoxylin < 250) & (result.eosin < 250) & (product < 250)
    torch.testing.assert_close(product[dark], result.images[dark], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_odd_tiles_never_raise_and_never_give_nan(method, convention):
    if "reinhard" in method and CONVENTIONS[convention].lab is None:
        pytest.skip("cuCIM has no Reinhard")
    tiles = odd_tiles()
    inside = torch.ones(len(tiles), 64, 64, dtype=torch.bool)
    for hidden in (False, True):
        result = ops.stain_normalize(
            tiles,
            method,
            convention=convention,
            target=tissue(seed=3)[0],
            dtype=torch.float32,
            return_stains=True,
            inside=inside.logical_xor(torch.tensor(hidden)) if hidden else inside,
        )
        assert result.images.isfinite().all()
        if method in ("macenko", "vahadane"):
            assert result.fell_back.tolist() == [True] * 5 + [hidden] * 2
        if hidden:
            assert (result.images == 240).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_noise_about_one_colour_is_no_two_stains(method, backend):
    noise = torch.randint(-2, 3, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    tile = (torch.tensor([120, 60, 140])[:, None, None] + noise).byte()
    assert ops.stain_normalize(tile, method, backend=backend, return_stains=True).fell_back.all()
    statistics = data.StainStatistics()
    statistics.update(tile)
    assert statistics.estimate(method) is None


def test_two_stains_need_an_angle_an_amount_and_numbers():
    good = torch.nn.functional.normalize(torch.tensor(HEMATOXYLIN_EOSIN).double(), dim=0)
    close = torch.nn.functional.normalize(torch.stack([good[:, 0], good[:, 0] + 0.02 * good[:, 1]], 1), dim=0)
    vectors = torch.stack([good, close, good, good * torch.nan])
    maxima = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.005], [1.0, 1.0]]).double()
    assert are_two(Stains(vectors, maxima)).tolist() == [True, False, False, False]


def test_fallbacks_and_their_mask():
    tiles = torch.cat([tissue(), torch.full((1, 3, 64, 64), 250, dtype=torch.uint8), tissue(glass=0.995)])
    tiles[2, :, :, 16:] = 244
    passed = ops.stain_normalize(tiles, fallback="pass", return_stains=True)
    assert passed.fell_back.tolist() == [False, True, True]
    assert torch.equal(passed.images[1:], tiles[1:])
    kept = ops.stain_normalize(tiles, return_stains=True)
    assert (kept.images[1].int() - 250).abs().max() <= 4  # what two stains cannot explain is lost
    assert torch.equal(kept.images[0], passed.images[0])
    assert ops.stain_normalize(tiles, min_tissue=5000, return_stains=True).fell_back.all()


def test_pixels_outside_take_part_in_nothing():
    images = tissue(number=1)
    inside = torch.zeros(1, 64, 64, dtype=torch.bool)
    inside[:, :, :40] = True
    cut, results = ops.stain_normalize(images[..., :40].contiguous()), []
    for fill in (0, 255, 130):
        filled = images.clone()
        filled[..., 40:] = fill
        made = ops.stain_normalize(filled, inside=inside)
        # Sums over other runs of pixels differ in their last bits, and so may a rounded pixel.
        assert (made[..., :40].int() - cut.int()).abs().max() <= 1
        assert (made[..., 40:] == 240).all()
        results.append(made)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("method", METHODS)
def test_bit_equal_over_repeats_and_thread_counts(method, two_threads):
    images, target, results = tissue(number=1, size=256), tissue(seed=2)[0], []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        results.append(ops.stain_normalize(images, method, target=target, dtype=torch.float32))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": torch.zeros(1, 3, 8, 8)}, ValueError, "must be uint8"),
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, ValueError, "unsqueeze"),
        ({"images": torch.zeros(1, 4, 8, 8, dtype=torch.uint8)}, ValueError, "alpha"),
        ({"images": torch.zeros(1, 8, 8, 4, dtype=torch.uint8)}, ValueError, "alpha"),
        ({"images": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, ValueError, "3 channels"),
        ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, ValueError, "empty batch"),
        ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, TypeError, "must be a Tensor"),
        ({"method": "macenco"}, ValueError, "method"),
        ({"convention": "opencv"}, ValueError, "convention"),
        ({"method": "reinhard", "convention": "cucim", "target": tissue()[0]}, ValueError, "cuCIM has none"),
        ({"method": "reinhard"}, ValueError, "target"),
        ({"mean": (0.5, 0.5, 0.5)}, ValueError, "must be given together"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0, 0.5)}, ValueError, "above 0"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3, "dtype": torch.uint8}, ValueError, "floating"),
        ({"dtype": torch.float64}, ValueError, "dtype"),
        ({"fallback": "slide"}, ValueError, "fallback"),
        ({"min_tissue": 0}, ValueError, "min_tissue"),
        ({"max_concentration": torch.ones(2)}, ValueError, "needs `stain_matrix`"),
        ({"stain_matrix": torch.ones(2, 3)}, ValueError, "stain_matrix"),
        ({"inside": torch.ones(1, 4, 4, dtype=torch.bool)}, ValueError, "inside"),
        ({"target": torch.full((3, 64, 64), 255, dtype=torch.uint8)}, ValueError, "two stains"),
        ({"backend": "numba"}, backends.BackendError, "no backend"),
    ],
)
def test_bad_input_says_what_to_do(change, error, words):
    with pytest.raises(error, match=words):
        ops.stain_normalize(**{"images": tissue(), **change})


def test_parity_with_torchstain():
    normalizers = pytest.importorskip("torchstain", reason="torchstain is not installed").normalizers
    source, target = tissue(1)[0], tissue(2, 96)[0]
    peer = normalizers.MacenkoNormalizer(backend="torch")
    peer.fit(target)
    ours = ops.stain_normalize(source[None], target=target, return_stains=True)
    for theirs, made in zip(peer.normalize(source), ours[:3], strict=True):
        difference = (theirs.permute(2, 0, 1) - made[0].int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() <= 0.05
    torch.testing.assert_close(ours.stain_matrix[0].float(), peer_vectors(peer, source), rtol=0, atol=2e-3)


def peer_vectors(peer, image: torch.Tensor) -> torch.Tensor:
    fitted = type(peer)()
    fitted.fit(image)
    return fitted.HERef


@pytest.mark.parametrize("variant", [None, "modified"])
def test_parity_with_torchstain_reinhard(variant):
    normalizers = pytest.importorskip("torchstain", reason="torchstain is not installed").normalizers
    source, target = tissue(1)[0], tissue(2, 96)[0]
    peer = normalizers.ReinhardNormalizer(backend="torch", method=variant)
    peer.fit(target)
    method = "reinhard" if variant is None else "modified_reinhard"
    for backend in ("auto", "reference"):
        made = ops.stain_normalize(source[None], method, target=target, backend=backend)[0]
        difference = (peer.normalize(source).permute(2, 0, 1).int() - made.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() <= 0.05


@pytest.mark.parametrize("method", STAINED)
def test_error_on_a_real_tile(method):
    image = real_image("source.png")[:, 100:228, 100:228]
    made = ops.stain_normalize(image[None], method, dtype=torch.float32)[0]
    error = (made - definition(image, method, "torchstain")).abs().flatten()
    assert error.median() <= 0.2
    assert error.kthvalue(int(0.99 * len(error)))[0] <= 1
