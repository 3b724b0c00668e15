"""Tiles much larger than the regions read from them: each is decoded once, whatever the order and the threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from helpers.slides import patch_tile, tissue_like, write_tiff
from helpers.tiles import raw_loader

from fastmtl import data
from fastmtl.data.loading import order
from fastmtl.data.slides.decoded_tiles import DecodedTiles, decoded_tiles
from fastmtl.data.slides.encoded_tiles import EncodedTileReader
from fastmtl.data.slides.opened import forget_opened
from fastmtl.data.slides.tile_grid import TileGrid
from fastmtl.data.slides.wanted_tiles import Wanted

SIZE = 32


@pytest.fixture
def decodes(monkeypatch):
    """How often a stored tile was decoded, by tile; the cache is empty and ours."""
    counts: dict[tuple, int] = {}
    whole = EncodedTileReader._decoded

    def counted(self, raster, wanted):
        for item in wanted:
            counts[raster, item.tile] = counts.get((raster, item.tile), 0) + 1
        return whole(self, raster, wanted)

    monkeypatch.setattr(EncodedTileReader, "_decoded", counted)
    for name in ("_tiles", "_bytes", "use", "_most_bytes"):
        monkeypatch.setattr(decoded_tiles, name, getattr(DecodedTiles(), name))
    return counts


def _slide(path, kind, seed=0):
    pixels = tissue_like(512, 384, seed=seed)
    if kind == "strips":
        tifffile.imwrite(path, pixels, rowsperstrip=16, compression="deflate", photometric="rgb", metadata=None)
        return path
    return write_tiff(path, pixels, tile=128, compression=kind)


def _tiles(*paths):
    return [
        data.Tile(f"{path.name} {number:03d}", region, None, 0, path.name)
        for path in paths
        for number, region in enumerate(data.grid(data.open_slide(path), SIZE, level=0))
    ]


def _loader(tiles, **options):
    options = {"shuffle": True, "num_threads": 2, "augmentation": data.Augmentation.none(), **options}
    return raw_loader(tiles, targets={"classification": "label"}, size=SIZE, batch_size=16, **options)


@pytest.mark.parametrize("kind", ["jpeg", "deflate", "strips"])
def test_an_epoch_in_random_order_decodes_each_tile_once(tmp_path, decodes, kind):
    paths = [_slide(tmp_path / f"{name}.tif", kind, seed=name) for name in range(3)]
    tiles = _tiles(*paths)
    # Half of a slide, for the tiles or rows of strips of two slides: those of a batch and of those read ahead.
    room = 6 * (128 * 128 if kind != "strips" else SIZE * 512) * 3
    with _loader(tiles, open_slides=2, tile_cache=room) as loader:
        places = [name for batch in loader for name in batch.ids]
        use = loader.tile_use
    assert sorted(places) == sorted(tile.id for tile in tiles)
    assert places != sorted(places)
    assert set(decodes.values()) == {1}
    assert len(decodes) == use.decoded == 3 * (12 if kind != "strips" else 24)
    assert use.reused == len(tiles) * (1 if kind != "strips" else 2) - use.decoded


def test_without_open_slides_a_small_cache_decodes_them_again(tmp_path, decodes):
    with _loader(_tiles(_slide(tmp_path / "one.tif", "jpeg")), tile_cache=2 * 128 * 128 * 3) as loader:
        list(loader)
    assert sum(decodes.values()) > 3 * len(decodes)


@pytest.mark.parametrize("kind", ["jpeg", "strips"])
def test_their_regions_have_the_slides_pixels(tmp_path, decodes, kind):
    path = _slide(tmp_path / "one.tif", kind)
    tiles = _tiles(path)
    whole = data.open_slide(path).read_region(0, 0, 512, 384)
    for batch in _loader(tiles, open_slides=1):
        for name, image in zip(batch.ids, batch.images, strict=True):
            region = next(tile.image for tile in tiles if tile.id == name)
            expected = whole[region.y : region.y + SIZE, region.x : region.x + SIZE]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_small_tiles_are_neither_kept_nor_ordered(tmp_path, decodes):
    path = write_tiff(tmp_path / "small.tif", tissue_like(), tile=64, compression="jpeg")
    tiles = _tiles(path)
    drawn = order.slide_runs(["one"] * len(tiles), None, seed=5, epoch=0, per_slide=0)
    with _loader(tiles, open_slides=1, seed=5) as loader:
        places = [name for batch in loader for name in batch.ids]
        assert loader.tile_use == (0, 0)
    assert places == [tiles[number].id for number in drawn[0]]


def test_tiles_of_a_piece_follow_each_other_and_each_epoch_has_another_order():
    pieces = [None if number % 5 == 0 else number // 20 for number in range(100)]
    found = [
        order.slide_runs(["a"] * 60 + ["b"] * 40, None, seed=3, epoch=epoch, per_slide=0, pieces=pieces)
        for epoch in (0, 0, 1)
    ]
    assert [run.tolist() for run in found[0]] == [run.tolist() for run in found[1]]
    assert [run.tolist() for run in found[0]] != [run.tolist() for run in found[2]]
    for run in found[0]:
        seen = [pieces[tile] for tile in run.tolist() if pieces[tile] is not None]
        changes = sum(one != other for one, other in pairwise(seen))
        assert changes == len(set(seen)) - 1
        assert seen != sorted(seen) or len(set(seen)) < 3
    assert sorted(np.concatenate(found[0]).tolist()) == list(range(100))


def test_two_threads_decode_a_tile_once_and_both_see_its_damage(tmp_path, decodes):
    path = _slide(tmp_path / "one.tif", "deflate")
    patch_tile(path, 0, lambda stored: stored.__setitem__(slice(20, 60), bytes(40)))
    slide = data.open_slide(path)
    barrier = threading.Barrier(2)

    def read(x):
        barrier.wait()
        return slide.read_region(x, 0, SIZE, SIZE)

    with ThreadPoolExecutor(2) as pool:
        for x, fails in ((0, True), (128, False), (0, True)):
            pending = [pool.submit(read, x + shift) for shift in (0, 40)]
            assert [isinstance(one.exception(), data.DamagedPieceError) for one in pending] == [fails] * 2
    counts = {tile: count for (_, tile), count in decodes.items()}
    assert counts.keys() == {0, 1}
    assert counts[1] == 1
    assert 2 <= counts[0] <= 4  # the damaged one is tried again, at least once for each pair of reads


def test_a_region_does_not_fail_by_a_tile_that_another_one_reads():
    """Otherwise a sound region would be set aside, or not, as the threads happen to meet."""
    cache, raster = DecodedTiles(), object()
    one, two = (Wanted(tile, (0, 0, 1, 1), 0, 1) for tile in (1, 2))
    claimed, waiting = threading.Event(), threading.Event()

    def fails(missing):
        claimed.set()
        assert waiting.wait(10)
        time.sleep(0.2)  # the other thread waits for tile 2
        raise ValueError(f"tile {missing[0].tile} is damaged")

    def works(missing):
        return [(item, np.full((1, 1, 3), item.tile, np.uint8)) for item in missing]

    def second():
        assert claimed.wait(10)
        waiting.set()
        return [(item.tile, int(pixels[0, 0, 0])) for item, pixels in cache.read(raster, [two], works)]

    with ThreadPoolExecutor(2) as pool:
        failing, working = pool.submit(lambda: list(cache.read(raster, [one, two], fails))), pool.submit(second)
        with pytest.raises(ValueError, match="tile 1 is damaged"):
            failing.result(20)
        assert working.result(20) == [(2, 2)]


def test_the_cache_is_bounded_in_bytes_and_keeps_what_was_used_last(tmp_path, decodes, monkeypatch):
    slide = data.open_slide(_slide(tmp_path / "one.tif", "deflate"))
    tile = 128 * 128 * 3
    monkeypatch.setattr(decoded_tiles, "most_bytes", 2 * tile)
    for x in (0, 128, 0, 256, 0, 128):
        slide.read_region(x, 0, SIZE, SIZE)
        kept = sum(future.result().nbytes for future in decoded_tiles._tiles.values())
        assert kept == decoded_tiles._bytes <= 2 * tile
    assert sorted(decodes.values()) == [1, 1, 2]  # the tile at 128 was used least when that at 256 came


def test_a_smaller_cache_forgets_at_once(tmp_path, decodes, monkeypatch):
    slide = data.open_slide(_slide(tmp_path / "one.tif", "deflate"))
    for x in (0, 128, 256):
        slide.read_region(x, 0, SIZE, SIZE)
    monkeypatch.setattr(decoded_tiles, "most_bytes", 2 * 128 * 128 * 3)
    assert len(decoded_tiles._tiles) == 2
    for x in (128, 256, 0):
        slide.read_region(x, 0, SIZE, SIZE)
    assert sorted(decodes.values()) == [1, 1, 2]  # the tile at 0 was used longest ago


def test_a_tile_larger_than_the_cache_is_kept_alone(tmp_path, decodes, monkeypatch):
    slide = data.open_slide(_slide(tmp_path / "one.tif", "deflate"))
    monkeypatch.setattr(decoded_tiles, "most_bytes", 0)
    for x in (0, 40, 128, 168):
        slide.read_region(x, 0, SIZE, SIZE)
    assert sorted(decodes.values()) == [1, 1]
    assert len(decoded_tiles._tiles) == 1


def test_parts_of_a_jpeg_are_stacked_not_kept():
    grid = TileGrid(4096, 8, True, (8192, 8192), 1, 0, 0, 1.0)
    assert not grid.keeps((32, 32))
    assert grid._replace(in_parts=False).keeps((32, 32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_piece_of_a_rotated_level_is_a_stored_tile(orientation):
    shown = (400, 800) if orientation >= 5 else (800, 400)
    grid = TileGrid(200, 100, False, shown, orientation, 10, 20, 2.0)
    pieces = {}
    for y in range(0, shown[1], 20):
        for x in range(0, shown[0], 20):
            region = data.Region("slide", 2 * (x + 10), 2 * (y + 20), 20, 20, 1)
            pieces.setdefault(grid.piece_of(region), []).append((x, y))
    assert set(pieces) == {(row, column) for row in range(4) for column in range(4)}
    for places in pieces.values():  # 10 x 5 regions side by side
        assert len(places) == 50
        extent = {max(one) - min(one) for one in zip(*places, strict=True)}
        assert extent == {180, 80}


def test_within_an_epoch_the_order_of_other_pieces_is_refused(tmp_path, decodes):
    """As that of a version that did not follow the large tiles: samples would come twice, and others not at all."""
    paths = [_slide(tmp_path / f"{name}.tif", "jpeg", seed=name) for name in range(2)]
    tiles = _tiles(*paths)
    with _loader(tiles, open_slides=2) as loader:
        whole = [name for batch in loader for name in batch.ids]
        at_the_end = loader.state_dict()
    assert "pieces" not in at_the_end
    with _loader(tiles, open_slides=2) as loader:
        first = [next(iter(loader)).ids]
        state = loader.state_dict()
    moved = [tmp_path / "moved" / path.name for path in paths]
    moved[0].parent.mkdir()
    for path, other in zip(paths, moved, strict=True):
        path.rename(other)
    with _loader(_tiles(*moved), open_slides=2) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict()["pieces"] == state["pieces"]
        assert first[0] + [name for batch in loader for name in batch.ids] == whole
    earlier = {name: value for name, value in state.items() if name != "pieces"}
    with _loader(_tiles(*moved), open_slides=2) as loader:
        with pytest.raises(ValueError, match="within an epoch whose order has changed since"):
            loader.load_state_dict(earlier)
        loader.load_state_dict(at_the_end)
    for number, path in enumerate(moved):
        write_tiff(path, tissue_like(512, 384, seed=number), tile=256, compression="jpeg")
    forget_opened()
    with (
        _loader(_tiles(*moved), open_slides=2) as loader,
        pytest.raises(ValueError, match="the order follows how slides are stored in large tiles"),
    ):
        loader.load_state_dict(state)


def test_a_loader_without_a_size_leaves_the_cache_as_it_is(tmp_path, decodes):
    tiles = _tiles(_slide(tmp_path / "one.tif", "jpeg"))
    with _loader(tiles, tile_cache=12345), _loader(tiles):
        assert decoded_tiles.most_bytes == 12345


def test_a_negative_cache_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`tile_cache` must be 0 bytes or more; got -1"):
        _loader(_tiles(_slide(tmp_path / "one.tif", "jpeg")), tile_cache=-1)
