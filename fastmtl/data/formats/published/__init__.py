"""Readers of published data sets in their published folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...dataset import Dataset
from . import gi_tract, hep2, hubmap, pets, pets_hdf5


class Format(NamedTuple):
    """How to recognise a folder, and how to read it."""

    looks_like: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


PUBLISHED = {
    "gi_tract": Format(gi_tract.looks_like, gi_tract.read),
    "hep2": Format(hep2.looks_like, hep2.read),
    "hubmap_hpa": Format(hubmap.looks_like, hubmap.read),
    "pets": Format(pets.looks_like, pets.read),
    "pets_hdf5": Format(pets_hdf5.looks_like, pets_hdf5.read),
}
"""Name in recipes -> format."""
