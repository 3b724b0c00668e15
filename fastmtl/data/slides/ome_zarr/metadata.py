"""The image of an OME-Zarr store: its arrays, axes and scales, from JSON. ValueError says what is not read.

Source: ngff.openmicroscopy.org, versions 0.4 (Zarr 2) and 0.5 (Zarr 3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

from ....utils.json_toml import JsonObject, parse_json, read_json
from ....utils.limited_reads import MAX_JSON
from ..remote.path import RemotePath

METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
"""Files that describe a group or an array."""

_VERSIONS = ("0.4", "0.5")
_MAX_LEVELS = 64
_CODECS = frozenset(
    {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed", "zlib", "lz4", "bz2", "lzma"}
)
"""Codecs that only decode; others may be loaded from anywhere, and numcodecs' pickle runs what a file says."""

_SUBJECT = "its OME-Zarr metadata"


class Axis(NamedTuple):
    """A dimension: "t", "c", "z", "y" or "x", and the unit of its scale."""

    name: str
    unit: str


class Array(NamedTuple):
    """A level as stored.

    Attributes:
        path: of the array in the group.
        shape: by axis.
        chunk: likewise; what is read in one piece.
        stored: likewise; a chunk, or a shard of several.
        scale: likewise, in the axes' units.
        shift: likewise, of the first pixel.
    """

    path: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    stored: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def num_stored(self) -> int:
        """How many chunks or shards it has if all are there."""
        return prod(-(-size // part) for size, part in zip(self.shape, self.stored, strict=True))


@dataclass(frozen=True)
class ZarrImage:
    """An image and its resolutions.

    Attributes:
        group: the folder of its arrays.
        axes: in the arrays' order.
        arrays: as the file lists them, finest first.
        num_images: multiscales of the group, of which this is the first.
    """

    group: Path
    axes: tuple[Axis, ...]
    arrays: tuple[Array, ...]
    num_images: int

    def at(self, axis: str) -> int:
        """The dimension that an axis is."""
        return next(number for number, one in enumerate(self.axes) if one.name == axis)


def is_store(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / name).is_file() for name in METADATA[:3])


@lru_cache(2**12)
def described_by(store: RemotePath) -> Path:
    """The file that stands for a store on a server, which has no state itself.

    Raises:
        FileNotFoundError: there is none.
        OSError: the server cannot be asked.
    """
    for name in ("zarr.json", ".zattrs"):
        if (store / name).is_file():
            return store / name
    raise FileNotFoundError(None, "No such store on the server (neither zarr.json nor .zattrs)")


def metadata_files(path: Path) -> Iterator[Path]:
    """The files of a slide that say what is in it: of its groups, and of its arrays as far as they are known."""
    yield from (path / name for name in METADATA)
    try:
        group, words = _image_group(path)
        paths = [str(one["path"]) for one in words["multiscales"][0]["datasets"]]
    except (ValueError, KeyError, TypeError, IndexError, OSError):
        return
    if group != path:
        yield from (group / name for name in METADATA)
    yield from (group / one / name for one in paths[:_MAX_LEVELS] if _is_inside(one) for name in METADATA)


def chunk_files(path: Path) -> list[tuple[str, Path]]:
    """The chunks (or shards) of the finest level of a local slide that are stored: names in the level, and files.

    Raises:
        ValueError: as `read_image`.
    """
    image = read_image(path)
    folder = image.group / image.arrays[0].path
    found = [Path(home, name) for home, _, names in os.walk(folder) for name in names]
    files = [file for file in found if file.name not in METADATA and not file.name.startswith(".")]
    return sorted((str(file.relative_to(folder)), file) for file in files)


def read_image(path: Path) -> ZarrImage:
    """The only image of a store, or of a group in it.

    Raises:
        ValueError: it has none, several, or one of a kind that is not read.
        OSError: it cannot be read.
    """
    try:
        return _read_image(path)
    except (AttributeError, LookupError, OverflowError, TypeError) as error:  # JSON of another shape
        raise ValueError(f"{_SUBJECT} are damaged ({type(error).__name__}); copy the whole store again") from error


def _read_image(path: Path) -> ZarrImage:
    group, words = _image_group(path)
    multiscale = _first(words, "multiscales", dict)
    version = str(words.get("version") or multiscale.get("version"))
    if version not in _VERSIONS:
        raise ValueError(f"is OME-Zarr of version {version[:16]!r}; readable are {' and '.join(_VERSIONS)}")
    axes = tuple(_axis(one) for one in _list(multiscale, "axes", dict))
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names) or not {"c", "y", "x"} <= set(names) <= set("tczyx"):
        raise ValueError(f"has axes {''.join(names)[:16] or 'none'}; an image of axes t, c, z, y, x is read")
    has_scale = bool(multiscale.get("coordinateTransformations"))
    whole = _transform(multiscale, len(axes))[0] if has_scale else (1.0,) * len(axes)
    datasets = _list(multiscale, "datasets", dict)
    if len(datasets) > _MAX_LEVELS:
        raise ValueError(f"has {len(datasets)} levels, which no slide has")
    arrays = tuple(_array(group, one, whole) for one in datasets)
    _check_colours(words)
    image = ZarrImage(group, axes, arrays, len(words["multiscales"]))
    for array in arrays:
        _check_shape(image, array)
    return image


