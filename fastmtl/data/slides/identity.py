"""What kind of thing a slide's path is, and what identifies its content, so that a change is seen."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from .dicom.instances import is_dicom
from .dicom.series import dicom_files
from .errors import SlideError
from .ome_zarr.metadata import described_by, is_store, metadata_files
from .remote.path import RemotePath

_HASHED = 2**16
_HEAD = 2**12  # bytes that hold the UID of a DICOM instance

Kind = Literal["file", "dicom", "zarr"]


@dataclass(frozen=True)
class Identity:
    """Identifies what was scanned: bytes, nanoseconds, a digest.

    The digest of a file is that of its first and last 64 KiB (TIFF's directories are at either end); of a file on a
    server, its ETag stands for the last two. A DICOM slide is identified by all DICOM files of its folder: names,
    bytes, times and beginnings. An OME-Zarr store is identified by its metadata, because its chunks are too many.
    """

    size: int
    modified: int
    digest: str


def kind_of(path: Path) -> Kind:
    """Whether a slide is one file, DICOM files in a folder, or an OME-Zarr store.

    Raises:
        SlideError: it is a folder of another kind, a pipe or a device, or cannot be read.
    """
    try:
        if isinstance(path, RemotePath):
            return "zarr" if path.suffix.lower() == ".zarr" else "file"
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            if is_store(path):
                return "zarr"
            if any(dicom_files(path)):
                return "dicom"
            raise SlideError(path, "is a directory without DICOM files or OME-Zarr metadata, not a slide")
        if not stat.S_ISREG(mode):  # opening a pipe would block
            raise SlideError(path, "is a pipe or device, not a file")
    except OSError as error:
        raise SlideError(path, f"cannot be opened: {error.strerror}") from error
    # A TIFF may be a DICOM file too, of one level: its ending says which is meant.
    return "dicom" if path.suffix.lower() not in (".tif", ".tiff") and is_dicom(path) else "file"


def identify(path: Path) -> Identity:
    """Raises SlideError if the slide does not exist."""
    kind = kind_of(path)
    try:
        if kind == "dicom":
            return _of_files(dicom_files(path if path.is_dir() else path.parent), _HEAD)
        if isinstance(path, RemotePath) and kind == "zarr":
            described_by(path)  # else nothing would be found, without an error
        if kind == "zarr":
            return _of_files(metadata_files(path), _HASHED)
        return _of_file(path)
    except OSError as error:
        raise SlideError(path, f"cannot be opened: {error.strerror}") from error


def _of_file(path: Path) -> Identity:
    with path.open("rb") as file:
        status = path.stat() if isinstance(path, RemotePath) else os.fstat(file.fileno())
        if isinstance(path, RemotePath) and path.remote_info.version:  # saves two requests
            digest = blake2b(f"{path} {path.remote_info.version}".encode(), digest_size=16).hexdigest()
        else:
            head = file.read(_HASHED)
            file.seek(max(status.st_size - _HASHED, 0))
            digest = blake2b(head + file.read(_HASHED), digest_size=16).hexdigest()
    return Identity(status.st_size, status.st_mtime_ns, digest)


def _of_files(files: Iterable[Path], head: int) -> Identity:
    """Of those that exist."""
    size, modified, digest = 0, 0, blake2b(digest_size=16)
    for path in files:
        with suppress(FileNotFoundError):
            status = path.stat()
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode() + file.read(head))
            size, modified = size + status.st_size, max(modified, status.st_mtime_ns)
    return Identity(size, modified, digest.hexdigest())
