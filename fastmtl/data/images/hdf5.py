"""Arrays stored inside an HDF5 file; links to other files, which HDF5 allows, are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import reason_of
from ...utils.optional_imports import require
from ...utils.words import printable

_MAX_CHUNK = 2**28  # bytes; a chunk is read as a whole, even for a part of it
_SHOWN = 20  # names of arrays in a message
_HERE = "store the array itself in the file"


@contextmanager
def open_array(file: Path, key: str) -> Iterator[Any]:
    """The `h5py.Dataset` of numbers called `key`, while the file is open.

    Raises:
        ValueError: the file or the array cannot be read, there is no such array, or its values are in another file
            (links, external storage, virtual data sets); also for errors of h5py inside the block.
    """
    h5py = require("h5py", "reading HDF5 files", "wsi")
    if not file.is_file():
        reason = "not a file" if file.exists() else "it does not exist"
        raise ValueError(f"{file} cannot be read as HDF5: {reason}")
    try:
        with h5py.File(file, "r") as content:
            array = _find(content, key, file, h5py)
            _check(array, f"{file}: {key}")
            yield array
    except Exception as error:  # h5py raises nearly any type on damaged files
        if isinstance(error, ValueError) and str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} cannot be read as HDF5: {reason_of(error)}") from error


def _find(content: Any, key: str, file: Path, h5py: Any) -> Any:
    """The array at `key`, step by step: any part of the path may be a link, and following one opens its target."""
    here: Any = content
    for name in filter(None, key.split("/")):
        link: Any = here.get(name, getlink=True) if isinstance(here, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{file}: {key} is a link into {link.filename!r}; {_HERE}")
        if isinstance(link, h5py.SoftLink):
            raise ValueError(f"{file}: {key} is a link to {link.path!r}; name what it points to")
        here = None if link is None else here[name]
    if not isinstance(here, h5py.Dataset):
        names = ", ".join(map(printable, islice(content, _SHOWN))) + ", ..." * (len(content) > _SHOWN)
        raise ValueError(f"{file} has no array {key!r}; it has {names or 'none'}")
    return here


def _check(array: Any, name: str) -> None:
    if array.external:
        raise ValueError(f"{name} keeps its values in {array.external[0][0]!r}; {_HERE}")
    if array.is_virtual:
        raise ValueError(f"{name} is a virtual data set with its values in other files; {_HERE}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers; got {array.dtype} {list(array.shape)}")
    size = array.dtype.itemsize
    for length in array.chunks or ():
        size *= length
    if size > _MAX_CHUNK:
        raise ValueError(f"{name} is stored in pieces of {list(array.chunks)}, too large to be read; a piece an image")