def _image_group(path: Path) -> tuple[Path, JsonObject]:
    """The group of the only image at a path, and its metadata of OME."""
    words = _ome(path)
    if "multiscales" not in words and words.get("bioformats2raw.layout") is not None:
        series = [str(name) for name in _ome(path / "OME").get("series") or ()] if is_store(path / "OME") else ["0"]
        if not series and is_store(path / "1"):
            series = ["0", "1"]
        if len(series) > 1:
            raise ValueError(f"holds {len(series)} images or more; name one, such as {path.name}/{series[0]}")
        path = path / (series[0] if series and _is_inside(series[0]) else "0")
        words = _ome(path)
    if "multiscales" not in words:
        kind = next((name for name in ("plate", "well", "image-label") if name in words), "no image")
        raise ValueError(f"is a Zarr store, but no OME-Zarr image: {_SUBJECT} describe {kind}")
    return path, words


def _ome(group: Path) -> JsonObject:
    """The metadata of a group: of version 0.5 with the key "ome", of earlier ones without; {} if it has none."""
    for name, inside in (("zarr.json", ("attributes", "ome")), (".zattrs", ())):
        if (group / name).is_file():
            found = _json(group / name)
            for key in inside:
                found = found.get(key) or {}
                if not isinstance(found, dict):
                    raise ValueError(f"{_SUBJECT} are damaged: {key} in {name}")
            return found
    return {}


