"""What a vendor's metadata say of a TIFF, and tools to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..raster import Placement, Raster
from ..scale import Scale

if TYPE_CHECKING:
    from tifffile import TiffPage

DECLARATIONS = ("<!DOCTYPE", "<!ENTITY")  # a few lines of entities can fill the memory or read other files


class NotHereError(Exception):
    """The file is a TIFF of a vendor, or of a kind of its files, whose pages only OpenSlide understands."""


@dataclass(frozen=True)
class Arranged:
    """The contents of a vendor's file.

    Attributes:
        levels: finest first: pages and where they lie in their level, or what was read of them.
        associated: name -> page, likewise.
        scale: of level 0.
        bounds: of what was scanned (x, y, width, height), level-0 pixels; None for all.
    """

    levels: Sequence[tuple[TiffPage, Placement] | Raster]
    scale: Scale
    associated: Mapping[str, TiffPage | Raster] = field(default_factory=dict)
    bounds: tuple[int, int, int, int] | None = None


def parsed(xml: str) -> ElementTree.Element:
    """The root of a vendor's XML, its tags without namespaces; NotHereError if it cannot be read."""
    if any(word in xml for word in DECLARATIONS):
        raise NotHereError("its XML declares a document type or entities")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as error:
        raise NotHereError(f"its XML cannot be parsed: {error}") from error
    for node in root.iter():
        node.tag = str(node.tag).rpartition("}")[2]
    return root


def whole(node: ElementTree.Element | None, name: str) -> int:
    """An attribute that is a whole number; NotHereError if it is none."""
    text = "" if node is None else node.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise NotHereError(f"{name} is {text[:40]!r}, no whole number") from None


def need(condition: object, reason: str) -> None:
    """NotHereError with the reason if the condition does not hold."""
    if not condition:
        raise NotHereError(reason)
