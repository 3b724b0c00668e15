"""Every kind of target from its column to the batch, regions of slides among the pictures, and boxes under geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.encoded_tiles import ArraySlide, Painted, pictures_of, region
from helpers.tiles import coordinate_tile, make_loader, random_pixels, raw_loader, shared_data, write_image
from PIL import Image

from fastmtl.data import Augmentation, Tile
from fastmtl.data.loading.augment import displacement
from fastmtl.data.loading.boxes import move_boxes, to_output
from fastmtl.protocols import Target

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

BENT = Augmentation(
    rotation=30, zoom=(0.6, 1.3), aspect=1.2, brightness=0, contrast=0, saturation=0, hue=0,
    elastic=0.2, grid=0.15, cells=4,
)  # fmt: skip
ALL = {
    "gland": "mask",
    "layers": Target("masks", "layers", 3),
    "tissue": Target("classes", "tissue"),
    "grade": Target("label", "grade"),
    "score": Target("number", "score"),
    "counts": Target("vector", "counts", 3),
    "lesion": Target("box", "lesion"),
    "views": Target("pair"),
    "self": Target("none"),
}


def _tiles(folder) -> list[Tile]:
    tile = coordinate_tile(folder, 64)
    layers = write_image(folder / "layers.png", random_pixels(1, 24))
    classes = (np.arange(24) // 6).astype(np.uint8)[None].repeat(24, 0)
    full = {
        "layers": layers,
        "tissue": Painted.of(classes),
        "grade": 2,
        "score": 1.5,
        "counts": (1.0, 2.0, 3.0),
        "lesion": (0.5, 0.25, 0.25, 0.5),
        "slice": 7,
    }
    return [replace(tile, id="full", values=full), replace(tile, id="empty", mask=None, values={"score": None})]


def test_every_kind_of_target(tmp_path):
    tiles = _tiles(tmp_path)
    (batch,) = make_loader(tiles, targets=ALL, metadata={"film": ["slice", "score"]}, size=24, augmentation=None)
    assert batch.has_label.tolist() == [[True] * 7 + [False, True], [False] * 8 + [True]]
    expected = {
        "gland": (torch.uint8, (2, 1, 24, 24)),
        "layers": (torch.uint8, (2, 3, 24, 24)),
        "tissue": (torch.uint8, (2, 1, 24, 24)),
        "grade": (torch.int64, (2,)),
        "score": (torch.float32, (2,)),
        "counts": (torch.float32, (2, 3)),
        "lesion": (torch.float32, (2, 4)),
        "views": (torch.int64, (2,)),
    }
    assert {name: (target.dtype, tuple(target.shape)) for name, target in batch.targets.items()} == expected
    assert torch.equal(batch.targets["layers"][0].permute(1, 2, 0), torch.from_numpy(random_pixels(1, 24) > 127))
    assert batch.targets["tissue"][0, 0, 0].tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    assert batch.targets["grade"].tolist() == [2, -100]
    assert batch.targets["score"].tolist() == [1.5, 0]
    assert batch.targets["counts"].tolist() == [[1, 2, 3], [0, 0, 0]]
    assert batch.targets["lesion"].tolist() == [[0.5, 0.25, 0.25, 0.5], [0, 0, 0, 0]]
    assert batch.targets["views"].tolist() == [-1, -1]
    assert batch.metadata["film"].tolist() == [[7, 1.5], [0, 0]]
    for name in ("gland", "layers", "tissue"):
        assert not batch.targets[name][1].any()


def test_columns_of_the_wrong_type_are_refused(tmp_path):
    tile = _tiles(tmp_path)[0]
    for column, value, target in (
        ("grade", 1.5, Target("label", "grade")),
        ("score", "high", Target("number", "score")),
        ("score", float("inf"), Target("number", "score")),
        ("counts", (1.0,), Target("vector", "counts", 3)),
        ("lesion", 3, Target("box", "lesion")),
    ):
        with pytest.raises(ValueError, match=f"{column}.*full"):
            make_loader([replace(tile, values={column: value})], targets={"task": target})
    with pytest.raises(ValueError, match="metadata"):
        make_loader([tile], metadata={"film": "slice"})
    with pytest.raises(ValueError, match="no column"):
        make_loader([tile], targets={"lesion": "box"})
    with pytest.raises(ValueError, match="size"):
        make_loader([tile], targets={"task": Target("label", "grade", 3)})


def test_too_few_channels_are_an_error_and_not_zeros(tmp_path):
    tile = _tiles(tmp_path)[0]
    with pytest.raises(RuntimeError, match="3 channels, not 4"):
        list(make_loader([tile], targets={"layers": Target("masks", "layers", 4)}))


@pytest.mark.parametrize("augmentation", [replace(BENT, elastic=0, grid=0), BENT], ids=["affine", "bent"])
def test_boxes_are_where_their_pixels_are(tmp_path, augmentation):
    """The box as a mask of its own must lie in the moved box, and touch its four sides."""
    box = (0.45, 0.5, 0.3, 0.2)
    mask = np.zeros((200, 200), np.uint8)
    mask[80:120, 60:120] = 255
    tile = coordinate_tile(tmp_path)
    tile = replace(tile, mask=write_image(tmp_path / "box.png", mask), values={"box": box})
    targets = {"mask": "mask", "box": Target("box", "box")}
    tiles = [replace(tile, id=f"t{i}") for i in range(40)]
    (batch,) = make_loader(tiles, targets=targets, size=96, batch_size=40, augmentation=augmentation)
    for row in range(40):
        ys, xs = np.nonzero(batch.targets["mask"][row, 0].numpy())
        if not batch.has_label[row, 1]:
            assert len(xs) < 0.15 * 0.06 * 96**2 / 0.6**2
            continue
        x, y, width, height = (batch.targets["box"][row] * 96).tolist()
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        expected = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        assert np.abs(found - expected).max() < 3.1, row  # a corner's pixels are less than half covered
    assert batch.has_label[:, 1].sum() > 25


def test_a_box_that_left_the_image_is_absent():
    shifted = replace(Augmentation.none().sample(0, 0, [0, 1]), matrix=np.array([[[1, 0, 0.5], [0, 1, 0]]] * 2, "f4"))
    boxes, left = move_boxes(np.array([[0.2, 0.5, 0.2, 0.2], [0.55, 0.5, 0.3, 0.2]]), shifted)
    assert left.tolist() == [False, True]
    np.testing.assert_allclose(boxes, [[0, 0, 0, 0], [0.1, 0.5, 0.2, 0.2]], atol=1e-6)


def test_the_way_back_through_the_field_is_exact():
    drawn = replace(BENT, elastic=0.4, grid=0).sample(1, 0, range(20))
    there = np.random.default_rng(0).uniform(0.05, 0.95, (2, 50))
    for row in range(20):
        moved = there + displacement(drawn.field[row], *there)
        source = drawn.matrix[row, :, :2].astype(float) @ moved + drawn.matrix[row, :, 2:]
        assert np.abs(to_output(source, drawn.matrix[row], drawn.field[row]) - there).max() < 1e-4


def test_the_field_never_folds():
    fields = replace(BENT, elastic=0.4, grid=0).sample(0, 0, range(60)).field
    u, v = np.meshgrid(*[np.linspace(0.001, 0.999, 120)] * 2)
    for field in fields:
        x, y = np.stack([u, v]) + displacement(field, u, v)
        (xv, xu), (yv, yu) = np.gradient(x), np.gradient(y)
        assert (xu * yv - xv * yu).min() > 0


@pytest.mark.parametrize("level", [0, 1])
def test_regions_are_stitched_and_bent_as_their_masks(level):
    """The slide's red and green are its coordinates, its mask is what red and green say: both pieced together."""
    side = 160
    y, x = np.mgrid[:side, :side]
    pixels = np.stack([x * 255 / (side - 1), y * 255 / (side - 1), 0 * x], -1).round().astype(np.uint8)
    marks = np.repeat(((pixels[..., :1] > 100) & (pixels[..., 1:2] < 140)).astype(np.uint8) * 255, 3, 2)
    slides = {"slide": ArraySlide(pixels), "marks": ArraySlide(marks, tile=48)}
    size = 70 // 2**level
    tiles = [
        Tile(f"t{i}", region("slide", 11 + i, 7 * i, size, level), region("marks", 11 + i, 7 * i, size, level), 0, "a")
        for i in range(12)
    ]
    options = {"augmentation": BENT, "size": 64, "batch_size": 12, "pictures": pictures_of(slides)}
    (batch,) = raw_loader(tiles, **options)
    drawn = BENT.sample(7, 0, range(12))
    position = (np.arange(64) + 0.5) / 64
    u, v = np.meshgrid(position, position)
    for row, tile in enumerate(tiles):
        across, down = displacement(drawn.field[row], u, v)
        where = np.einsum("ij,jhw->ihw", drawn.matrix[row].astype(float), [u + across, v + down, np.ones_like(u)])
        step = 2**level
        at = [
            (where[0] * size - 0.5 + tile.image.x // step) * step,
            (where[1] * size - 0.5 + tile.image.y // step) * step,
        ]
        within = ((where > 1 / size) & (where < 1 - 1 / size)).all(0)
        for channel in range(2):
            seen = batch.images[row, channel].double().numpy() * (side - 1) / 255
            assert np.abs(seen - at[channel])[within].max() < 1.2
        mask = batch.targets["segmentation"][row, 0].numpy().astype(bool)
        expected = (batch.images[row, 0].numpy() > 100) & (batch.images[row, 1].numpy() < 140)
        assert (mask != expected)[within].mean() < 0.03


def test_xyc_s_blocks_are_where_the_geometry_says(tmp_path):
    """Each 8 x 8 block of the image has a signature of its own: the pixels must be those of the expected block."""
    with Image.open(shared_data("wsi/XYC.png")) as image:
        pixels = np.asarray(image.convert("RGB"))
    slide = ArraySlide(pixels, tile=64)
    tiles = [Tile(f"t{i}", region("xyc", 64 + i, 128, 192), None, 0, "a") for i in range(8)]
    turned = replace(BENT, rotation=0, zoom=(1, 1), aspect=1, elastic=0, grid=0)
    options = {"targets": {"self": "none"}, "size": 192, "batch_size": 8, "pictures": pictures_of({"xyc": slide})}
    (batch,) = raw_loader(tiles, augmentation=turned, **options)
    matrices = turned.sample(7, 0, range(8)).matrix
    v, u = np.mgrid[:192, :192] + 0.5
    for row in range(8):
        x, y = np.einsum("ij,jhw->ihw", matrices[row].astype(float), [u / 192, v / 192, np.ones_like(u)]) * 192
        expected = pixels[np.floor(y).astype(int) + 128, np.floor(x).astype(int) + 64 + row]
        assert np.abs(batch.images[row].permute(1, 2, 0).numpy() - expected).max() < 0.05
