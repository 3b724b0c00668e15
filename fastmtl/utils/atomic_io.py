"""Files that are whole at any moment: written beside their place under another name, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses in the block is said of `path`: a full disk, met while writing, names no file itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file that is there when the block ends takes `path`'s place in one step.

    Where the block raises, `path` stays as it was and nothing is left beside it. Threads, processes and hosts may write
    one file at once: it is the last one's that stays.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "facts.json")
    ...     with replacing(path) as partial:
    ...         _ = partial.write_text("{}")
    ...         path.exists()
    ...     path.read_text()
    False
    '{}'
    """
    partial = path.with_name(f".{uuid4().hex}.part")  # `path`'s own may be as long as names can be
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial):  # an internal name
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Leave `text` at `path`, in UTF-8, in place of what was there."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append(path: Path, text: str) -> None:
    """Write `text`, in UTF-8, behind what is at `path`; a file is made where there is none."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
