"""Which files a manifest may name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..identifiers import tell_apart, unicode_form
from ..slides.remote.path import RemotePath, slide_path

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class PathRule:
    """Which files a manifest may name.

    Attributes:
        folder: relative paths start from it.
        root: paths must stay inside it.
        names: of the files in folders that were listed.
    """

    folder: Path
    root: Path
    names: dict[Path, list[str]] = field(default_factory=dict, compare=False, repr=False)

    def resolve(self, text: str, place: str) -> Path:
        """The path that `text` names, as seen from the working directory.

        Backslashes are slashes of Windows, unless a file has them in its name; files are found in any Unicode form of
        their name.

        Raises:
            ValueError: it is outside `root`, on a drive of another computer, on a server, or the name of two files.
                Links inside the root are not followed: the user put them there.
        """
        path = self.slide(text, place)
        if isinstance(path, RemotePath):
            raise ValueError(f"{place}: {text} is on a server, from which only slides are read; copy it")
        return path

    def slide(self, text: str, place: str) -> Path:
        """As `resolve`, and a URL names a slide on a server."""
        try:
            path = slide_path(text)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        return path if isinstance(path, RemotePath) else self._local(text, place)

    def _local(self, text: str, place: str) -> Path:
        if "\0" in text:
            raise ValueError(f"{place}: {text!r} is not a path: it contains a zero byte")
        path = self._inside(text, place)
        if "\\" in text and not os.path.lexists(path):
            path = self._inside(text.replace("\\", "/"), place)
        if _DRIVE.match(text) and os.name != "nt" and not os.path.lexists(path):
            raise ValueError(f"{place}: {text} is on a Windows drive; write it relative to {self.folder}, with slashes")
        return path if text.isascii() else self._on_disk(path, place)

    def relative(self, path: Path) -> str:
        """The text that `resolve` or `slide` turns into `path`."""
        if isinstance(path, RemotePath):
            return str(path)
        return PurePosixPath(Path(os.path.relpath(path, self.folder))).as_posix()

    def _inside(self, text: str, place: str) -> Path:
        # As texts: paths are several times slower, and a manifest may have 100,000 of them.
        path = os.path.normpath(os.path.join(self.folder, text))
        root, whole = (os.path.normcase(os.path.abspath(one)) for one in (self.root, path))
        if whole != root and not whole.startswith(os.path.join(root, "")):
            raise ValueError(
                f"{place}: {text} is outside the data root {self.root}; if it may, name a folder that holds both as "
                "data.root"
            )
        return Path(path)

    def _on_disk(self, path: Path, place: str) -> Path:
        """`path` as its file and folders are spelled on disk; unchanged where they do not exist."""
        if path == path.parent or os.path.lexists(path):
            return path
        home = self._on_disk(path.parent, place)
        names = self.names.get(home)
        if names is None:
            names = self.names[home] = os.listdir(home) if home.is_dir() else []
        found = sorted(name for name in names if unicode_form(name) == unicode_form(path.name))
        if len(found) > 1:
            raise ValueError(
                f"{place}: {tell_apart(home / found[0], home / found[1])} both exist; rename or remove one"
            )
        return home / (found[0] if found else path.name)
