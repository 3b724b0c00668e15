"""Common parts of predicting images and slides: the output folder, and outputs that are not maps.

`predicted_with.json` in an output folder records the run, weights, views and input of its predictions. Predicting again
with the same settings resumes; other settings are refused, because two sets of predictions would mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .. import data
from ..evaluation.per_image import class_probabilities
from ..training.file_lock import locked
from ..training.run_dir import RunError
from ..utils.atomic_io import write_whole
from ..utils.json_toml import JsonMapping, JsonObject, read_json
from ..utils.suggestions import folded
from .records import LINES

_NOT_COMPARED = ("run",)  # a run may be moved; recipe and weights identify it


class Predicted(NamedTuple):
    """The result of a prediction.

    Attributes:
        what: "images" or "slides".
        new: how many were predicted.
        there: how many were already in the folder.
        unreadable: how many could not be read, and are in quarantine.jsonl.
    """

    what: Literal["images", "slides"]
    new: int
    there: int
    unreadable: int = 0


def stamp_of(
    weights: Sequence[Path], views: Sequence[str], what: str, source: Path, maps: JsonMapping | None = None
) -> JsonObject:
    """The settings that predictions depend on; names of images are relative to `source`.

    Args:
        weights: the directory in RUN/checkpoints of the run, or of each run of an ensemble.
        maps: options of maps, without those that have their default.
    """
    runs = [path.parent.parent for path in weights]
    recipes = b"".join((run / "config.toml").read_bytes() for run in runs)
    manifests = b"".join((path / "manifest.json").read_bytes() for path in weights)
    return {
        "what": what,
        "input": str(source.resolve()),
        "run": ", ".join(str(run.resolve()) for run in runs),
        "recipe": hashlib.sha256(recipes).hexdigest(),
        "weights": hashlib.sha256(manifests).hexdigest(),
        "views": list(views),
        **({"maps": dict(maps)} if maps else {}),
    }


@contextmanager
def claimed(out: Path, stamp: JsonMapping) -> Iterator[None]:
    """Prepare the folder `out` for the predictions that `stamp` describes, and lock it against other processes.

    It may contain only predictions: a file with the name of a prediction would be overwritten.

    Raises:
        RunError: it is a file, contains anything else, or another process predicts into it.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder to create.")
    _check_ours(out, stamp)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, f"another process predicts into {out}; wait for its end, or choose another --out."):
        _check_ours(out, stamp)  # again, under the lock
        if not (out / data.PREDICTED_WITH).exists():
            write_whole(out / data.PREDICTED_WITH, json.dumps(stamp, indent=1) + "\n")
        yield


def _check_ours(out: Path, stamp: JsonMapping) -> None:
    file = out / data.PREDICTED_WITH
    if file.exists():
        try:
            known = dict(read_json(file))
        except (ValueError, TypeError):
            known = {}
        names = dict.fromkeys([*stamp, *known])
        other = [name for name in names if name not in _NOT_COMPARED and known.get(name) != stamp.get(name)]
        if other:
            was, now = known.get(other[0]), stamp.get(other[0])
            raise RunError(
                f"{out} already holds predictions with other {other[0]} ({was}, now {now}); choose another --out, or "
                "remove it."
            )
        return
    if (out / LINES).exists():
        raise RunError(f"{out} already holds predictions without {file.name}; choose another --out, or remove it.")
    there = sorted(path.name for path in out.iterdir() if path.name[0] != ".") if out.is_dir() else []
    if there:
        raise RunError(
            f"{out} contains files that are not predictions (for example {there[0]}); choose a new folder as --out."
        )


def inside(folder: Path, name: str) -> Path:
    """The path `folder`/`name`; RunError if it is outside of `folder`, as with ".." in the name, or a link."""
    path = folder / name
    if "\0" in name or ".." in Path(name).parts or not path.is_relative_to(folder) or path == folder:
        raise RunError(f"{name!r} would not be written into {folder}; it must name a file in it. Rename it.")
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{path.parent} is a link out of {folder}; remove it, or choose another --out.")
    return path


def check_apart(names: Iterable[str], out: Path) -> None:
    """Raise RunError if two names differ only in case and the file system of the claimed `out` ignores case."""
    if not (out / data.PREDICTED_WITH.upper()).exists():
        return
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(folded(name), name)
        if other != name:
            raise RunError(f"{other} and {name} would share a file in {out}, where case does not count; rename one.")


def entry_name(name: str, facts: Collection[str], suffix: str = "_task") -> str:
    """The key of a task's output (or of a structure's) in a line that also has the keys `facts`.

    >>> [entry_name(task, ["tissue"]) for task in ("gland", "tissue", "tissue_task")]
    ['gland', 'tissue_task', 'tissue_task_task']
    """
    bare = name
    while bare.endswith(suffix) and bare not in facts:
        bare = bare.removesuffix(suffix)
    return f"{name}{suffix}" if bare in facts else name


def row_of(output: Any, row: int) -> Any:
    """One sample as a batch of one; queries without their auxiliary layers."""
    return rows_of(output, slice(row, row + 1))


def rows_of(output: Any, rows: slice) -> Any:
    """Some samples of a batch, in float32; queries without their auxiliary layers."""
    if isinstance(output, Tensor):
        return output[rows].float()
    return output._replace(
        class_logits=output.class_logits[rows],
        mask_logits=output.mask_logits[rows],
        auxiliary=(),
    )


def answer(task: Any, output: Any, field: tuple[int, int, int, int]) -> JsonObject | None:
    """A task's output for one sample, in JSON types; None for maps and auxiliary tasks.

    Args:
        task: any task.
        output: its logits, a batch of one.
        field: left, top, width and height of the sample's area, in the pixel units of boxes.
    """
    kind = task.output.kind
    if kind == "box":
        x, y, w, h = box = task.predict(output)[0].tolist()
        left, top, width, height = field
        edges = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        moved = [edge + begin for edge, begin in zip(edges, (left, top, left, top), strict=True)]
        return {"box": box, "pixels": moved}  # left, top, right, bottom
    if kind != "vector":
        return None
    if not getattr(task, "class_names", ()):
        numbers = task.predict(output)[0].tolist()
        return {"value": numbers[0] if len(numbers) == 1 else numbers}
    probabilities = class_probabilities(task, output)[0].tolist()
    named = dict(zip(task.class_names, probabilities, strict=True))
    return {"class": task.class_names[int(task.predict(output))], "probabilities": named}
