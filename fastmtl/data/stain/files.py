"""The .npz files of stains: versioned, written atomically, read without pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...ops.stain.fit import Stains
from ...utils.atomic_io import replacing
from ...utils.limited_reads import read_whole

FORMAT = 1
_MAX_BYTES = 2**28  # unpacked: zip files of zeros unpack to a thousand times their size


class StainFileError(UserError, RuntimeError):
    """A stain file that is missing, damaged, or of another version."""


def write_arrays(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file with its version, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:  # given a path, NumPy would append .npz
        np.savez_compressed(file, format=np.array(FORMAT), **arrays)  # type: ignore[arg-type]


def read_arrays(path: str | os.PathLike[str], kind: str) -> dict[str, np.ndarray]:
    """Read the file without pickle; raises StainFileError."""
    try:
        with BytesIO(read_whole(Path(path), _MAX_BYTES)) as raw, np.load(raw, allow_pickle=False) as file:
            if sum(entry.file_size for entry in file.zip.infolist()) > _MAX_BYTES:
                raise ValueError(f"unpacks to more than {_MAX_BYTES:,} bytes")
            arrays = {name: file[name] for name in file.files}
        version, found = int(arrays["format"]), str(arrays["kind"])
    except FileNotFoundError:
        raise StainFileError(f"{path} does not exist. Expected a stain file.") from None
    except OSError as error:
        raise StainFileError(f"{path} cannot be read: {error}.") from error
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        # NumPy's message is dropped because it advises to unpickle the file.
        raise StainFileError(f"{path} is no stain file, or a damaged one. Fit again.") from error
    if version != FORMAT:
        raise StainFileError(
            f"{path} has version {version} and this fastmtl reads version {FORMAT}. Fit again, or install the fastmtl "
            "that wrote it."
        )
    if found != kind:
        raise StainFileError(f"{path} holds {found}, not {kind}.")
    return arrays


def pack(slides: Mapping[str, Stains]) -> dict[str, np.ndarray]:
    """Slides' stains as arrays: `slides` [N], `vectors` float64 [N, 3, 2], `maxima` [N, 2]."""
    empty = np.zeros((0, 3, 2)), np.zeros((0, 2))
    rows = [[part.cpu().numpy() for part in stains] for stains in slides.values()]
    vectors, maxima = map(np.concatenate, zip(*rows, strict=True)) if rows else empty
    return {"slides": np.array(list(slides), dtype=str), "vectors": vectors, "maxima": maxima}


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, Stains]:
    """The inverse of `pack`; raises KeyError or ValueError for other content."""
    vectors, maxima = arrays["vectors"], arrays["maxima"]
    if vectors.shape[1:] != (3, 2) or maxima.shape[1:] != (2,):
        raise ValueError(f"stains of shape {vectors.shape} and {maxima.shape}")
    if not (np.isfinite(vectors).all() and np.isfinite(maxima).all() and (maxima > 0).all()):
        raise ValueError("stains that are no finite numbers above 0")
    rows = zip(vectors, maxima, strict=True)
    stains = [Stains(*(torch.from_numpy(part)[None] for part in row)) for row in rows]
    return dict(zip(arrays["slides"].tolist(), stains, strict=True))
