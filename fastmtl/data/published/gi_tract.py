"""UW-Madison GI Tract: 16-bit MRI slices whose file names hold their metadata, three organs as run-length codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arrays import GreyPicture
from ..dataset import Dataset, Problem, Tile
from ..run_lengths import Order, RunLengths
from ._files import assemble, read_known_table

ORGANS = ("large_bowel", "small_bowel", "stomach")
LAYOUT = "train/case2/case2_day1/scans/slice_0001_266_266_1.50_1.50.png and train.csv with id, class, segmentation"
_SCAN = re.compile(r"case(\d+)_day(\d+)")
_SLICE = re.compile(r"slice_(\d+)_(\d+)_(\d+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)")


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
    """Whether `root` is laid out like this data set."""
    return any((root / "train").glob("case*/case*_day*/scans"))


def read(root: Path, order: Order = "row") -> Dataset:
    """The slices, with organ masks [h, w, 3] and what their names say.

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
    scans: dict[str, list[tuple[int, Path]]] = {}
    problems: list[Problem] = []
    for file in sorted((root / "train").glob("case*/case*_day*/scans/*.png")):
        found = _SLICE.fullmatch(file.stem)
        if found is None or _SCAN.fullmatch(file.parent.parent.name) is None:
            problems.append(Problem(file, f"its name says no slice, size and spacing; expected {LAYOUT}"))
        else:
            scans.setdefault(file.parent.parent.name, []).append((int(found[1]), file))
    make = partial(_tile, codes=codes, order=order)
    tiles = [
        make(scan, number, file, max(number for number, _ in slices))
        for scan, slices in scans.items()
        for number, file in slices
    ]
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


def _tile(scan: str, number: int, file: Path, last: int, *, codes: dict[str, dict[str, str]], order: Order) -> Tile:
    case, day = map(int, _SCAN.fullmatch(scan).groups())  # type: ignore[union-attr]  # `read` has looked
    slice_name = _SLICE.fullmatch(file.stem)
    assert slice_name is not None  # likewise
    width, height = int(slice_name[2]), int(slice_name[3])
    name = f"{scan}_slice_{slice_name[1]}"
    organs = codes.get(name)
    mask = (
        None
        if organs is None
        else OrganMasks(tuple(RunLengths(organs.get(organ, ""), height, width, order) for organ in ORGANS))
    )
    values = {
        "case": scan,
        "position": float(number),
        "depth": number / max(last, 1),
        "case_number": float(case),
        "day": float(day),
        "pixel_height": float(slice_name[5]),
        "pixel_width": float(slice_name[4]),
        "image_height": float(height),
        "image_width": float(width),
    }
    return Tile(name, GreyPicture(file), mask, None, f"CASE{case}", values)
