"""UW-Madison GI Tract: 16-bit MRI slices whose file names hold their metadata, three organs as run-length codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...dataset import Dataset, Problem, Tile
from ...images.arrays import GreyPicture
from ...images.run_lengths import Order, RunLengths
from ._files import assemble, read_known_table

ORGANS = ("large_bowel", "small_bowel", "stomach")
LAYOUT = "train/case2/case2_day1/scans/slice_0001_266_266_1.50_1.50.png and train.csv with id, class, segmentation"
_SCAN = re.compile(r"case(\d+)_day(\d+)")
_SLICE = re.compile(r"slice_(\d+)_(\d+)_(\d+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)")


class _Slice(NamedTuple):
    """The metadata in an image's path; pixel sizes in millimetres."""

    file: Path
    scan: str
    case: int
    day: int
    number: str
    width: int
    height: int
    pixel_width: float
    pixel_height: float


@dataclass(frozen=True)
class OrganMasks:
    """Run-length codes of several structures as channels; a `Drawn` of uint8 [h, w, C]."""

    organs: tuple[RunLengths, ...]

    @property
    def height(self) -> int:
        return self.organs[0].height

    @property
    def width(self) -> int:
        return self.organs[0].width

    def draw(self) -> NDArray[np.uint8]:
        """0 and 255, a channel for each structure."""
        return np.stack([organ.draw() for organ in self.organs], axis=-1)


def looks_like(root: Path) -> bool:
    """Whether `root` has the layout of this data set."""
    return any((root / "train").glob("case*/case*_day*/scans"))


def read(root: Path, order: Order = "row") -> Dataset:
    """The slices, with organ masks [h, w, 3] and the metadata in their names.

    Values: `case` (patient and day, within which slices are neighbours), `position` (slice number), `depth` (the
    slice's place in its scan, 0 to 1), and for FiLM `case_number`, `day`, `pixel_height`, `pixel_width` (mm),
    `image_height` and `image_width` (pixels). The patient is the case.

    Args:
        root: the folder that holds train/ and train.csv.
        order: how the run-length codes count pixels; along rows, as most readers of this set take it.

    Raises:
        FileNotFoundError, ValueError: the folder, the table or a name in it does not fit the layout.
    """
    codes = _codes(root)
    slices: list[_Slice] = []
    last: dict[str, int] = {}
    problems: list[Problem] = []
    for file in sorted((root / "train").glob("case*/case*_day*/scans/*.png")):
        found = _slice(file)
        if found is None:
            problems.append(Problem(file, f"its name says no slice, size and spacing; expected {LAYOUT}"))
        else:
            slices.append(found)
            last[found.scan] = max(int(found.number), last.get(found.scan, 1))
    tiles = [_tile(each, last[each.scan], codes, order) for each in slices]
    return assemble(root, (), tiles, problems, LAYOUT)


def _codes(root: Path) -> dict[str, dict[str, str]]:
    """Slice id -> organ -> run-length code."""
    codes: dict[str, dict[str, str]] = {}
    for place, row in read_known_table(root / "train.csv", ("id", "class", "segmentation"), LAYOUT):
        if row["class"] not in ORGANS:
            raise ValueError(f"{place}: unknown class {row['class']!r}; expected {', '.join(ORGANS)}")
        organs = codes.setdefault(row["id"], {})
        if row["class"] in organs:
            raise ValueError(f"{place}: {row['id']} has a second row for {row['class']}")
        organs[row["class"]] = row["segmentation"]
    return codes


def _slice(file: Path) -> _Slice | None:
    scan = file.parent.parent.name
    days, names = _SCAN.fullmatch(scan), _SLICE.fullmatch(file.stem)
    if days is None or names is None:
        return None
    number, width, height, pixel_width, pixel_height = names.groups()
    sizes = (int(width), int(height), float(pixel_width), float(pixel_height))
    return _Slice(file, scan, int(days[1]), int(days[2]), number, *sizes)


def _tile(of: _Slice, last: int, codes: dict[str, dict[str, str]], order: Order) -> Tile:
    name = f"{of.scan}_slice_{of.number}"
    mask = None
    if name in codes:
        runs = (RunLengths(codes[name].get(organ, ""), of.height, of.width, order) for organ in ORGANS)
        mask = OrganMasks(tuple(runs))
    values = {
        "case": of.scan,
        "position": float(of.number),
        "depth": int(of.number) / last,
        "case_number": float(of.case),
        "day": float(of.day),
        "pixel_height": of.pixel_height,
        "pixel_width": of.pixel_width,
        "image_height": float(of.height),
        "image_width": float(of.width),
    }
    return Tile(name, GreyPicture(of.file), mask, None, f"CASE{of.case}", values)
