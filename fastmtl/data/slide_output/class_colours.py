"""Colours of classes in outlines and overlays: QuPath's own for its default classes, the others from a palette."""

from __future__ import annotations

from collections.abc import Sequence

Colour = tuple[int, int, int]

_QUPATH: dict[str, Colour] = {
    "tumor": (200, 0, 0),
    "tumour": (200, 0, 0),
    "stroma": (150, 200, 150),
    "immune cells": (160, 90, 160),
    "necrosis": (50, 50, 50),
    "other": (255, 200, 0),
    "region*": (0, 0, 180),
    "ignore*": (180, 180, 180),
    "positive": (250, 62, 62),
    "negative": (112, 112, 225),
}
# Okabe and Ito's, which differ for every kind of colour vision.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def class_colour(name: str, names: Sequence[str]) -> Colour:
    """RGB, 0..255, of one of the classes `names`.

    >>> class_colour("Tumor", ["Tumor", "gland"]), class_colour("gland", ["Tumor", "gland"])
    ((200, 0, 0), (86, 180, 233))
    """
    return _QUPATH.get(name.lower()) or _PALETTE[names.index(name) % len(_PALETTE)]
