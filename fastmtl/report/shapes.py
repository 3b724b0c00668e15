"""What the page reads of a run's JSON files, and what of it is of another form: by hand, or by another version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NUMBER = int | float
ANY = "*"  # of a mapping: every key

# A type; [shape], a list of such; {key: shape}, a mapping, in which keys may be absent.
FACTS = {
    "notices": [str],
    "class_names": [str],
    "classes": {ANY: [str]},
    "training_patients": [str],
    "validation_patients": [str],
    "training_images": int,
    "validation_images": int,
}
SUMMARY = {
    "notices": [str],
    "higher_is_better": {ANY: {ANY: bool}},
    "num_images": int,
    "num_patients": int,
    "test": {"tasks": {ANY: {}}, "num_images": int, "num_patients": int},
}
SPLIT = {"validation": [str]}
ENVIRONMENT = {"commit": str | None, "gpus": [str], "packages": {}}
RECORD = {"validation": {"tasks": {ANY: {}}}}
IMAGE = {
    "patient": str,
    "tasks": {
        ANY: {
            "dice": _NUMBER,
            "jaccard": _NUMBER,
            "class": str,
            "probability": _NUMBER,
            "probabilities": {ANY: _NUMBER},
            "thumbnail": str,
            "shown": str,
        }
    },
}


def misfits(found: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """The keys of `found` whose values are of another shape.

    >>> misfits({"commit": 3, "gpus": ["A"], "threads": 2}, ENVIRONMENT)
    ['commit']
    """
    return [key for key, shape in shapes.items() if key in found and not _fits(found[key], shape)]


def fits_image(line: Mapping[str, Any]) -> bool:
    """Whether a line of evaluation.jsonl can be shown."""
    if misfits(line, IMAGE):
        return False
    classes = [entry for entry in line["tasks"].values() if "class" in entry]
    return all(isinstance(one.get("predicted"), str) and one.get("probabilities", True) for one in classes)


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(one, shape[0]) for one in value)
    if not isinstance(shape, Mapping):
        return isinstance(value, shape) and isinstance(value, bool) == (shape is bool)
    if not isinstance(value, Mapping):
        return False
    wanted = dict.fromkeys(value, shape[ANY]) if ANY in shape else shape
    return not misfits(value, wanted)
