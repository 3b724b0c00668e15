"""Lines of evaluation.jsonl, made up."""

import numpy as np


def class_lines(patients, per_patient=4, *, right=0.7, seed=0, names=("a", "b", "c")):
    """Images with a class and probabilities; `right` is the chance that an image is right."""
    random = np.random.default_rng(seed)
    lines = []
    for patient in range(patients):
        for image in range(per_patient):
            true = names[random.integers(len(names))]
            found = true if random.random() < right else names[random.integers(len(names))]
            shares = random.dirichlet(np.ones(len(names)))
            entry = {"class": true, "predicted": found, "probabilities": dict(zip(names, shares, strict=True))}
            lines.append({"id": f"p{patient}-{image}", "patient": f"p{patient}", "tasks": {"kind": entry}})
    return lines
