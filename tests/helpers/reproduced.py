"""Run folders of a reproduction, written without training."""

import json

import numpy as np

from fastmtl.training.run_dir import RunFolder

CLASSES = ("Adenocarcinoma", "High-grade IN", "Low-grade IN", "Normal", "Polyp", "Serrated adenoma")


def lines_of(fold, right, *, patients=12, per_patient=3, seed=0):
    """evaluation.jsonl of one fold: the same images for every `right`, the chance that one is right."""
    images, random = np.random.default_rng(fold), np.random.default_rng(seed)
    lines = []
    for number in range(patients * per_patient):
        true = CLASSES[images.integers(len(CLASSES))]
        found = true if random.random() < right else CLASSES[random.integers(len(CLASSES))]
        entry = {"class": true, "predicted": found}
        name = f"{fold}-{number}"
        lines.append({"id": name, "patient": f"{fold}-{number % patients}", "tasks": {"classification": entry}})
    return lines


def tasks_of(lines):
    """The metrics of the lines, as in summary.json."""
    pairs = [(entry["class"], entry["predicted"]) for line in lines for entry in line["tasks"].values()]
    recalls = {name: [found == true for true, found in pairs if true == name] for name in CLASSES}
    per_class = {name: float(np.mean(hits)) if hits else None for name, hits in recalls.items()}
    known = [value for value in per_class.values() if value is not None]
    accuracy = float(np.mean([true == found for true, found in pairs]))
    return {
        "classification": {"accuracy": accuracy, "balanced_accuracy": float(np.mean(known)), "per_class": per_class}
    }


def write_run(recipe, root, folder, lines):
    """A finished run with these lines; returns its summary."""
    run = RunFolder(folder)
    facts = {key: [] for key in ("class_names", "training_patients", "validation_patients", "test_patients")}
    run.create(recipe, facts | {"data": str(root.resolve()), "split_file": None, "split": "", "classes": {}})
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"tasks": tasks_of(lines)}
    run.write_summary(summary)
    return summary
