"""Runs as a report reads them, made without training."""

from __future__ import annotations

from pathlib import Path

from fastmtl.report import PastRun


def past_run(scores, *, name="run", patients=("P1", "P2"), images=4, **fields) -> PastRun:
    """A run with these scores on its held-out images."""
    facts = {"data": "tiles", "training_patients": ["P0"], "validation_patients": list(patients)}
    summary = {"tasks": scores, "num_images": images, "num_patients": len(patients), "checkpoint": "best"}
    facts |= fields.pop("facts", {})
    summary |= fields.pop("summary", {})
    return PastRun(Path(name), config={"name": name} | fields.pop("config", {}), facts=facts, summary=summary, **fields)


def image(name="a", patient="P1", **tasks):
    """A line of evaluation.jsonl."""
    return {"id": f"folder/{name}", "patient": patient, "tasks": tasks}


def label(true, predicted=None, *, classes=("no", "yes")):
    """An entry of a task with classes."""
    predicted = predicted or true
    shares = {one: 0.9 if one == predicted else 0.1 / (len(classes) - 1) for one in classes}
    return {
        "score": shares[true],
        "class": true,
        "predicted": predicted,
        "probability": shares[predicted],
        "probabilities": shares,
    }


def mask(dice, area=0.25):
    """An entry of a task with masks."""
    return {"score": dice, "dice": dice, "jaccard": dice, "true_area": area, "predicted_area": area}


def record(epoch, tasks, *, loss=None, **fields):
    """A line of metrics.jsonl."""
    loss = loss or dict.fromkeys(tasks, 0.5)
    speed = {"seconds": 8.0, "waiting": 0.25, "images_per_second": 40.0}
    score = next((value for values in tasks.values() for value in values.values()), 0.0)
    validation = {"tasks": tasks, "loss": loss, "score": score, "num_images": 4}
    return {"epoch": epoch, "step": 10 * epoch, "loss": loss, "validation": validation} | speed | fields
