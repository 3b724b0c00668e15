"""Slides on servers in manifests, in the loader and in predictions, as local ones."""

import pickle

import numpy as np
import pytest
import torch
from helpers.pixel_model import lines_of, map_of, predict
from helpers.remote_slides import SIZE, forget, write_slide
from helpers.slides import tissue_like, write_tiff
from helpers.tiles import raw_loader

from fastmtl import data
from fastmtl.api.ensembles import Trained
from fastmtl.cli import main
from fastmtl.config import load_recipe
from fastmtl.data.slides.opened import opened
from fastmtl.data.slides.remote import path as remote_path

pytestmark = pytest.mark.usefixtures("quick")


def test_a_manifest_of_urls_reads_as_one_of_files(server, tmp_path):
    """Whole slides, regions and mask slides; written again; loaded by the loader's own reader."""
    write_slide(server.folder)
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


def test_batches_of_a_busy_server_are_those_of_the_local_slide(server):
    path = write_slide(server.folder)
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
