"""Images of a run folder, embedded in the page."""

from __future__ import annotations

import base64
from html import escape
from pathlib import PurePosixPath

from .past_run import PastRun


def picture(run: PastRun, name: str, described: str, consequence: str) -> str:
    """An <img> with the file `name` of the run; "" and a line in the problems if it cannot be read.

    Args:
        name: FOLDER/FILE; other paths are never read.
        described: the alternative text.
        consequence: says in the problems what the page lacks without it.
    """
    path = run.folder / "/".join(PurePosixPath(name).parts[-2:])
    try:
        if ".." in path.parts[-2:] or not path.is_relative_to(run.folder):
            raise OSError
        held = base64.b64encode(path.read_bytes()).decode()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        run.problems.append(f"{path}: cannot be read; {consequence}.")
        return ""
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f'<img alt="{escape(described)}" loading=lazy src="data:image/{kind};base64,{held}">'
