"""Which tiles polygons label: those in an annotated region, and those of slides on which something was drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...utils.suggestions import nearest
from ...utils.words import counted
from ..dataset import ImageSource, Problem
from ..images.geojson import read_polygons
from ..images.polygons import Polygons
from .picture_refs import PolygonOptions


class AnnotatedAreas:
    """Counts the pictures of polygons that are labels and those that are not, by file."""

    def __init__(self, options: PolygonOptions) -> None:
        self._options = options
        self._inside: Counter[Path] = Counter()
        self._outside: Counter[Path] = Counter()
        self._undrawn: Counter[Path] = Counter()
        self._names: dict[Path, set[str]] = {}  # classes in each file

    def has_label(self, picture: ImageSource) -> bool:
        """Whether a picture is a label. Only polygons may be none."""
        if not isinstance(picture, Polygons):
            return True
        try:
            names, annotated = read_polygons(picture.file).names, picture.is_annotated()
        except ValueError:  # `check_tiles` reports the file
            return True
        drawn = bool(names)
        if picture.file not in self._names:
            self._names[picture.file] = set(names)
        if not drawn and self._options.unannotated == "unlabelled":
            self._undrawn[picture.file] += 1
            return False
        (self._inside if annotated else self._outside)[picture.file] += 1
        return annotated

    def notices(self, manifest: Path) -> Iterator[Problem]:
        """What has no label, in words.

        Raises:
            ValueError: no polygon of any file has the class of the regions.
        """
        region, files = self._options.region, {*self._inside, *self._outside}
        if self._outside and not self._inside:
            names = dict(self._options.renamed)
            found = {names.get(name, name) for file in files for name in read_polygons(file).names}
            if region not in found:
                raise ValueError(
                    f"{manifest}: no polygon is of class {region!r} (data.polygon_region), so nothing is annotated; "
                    f"{nearest(region, sorted(found - {''}))}"
                )
        for file in sorted(self._outside):
            if not self._inside[file]:
                yield Problem(
                    file, f"no tile is in an area of class {region!r} (data.polygon_region): all are unlabelled"
                )
        if self._outside:
            yield Problem(manifest, f"{self._total(self._outside)} outside the areas of class {region!r} {_ARE}")
        every = set[str]().union(*self._names.values())
        for name in dict(self._options.renamed):
            if every and name not in every:
                yield Problem(
                    manifest,
                    f"no polygon is of class {name or '(none)'!r}, which data.polygon_rename renames; "
                    f"{nearest(name, sorted(every - {''}))}",
                )
        if self._undrawn:
            yield Problem(manifest, f"{self._total(self._undrawn)} of files without a polygon {_ARE}")

    @staticmethod
    def _total(counts: Counter[Path]) -> str:
        return counted(counts.total(), "tile")


_ARE = 'have no mask; data.require = ["mask"] leaves them out'
