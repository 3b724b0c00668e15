"""The formats of data sets by name: manifests, folders of tiles, published data sets; and how to recognise them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...utils.suggestions import nearest
from ..dataset import Dataset
from ..manifest.class_spellings import spelling_notices
from ..manifest.reading import ManifestOptions, read_manifest
from ..manifest.table_io import TABLE_SUFFIXES
from .published import PUBLISHED
from .tile_folder import is_tile_folder, read_tile_folder

Reader = Callable[[Path, ManifestOptions], Dataset]
_SPREADSHEETS = frozenset({".xlsx", ".xls", ".ods"})
MANIFESTS = ("manifest.csv", "manifest.tsv", "manifest.parquet")


class _Format(NamedTuple):
    read: Reader
    detect: Callable[[Path], bool]


_FORMATS: dict[str, _Format] = {}


def register_format(name: str, *, detect: Callable[[Path], bool]) -> Callable[[Reader], Reader]:
    """Decorator of a function (root, options) -> Dataset: makes it available to recipes as `data.format = name`.

    Args:
        name: distinct.
        detect: whether a path looks like this format, by file names alone. Formats that were registered later are
            asked first.
    """
    if name in _FORMATS or name == "auto":
        raise ValueError(f"data format {name!r} is already registered")

    def decorate(read: Reader) -> Reader:
        _FORMATS[name] = _Format(read, detect)
        return read

    return decorate


def list_formats() -> list[str]:
    """The registered names, sorted."""
    return sorted(_FORMATS)


def detect_format(root: str | Path) -> str | None:
    """The registered format that recognises `root`, as in `read_dataset`; None if there is none."""
    return next((name for name, known in reversed(_FORMATS.items()) if known.detect(Path(root))), None)


def read_dataset(root: str | Path, format: str = "auto", options: ManifestOptions | None = None) -> Dataset:
    """Index a data set of any known format; opens no image.

    Args:
        root: a manifest, a folder with a file called manifest.csv, .tsv or .parquet, or a folder in another format.
        format: a registered name; "auto" detects it.
        options: how to read it; formats other than manifests use only some.

    Raises:
        FileNotFoundError: `root` does not exist or is not recognised; the message says what was expected.
        ValueError: an unknown format, or an error of its reader.
    """
    root, options = Path(root), options or ManifestOptions()
    if format != "auto":
        if format not in _FORMATS:
            raise ValueError(f"unknown data format {format!r}; {nearest(format, ['auto', *_FORMATS])}")
        return _read(format, root, options)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; give a manifest, or the folder that holds the data")
    if (found := detect_format(root)) is not None:
        return _read(found, root, options)
    if root.is_file():
        cure = "; save the sheet as CSV UTF-8" if root.suffix.lower() in _SPREADSHEETS else ""
        raise ValueError(f"{root} is no manifest: expected an ending of {', '.join(sorted(TABLE_SUFFIXES))}{cure}")
    if sheet := next((path for path in sorted(root.glob("manifest.*")) if path.suffix.lower() in _SPREADSHEETS), None):
        raise ValueError(f"{sheet} is a spreadsheet, which is not read; save the sheet as CSV UTF-8")
    try:
        return _read("tile_folder", root, options)  # its error describes the layout of a folder of tiles
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or a manifest (write one with: fastmtl prepare {root})") from None


def _read(format: str, root: Path, options: ManifestOptions) -> Dataset:
    dataset = _FORMATS[format].read(root, options)
    return replace(
        dataset,
        problems=(*dataset.problems, *spelling_notices(dataset)),
        patients_from=dataset.patients_from or f"the layout of {format}",
    )


def _manifest_at(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in TABLE_SUFFIXES else None
    return next((root / name for name in MANIFESTS if (root / name).is_file()), None)


@register_format("tile_folder", detect=is_tile_folder)
def _tile_folder(root: Path, options: ManifestOptions) -> Dataset:
    return read_tile_folder(root, (options.classes or {}).get("label"), options.patient)


@register_format("manifest", detect=lambda root: _manifest_at(root) is not None)
def _manifest(root: Path, options: ManifestOptions) -> Dataset:
    found = _manifest_at(root)
    if found is None:
        raise FileNotFoundError(f"{root} is no manifest and holds none: expected {', '.join(MANIFESTS)}")
    return read_manifest(found, options)


def _register_published() -> None:
    for name, each in PUBLISHED.items():
        register_format(name, detect=each.looks_like)(lambda root, _options, read=each.read: read(root))


_register_published()
