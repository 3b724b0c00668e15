"""The commands of docs/slides.md on slides of five formats: prepared, trained, stopped and continued, predicted by two
ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ndpi_slides import write_ndpi
from helpers.pages import blocks
from helpers.slides import halved, tissue_like, write_jpeg_with_tables
from helpers.tiles import write_image
from helpers.vendor_slides import quartered

from fastmtl import data
from fastmtl.cli import main
from fastmtl.training import checkpoint
from fastmtl.training.trainer import Trainer

pytest.importorskip("pydicom")
pytest.importorskip("zarr")

from helpers.dicom_slides import write_dicom
from helpers.zarr_slides import write_zarr

_PAGE = [block for block in blocks() if block.page == "slides.md"]
COMMANDS = next(block for block in _PAGE if "fastmtl prepare" in block.text).commands
RECIPE = next(block.text for block in _PAGE if block.language == "toml")
SMALL = ["--epochs", "2", "--size", "32", "--batch-size", "4", "--precision", "float32"]
SMALL += ["--set", "model.base_channels=2", "data.tile_size=64", "data.mpp=1.0", "data.min_tissue=0.0"]
_APERIO = "Aperio Image Library\n256x192 (64x64) JPEG/RGB|AppMag = 20|MPP = 0.5"


def aperio(folder, name, pixels):
    tags = [(270, 2, len(_APERIO) + 1, _APERIO, True)]
    return write_jpeg_with_tables(folder / f"{name}.svs", pixels, "rgb", tags=tags)


def ome_tiff(folder, name, pixels):
    import tifffile

    tiled = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate"}
    scale = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(folder / f"{name}.ome.tif", ome=True) as file:
        file.write(pixels, subifds=1, metadata={"axes": "YXS", **scale}, **tiled)
        file.write(halved(pixels), subfiletype=1, **tiled)


WRITERS = {
    "SVS": aperio,
    "NDPI": lambda folder, name, pixels: write_ndpi(folder / f"{name}.ndpi", [pixels, quartered(pixels)], pixels[:64]),
    "OME-TIFF": ome_tiff,
    "DICOM": lambda folder, name, pixels: write_dicom(folder / name, pixels),
    "OME-Zarr": lambda folder, name, pixels: write_zarr(folder / f"{name}.zarr", pixels),
}


@pytest.fixture
def slides(tmp_path, monkeypatch) -> Path:
    """Two slides of each format, each of a patient, with masks beside them."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "SLIDES"
    folder.mkdir()
    for number, write in enumerate(WRITERS.values()):
        for copy in "ab":
            name = f"P{number}{copy}"
            pixels = tissue_like(256, 192, seed=10 * number + ord(copy))
            write(folder, name, pixels)
            ends = ".ome" if write is ome_tiff else ""
            write_image(folder / f"{name}{ends}_mask.png", np.where(pixels[..., 0] > 170, 255, 0).astype(np.uint8))
    (tmp_path / "my_recipe.toml").write_text(RECIPE)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / "last")["model"]


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def on_ranks(words: list[str], ranks: int) -> list[str]:
    """Start the command as torchrun does; what each rank wrote to its standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words[words.index("-m") :]]
    started = [
        subprocess.Popen(
            command, env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=-1, text=True
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=500)[1] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, errors
    return errors


@pytest.mark.slow
def test_five_formats_are_prepared_trained_stopped_continued_and_predicted(slides, tmp_path, monkeypatch, capsys):
    prepare, train, predict = COMMANDS
    assert main(prepare[1:]) == 0
    dataset = data.read_manifest(slides / "manifest.csv")
    assert len({tile.image.slide for tile in dataset.tiles}) == 10
    assert all(tile.mask is not None for tile in dataset.tiles)
    assert main(["data", "check", "SLIDES", "--set", "data.tile_size=64", "data.mpp=1.0"]) == 0
    report = capsys.readouterr().out
    assert "10 slides" in report

    step, steps = Trainer.step, []

    def stopping(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        assert main([*train[1:], *SMALL]) == 75
    assert main([*train[1:], *SMALL]) == 0  # the same command continues
    assert main([*train[1:-1], "whole", *SMALL]) == 0
    whole = weights(tmp_path / "whole")
    assert whole.keys() == weights(tmp_path / train[-1]).keys()
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / train[-1]).items())

    errors = on_ranks(predict, 2)
    out = tmp_path / predict[-1]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10, errors
    assert {line["mpp"] for line in lines} == {1.0}
    on_ranks([*predict[:-1], "alone"], 1)
    alone = files(tmp_path / "alone")
    assert files(out) == alone
    assert sum(name.endswith(".geojson") for name in alone) == 10
