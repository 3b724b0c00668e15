"""The Triton kernels of the data plane, interpreted, against the compiled ones; the rest of the GPU's path on a CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.encoded_tiles import ArraySlide, Painted, pictures_of, region
from helpers.op_backends import needs_interpreter
from helpers.tiles import random_pixels, write_image
from PIL import Image

from fastmtl.data import Augmentation, Tile
from fastmtl.data.loading.prefetch import EncodedBatch, Plan, Prefetcher
from fastmtl.data.loading.quarantine import Quarantine
from fastmtl.data.loading.samplers import slides_of
from fastmtl.data.loading.targets import Columns
from fastmtl.data.loading.transform_cpu import CpuTransform, TransformOptions
from fastmtl.ops.core.pointers import num_threads
from fastmtl.protocols import Target

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = {"gland": "mask", "layers": Target("masks", "layers", 2), "tissue": Target("classes", "tissue")}
BENT = Augmentation(rotation=30, zoom=(0.6, 1.4), elastic=0.25, grid=0.1, cells=4, noise=12)
PLAIN = replace(BENT, elastic=0, grid=0, noise=0)


class _Decoded:
    """One of DALI's GPU tensors, in host memory."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = np.ascontiguousarray(pixels)

    def data_ptr(self) -> int:
        return self.pixels.ctypes.data

    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tile, ...]:
    folder = tmp_path_factory.mktemp("pictures")
    image = write_image(folder / "oblong.png", random_pixels(0, 48)[:, :40])
    mask = write_image(folder / "mask.png", random_pixels(1, 30)[..., 0])
    layers = Painted.of(random_pixels(2, 20))
    classes = Painted.of(random_pixels(3, 25)[..., 0] % 5)
    return (
        Tile("file", image, mask, 0, "a", {"layers": layers, "tissue": classes}),
        Tile("inside one tile", region("slide", 3, 4, 20), None, 0, "b", {"layers": layers}),
        Tile("over the edge", region("slide", -10, 40, 60), region("marks", -10, 40, 60), 0, "b"),
        Tile("with a hole", region("slide", 20, 20, 50), region("marks", 2, 2, 20), 0, "b", {"tissue": classes}),
        Tile("nowhere", region("slide", 500, 500, 30), region("marks", 500, 500, 30), 0, "b"),
        Tile("grey", Painted.of(random_pixels(4, 33)[..., 0]), layers, 0, "c", {"tissue": mask}),
    )


@pytest.fixture(scope="module")
def slides() -> dict[str, ArraySlide]:
    return {
        "slide": ArraySlide(random_pixels(5, 90), missing=frozenset({(1, 1)})),
        "marks": ArraySlide(random_pixels(6, 90)),
    }


def _read(tiles, slides, augmentation: Augmentation) -> tuple[EncodedBatch, list[np.ndarray]]:
    """A batch as the prefetcher reads it, decoded by Pillow."""
    columns, count = Columns(TARGETS, {}), len(tiles)
    quarantine = Quarantine(0.0, count)
    prefetcher = Prefetcher(
        pictures_of(slides), columns, augmentation, seed=3, quarantine=quarantine, replace=False, num_threads=2, ahead=1
    )
    counted = np.ones(count, bool)
    prefetcher.start(0, tiles, [Plan(np.arange(count), np.zeros(count, np.int64), np.full(count, -1), counted, count)])
    prefetcher(0)
    (batch,) = prefetcher.fed
    prefetcher.close()
    pixels = []
    for data, grey in zip(batch.encoded, batch.is_grey, strict=True):
        with Image.open(BytesIO(data.tobytes())) as image:
            decoded = np.asarray(image.convert("L" if grey else "RGB"))
        pixels.append(decoded.reshape(*decoded.shape[:2], -1))
    return batch, pixels


def _options(**more) -> TransformOptions:
    maps = Columns(TARGETS, {}).maps
    return TransformOptions(32, (0.0,) * 3, (1 / 255,) * 3, 127, maps, 2, **more)


def _plain_stain(images, *, slides, inside, colour, mean, std, draws):
    """Takes the place of a normaliser: shows it all it is given."""
    assert images.dtype == torch.uint8
    assert slides[1] == str(Path("slide"))
    assert slides[0] == "a"
    levels = torch.einsum("bij,bjhw->bihw", colour[:, :, :3], images.float()) + colour[:, :, 3, None, None]
    return levels.clamp(0, 255) * inside[:, None]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("augmentation", "stain"),
    [(Augmentation.none(), None), (PLAIN, _plain_stain), (BENT, None), (BENT, _plain_stain)],
    ids=["plain", "affine, stain", "bent", "bent, stain"],
)
def test_triton_s_kernels_do_what_the_compiled_ones_do(
    tiles, slides, augmentation, stain, poisoned_memory, monkeypatch
):
    from fastmtl.data.loading.transform_gpu import GpuTransform
    from fastmtl.kernels import transform_triton

    monkeypatch.setattr(transform_triton, "_TILE", (32, 32, 1))  # the interpreter's time is that of its programs
    batch, pixels = _read(tiles, slides, augmentation)
    options, keys = _options(stain=stain), slides_of(tiles)
    on_cpu = CpuTransform(options)(batch, pixels, keys)
    on_gpu = GpuTransform(options, torch.device("cpu"))(batch, [_Decoded(one) for one in pixels], keys)
    assert [part.dtype for part in on_gpu] == [part.dtype for part in on_cpu]
    off = (on_cpu[0] - on_gpu[0]).abs()
    if stain is None:
        assert off.max() < 0.05
    else:  # a sum near a half is rounded up by one, down by the other; and the inside's outline is theirs
        assert (off > 1.5).float().mean() < 0.002
    for ours, theirs in zip(on_cpu[1:], on_gpu[1:], strict=True):
        assert (ours != theirs).float().mean() < 0.002
    assert [bool(layer.any()) for layer in on_cpu[1]] == [True, False, True, True, False, True]
    assert on_cpu[3].max() > 1


