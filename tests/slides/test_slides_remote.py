"""Slides on servers: read by ranges, equal to local ones, and a server that fails, throttles or changes the file."""

import os
import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pixel_model import lines_of, map_of, predict
from helpers.range_server import serving
from helpers.slides import patch_tile, tissue_like, write_tiff
from helpers.tiles import raw_loader
from PIL import Image

from fastmtl import data
from fastmtl.api.ensembles import Trained
from fastmtl.cli import main
from fastmtl.config import load_recipe
from fastmtl.data.slides.opened import forget_opened, opened
from fastmtl.data.slides.remote import backoff, files
from fastmtl.data.slides.remote import path as remote_path

SIZE = (1300, 900)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No pauses, no memory of other tests, and the user's cache out of reach."""
    pauses = []
    monkeypatch.setattr(backoff.time, "sleep", pauses.append)
    monkeypatch.setattr(files, "_infos", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield pauses
    forget_opened()


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("requests")
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as found:
        yield found


def write(folder, name="a.tiff", seed=0, **options):
    return write_tiff(folder / name, tissue_like(*SIZE, seed), levels=3, **{"compression": "jpeg", **options})


def forget():
    """As another process, or a minute later."""
    files._infos.clear()
    forget_opened()


def same_slide(remote, local):
    with data.open_slide(remote) as slide, data.open_slide(local) as truth:
        assert (slide.levels, slide.mpp, slide.problems) == (truth.levels, truth.mpp, truth.problems)
        for level, (x, y) in enumerate([(1100, 700), (100, 0), (-20, 300)]):
            here, there = (one.read_region(x, y, 333, 222, level) for one in (truth, slide))
            np.testing.assert_array_equal(there, here)
        pieces = [one.encoded_tiles(data.Region(one.path, 500, 400, 300, 300)) for one in (truth, slide)]
        assert len(pieces[0]) == len(pieces[1]) > 9
        for one, other in zip(*pieces, strict=True):
            np.testing.assert_array_equal(one.data, other.data)


def test_a_slide_of_a_web_server_equals_the_local_one_and_little_of_it_is_read(server):
    local = write(server.folder, tile=128)
    same_slide(server.url("a.tiff"), local)
    big = server.folder / "big.tiff"
    write_tiff(big, np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), np.uint8), tile=256)
    server.requests.clear()
    with data.open_slide(server.url("big.tiff")) as slide:
        slide.read_region(1000, 1000, 100, 100)
    assert sum(last - first for first, last in server.requests) < big.stat().st_size / 10


def test_the_index_is_local_and_opens_the_slide_with_one_request(server, tmp_path):
    write(server.folder)
    first = data.index_slide(server.url("a.tiff"))
    assert len(list((tmp_path / "cache" / "fastmtl" / "slides").iterdir())) == 1
    forget()
    server.requests.clear()
    with data.open_slide(server.url("a.tiff")) as slide:
        assert slide.tissue.bits.tobytes() == first.tissue.bits.tobytes()
        assert len(server.requests) == 1
    forget()
    write(server.folder, seed=1, tile=32)
    with data.open_slide(server.url("a.tiff")) as slide:
        assert slide.levels[0].tile_width == 32


def test_a_busy_server_and_broken_connections_delay_a_read_and_change_nothing(server, quick):
    local = write(server.folder)
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
    write(server.folder)
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
    path = write(server.folder, compression=None) if tags else write(server.folder)
    with data.open_slide(server.url("a.tiff")) as slide:
        slide.read_region(0, 0, 64, 64)
        write(server.folder, seed=1) if not tags else path.write_bytes(path.read_bytes()[:-1] + b"x")
        os.utime(path, ns=(0, 7))
        with pytest.raises(data.SlideError, match="changed since it was opened; open it again"):
            slide.read_region(640, 640, 64, 64)
    with data.open_slide(server.url("a.tiff")) as slide:  # at once: the old answer was forgotten
        slide.read_region(640, 640, 64, 64)


def test_a_shrunken_slide_is_not_read_any_further(server):
    path = write(server.folder, compression=None)
    with data.open_slide(server.url("a.tiff")) as slide:
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(data.SlideError, match="changed since it was opened"):
            slide.read_region(640, 640, 64, 64)


