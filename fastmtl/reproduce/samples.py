"""The images of the figures: the same held-out ones for all rows, chosen by name, and each row's network on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import data
from ..api import runs
from ..builders import datasets
from ..builders.pretrained import normalization_of
from ..evaluation.analyse import one_image
from ..evaluation.samples import Sample, look
from ..utils.json_toml import JsonMapping
from ..utils.suggestions import nearest
from .plan import Result, RunKey
from .runs import ImageResults

Samples = int | Sequence[str]
"""How many images to draw, or their names."""


@dataclass(frozen=True)
class Seen:
    """What the rows' networks make of the images.

    Attributes:
        key: the run of each row.
        ids: of the images.
        by_row: row -> a sample for each image, in the same order; without rows whose run is missing.
    """

    key: RunKey
    ids: Sequence[str]
    by_row: dict[str, list[Sample]]


def choose(lines: Sequence[Sequence[JsonMapping]], samples: Samples) -> list[str]:
    """Ids of the images: those named, or a number of them.

    A number takes images that all rows held out: from each class alike, with something to segment if possible, and
    evenly spaced in the order of their names, so that the same data give the same images.

    Args:
        lines: of evaluation.jsonl, for each row.
        samples: names are ids, or ends of them.

    Raises:
        ValueError: a name that no row held out.
    """
    held_out = [{line["id"] for line in each} for each in lines]
    shared = sorted(
        (line for line in lines[0] if all(line["id"] in names for names in held_out)), key=lambda line: line["id"]
    )
    known = [str(line["id"]) for line in shared]
    if not isinstance(samples, int):
        return [_named(name, known) for name in samples]
    groups: dict[str, list[JsonMapping]] = {}
    for line in shared:
        groups.setdefault(_class_of(line), []).append(line)
    for name, members in groups.items():
        with_area = [line for line in members if _has_area(line)]
        groups[name] = with_area or members
    ordered, count = sorted(groups), min(samples, sum(map(len, groups.values())))
    share = {name: count // len(ordered) + (place < count % len(ordered)) for place, name in enumerate(ordered)}
    chosen = []
    for name in ordered:
        members, own = groups[name], min(share[name], len(groups[name]))
        chosen += [str(members[(2 * place + 1) * len(members) // (2 * own)]["id"]) for place in range(own)]
    return chosen


def _named(name: str, known: Sequence[str]) -> str:
    found = [one for one in known if one == name] or [one for one in known if Path(one).name in (name, Path(name).stem)]
    if not found:
        raise ValueError(
            f"--samples: no row held out an image {name!r}; {nearest(name, [Path(k).name for k in known])}"
        )
    if len(found) > 1:
        raise ValueError(f"--samples: {name!r} is the name of {len(found)} images; write {found[0]} or {found[1]}.")
    return found[0]


def _class_of(line: JsonMapping) -> str:
    return next((str(entry["class"]) for entry in line["tasks"].values() if "class" in entry), "")


def _has_area(line: JsonMapping) -> bool:
    return any(entry.get("true_area", 0) > 0 for entry in line["tasks"].values())


def see(
    results: Sequence[Result],
    samples: Samples,
    note: Callable[[str], None],
    *,
    saliency_task: str = "",
    convolutions: Sequence[str] = (),
) -> Seen | None:
    """The rows' networks on the same images; None if no row has a run to show.

    Args:
        results: of the rows.
        samples: see `choose`.
        note: called with a line for each row that cannot be shown.
        saliency_task: the task whose saliency is wanted.
        convolutions: rows whose feature maps are wanted.
    """
    images = ImageResults(results)
    keys = sorted({key for result in results for key in result.folders})
    key = next((key for key in keys if any(images.lines(result, key) for result in results)), None)
    if key is None:
        return None
    having = [result for result in results if images.lines(result, key)]
    ids = choose([images.lines(result, key) for result in having], samples)
    if not ids:
        note("no figures of images: the rows held out different images")
        return None
    indexed: dict[str, data.Dataset] = {}
    by_row: dict[str, list[Sample]] = {}
    for result in having:
        name = result.row.name
        try:
            by_row[name] = _look(result.folders[key], ids, indexed, saliency_task, name in convolutions)
        except Exception as error:  # a checkpoint or data that were removed: the other rows are shown
            note(f"{name} is not in the figures of images: " + " ".join(f"{type(error).__name__}: {error}".split()))
    return Seen(key, ids, by_row) if by_row else None


def _look(
    folder: Path, ids: Sequence[str], indexed: dict[str, data.Dataset], saliency_task: str, convolutions: bool
) -> list[Sample]:
    trained = runs.load(folder, None, "auto", None)
    config = repr(replace(trained.recipe.data, fold=0))
    if config not in indexed:
        indexed[config] = datasets.read_data(trained.recipe, Path(trained.facts["data"]), trained.classes)
    found = {}
    with trained.read(indexed[config].subset(ids)) as loader:
        for batch in loader:
            whole = batch.to(trained.device)
            whole = replace(whole, images=whole.images.float())
            for row in range(len(whole)):
                one = one_image(whole, row)
                found[one.ids[0]] = look(
                    trained.model,
                    trained.tasks,
                    one,
                    normalization=normalization_of(trained.recipe),
                    saliency_of=[saliency_task] if saliency_task else [],
                    convolutions=convolutions,
                )
    return [found[name] for name in ids]
