"""OME-Zarr stores that the slide tests write, with the zarr library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from helpers.slides import halved


def write_zarr(
    path: Path,
    pixels: np.ndarray,
    *,
    version: str = "0.5",
    levels: int = 2,
    axes: str = "tczyx",
    chunk: int = 64,
    shard: int = 0,
    mpp: float = 0.5,
    unit: str | None = "micrometer",
    images: Sequence[np.ndarray] = (),
    scales: Sequence[float] = (),
    words: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A store of one image.

    Args:
        path: of the folder.
        pixels: RGB uint8 [h, w, 3] of level 0.
        version: "0.4" is Zarr 2, "0.5" Zarr 3.
        levels: each a half of the one before; or those of `images`.
        axes: of the arrays.
        chunk: pixels a side.
        shard: chunks of a shard a side; 0 for none.
        mpp: micrometres per pixel.
        unit: of the scale, written as it is.
        images: the levels, if they are others than halves; `scales` are theirs, level 0's is 1.
        words: further metadata, beside the multiscales.
        options: of `zarr.create_array`.
    """
    images = images or [pixels, *(pixels := halved(pixels) for _ in range(levels - 1))]
    scales = scales or [2.0**level for level in range(len(images))]
    format = 2 if version == "0.4" else 3
    for level, image in enumerate(images):
        order = [at for name, at in (("c", 2), ("y", 0), ("x", 1))]
        values = image.transpose(order)
        shape, sizes = [], []
        for name in axes:
            size = dict(zip("cyx", values.shape, strict=True)).get(name, 1)
            shape.append(size)
            sizes.append(chunk if name in "yx" else size)
        shards = {"shards": [size * shard if name in "yx" else size for name, size in zip(axes, sizes, strict=True)]}
        keys = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if format == 2 else {}
        array = zarr.create_array(
            str(path / str(level)),
            shape=shape,
            chunks=sizes,
            dtype="u1",
            zarr_format=format,
            **{**keys, **(shards if shard else {}), **options},
        )
        array[:] = values.reshape(shape)
    kinds = {"t": "time", "c": "channel"}
    multiscale = {
        "axes": [
            {"name": name, "type": kinds.get(name, "space"), **({"unit": unit} if name in "zyx" and unit else {})}
            for name in axes
        ],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [mpp * scale if name in "yx" else 1.0 for name in axes]}
                ],
            }
            for level, scale in enumerate(scales)
        ],
    }
    found = {"version": version, "multiscales": [multiscale], **(words or {})}
    if format == 2:
        multiscale["version"] = found.pop("version")
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(found))
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": found}}
        (path / "zarr.json").write_text(json.dumps(group))
    return path


def change_metadata(path: Path, change: Any) -> None:
    """Change the metadata of OME in place."""
    file = path / ("zarr.json" if (path / "zarr.json").exists() else ".zattrs")
    words = json.loads(file.read_text())
    change(words["attributes"]["ome"] if file.name == "zarr.json" else words)
    file.write_text(json.dumps(words))
