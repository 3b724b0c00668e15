"""Oxford-IIIT Pets as published: images, trimaps, and XML files with the box around the head."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...dataset import Dataset, ImageSource, Problem, Tile
from ...images.pictures import image_file
from ...text import read_text
from ._files import assemble, require_path

LAYOUT = "images/NAME.jpg, annotations/trimaps/NAME.png and annotations/xmls/NAME.xml"
SPECIES = ("cat", "dog")
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


@dataclass(frozen=True)
class Trimap:
    """A trimap file of 1 (pet), 2 (background) and 3 (border) as a mask; a `Drawn`.

    The border counts as pet: it is the outline of the fur, drawn because its edge is uncertain.
    """

    file: Path

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [h, w] of 0 and 255; ValueError for other values than 1, 2 and 3."""
        with image_file(self.file) as image:
            values = np.asarray(image)
        if values.ndim != 2 or values.min() < 1 or values.max() > 3:
            raise ValueError(f"{self.file} is no trimap: expected one channel of 1, 2 and 3")
        return np.where(values == 2, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Converted:
    """An image file of a format that the loader's decoder does not know, opened by Pillow; a `Drawn`."""

    file: Path

    def draw(self) -> NDArray[np.uint8]:
        """RGB uint8 [h, w, 3]."""
        with image_file(self.file) as image:
            return np.asarray(image.convert("RGB"))


def looks_like(root: Path) -> bool:
    """Whether `root` has the layout of this data set."""
    return (root / "annotations" / "trimaps").is_dir() and (root / "images").is_dir()


def read(root: Path) -> Dataset:
    """The images with masks, the species (the label), `breed` and, where the XML has one, the head's `box`.

    Boxes are centre x, centre y, width, height in 0..1 of the image. Each image is its own patient.

    Raises:
        FileNotFoundError, ValueError: the folder does not fit the layout, or an XML file is broken.
    """
    annotations = require_path(root / "annotations", LAYOUT)
    files: dict[str, Path] = {}
    pictures: dict[str, ImageSource] = {}
    tiles, problems = [], []
    for file in sorted(require_path(root / "images", LAYOUT).iterdir()):
        if file.name.startswith("."):
            continue
        picture = _picture(file, problems)
        if picture is None:
            continue
        if file.stem in files:
            raise ValueError(f"{file} and {files[file.stem].name} would have the same id; rename or remove one")
        files[file.stem], pictures[file.stem] = file, picture
    breeds = tuple(sorted({_breed(stem) for stem in files}))
    for stem, picture in pictures.items():
        trimap, xml = annotations / "trimaps" / f"{stem}.png", annotations / "xmls" / f"{stem}.xml"
        # Breeds of cats have a capital in their files' names, breeds of dogs have none.
        label = SPECIES.index("cat" if stem[:1].isupper() else "dog")
        values = {"breed": breeds.index(_breed(stem)), "box": _box(xml) if xml.is_file() else None}
        tiles.append(Tile(stem, picture, Trimap(trimap) if trimap.is_file() else None, label, stem, values))
    return assemble(root, SPECIES, tiles, problems, LAYOUT, {"breed": breeds})


def _breed(stem: str) -> str:
    return stem.rpartition("_")[0].lower()


def _picture(file: Path, problems: list[Problem]) -> ImageSource | None:
    if not file.is_file():
        problems.append(Problem(file, "a folder, or a broken link, among the images"))
        return None
    with file.open("rb") as opened:
        start = opened.read(4)
    if start.startswith((_JPEG, _PNG)):
        return file
    if start == b"GIF8":  # some files called .jpg are
        return Converted(file)
    problems.append(Problem(file, "not a JPEG, PNG or GIF image, despite its name"))
    return None


def _box(xml: Path) -> tuple[float, float, float, float]:
    try:
        text = read_text(xml)
        if "<!" in text.replace("<!--", ""):  # entities: a few lines of them can fill the memory
            raise ValueError("it declares a document type, and annotations need none")
        tree = ElementTree.ElementTree(ElementTree.fromstring(text))
        width, height = (float(tree.findtext(f"size/{side}") or "") for side in ("width", "height"))
        edges = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (float(tree.findtext(f"object/bndbox/{edge}") or "") for edge in edges)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{xml} holds no size and box: {error}") from None
    if not (0 <= left < right <= width < inf and 0 <= top < bottom <= height < inf):
        raise ValueError(f"{xml}: the box {left:g} {top:g} {right:g} {bottom:g} is not inside {width:g}x{height:g}")
    return centred(left / width, top / height, right / width, bottom / height)


def centred(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """Edges of a box as centre x, centre y, width and height."""
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
