"""Slides in object stores: equal to local ones, changed ones, and a store that fails."""

import numpy as np
import pytest
from helpers.remote_slides import forget, same_slide, write_slide

from fastmtl import data
from fastmtl.data.slides.remote import backoff, files
from fastmtl.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")


def test_a_slide_of_an_object_store(store, tmp_path, monkeypatch):
    memory, folder = store
    local = write_slide(tmp_path)
    memory.pipe(f"{folder}/a.tiff", local.read_bytes())
    url = f"memory:/{folder}/a.tiff"
    same_slide(url, local)
    data.index_slide(url)
    with data.open_slide(url) as slide:
        memory.pipe(f"{folder}/a.tiff", write_slide(tmp_path, "b.tiff", seed=1).read_bytes())
        monkeypatch.setattr("fastmtl.data.slides.remote.object_store._CHECKED_EVERY", 0.0)
        with pytest.raises(data.SlideError, match="changed since it was opened"):
            slide.read_region(0, 0, 64, 64)
    same_slide(url, tmp_path / "b.tiff")
    with pytest.raises(data.SlideError, match="No such file on the server"):
        data.open_slide(f"memory:/{folder}/absent.tiff")
    with pytest.raises(data.SlideError, match="scheme that fsspec does not know"):
        data.open_slide("nosuchscheme://bucket/a.svs")


@pytest.mark.parametrize(
    ("said", "how"), [("Install s3fs to access S3", r": pip install 'fastmtl-engine\[remote\]'"), ("x", "")]
)
def test_a_missing_package_of_a_store_is_one_line(said, how, monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def missing(url):
        raise ImportError(said)

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"^s3://bucket/a.svs: {said}{how}$"):
        data.open_slide("s3://bucket/a.svs")


def test_a_file_that_an_object_store_opens_again_is_the_same_or_refused(store):
    """Also within the second in which the store is not asked."""
    memory, folder = store
    memory.pipe(f"{folder}/a.tiff", b"before")
    file = files.transport_of(f"memory:/{folder}/a.tiff")
    known = file.info()
    assert file.read(0, 4, known) == b"befo"
    file._free.get_nowait()  # another thread reads with it
    memory.pipe(f"{folder}/a.tiff", b"behind")
    with pytest.raises(backoff.RemoteFileChanged):
        file.read(0, 4, known)


def test_an_object_store_that_fails_is_asked_again(store, tmp_path, monkeypatch):
    memory, folder = store
    local = write_slide(tmp_path)
    memory.pipe(f"{folder}/a.tiff", local.read_bytes())
    url = f"memory:/{folder}/a.tiff"
    from fsspec.implementations.memory import MemoryFile

    left, read = [2], MemoryFile.read

    def failing(self, size=-1):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("SlowDown")
        return read(self, size // 2 if size > 5000 else size)  # and then half of what was asked for

    with data.open_slide(url) as slide, data.open_slide(local) as truth:
        monkeypatch.setattr(MemoryFile, "read", failing)
        np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64), truth.read_region(0, 0, 64, 64))
        left[0] = 1000
        with pytest.raises(data.DamagedPieceError, match=r"cannot be read: RuntimeError: SlowDown \(6 tries\)"):
            slide.read_region(0, 0, 64, 64)


@pytest.mark.slow
def test_a_slide_in_s3(tmp_path, monkeypatch):
    """Against the server of moto, which answers as S3 does."""
    boto3, _ = pytest.importorskip("boto3"), pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {"URL_S3": endpoint, "URL": endpoint}.items():
            monkeypatch.setenv(f"AWS_ENDPOINT_{name}", value)
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="slides")
        local = write_slide(tmp_path)
        client.upload_file(str(local), "slides", "lab/a.tiff")
        same_slide("s3://slides/lab/a.tiff", local)
        first = data.index_slide("s3://slides/lab/a.tiff")
        forget()
        assert data.index_slide("s3://slides/lab/a.tiff").identity == first.identity
        with data.open_slide("s3://slides/lab/a.tiff") as slide:
            slide.read_region(0, 0, 64, 64)
            client.upload_file(str(write_slide(tmp_path, "b.tiff", seed=1)), "slides", "lab/a.tiff")
            with pytest.raises(data.SlideError, match="changed since it was opened"):  # at once: S3 refuses
                slide.read_region(640, 640, 64, 64)
        same_slide("s3://slides/lab/a.tiff", tmp_path / "b.tiff")
        with pytest.raises(data.SlideError, match="No such file on the server"):
            data.open_slide("s3://slides/lab/absent.tiff")
    finally:
        server.stop()
