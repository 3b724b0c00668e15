"""Files that are complete at any moment: written under another name beside the target, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Name `path` in system errors of the block that name no file, such as a full disk while writing."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary path beside `path`, which replaces `path` in one step when the block ends.

    If the block raises, `path` is unchanged and the temporary file is removed. Threads, processes and hosts may write
    the same file at once: the last one wins.

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
    partial = path.with_name(f".{uuid4().hex}.part")  # the name of `path` may be as long as names can be
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


def empty_folder(path: Path) -> None:
    """Make `path` an empty folder: remove its contents, or only the link if it is one."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def write_whole(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append(path: Path, data: str | bytes) -> None:
    """Append to the file at `path`, text in UTF-8; it is created if necessary. If that fails, the file is unchanged.

    Refuses a link (OSError): in a folder that somebody else made, it could lead to any of your files.
    """
    rest = data.encode() if isinstance(data, str) else data
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    with naming(path), os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            while rest:  # a disk that is almost full takes a part
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), before)
            raise


def truncate(path: Path, size: int) -> None:
    """Cut the file at `path` after `size` bytes. Refuses a link, as `append` does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
