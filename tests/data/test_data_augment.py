"""What the loader does to pixels: decoding, geometry, colour, normalisation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiles import (
    by_id,
    coordinate_tile,
    in_shape,
    make_loader,
    random_pixels,
    raw_loader,
    shared_data,
    write_folder,
    write_image,
)
from PIL import Image

from fastmtl.data import Augmentation, Dataset, Tile, check_tiles, read_tile_folder
from fastmtl.data.dataset import BACKGROUND
from fastmtl.data.loading.augment import displacement
from fastmtl.data.loading.order import epoch_order
from fastmtl.data.loading.transform_cpu import colour_matrices

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

GEOMETRY = replace(Augmentation(), brightness=0, contrast=0, saturation=0, hue=0, rotation=40, aspect=1.3)
BENT = replace(GEOMETRY, elastic=0.25, grid=0.15, cells=4, hue=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_folder(tmp_path_factory.mktemp("tiles"), {"A": 9, "B": 14})


def test_without_augmentation_pixels_are_those_of_the_files(folder: Dataset):
    batches = list(raw_loader(folder.tiles, size=24, augmentation=None))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]  # the last, partial batch is kept
    assert [name for batch in batches for name in batch.ids] == [tile.id for tile in folder.tiles]
    for tile, (image, mask) in zip(folder.tiles, by_id(batches).values(), strict=True):
        with Image.open(tile.image) as expected:
            torch.testing.assert_close(image.permute(1, 2, 0), torch.from_numpy(np.array(expected)).float())
        with Image.open(tile.mask) as expected:
            assert torch.equal(mask[0] * 255, torch.from_numpy(np.array(expected)))


def test_normalisation_is_that_of_torchvision(folder: Dataset):
    raw, normal = (next(iter(make(folder.tiles, augmentation=None))) for make in (raw_loader, make_loader))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(normal.images, (raw.images / 255 - mean) / std, atol=1e-4, rtol=1e-4)


def test_resizing_keeps_positions(tmp_path: Path):
    tile = coordinate_tile(tmp_path)
    (batch,) = raw_loader([tile], size=64, augmentation=None)
    position = (torch.arange(64) + 0.5) * 2 - 0.5  # pixel centres of the 128-pixel tile, two levels each
    expected = (position * 255 / 127).expand(64, 64)
    assert (batch.images[0, 0] - expected).abs().max() < 1.5
    assert (batch.images[0, 1] - expected.T).abs().max() < 1.5


def test_image_and_mask_move_together_and_as_the_matrix_says(tmp_path: Path):
    """The image tells where each of its pixels came from; the mask must be the shape at just those places."""
    size, tile = 64, coordinate_tile(tmp_path)
    pairs = [replace(tile, id=f"t{i}") for i in range(24)]
    (batch,) = raw_loader(pairs, size=size, batch_size=24, augmentation=GEOMETRY)
    matrices = GEOMETRY.sample(7, 0, range(24)).matrix
    centres = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centres, centres)
    disagreeing = []
    for row in range(24):
        x, y = np.einsum("ij,jhw->ihw", matrices[row], np.stack([u, v, np.ones_like(u)]))
        within = (x > 0.01) & (x < 0.99) & (y > 0.01) & (y < 0.99)
        seen_x, seen_y = (batch.images[row, :2].double().numpy() / 255 * 127 + 0.5) / 128
        assert np.abs(seen_x - x)[within].max() < 0.008, "the image is not where the matrix puts it"
        assert np.abs(seen_y - y)[within].max() < 0.008
        mask = batch.targets["segmentation"][row, 0].numpy().astype(bool)
        disagreeing.append((mask != in_shape(seen_x, seen_y))[within].mean())
        outside = (x < -0.02) | (x > 1.02) | (y < -0.02) | (y > 1.02)
        assert np.abs(batch.images[row, 0].numpy()[outside] - BACKGROUND).max(initial=0) < 1e-3
        assert not mask[outside].any()
    assert max(disagreeing) < 0.03  # pixels on the shape's outline
    assert len({matrix.tobytes() for matrix in matrices}) == 24
    assert {bool(np.linalg.det(matrix[:, :2]) < 0) for matrix in matrices} == {False, True}


def test_matrices_turn_zoom_and_crop_within_their_ranges():
    knobs = replace(GEOMETRY, aspect=1.0, zoom=(0.5, 1.0), rotation=20.0)
    linear = knobs.sample(0, 0, range(500)).matrix[:, :, :2].astype(np.float64)
    sides = np.linalg.norm(linear, axis=1)
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-5)
    assert np.abs((linear[:, :, 0] * linear[:, :, 1]).sum(1)).max() < 1e-6, "rotation must not shear"
    assert 0.5 <= sides.min() < 0.52
    assert 0.98 < sides.max() <= 1.0 + 1e-6
    from_quarter = (np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])) + 45) % 90 - 45
    assert 18 < np.abs(from_quarter).max() <= 20.01
    straight = replace(knobs, rotation=0.0).sample(0, 0, range(500)).matrix
    corners = straight @ np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]).T
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6
    assert corners.min() < 0.01
    assert corners.max() > 0.99


def test_oblong_and_turned_images_are_squeezed_to_the_square(tmp_path: Path):
    ramp = np.linspace(0, 255, 96).round().astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (32, 96, 3)).copy()  # brighter to the right
    mask = (np.arange(96) >= 48).astype(np.uint8)[None].repeat(32, 0) * 255
    oblong = Tile("a", write_image(tmp_path / "a.png", pixels), write_image(tmp_path / "m.png", mask), 0, "P")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: shown, it is 96 wide
    stored = np.ascontiguousarray(np.rot90(pixels, 1))
    turned = replace(oblong, id="b", image=write_image(tmp_path / "b.jpg", stored, exif=exif, quality=100))
    assert check_tiles([oblong, turned]) == []
    (batch,) = raw_loader([oblong, turned], augmentation=None)
    expected = ((torch.arange(16) + 0.5) / 16 * 96 - 0.5) * 255 / 95
    for image, seen in zip(batch.images, batch.targets["segmentation"], strict=True):
        assert (image - expected).abs().max() < 3
        assert seen[0, 0].tolist() == [0] * 8 + [1] * 8


def test_colour_changes_the_image_alone_and_stays_in_range(tmp_path: Path):
    tile = coordinate_tile(tmp_path)
    colour = replace(Augmentation.none(), brightness=0.4, contrast=0.4, saturation=0.4, hue=30)
    (plain,) = raw_loader([tile], augmentation=None)
    images = [next(iter(raw_loader([tile], augmentation=colour, seed=seed))) for seed in range(4)]
    assert len({tuple(batch.images.mean((0, 2, 3)).tolist()) for batch in images}) == 4
    for batch in images:
        assert torch.equal(batch.targets["segmentation"], plain.targets["segmentation"])
        assert batch.images.min() >= 0
        assert batch.images.max() <= 255


def test_brightness_is_a_factor(tmp_path: Path):
    tile = coordinate_tile(tmp_path)
    augmentation = replace(Augmentation.none(), brightness=0.3)
    factor = float(augmentation.sample(7, 0, [0]).colour[0, 0])
    (plain,), (bright,) = raw_loader([tile], augmentation=None), raw_loader([tile], augmentation=augmentation)
    assert abs(factor - 1) > 0.02
    assert (bright.images - (plain.images * factor).clamp(0, 255)).abs().max() <= 1


@pytest.mark.parametrize(
    "augmentation", [Augmentation.none(), replace(Augmentation(), rotation=30, zoom=(0.5, 1.4)), BENT], ids=str
)
def test_the_kernels_do_what_grid_sample_does(tmp_path: Path, augmentation: Augmentation):
    """torch's sampler in float64, positions from the public parameters: nothing of the kernels' own."""
    tile = coordinate_tile(tmp_path, size=96)
    tiles, size = [replace(tile, id=f"t{i}") for i in range(12)], 40
    (batch,) = raw_loader(tiles, size=size, batch_size=12, augmentation=augmentation)
    drawn = augmentation.sample(7, 0, range(12))
    position = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(position, position)
    with Image.open(tile.image) as image, Image.open(tile.mask) as mask:
        source = torch.from_numpy(np.dstack([np.array(image), np.array(mask)])).double().permute(2, 0, 1)[None]
    background = torch.tensor([BACKGROUND] * 3 + [0]).double()[:, None, None]
    for row in range(12):
        across, down = displacement(drawn.field[row], u, v)
        where = np.einsum("ij,jhw->hwi", drawn.matrix[row].astype(np.float64), [u + across, v + down, np.ones_like(u)])
        grid = torch.from_numpy(2 * where - 1)[None]
        sampled = torch.nn.functional.grid_sample(source - background, grid, align_corners=False)[0] + background
        matrix = torch.from_numpy(colour_matrices(drawn.colour)[row]).double()
        expected = torch.einsum("ij,jhw->ihw", matrix[:, :3], sampled[:3]) + matrix[:, 3, None, None]
        assert (batch.images[row] - expected.clamp(0, 255)).abs().max() < 0.05
        expected_mask = (sampled[3] > 127).to(torch.uint8)
        assert (batch.targets["segmentation"][row, 0] != expected_mask).float().mean() < 0.002


def test_augmentation_depends_on_seed_epoch_and_tile_alone(folder: Dataset):
    one = by_id(make_loader(folder.tiles, batch_size=1, shuffle=True, num_threads=1))
    many = by_id(make_loader(folder.tiles, batch_size=10, shuffle=False, prefetch=1))
    ranks = itertools.chain(
        *(make_loader(folder.tiles, batch_size=3, shuffle=False, rank=rank, world_size=2) for rank in range(2))
    )
    halves = by_id(ranks)
    assert set(one) == set(many) == set(halves)
    for name, (image, mask) in one.items():
        for other in (many[name], halves[name]):
            assert torch.equal(image, other[0])
            assert torch.equal(mask, other[1])
    assert not torch.equal(
        one["A/GT0000-1-400-000"][0], by_id(make_loader(folder.tiles, seed=8))["A/GT0000-1-400-000"][0]
    )


def test_the_random_stream_is_pinned():
    """A resumed run must see, after an upgrade, what it would have seen before it."""
    drawn = Augmentation().sample(1, 2, [3, 4], [0, 1])
    expected = [0.088153, 0.870167, -0.008903, -0.871278, 0.088265, 0.867489]
    np.testing.assert_allclose(drawn.matrix[0].ravel(), expected, atol=1e-6)
    assert epoch_order(8, seed=1, epoch=2, shuffle=True).tolist() == [1, 0, 4, 7, 6, 5, 3, 2]


def test_knobs_out_of_range_are_refused():
    for options in ({"horizontal_flip": 2}, {"zoom": (1.2, 0.8)}, {"aspect": 0.5}, {"rotation": -1}, {"contrast": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Augmentation(**options)


def test_an_epoch_augments_differently_from_the_last(folder: Dataset):
    loader = make_loader(folder.tiles)
    first, second = by_id(loader), by_id(loader)
    assert not any(torch.equal(first[name][0], second[name][0]) for name in first)


def test_a_mask_of_another_size_is_aligned_with_its_image(tmp_path: Path):
    tile = coordinate_tile(tmp_path)
    with Image.open(tile.mask) as mask:
        mask.resize((512, 512), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    large = replace(tile, id="large", mask=tmp_path / "large.png")
    (batch,) = make_loader([tile, large], size=64, augmentation=None)
    small, big = batch.targets["segmentation"]
    assert (small != big).float().mean() < 0.01


def test_grey_masks_are_cut_at_the_threshold(tmp_path: Path):
    image = write_image(tmp_path / "i.png", random_pixels(0, 16))
    mask = np.repeat(np.array([[0, 127, 128, 255]], np.uint8), 4, 1).repeat(16, 0)
    tile = Tile("t", image, write_image(tmp_path / "m.png", mask), 0, "P")
    (batch,) = make_loader([tile], augmentation=None)
    assert batch.targets["segmentation"][0, 0, 0].tolist() == [0] * 8 + [1] * 8


def test_real_tiles_decode_as_pillow_does():
    folder = read_tile_folder(shared_data("ebhi_seg"))
    tiles = [*folder.tiles[::100], next(tile for tile in folder.tiles if tile.mask is None)]
    batches = list(raw_loader(tiles, size=224, augmentation=None))
    assert sum(len(batch) for batch in batches) == len(tiles)
    for tile, (image, mask) in zip(tiles, by_id(batches).values(), strict=True):
        with Image.open(tile.image) as expected:
            difference = image.permute(1, 2, 0) - torch.from_numpy(np.array(expected)).float()
        assert difference.abs().mean() < 0.5
        if tile.mask:
            with Image.open(tile.mask) as expected:
                assert torch.equal(mask[0].bool(), torch.from_numpy(np.array(expected)) > 127)
        else:
            assert mask.max() == 0