def _json(file: Path) -> JsonObject:
    try:
        if isinstance(file, RemotePath):
            with file.open("rb") as stream:
                found = parse_json(stream.read(MAX_JSON))
        else:
            found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{_SUBJECT} are damaged: {file.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{_SUBJECT} are damaged: {file.name} holds no object")
    return found


def _axis(words: Mapping[str, Any]) -> Axis:
    return Axis(str(words.get("name"))[:16].lower(), str(words.get("unit") or "")[:32])


def _transform(words: Mapping[str, Any], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and translation."""
    found = {str(one.get("type")): one for one in _list(words, "coordinateTransformations", dict)}
    scale = found.get("scale", {}).get("scale")
    if not set(found) <= {"scale", "translation", "identity"} or not _are_numbers(scale, count) or min(scale) <= 0:
        raise ValueError(f"{_SUBJECT} are damaged: a level has no scale of {count} numbers above 0")
    shift = found.get("translation", {}).get("translation", [0.0] * count)
    if not _are_numbers(shift, count):
        raise ValueError(f"{_SUBJECT} are damaged: a translation that is not {count} numbers")
    return tuple(map(float, scale)), tuple(map(float, shift))


def _array(group: Path, dataset: Mapping[str, Any], whole: tuple[float, ...]) -> Array:
    path = str(dataset.get("path"))
    if not _is_inside(path):
        raise ValueError(f"{_SUBJECT} are damaged: a level's path leads out of the store")
    scale, shift = (
        tuple(own * more for own, more in zip(part, whole, strict=True)) for part in _transform(dataset, len(whole))
    )
    folder = group / path
    if (folder / "zarr.json").is_file():
        words = _json(folder / "zarr.json")
        kind, grid = words.get("data_type"), words.get("chunk_grid") or {}
        stored = (grid.get("configuration") or {}).get("chunk_shape") if grid.get("name") == "regular" else None
        chunk, names = _codecs(words.get("codecs"), stored)
    elif (folder / ".zarray").is_file():
        words = _json(folder / ".zarray")
        kind = {"|u1": "uint8", "<u1": "uint8"}.get(str(words.get("dtype")), words.get("dtype"))
        chunk = stored = words.get("chunks")
        filters = [*(words.get("filters") or ()), *([words["compressor"]] if words.get("compressor") else [])]
        names = [str(one.get("id")) if isinstance(one, dict) else "?" for one in filters]
    else:
        raise ValueError(f"lacks its level {path[:64]}; copy the whole store again")
    if kind != "uint8":
        raise ValueError(f"has samples of type {str(kind)[:32]}; scale them to 8-bit unsigned first")
    if other := [name for name in names if name not in _CODECS]:
        raise ValueError(f"is stored with codec {other[0][:32]}; readable are {', '.join(sorted(_CODECS))}")
    shape, count = words.get("shape"), len(whole)
    sizes: list[Any] = [shape, chunk, stored]
    if not all(_are_numbers(one, count, int) and min(one) > 0 for one in sizes):
        raise ValueError(f"{_SUBJECT} are damaged: level {path[:64]} has no shape and chunks of {count} axes")
    return Array(path, tuple(sizes[0]), tuple(sizes[1]), tuple(sizes[2]), scale, shift)


def _codecs(codecs: Any, stored: Any) -> tuple[Any, list[str]]:
    """The shape of what is read in one piece, and the names of all codecs, also inside of shards."""
    chunk, names = stored, list[str]()
    for one in codecs if isinstance(codecs, list) else [None]:
        words = one if isinstance(one, dict) else {}
        names.append(str(words.get("name")))
        own = words.get("configuration") or {}
        if words.get("name") == "sharding_indexed":
            chunk, inner = _codecs(own.get("codecs"), own.get("chunk_shape"))
            names += [*inner, *_codecs(own.get("index_codecs"), None)[1]]
    return chunk, names


def _check_colours(words: Mapping[str, Any]) -> None:
    """Raise ValueError if channels are not declared to be red, green and blue, as of fluorescence."""
    omero = words.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list) or not channels:
        return
    colours = [str(one.get("color", "")).upper() if isinstance(one, dict) else "?" for one in channels]
    if any(colours) and colours != ["FF0000", "00FF00", "0000FF"]:
        raise ValueError(f"has {len(colours)} channels that are not red, green and blue; export it as RGB")


def _check_shape(image: ZarrImage, array: Array) -> None:
    sizes = dict(zip((axis.name for axis in image.axes), array.shape, strict=True))
    if sizes["c"] != 3 or sizes.get("t", 1) != 1 or sizes.get("z", 1) != 1:
        told = ", ".join(f"{name} = {size}" for name, size in sizes.items() if name not in "yx")
        raise ValueError(f"has {told}; only one RGB image is read (c = 3, z = t = 1)")


def _first(words: Mapping[str, Any], name: str, kind: type) -> Any:
    return _list(words, name, kind)[0]


def _list(words: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    found = words.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(one, kind) for one in found):
        raise ValueError(f"{_SUBJECT} are damaged: no list of {name}")
    return found


def _are_numbers(values: Any, count: int, kind: type | tuple[type, ...] = (int, float)) -> bool:
    is_list = isinstance(values, list) and len(values) == count
    return is_list and all(isinstance(one, kind) and not isinstance(one, bool) and isfinite(one) for one in values)


def _is_inside(path: str) -> bool:
    return (
        bool(path)
        and not path.startswith("/")
        and "\\" not in path
        and "\0" not in path
        and ".." not in path.split("/")
    )