def test_what_cannot_be_read_is_refused_with_the_reason(server, tmp_path):
    write(server.folder)
    with pytest.raises(data.SlideError, match="No such file on the server"):
        data.open_slide(server.url("absent.tiff"))
    (server.folder / "words.mrxs").write_text("no slide of ours")
    with pytest.raises(data.SlideError, match="only OpenSlide reads, from local files alone; copy it"):
        data.open_slide(server.url("words.mrxs"))
    (server.folder / "empty.svs").write_bytes(b"")
    with pytest.raises(data.SlideError, match="the file is empty"):
        data.open_slide(server.url("empty.svs"))
    server.failures[:] = [403]
    forget()
    with pytest.raises(data.SlideError, match=r"403 .*netrc"):
        data.open_slide(server.url("a.tiff"))
    server.ranges = False
    forget()
    with pytest.raises(data.SlideError, match="whole files instead of ranges of bytes; copy the slide"):
        data.open_slide(server.url("a.tiff"))
    with pytest.raises(data.SlideError, match=r"cannot be reached.*6 tries"):
        data.open_slide("http://127.0.0.1:9/a.svs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file:///a.svs", "without file:"),
        ("s3://bucket//a.svs", "empty part"),
        ("s3://bucket/../a.svs", "empty part, '.' or '..'"),
        ("local://a.svs", "without local:"),
        ("https://me:secret@host/a.svs", "~/.netrc"),
        ("https://me:secret@host//a.svs", "~/.netrc"),
        (Path("HTTPS://me:secret@host/a.svs"), "~/.netrc"),
        ("https://host/a#b.svs", "%23"),
    ],
)
def test_addresses_that_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason) as found:
        data.open_slide(text)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    "address", ["ftp://me:secret@host/a", f"http://me:secret@{'a' * 70}.\u00fc./a", "http://:99999/"]
)
def test_a_redirection_to_no_web_server_is_refused_without_its_address(server, address):
    write(server.folder)
    server.failures[:] = [address.encode().decode("latin-1")] * 6
    with pytest.raises(data.SlideError, match="is not a valid address, or redirects to none") as found:
        data.open_slide(server.url("a.tiff"))
    assert "secret" not in str(found.value)


def test_slides_whose_results_would_have_one_name_are_refused(tmp_path):
    rows = ["slide", "http://host:80/a.svs", "http://host:80/a.svs", "http/host-80/a.svs"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"line 4.* and http://host:80/a\.svs would have the same name"):
        data.find_slides(tmp_path / "rows.csv")


def test_damage_is_found_as_in_a_local_slide(server):
    local = write(server.folder, compression="deflate")
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


def test_a_manifest_of_urls_reads_as_one_of_files(server, tmp_path):
    """Whole slides, regions and mask slides; written again; loaded by the loader's own reader."""
    write(server.folder)
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:, 600:] = 255
    write_tiff(server.folder / "mask.tiff", mask, compression="deflate")
    table = tmp_path / "manifest.csv"
    url, drawn = server.url("a.tiff"), server.url("mask.tiff")
    table.write_text(f"slide,mask,patient,mpp\n{url},{drawn},P1,0.5\n")
    options = data.ManifestOptions(grid=data.GridOptions(256, min_tissue=0.0))
    found = data.read_manifest(table, options)
    assert {str(tile.image.slide) for tile in found.tiles} == {url}
    assert found.slide_mpp == {found.tiles[0].image.slide: 0.5}
    assert data.check_tiles(found.tiles) == []
    data.write_manifest(found, tmp_path / "again.csv")
    again = data.read_manifest(tmp_path / "again.csv")
    assert [tile.image for tile in again.tiles] == [tile.image for tile in found.tiles]
    assert [tile.mask for tile in again.tiles] == [tile.mask for tile in found.tiles]
    near = pickle.loads(pickle.dumps(found.tiles[-1]))
    np.testing.assert_array_equal(
        data.open_picture(near.image),
        opened(server.folder / "a.tiff").read_region(near.image.x, near.image.y, 256, 256),
    )
    listed = data.find_slides(table)
    assert list(listed.slides) == [f"http/{server.address[7:].replace(':', '-')}/a.tiff"]
    assert str(next(iter(listed.slides.values()))) == url
    (alone,) = data.find_slides(remote_path.Path(url)).slides.items()
    assert (alone[0], str(alone[1])) == ("a.tiff", url)


def test_only_slides_of_a_manifest_may_be_on_a_server(server, tmp_path):
    table = tmp_path / "manifest.csv"
    table.write_text(f"image,label\n{server.url('a.png')},x\n")
    with pytest.raises(ValueError, match=r"line 2: http.* is on a server, from which only slides are read; copy it"):
        data.read_manifest(table)


def test_an_absent_slide_of_a_server_is_one_damaged_row(server, tmp_path):
    write(server.folder)
    table = tmp_path / "manifest.csv"
    table.write_text(f"slide,patient\n{server.url('a.tiff')},P1\n{server.url('b.tiff')},P2\n")
    found = data.read_manifest(table, data.ManifestOptions(grid=data.GridOptions(256, min_tissue=0.0)))
    problems = data.check_tiles(found.tiles)
    assert [str(problem.path) for problem in problems] == [server.url("b.tiff")]
    assert "does not exist" in problems[0].reason


