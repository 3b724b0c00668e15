"""The index of a slide, stored in a file beside it: an indexed slide opens in 1 ms; it is scanned again if it changed.

The file is safetensors: numbers and JSON, no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.atomic_io import replacing
from ...utils.json_toml import parse_json
from ...utils.optional_imports import require
from ..sizes import MAX_PIXELS
from . import jpeg
from .codecs import TIFF_CODECS
from .errors import SlideError
from .identity import Identity, identify
from .image_file import SIGNATURES
from .joined_files import FilePart
from .orientation import CODES
from .raster import Encoding, Layout, Level, Placement, Raster, levels_of
from .remote.path import RemotePath
from .tissue_mask import TissueMask

VERSION = 4  # an index of another version is ignored
FOLDER = ".fastmtl"
"""The folder of indexes, in the folder of the slides."""

_PLAIN = ("reader", "vendor", "mpp", "mpp_source", "why_no_mpp", "magnification", "bounds", "damage", "problems")
_folder: Path | None = None


def use_index_folder(folder: str | Path | None) -> None:
    """Set this process's default folder of indexes, for slides in read-only folders. None: beside each slide.

    Raises:
        NotADirectoryError: it is a file.
    """
    global _folder
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise NotADirectoryError(f"the index folder {folder} is a file; name a folder, which may be new.")
    _folder = None if folder is None else Path(folder)


@dataclass(frozen=True, eq=False)
class SlideIndex:
    """A slide, scanned.

    Attributes:
        identity: of the file that was scanned.
        layout: levels, positions and encoding of their tiles, scale, problems.
        tissue: the tissue mask; None if it has not been computed yet.
    """

    identity: Identity
    layout: Layout
    tissue: TissueMask | None = None


def load_index(path: Path, index_folder: str | Path | None = None) -> SlideIndex | None:
    """The stored index of a slide; None if there is none, it has another version or the slide changed since.

    Raises:
        SlideError: the slide cannot be read.
    """
    identity = identify(path)
    stored = index_path(path, identity, index_folder)
    if not stored.is_file():
        return None
    tensors = require("safetensors", "reading slide indexes")
    try:
        with tensors.safe_open(stored, framework="numpy") as file:
            words = parse_json(file.metadata()["index"])
            if words["version"] != VERSION or words["identity"] != asdict(identity):
                return None
            return _unpack(identity, words, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (tensors.SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError, OSError):
        return None  # half written or damaged: ignored


def index_path(path: Path, identity: Identity, folder: str | Path | None = None) -> Path:
    """The path of a slide's index, which may not exist; other cached data of the slide are stored beside it."""
    folder = folder if folder is not None else _folder
    if folder is None and isinstance(path, RemotePath):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmtl" / "slides"
    if folder is None:
        return path.parent / FOLDER / f"{path.name}.safetensors"
    # Slides of several folders may have the same name.
    return Path(folder) / f"{path.name}-{identity.digest[:12]}.safetensors"


def save_index(index: SlideIndex, path: Path, index_folder: str | Path | None = None) -> None:
    """Write what `load_index` reads; SlideError if that fails."""
    stored = index_path(path, index.identity, index_folder)
    words, arrays = _pack(index)
    data = require("safetensors.numpy", "writing slide indexes").save(arrays, {"index": json.dumps(words)})
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        with replacing(stored) as partial:
            partial.write_bytes(data)
    except OSError as error:
        reason = f"its index cannot be written to {stored.parent}: {error.strerror}; pass index_folder"
        raise SlideError(path, reason) from error


