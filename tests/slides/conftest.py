"""Servers of slides for the tests of this folder."""

import uuid

import pytest
from helpers.range_server import serving

from fastmtl.data.slides.opened import forget_opened
from fastmtl.data.slides.remote import backoff, files


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """No pauses, no memory of other tests, and the user's cache out of reach; gives the pauses that were asked for."""
    pauses = []
    monkeypatch.setattr(backoff.time, "sleep", pauses.append)
    monkeypatch.setattr(files, "_infos", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield pauses
    forget_opened()


@pytest.fixture
def server(tmp_path, quick):
    pytest.importorskip("requests")
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as found:
        yield found


@pytest.fixture
def store(quick):
    """fsspec's file system in memory, and a folder in it."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    folder = f"/{uuid.uuid4().hex}"
    yield memory, folder
    memory.rm(folder, recursive=True)
