"""Small data sets that are checked, and what `fastmtl data check` says of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from fastmtl import data
from fastmtl.cli import data_page, main
from fastmtl.data import read_manifest
from helpers.tiles import random_pixels, write_image

SIDE = 64


def write_rows(folder: Path, head: str, rows: list[str], name: str = "manifest.csv") -> Path:
    (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder / name


def masked_folder(folder: Path, masks: list[np.ndarray], patients: list[str] | None = None) -> data.Dataset:
    """A manifest of images with these masks, by default two images a patient."""
    rows = []
    for number, mask in enumerate(masks):
        write_image(folder / f"{number}.png", random_pixels(number, SIDE))
        write_image(folder / f"{number}_m.png", mask)
        rows.append(f"{number}.png,{number}_m.png,{patients[number] if patients else f'P{number // 2}'}")
    return read_manifest(write_rows(folder, "image,mask,patient", rows))


def mask_of(value: int, rows: int, rest: int = 0) -> np.ndarray:
    mask = np.full((SIDE, SIDE), rest, np.uint8)
    mask[:rows] = value
    return mask


def reasons_of(found: dict) -> str:
    return "\n".join(notice["reason"] for notice in found["notices"])


def page_of(found: dict) -> str:
    from rich.console import Console

    out = io.StringIO()
    data_page.show(found, Console(file=out, width=140, highlight=False, markup=False))
    return out.getvalue()


TILING = ["--set", "data.tile_size=64", "--set", "data.min_tissue=0"]


def checked(folder: Path, capsys, *options: str) -> tuple[dict, int]:
    code = main(["data", "check", str(folder), "--json", *TILING, *options])
    return json.loads(capsys.readouterr().out), code
