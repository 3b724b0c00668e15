"""Slides on web servers: read by ranges, equal to local ones; a server that fails, throttles or changes the file."""

import os

import numpy as np
import pytest
from helpers.remote_slides import forget, same_slide, write_slide
from helpers.slides import patch_tile, tissue_like, write_tiff
from PIL import Image

from fastmtl import data
from fastmtl.data.slides.remote import backoff

pytestmark = pytest.mark.usefixtures("quick")


def test_a_slide_of_a_web_server_equals_the_local_one_and_little_of_it_is_read(server):
    local = write_slide(server.folder, tile=128)
    same_slide(server.url("a.tiff"), local)
    big = server.folder / "big.tiff"
    write_tiff(big, np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), np.uint8), tile=256)
    server.requests.clear()
    with data.open_slide(server.url("big.tiff")) as slide:
        slide.read_region(1000, 1000, 100, 100)
    assert sum(last - first for first, last in server.requests) < big.stat().st_size / 10


def test_the_index_is_local_and_opens_the_slide_with_one_request(server, tmp_path):
    write_slide(server.folder)
    first = data.index_slide(server.url("a.tiff"))
    assert len(list((tmp_path / "cache" / "fastmtl" / "slides").iterdir())) == 1
    forget()
    server.requests.clear()
    with data.open_slide(server.url("a.tiff")) as slide:
        assert slide.tissue.bits.tobytes() == first.tissue.bits.tobytes()
        assert len(server.requests) == 1
    forget()
    write_slide(server.folder, seed=1, tile=32)
    with data.open_slide(server.url("a.tiff")) as slide:
        assert slide.levels[0].tile_width == 32


def test_a_busy_server_and_broken_connections_delay_a_read_and_change_nothing(server, quick):
    local = write_slide(server.folder)
    with data.open_slide(server.url("a.tiff")) as slide, data.open_slide(local) as truth:
        expected = truth.read_region(0, 0, 900, 900)
        server.failures[:] = [503, "cut", 429, "cut", "cut"]
        server.requests.clear()
        np.testing.assert_array_equal(slide.read_region(0, 0, 900, 900), expected)
        assert not server.failures
        assert len(quick) == 5
        firsts = [first for first, _ in server.requests]
        assert len(set(firsts)) > 1  # after a broken connection only the rest is read


def test_a_server_that_stays_busy_is_a_named_damage_after_a_bounded_time(server, quick):
    write_slide(server.folder)
    with data.open_slide(server.url("a.tiff")) as slide:
        server.failures[:] = [503] * 1000
        with pytest.raises(
            data.DamagedPieceError, match=r"cannot be read: the server answers 503 .*\(6 tries\)"
        ) as found:
            slide.read_region(0, 0, 10, 10)
        assert str(found.value).startswith(server.url("a.tiff"))
        assert 5 == len(quick) < 1000 - len(server.failures)
        assert sum(quick) < 12
        server.failures.clear()
        assert slide.read_region(0, 0, 10, 10).shape == (10, 10, 3)


def test_a_pause_that_the_server_asks_for_is_kept_up_to_half_a_minute(monkeypatch):
    from fastmtl.data.slides.remote import http

    assert http._seconds("7") == 7
    assert http._seconds("soon") == http._seconds("") == 0
    assert http._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    pauses = []
    monkeypatch.setattr(backoff.time, "sleep", pauses.append)

    def busy():
        raise backoff.ServerBusy("busy", 7 if not pauses else 10_000)

    with pytest.raises(OSError, match="busy"):
        backoff.with_retries(busy)
    assert pauses[:2] == [7, 30]


@pytest.mark.parametrize("tags", [True, False])
def test_a_slide_that_changes_on_the_server_is_not_read_any_further(server, tags):
    server.tags = tags
    path = write_slide(server.folder, compression=None) if tags else write_slide(server.folder)
    with data.open_slide(server.url("a.tiff")) as slide:
        slide.read_region(0, 0, 64, 64)
        write_slide(server.folder, seed=1) if not tags else path.write_bytes(path.read_bytes()[:-1] + b"x")
        os.utime(path, ns=(0, 7))
        with pytest.raises(data.SlideError, match="changed since it was opened; open it again"):
            slide.read_region(640, 640, 64, 64)
    with data.open_slide(server.url("a.tiff")) as slide:  # at once: the old answer was forgotten
        slide.read_region(640, 640, 64, 64)


def test_a_shrunken_slide_is_not_read_any_further(server):
    path = write_slide(server.folder, compression=None)
    with data.open_slide(server.url("a.tiff")) as slide:
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(data.SlideError, match="changed since it was opened"):
            slide.read_region(640, 640, 64, 64)


def test_damage_is_found_as_in_a_local_slide(server):
    local = write_slide(server.folder, compression="deflate")
    patch_tile(local, 6, lambda part: part.__setitem__(slice(0, 8), b"overlaid"))
    whole, said = local.read_bytes(), []
    for place in (local, server.url("a.tiff")):
        with data.open_slide(place) as slide, pytest.raises(data.DamagedPieceError, match="does not decode") as found:
            slide.read_region(384, 0, 64, 64)
        said.append((found.value.what, found.value.coordinate))
    assert said[0] == said[1]
    local.write_bytes(whole[: len(whole) // 2])
    forget()
    with data.open_slide(local) as truth, data.open_slide(server.url("a.tiff")) as slide:
        assert slide.damage == truth.damage != ""
        with pytest.raises(data.DamagedPieceError, match="lies beyond the end of the file"):
            slide.read_region(1200, 800, 64, 64)
    local.write_bytes(whole[:60])
    forget()
    with pytest.raises(data.SlideError, match="truncated or damaged"):
        data.open_slide(server.url("a.tiff"))


def test_a_picture_file_of_a_server(server):
    Image.fromarray(tissue_like(200, 100)).save(server.folder / "a.png")
    with data.open_slide(server.url("a.png")) as slide:
        np.testing.assert_array_equal(slide.read_region(20, 10, 50, 60), tissue_like(200, 100)[10:70, 20:70])
