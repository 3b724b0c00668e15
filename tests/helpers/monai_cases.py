"""Constructor arguments, logits and targets that `losses.monai` and MONAI itself are tried with."""

from __future__ import annotations

import torch
from monai.utils.enums import Weight

from helpers.inputs import generator
from helpers.pairwise import pairwise, singles

NAMES = ("DiceLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceLoss", "TverskyLoss", "FocalLoss")
SHAPES = {"2d": (2, 3, 5, 6), "3d": (2, 4, 3, 4, 2), "one channel": (3, 1, 5, 4), "flat": (4, 3), "1d": (2, 2, 9)}

SHARED = {
    "shape": tuple(SHAPES),
    "target": ("hard", "soft", "empty", "full", "ignored"),
    "include_background": (True, False),
    "to_onehot_y": (False, True),
    "reduction": ("mean", "sum", "none"),
}
ACTIVATION = {"activation": ("softmax", "sigmoid", "none", "tanh")}
SMOOTH = {"smooth_nr": (1e-5, 0.0, 1), "smooth_dr": (1e-5, 0.1, 1), "batch": (False, True)}
DICE = {**ACTIVATION, "squared_pred": (False, True), "jaccard": (False, True), **SMOOTH}
WEIGHT = {"weight": (None, 0.7, "sequence", "tensor")}
IGNORE = {"ignore_index": (None, 1, 0, 255, -1)}
OPTIONS = {
    "DiceLoss": {**SHARED, **DICE, **WEIGHT, **IGNORE, "soft_label": (False, True)},
    "DiceCELoss": {
        **SHARED,
        **DICE,
        "reduction": ("mean", "sum"),
        "weight": (None, "tensor"),
        "lambda_dice": (1.0, 0.3, 0.0),
        "lambda_ce": (1.0, 0.2, 0.0),
        "label_smoothing": (0.0, 0.1),
    },
    "DiceFocalLoss": {
        **SHARED,
        **DICE,
        "gamma": (2.0, 0.5, 0),
        **WEIGHT,
        "lambda_dice": (1.0, 0.3, 0.0),
        "lambda_focal": (1.0, 0.2, 0.0),
        "alpha": (None, 0.25),
    },
    "GeneralizedDiceLoss": {
        **SHARED,
        **ACTIVATION,
        "w_type": ("square", "simple", "uniform", Weight.SIMPLE, " square "),
        **SMOOTH,
        "soft_label": (False, True),
    },
    "TverskyLoss": {
        **SHARED,
        **ACTIVATION,
        "alpha": (0.5, 0.3, 1),
        "beta": (0.5, 0.7, 0),
        **SMOOTH,
        "soft_label": (False, True),
        **IGNORE,
    },
    "FocalLoss": {
        **SHARED,
        "gamma": (2.0, 1.5, 0, 3),
        "alpha": (None, 0.25, "sequence", 1),
        **WEIGHT,
        "use_softmax": (False, True),
        **IGNORE,
    },
}
CASES = [(name, case) for name in NAMES for case in singles(OPTIONS[name]) + pairwise(OPTIONS[name])]


def arguments_of(name, case):
    """(constructor arguments, logits, target) of a case."""
    arguments = dict(case)
    shape = SHAPES[arguments.pop("shape", "2d")]
    kind = arguments.pop("target", "hard")
    activation = arguments.pop("activation", "softmax" if name != "FocalLoss" else "none")
    arguments |= {"sigmoid": True} if activation == "sigmoid" else {}
    arguments |= {"softmax": True} if activation == "softmax" else {}
    arguments |= {"other_act": torch.tanh} if activation == "tanh" else {}
    counted = shape[1] - int(not arguments.get("include_background", True) and shape[1] > 1)
    for key in ("weight", "alpha"):
        if arguments.get(key) in ("sequence", "tensor"):
            length = shape[1] if name == "DiceCELoss" else counted
            numbers = [0.5 + 0.25 * n for n in range(length)]
            arguments[key] = numbers if arguments[key] == "sequence" else torch.tensor(numbers).double()
    source = generator(len(case))
    logits = torch.randn(shape, generator=source, dtype=torch.float64) * 3
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=source)
    if kind == "empty":
        labels = torch.zeros_like(labels)
    if kind == "full":
        labels = torch.full_like(labels, shape[1] - 1)
    if arguments.get("to_onehot_y") and shape[1] > 1:
        ignored = arguments.get("ignore_index")
        if kind == "ignored" and ignored is not None:
            labels[0] = ignored
        return arguments, logits, labels.double() if kind == "soft" else labels  # MONAI's transforms leave floats
    if shape[1] == 1:
        target = (torch.rand(shape, generator=source) < 0.4).double()
        target = {"empty": torch.zeros_like(target), "full": torch.ones_like(target)}.get(kind, target)
    else:
        target = torch.zeros_like(logits).scatter_(1, labels, 1.0)
    if kind == "ignored" and len(shape) > 2:
        target[0, :, ..., :2] = (
            arguments.get("ignore_index") if shape[1] == 1 and arguments.get("ignore_index") else 0.0
        )
    if kind == "soft":
        target = target * 0.7 + 0.2 * torch.rand(shape, generator=source, dtype=torch.float64)
    return arguments, logits, target


def tolerance_of(name, squared=False):
    """MONAI's focal loss is float32 whatever comes in, and so are the generalized weights and a one-hot map's norm."""
    return 3e-5 if "Focal" in name else 1e-6 if name == "GeneralizedDiceLoss" or squared else 1e-9
