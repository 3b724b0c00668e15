"""A TIFF's metadata: its vendor, and the names of its associated images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

LEFT_TO_OPENSLIDE = {"trestle"}
"""Vendors whose tiles overlap."""

_BESIDE = "label|macro|thumbnail|overview"
_ASSOCIATED = re.compile(rf"^\s*({_BESIDE})\b", re.IGNORECASE)
_NAMED = re.compile(rf"(?:.*[\W_])?({_BESIDE})(?:[\W_]*(?:image|picture))?\s*", re.IGNORECASE | re.DOTALL)
_REDUCED, _MACRO = 1, 9  # NewSubfileType, as Aperio's scanners tell label and macro without a description
_RED_GREEN_BLUE = {"Name": ("red", "green", "blue"), "Color": (0xFF0000FF, 0x00FF00FF, 0x0000FFFF)}  # OME: RGBA


def vendor(file: TiffFile) -> str:
    """The writer of a `tifffile.TiffFile`; "generic" if unknown."""
    if file.is_svs:
        return "aperio"
    flags = {"hamamatsu": file.is_ndpi, "leica": file.is_scn, "philips": file.is_philips, "ventana": file.is_bif}
    for name, found in flags.items():
        if found:
            return name
    software = str(file.pages.first.tags.valueof(305, "")) if len(file.pages) else ""
    if software.startswith("MedScan"):
        return "trestle"
    return "ome" if file.is_ome else "generic"


def associated_name(page: TiffPage, vendor: str) -> str:
    """ "label", "macro", "thumbnail" or "overview" according to the page's description, else ""."""
    words = page.description
    if vendor == "aperio":  # the second line: "label 387x463", "macro 1280x431"
        words = words.partition("\n")[2]
    found = _ASSOCIATED.match(words)
    return found.group(1).lower() if found else ""


def name_in(words: str) -> str:
    """The same from an OME image name, such as "label image" or "scan 7 - macro", but not "label-free".

    >>> name_in("Macro"), name_in("a.svs - label image"), name_in("label-free"), name_in("macrophages")
    ('macro', 'label', '', '')
    """
    found = _NAMED.fullmatch(words)
    return found.group(1).lower() if found else ""


def name_by_kind(subfile: int, same_view: bool) -> str:
    """The name of a picture without a description, from NewSubfileType and aspect ratio; "" if unknown."""
    if subfile == _MACRO:
        return "macro"
    return ("thumbnail" if same_view else "label") if subfile & _REDUCED else ""


def colour_planes(names: Sequence[str | int | None]) -> list[int] | None:
    """Which of the planes of these names, or OME colours, are red, green and blue (and alpha); None where they are not
    the planes of one RGB picture."""
    plain = [name.strip().lower() if isinstance(name, str) else (name or 0) & 0xFFFFFFFF for name in names]
    plain = [{"r": "red", "g": "green", "b": "blue", "a": "alpha"}.get(str(name), name) for name in plain]
    for wanted in _RED_GREEN_BLUE.values():
        if len(set(plain)) == len(plain) and set(plain) - {"alpha"} == set(wanted):
            return [plain.index(name) for name in (*wanted, *(["alpha"] if "alpha" in plain else []))]
    return None


def ome_channels(xml: str, image: int) -> list[tuple[str, int | None]]:
    """(name, colour) of the channels of an OME image; what is unknown is "" and None."""
    try:
        nodes = [node for node in ElementTree.fromstring(xml).iter() if _tag(node) == "Pixels"]
        channels = [node for node in nodes[image] if _tag(node) == "Channel"]
        return [(node.get("Name", ""), _integer(node.get("Color"))) for node in channels]
    except (ElementTree.ParseError, IndexError):
        return []


def _tag(node: ElementTree.Element) -> str:
    return str(node.tag).rpartition("}")[2]


def _integer(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
