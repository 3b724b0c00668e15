"""A disk that refuses to write some files: full, read-only or failing."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from pathlib import Path

import safetensors.torch

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class BrokenDisk:
    """While `broken`, whatever writes a file of `root` whose path there matches gets an error of the system.

    Args:
        monkeypatch: pytest's.
        root: a folder; other files can be written.
        pattern: a regular expression for the start of a path in `root`.
        number: of the error. With EROFS nothing can be removed or renamed either.
    """

    def __init__(self, monkeypatch, root: Path, pattern: str = "", number: int = errno.ENOSPC) -> None:
        self.root, self.number, self.broken, self.refused = root, number, False, 0
        self._pattern = re.compile(pattern)
        open_file, open_descriptor, save = io.open, os.open, safetensors.torch.save_file

        def opening(file, mode="r", *more, **options):
            if set(mode) & set("wax+"):
                self._refuse(file)
            return open_file(file, mode, *more, **options)

        def opening_descriptor(path, flags, *more, **options):
            if flags & _WRITING:
                self._refuse(path)
            return open_descriptor(path, flags, *more, **options)

        def saving(tensors, path):
            try:
                self._refuse(path)
            except OSError as error:
                said = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                raise safetensors.SafetensorError(said) from None
            save(tensors, path)

        monkeypatch.setattr(io, "open", opening)
        monkeypatch.setattr(builtins, "open", opening)
        monkeypatch.setattr(os, "open", opening_descriptor)
        monkeypatch.setattr(safetensors.torch, "save_file", saving)
        monkeypatch.setattr(os, "mkdir", self._guarded(os.mkdir))
        monkeypatch.setattr(os, "replace", self._guarded(os.replace, 1))  # of a file that is written under another name
        for name in ("unlink", "rename", "rmdir") if number == errno.EROFS else ():
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def _guarded(self, function, argument=0):
        def call(*paths, **options):
            self._refuse(paths[argument])
            return function(*paths, **options)

        return call

    def _refuse(self, path) -> None:
        if not self.broken or isinstance(path, int):
            return
        found = Path(os.fsdecode(path)).absolute()
        if found.is_relative_to(self.root) and self._pattern.match(found.relative_to(self.root).as_posix()):
            self.refused += 1
            raise OSError(self.number, os.strerror(self.number), os.fsdecode(path))
