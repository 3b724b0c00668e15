"""Losses, logits and targets that `losses.nnunet` and nnU-Net itself are tried with."""

from __future__ import annotations

import torch

from helpers.pairwise import pairwise, singles

SHAPES = {"2d": (2, 3, 5, 6), "3d": (2, 4, 3, 4, 2), "two": (3, 2, 5, 4), "one": (2, 1, 4, 4)}

SHARED = {
    "shape": tuple(SHAPES),
    "weight_ce": (1, 0.4, 0),
    "weight_dice": (1, 0.6, 0),
    "dice_class": ("SoftDiceLoss", "MemoryEfficientSoftDiceLoss"),
    "batch_dice": (False, True),
    "do_bg": (True, False),
    "smooth": (1.0, 1e-5, 0),
    "clip_tp": (None, 3.0),
}
OPTIONS = {
    "DC_and_CE_loss": {
        **SHARED,
        "target": ("numbers", "float numbers", "one class", "ignored", "all ignored", "no channel", "one-hot"),
        "ignore_label": (None, 1, 9),
        "weight": (None, "channel"),
        "label_smoothing": (0.0, 0.1),
        "reduction": ("mean", "sum", "none"),
        "ignore_index": (-100, 0),
    },
    "DC_and_BCE_loss": {
        **SHARED,
        "target": ("regions", "soft", "empty", "full", "bool"),
        "use_ignore_label": (False, True),
        "weight": (None, "channel", "pixel"),
        "pos_weight": (None, "channel", "number"),
        "reduction": ("mean", "sum", "none"),
    },
}
DICE_KEYS = ("batch_dice", "do_bg", "smooth", "clip_tp")
ENTROPY_KEYS = ("weight", "pos_weight", "label_smoothing", "reduction", "ignore_index")
CASES = [(name, case) for name, options in OPTIONS.items() for case in singles(options) + pairwise(options)]


def numbers(*shape):
    """The same numbers on every machine and version: sines of an irregular progression, -1 to 1."""
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(count * 1.7 + 0.3 * count**1.5).view(shape)


def _weight(kind, shape):
    sizes = {"channel": (shape[1], *(1,) * (len(shape) - 2)), "pixel": shape[2:], "number": (1,)}
    return 1.2 + numbers(*sizes[kind]).float()


def build(library, name, case):
    """The loss of a case, made as nnU-Net's trainer does."""
    shape = SHAPES[case.get("shape", "2d")]
    dice = {"ddp": False, **{key: case[key] for key in DICE_KEYS if key in case and case[key] is not None}}
    entropy = {key: case[key] for key in ENTROPY_KEYS if case.get(key) is not None}
    for key in ("weight", "pos_weight"):
        if key in entropy:
            entropy[key] = _weight(entropy[key], shape)
    if name == "DC_and_CE_loss" and "weight" in entropy:
        entropy["weight"] = entropy["weight"].flatten()
    arguments = {
        key: case[key] for key in ("weight_ce", "weight_dice", "ignore_label", "use_ignore_label") if key in case
    }
    arguments |= {"dice_class": getattr(library, case["dice_class"])} if "dice_class" in case else {}
    kwargs = "ce_kwargs" if name == "DC_and_CE_loss" else "bce_kwargs"
    return getattr(library, name)(**{kwargs: entropy, "soft_dice_kwargs": dice}, **arguments)


def inputs(name, case):
    shape = SHAPES[case.get("shape", "2d")]
    logits, noise = numbers(*shape).float() * 4, numbers(shape[0], 1, *shape[2:]).flip(-1)
    kind = case.get("target")
    if name == "DC_and_CE_loss":
        labels = ((noise + 1) * 1000).long() % shape[1]
        ignored = case.get("ignore_label")
        if kind == "one class":
            labels = labels * 0 + shape[1] - 1
        if kind in ("ignored", "all ignored") and ignored is not None:
            labels[: 1 if kind == "ignored" else None] = ignored
        if kind == "one-hot":
            labels = torch.zeros(shape).scatter_(1, labels, 1.0)
        return logits, labels[:, 0] if kind == "no channel" else labels.float() if kind == "float numbers" else labels
    soft = (numbers(shape[0], shape[1] + int(case.get("use_ignore_label", False)), *shape[2:]).flip(-1) + 1) / 2
    target = (soft > 0.6).float()
    if kind == "soft":
        target[:, : shape[1]] = soft[:, : shape[1]].float()
    if kind in ("empty", "full"):
        target[:, : shape[1]] = float(kind == "full")
    return logits, target.bool() if kind == "bool" else target
