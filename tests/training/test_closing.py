"""What is opened is closed: threads and descriptors stay as many as they were, however many loaders come and go."""

import errno
import gc
import os
import threading
import time
from contextlib import suppress

import pytest
import torch
from helpers.slides import tissue_like, write_tiff
from helpers.tiles import make_loader, write_folder

from fastmtl import data
from fastmtl.prediction.slides import predict_slides
from fastmtl.tasks import create_task
from fastmtl.utils import limited_reads


def _open(staying=()):
    """(threads, descriptors); a thread that was told to end may take a moment. Threads whose names begin as one of
    `staying` are not waited for."""
    for _ in range(100):
        names = [thread.name for thread in threading.enumerate() if not thread.name.startswith(tuple(staying))]
        if not any(name.startswith("fastmtl") for name in names):
            break
        time.sleep(0.02)
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tiles", {"a": 4, "b": 4})


def _closed(folder):
    loader = make_loader(folder.tiles)
    list(loader)
    loader.close()


def _with(folder):
    with make_loader(folder.tiles) as loader:
        list(loader)


def _epochs(folder):
    with make_loader(folder.tiles) as loader:
        for _ in range(3):
            list(loader)


def _left_in_the_middle(folder):
    with make_loader(folder.tiles) as loader:
        next(iter(loader))


def _interrupted(folder):
    with suppress(KeyboardInterrupt), make_loader(folder.tiles) as loader:
        next(iter(loader))
        raise KeyboardInterrupt


def _forgotten(folder):
    next(iter(make_loader(folder.tiles)))


def _never_read(folder):
    make_loader(folder.tiles).close()


USES = [_closed, _with, _epochs, _left_in_the_middle, _interrupted, _forgotten, _never_read]


@pytest.mark.long
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_loaders_leave_nothing_behind(use, folder):
    others = set(threading.enumerate())  # those of earlier tests, too
    use(folder)  # what libraries start once
    before = _open()
    for _ in range(4):
        use(folder)
    threads, descriptors = _open()
    assert threads <= before[0] + 1  # DALI's own ends a little later
    assert descriptors <= before[1]
    assert not any(thread.name.startswith("fastmtl") for thread in set(threading.enumerate()) - others)


def test_a_closed_loader_reads_again(folder):
    loader = make_loader(folder.tiles)
    first = [batch.ids for batch in loader]
    loader.close()
    loader.close()
    loader.set_epoch(0)
    assert [batch.ids for batch in loader] == first
    loader.close()


class _Red(torch.nn.Module):
    def forward(self, batch):
        return {"redness": batch.images[:, :1].mean((2, 3))}


@pytest.mark.long
def test_many_slides_are_predicted_with_the_threads_of_one(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(128, 128))
    out = tmp_path / "out"
    out.mkdir()
    seen = []

    def read(tiles):
        if len(seen) in (5, 29):
            gc.collect()  # slides may stand in cycles
        seen.append(_open(staying=["fastmtl-slide"]))
        return data.TileLoader(tiles.tiles, targets={"none": "none"}, size=32, batch_size=4)

    tasks = [create_task("regression", "redness", 0, mean=0.0, std=1.0)]
    slides = {f"{number}.tiff": path for number in range(30)}
    options = {
        "model": _Red(),
        "tasks": tasks,
        "grid": data.GridOptions(64, min_tissue=0.0),
        "device": torch.device("cpu"),
    }
    assert predict_slides(slides, out, read=read, **options).new == 30
    assert max(threads for threads, _ in seen[5:]) <= seen[5][0] + 2
    assert seen[29][1] <= seen[5][1] + 2


@pytest.mark.parametrize("lacking", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_the_machine_lacks_is_no_damage_of_a_tile(folder, monkeypatch, lacking):
    def fail(*_):
        raise lacking

    monkeypatch.setattr(limited_reads, "_opened", fail)
    with pytest.raises(type(lacking)):
        data.check_tiles(folder.tiles)
    with make_loader(folder.tiles, max_damaged=0.9) as loader, pytest.raises(type(lacking)):
        list(loader)
    assert not loader.quarantine