def _pack(index: SlideIndex) -> tuple[dict[str, Any], dict[str, NDArray]]:
    layout, arrays = index.layout, {}
    rasters = {f"level {number}": raster for number, raster in enumerate(layout.rasters)}
    rasters |= {f"beside {name}": raster for name, raster in layout.associated.items()}
    for name, raster in rasters.items():
        arrays[f"{name} offsets"], arrays[f"{name} counts"] = raster.offsets, raster.counts
    if index.tissue:
        arrays["tissue"] = index.tissue.bits
    words = {
        "version": VERSION,
        "identity": asdict(index.identity),
        "layout": {name: getattr(layout, name) for name in _PLAIN},
        "levels": [asdict(level) for level in layout.levels],
        "files": layout.files,
        "tissue": index.tissue and index.tissue.shape,
        "rasters": {name: _raster_words(raster) for name, raster in rasters.items()},
    }
    return words, {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _raster_words(raster: Raster) -> dict[str, Any]:
    encoding = asdict(raster.encoding)
    encoding |= {name: encoding[name].hex() for name in ("tables", "palette")}
    size = {name: getattr(raster, name) for name in ("width", "height", "tile_width", "tile_height")}
    return {**size, "encoding": encoding, "placement": raster.placement and asdict(raster.placement)}


def _unpack(identity: Identity, words: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> SlideIndex:
    rasters = {name: _raster(name, found, arrays) for name, found in words["rasters"].items()}
    plain = {name: words["layout"][name] for name in _PLAIN}
    plain |= {name: tuple(plain[name]) for name in ("mpp", "bounds", "problems") if plain[name] is not None}
    layout = Layout(
        **plain,
        levels=tuple(Level(**level) for level in words["levels"]),
        rasters=tuple(raster for name, raster in rasters.items() if name.startswith("level ")),
        associated={name[7:]: raster for name, raster in rasters.items() if name.startswith("beside ")},
        files=tuple(FilePart(*part) for part in words["files"]),
    )
    _check(layout)
    first, shape = layout.levels[0], words["tissue"]
    tissue = TissueMask(arrays["tissue"], (shape[0], shape[1]), first.width, first.height) if shape else None
    if tissue and (tissue.bits.dtype != np.uint8 or tissue.bits.size != -(-shape[0] * shape[1] // 8)):
        raise ValueError("a tissue mask of another size")
    return SlideIndex(identity, layout, tissue)


def _check(layout: Layout) -> None:
    """Raise ValueError for a layout that no scan produces: the file may come from anywhere."""
    numbers = [*layout.bounds, *(layout.mpp or ()), *(() if layout.magnification is None else (layout.magnification,))]
    texts = (layout.vendor, layout.mpp_source, layout.why_no_mpp, layout.damage, *layout.problems)
    sizes = [(level.width, level.height, level.tile_width, level.tile_height) for level in layout.levels]
    rasters = (*layout.rasters, *layout.associated.values())
    sizes += [(raster.width, raster.height, raster.tile_width, raster.tile_height) for raster in rasters]
    if not all(type(side) is int and side > 0 for size in sizes for side in size):
        raise ValueError("sizes that are not positive integers")
    if not all(_is_plausible(raster.placement) for raster in rasters if raster.placement):
        raise ValueError("images that lie nowhere")
    for raster in rasters:
        _check_tables(raster)
        if raster.tile_width * raster.tile_height > MAX_PIXELS or not _is_known(raster.encoding):
            raise ValueError("tiles that cannot be read")
        needed = raster.rows * raster.columns * raster.encoding.planes
        for places in (raster.offsets, raster.counts):
            if places.dtype != np.int64 or places.shape != (needed,) or places.min() < 0:
                raise ValueError("a list of tiles of another length")
    if not all(isinstance(one, int | float) and isfinite(one) for one in numbers) or len(layout.bounds) != 4:
        raise ValueError("bounds or a scale that are not finite numbers")
    if not all(isinstance(text, str) for text in texts) or (layout.mpp and len(layout.mpp) != 2):
        raise ValueError("names that are not text, or a scale that is not a pair")
    for name, size, modified in layout.files:
        if Path(name).name != name or not all(type(number) is int for number in (size, modified)):
            raise ValueError("files that are not in the slide's folder")
    is_native = layout.reader == "native" and layout.levels == levels_of(layout.rasters)
    is_foreign = layout.reader in ("openslide", "zarr") and layout.levels and not rasters and not layout.files
    if not is_native and not is_foreign:
        raise ValueError("levels that are not those of its images")


def _check_tables(raster: Raster) -> None:
    """Raise ValueError for a damaged part of a JPEG stream."""
    tables, scale = raster.encoding.tables, raster.encoding.scale
    if raster.encoding.codec != "jpeg part":
        jpeg.tables_end_blocks_with_zeros(tables)
    elif jpeg.read_header(tables, len(jpeg.SOI))[:2] != (raster.tile_width * scale, raster.tile_height * scale):
        raise ValueError("the header of tiles of another size")
    elif not jpeg.stacks_exactly(tables):
        raise ValueError("rows of blocks that depend on each other")


def _is_plausible(place: Placement) -> bool:
    whole = (place.left, place.top, place.width, place.height)
    scale = isinstance(place.downsample, float) and isfinite(place.downsample) and place.downsample >= 0
    return all(type(number) is int for number in whole) and min(whole[2:]) > 0 and scale


def _is_known(encoding: Encoding) -> bool:
    """Whether the encoding is one that `codecs.decode` knows."""
    return (
        encoding.codec in {*TIFF_CODECS.values(), *SIGNATURES.values(), "jpeg part"}
        and encoding.colour in ("rgb", "ycbcr", "grey", "inverted", "palette")
        and encoding.samples in range(1, 5)
        and encoding.planes in (1, encoding.samples)
        and encoding.alpha in ("", "straight", "premultiplied")
        and isinstance(encoding.predictor, bool)
        and isinstance(encoding.items, bool)
        and encoding.orientation in CODES
        and (encoding.scale == 1 or (encoding.scale in (2, 4, 8) and encoding.codec in ("jpeg part", "plain jpeg")))
        and (encoding.colour != "palette" or len(encoding.palette) == 3 * 256)
    )


def _raster(name: str, words: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> Raster:
    encoding = dict(words["encoding"])
    encoding |= {name: bytes.fromhex(encoding[name]) for name in ("tables", "palette")}
    size = {name: words[name] for name in ("width", "height", "tile_width", "tile_height")}
    placement = Placement(**words["placement"]) if words["placement"] else None
    offsets, counts = arrays[f"{name} offsets"], arrays[f"{name} counts"]
    return Raster(**size, encoding=Encoding(**encoding), offsets=offsets, counts=counts, placement=placement)