def test_stains_are_normalised_on_one_thread_while_others_decode(tiles, slides, two_threads):
    torch.set_num_threads(2)
    seen = []

    def stain(images, **_):
        with ThreadPoolExecutor(1) as other:
            seen.append((num_threads(), other.submit(num_threads).result()))
        return images.float()

    batch, pixels = _read(tiles, slides, Augmentation.none())
    CpuTransform(_options(stain=stain))(batch, pixels, slides_of(tiles))
    assert seen == [(1, 2)]
    assert num_threads() == 2


def test_noise_does_not_depend_on_how_a_normaliser_lays_out_its_images(tiles, slides):
    batch, pixels = _read(tiles, slides, BENT)

    def images(layout):
        def stain(images, **_):
            return images.float().contiguous(memory_format=layout)

        return CpuTransform(_options(stain=stain))(batch, pixels, slides_of(tiles))[0]

    assert torch.equal(images(torch.contiguous_format), images(torch.channels_last))


def test_the_background_is_where_no_tile_is(tiles, slides):
    batch, pixels = _read(tiles, slides, Augmentation.none())
    images = CpuTransform(_options())(batch, pixels, slides_of(tiles))[0]
    assert (images[4] == 240).all()
    assert (images[2, :, :, :4] == 240).all()  # left of the slide
    y, x = (np.arange(32) + 0.5) * 50 / 32 + 20, (np.arange(32) + 0.5) * 50 / 32 + 20
    hole = np.ix_((y > 33) & (y < 63), (x > 33) & (x < 63))
    assert (images[3].numpy()[(slice(None), *hole)] == 240).all()
    assert (images[3] != 240).float().mean() > 0.5


def test_noise_is_normal_of_the_drawn_strength(tiles, slides):
    noisy = Augmentation(0, 0, False, 0, (1, 1), 1, 0, 0, 0, 0, noise=20)
    flat = [
        replace(tile, id=str(i), image=Painted.of(np.full((8, 8, 3), 128, np.uint8))) for i, tile in enumerate(tiles)
    ]
    batch, pixels = _read(flat, slides, noisy)
    images = CpuTransform(replace(_options(), size=200))(batch, pixels, slides_of(flat))[0] - 128
    images = images[:, :, 20:180, 20:180]  # without the edge, where the background has a share
    for row in range(len(flat)):
        strength = float(batch.drawn.noise[row])
        assert abs(images[row].mean()) < 0.05 + strength / 100
        assert abs(images[row].std() / strength - 1) < 0.02
        beyond = (images[row].abs() > 2 * strength).float().mean()
        assert abs(beyond - 0.0455) < 0.01
    assert abs(np.corrcoef(images[0].flatten(), images[1].flatten())[0, 1]) < 0.02
    neighbours = np.corrcoef(images[0, 0, :, 1:].flatten(), images[0, 0, :, :-1].flatten())[0, 1]
    assert abs(neighbours) < 0.02


@needs_interpreter
@pytest.mark.parametrize("cells", [0, 4])
def test_triton_s_kernels_stay_within_their_pictures(cells, poisoned_memory):
    """In any order of their programs; one picture of three is missing."""
    from helpers.triton_checks import checked

    from fastmtl.kernels import transform_triton as kernels

    draw, size = torch.Generator().manual_seed(cells), 19
    pictures = [torch.randint(0, 256, (h, w, 3), generator=draw).byte() for h, w in ((17, 13), (9, 21))]
    table = torch.tensor([[p.data_ptr(), p.shape[1] * 3, *p.shape] for p in pictures] + [[0, 0, 0, 0, 3]])
    matrix = torch.tensor([[0.8, 0.3, -2.0, -0.3, 0.8, 5.0], [1.2, 0.0, 0.0, 0.0, 0.5, 0.0], [1.0, 0, 0, 0, 1.0, 0]])
    field = torch.randn(3, 2, cells + 3, cells + 3, generator=draw) / 10 if cells else torch.zeros(3, 2, 0, 0)
    colour, keys, noise = torch.eye(3, 4).repeat(3, 1, 1), torch.arange(3, dtype=torch.int32), torch.full((3,), 9.0)
    scale, shift = torch.full((3,), 0.01), torch.full((3,), -1.0)
    jobs = torch.tensor([[pictures[0].data_ptr(), 39, 0, 40, 30, 17], [pictures[1].data_ptr(), 63, 0, 40, 9, 9]])

    def run(seed: int | None) -> tuple[torch.Tensor, ...]:
        images = torch.empty(3, 3, size, size)
        levels, within, mask = (torch.empty(3, n, size, size, dtype=torch.uint8) for n in (3, 1, 2))
        stitched = torch.zeros(17, 40, dtype=torch.uint8)
        jobs[:, 2] = stitched.data_ptr() + torch.tensor([0, 31])
        with checked(seed, also=[*pictures, stitched]):
            kernels.transform_image(table, matrix, field, colour, noise, keys, scale, shift, 255, images)
            kernels.warp_image(table, matrix, field, 255, levels, within[:, 0])
            for nearest in (True, False):
                kernels.transform_mask(table, matrix, field, 127, nearest, mask)
            kernels.add_noise(images, noise, keys, scale, shift)
            kernels.stitch(jobs, 17)
        return images, levels, within, mask, stitched

    assert_bit_equal([run(None), run(1)])
