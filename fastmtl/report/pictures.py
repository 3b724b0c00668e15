"""Images of a run folder, embedded in the page."""

from __future__ import annotations

import base64
from html import escape
from pathlib import PurePosixPath

from ..utils.limited_reads import read_whole
from .past_run import PastRun

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
_MAX_BYTES = 2**24


def picture(run: PastRun, name: str, described: str, consequence: str) -> str:
    """An <img> with the file `name` of the run; "" and a line in the problems if it cannot be read.

    Args:
        name: FOLDER/FILE, a PNG or JPEG; nothing outside of the run folder is read.
        described: the alternative text.
        consequence: says in the problems what the page lacks without it.
    """
    path = run.folder / "/".join(PurePosixPath(name).parts[-2:])
    try:
        if path.suffix not in _KINDS or not path.resolve().is_relative_to(run.folder.resolve()):  # ".." and links
            raise OSError
        encoded = base64.b64encode(read_whole(path, _MAX_BYTES)).decode()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        run.problems.append(f"{path}: cannot be read; {consequence}.")
        return ""
    return f'<img alt="{escape(described)}" loading=lazy src="data:image/{_KINDS[path.suffix]};base64,{encoded}">'
