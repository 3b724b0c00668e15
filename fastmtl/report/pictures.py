"""Pictures of a run folder inside the page."""

from __future__ import annotations

import base64
from html import escape
from pathlib import PurePosixPath

from .past_run import PastRun


def picture(run: PastRun, name: str, described: str, consequence: str) -> str:
    """An <img> that holds the file `name` of the run; "" and a line in the problems where it cannot be read.

    Args:
        name: FOLDER/FILE; what lies deeper or outside is never read.
        described: for those who cannot see it.
        consequence: what the page lacks without it, for the problem's line.
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