def test_batches_of_a_busy_server_are_those_of_the_local_slide(server):
    path = write(server.folder)
    regions = [data.Region(remote_path.slide_path(server.url("a.tiff")), x, 50, 64, 64) for x in range(0, 1280, 64)]
    tiles = [data.Tile(f"{number:03d}", region, None, 0, "P") for number, region in enumerate(regions)]
    with data.open_slide(path) as slide:
        expected = {tile.id: slide.read_region(tile.image.x, tile.image.y, 64, 64) for tile in tiles}
    loader = raw_loader(
        tiles, targets={"classification": "label"}, size=64, augmentation=data.Augmentation.none(), shuffle=False
    )
    server.failures[:] = [503, "cut"] * 2  # fewer than tries: one read may meet all of them
    seen = 0
    for batch in loader:
        for name, image in zip(batch.ids, batch.images, strict=True):
            assert np.abs(image.permute(1, 2, 0).numpy() - expected[name]).max() <= 2
            seen += 1
    assert (seen, server.failures, loader.quarantine) == (len(tiles), [], [])


def test_predictions_of_urls_are_those_of_the_files(server, tmp_path):
    write_tiff(server.folder / "a.tiff", tissue_like(200, 150), compression="deflate")
    for name, cell in {"local": server.folder / "a.tiff", "remote": server.url("a.tiff")}.items():
        (tmp_path / f"{name}.csv").write_text(f"slide\n{cell}\n")
        found = data.find_slides(tmp_path / f"{name}.csv")
        assert predict(found.slides, tmp_path / name).new == 1
        assert predict(found.slides, tmp_path / name).there == 1
    (line,), (told,) = (lines_of(tmp_path / name / "predictions.jsonl") for name in ("local", "remote"))
    assert told["slide"] == f"http/{server.address[7:].replace(':', '-')}/a.tiff"
    assert told["gland"]["foreground"] == line["gland"]["foreground"] > 0
    masks = [map_of(tmp_path / name / one["gland"]["mask"]) for name, one in {"local": line, "remote": told}.items()]
    np.testing.assert_array_equal(*masks)
    server.failures[:] = ["cut"] * 1000
    forget()
    (server.folder / "a.tiff").touch()
    assert predict(found.slides, tmp_path / "remote").unreadable == 1
    (entry,) = lines_of(tmp_path / "remote" / "quarantine.jsonl")
    assert entry["file"] == server.url("a.tiff")


def test_the_input_of_predict_may_have_any_scheme(tmp_path, monkeypatch, capsys):
    pytest.importorskip("fsspec")
    model, cpu = torch.nn.Identity(), torch.device("cpu")
    trained = Trained(load_recipe("demo"), {}, "best", (), model, cpu, None, None, ())
    monkeypatch.setattr("fastmtl.api.runs.load", lambda *_: trained)
    assert main(["predict", "run", "nosuchscheme://bucket/a.svs", "--out", str(tmp_path / "out")]) == 1
    assert "a.svs: set aside: cannot be opened: has a scheme that fsspec does not know" in capsys.readouterr().err


@pytest.fixture
def store():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    folder = f"/{uuid.uuid4().hex}"
    yield memory, folder
    memory.rm(folder, recursive=True)


def test_a_slide_of_an_object_store(store, tmp_path, monkeypatch):
    memory, folder = store
    local = write(tmp_path)
    memory.pipe(f"{folder}/a.tiff", local.read_bytes())
    url = f"memory:/{folder}/a.tiff"
    same_slide(url, local)
    data.index_slide(url)
    with data.open_slide(url) as slide:
        memory.pipe(f"{folder}/a.tiff", write(tmp_path, "b.tiff", seed=1).read_bytes())
        monkeypatch.setattr("fastmtl.data.slides.remote.object_store._CHECKED_EVERY", 0.0)
        with pytest.raises(data.SlideError, match="changed since it was opened"):
            slide.read_region(0, 0, 64, 64)
    same_slide(url, tmp_path / "b.tiff")
    with pytest.raises(data.SlideError, match="No such file on the server"):
        data.open_slide(f"memory:/{folder}/absent.tiff")
    with pytest.raises(data.SlideError, match="scheme that fsspec does not know"):
        data.open_slide("nosuchscheme://bucket/a.svs")


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
    local = write(tmp_path)
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
        local = write(tmp_path)
        client.upload_file(str(local), "slides", "lab/a.tiff")
        same_slide("s3://slides/lab/a.tiff", local)
        first = data.index_slide("s3://slides/lab/a.tiff")
        forget()
        assert data.index_slide("s3://slides/lab/a.tiff").identity == first.identity
        with data.open_slide("s3://slides/lab/a.tiff") as slide:
            slide.read_region(0, 0, 64, 64)
            client.upload_file(str(write(tmp_path, "b.tiff", seed=1)), "slides", "lab/a.tiff")
            with pytest.raises(data.SlideError, match="changed since it was opened"):  # at once: S3 refuses
                slide.read_region(640, 640, 64, 64)
        same_slide("s3://slides/lab/a.tiff", tmp_path / "b.tiff")
        with pytest.raises(data.SlideError, match="No such file on the server"):
            data.open_slide("s3://slides/lab/absent.tiff")
    finally:
        server.stop()
