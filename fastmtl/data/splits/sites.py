"""Sites, the hospitals or laboratories that slides come from, as a further thing that a split keeps together.

A network recognises a laboratory by its stain and scanner, and where sites differ in their patients, it answers by the
site. Scores are then too high unless no site is on both sides of the split (Howard et al. 2021, "The impact of
site-specific digital histology signatures on deep learning model accuracy and bias", Nature Communications 12, 4423).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...utils.words import counted, few
from ..dataset import Dataset, Problem
from ..patient_names import name_notices, one_spelling
from .groups import names_of

_SHOWN = 5


def with_sites(dataset: Dataset, template: str) -> Dataset:
    """The same tiles with their site, which splits then keep on one side.

    Args:
        dataset: to read the sites of.
        template: a column, an expression such as "{center}-{scanner}", or "tcga_site" (see `with_groups`).

    Raises:
        ValueError: a column that the data set does not have, or that is empty for a tile.

    >>> from pathlib import Path
    >>> from fastmtl.data import Tile
    >>> tile = Tile("a", Path("TCGA-A2-A0T2-01Z-00-DX1.png"), None, None, "TCGA-A2-A0T2")
    >>> with_sites(Dataset(Path("."), (), (tile,)), "tcga_site").tiles[0].site
    'A2'
    """
    names = list(names_of(dataset, template, "site"))
    chosen = one_spelling(names)
    odd = tuple(Problem(dataset.root, reason) for reason in name_notices(names, "site", "tile"))
    tiles = tuple(replace(tile, site=chosen[name]) for tile, name in zip(dataset.tiles, names, strict=True))
    return replace(dataset, tiles=tiles, problems=(*dataset.problems, *odd))


def site_notices(dataset: Dataset) -> list[Problem]:
    """A notice of the patients at several sites."""
    joining = Units(dataset).joining
    if not joining:
        return []
    shown = few([f"{patient!r} at {few(sites, _SHOWN)}" for patient, sites in joining.items()], 3, "; ")
    who = "a patient is" if len(joining) == 1 else f"{len(joining)} patients are"
    return [Problem(dataset.root, f"{who} at several sites, which a split then keeps together: {shown}")]


class Units:
    """What a split of a data set keeps together: patients, or sites with all their patients.

    A patient at two sites makes them one unit, as no split could keep all three whole otherwise. Tiles without a site,
    where others have one, are kept together by their patient.

    Attributes:
        groups: the patient of each tile, in one spelling.
        of_tiles: the unit of each tile: the patient, or the sites joined by " + ".
        names: of the units, sorted.
        joining: patients at several sites -> those.
        noun: "patient", or "site" if the tiles have sites.
    """

    def __init__(self, dataset: Dataset):
        groups = one_spelling(tile.group for tile in dataset.tiles)
        self.groups = [groups[tile.group] for tile in dataset.tiles]
        self.noun = "site" if any(tile.site for tile in dataset.tiles) else "patient"
        self.of_tiles: Sequence[str] = self.groups
        self.joining: Mapping[str, Sequence[str]] = {}
        if self.noun == "site":
            self._join([tile.site for tile in dataset.tiles])
        self.names = sorted(set(self.of_tiles))

    def __len__(self) -> int:
        return len(self.names)

    def groups_of(self, units: Sequence[str]) -> list[str]:
        """The patients of some units, sorted."""
        wanted = set(units)
        return sorted({group for group, unit in zip(self.groups, self.of_tiles, strict=True) if unit in wanted})

    def in_words(self) -> str:
        """Their number and names, and the patients that join sites."""
        joined = [f"patient {patient!r} is at {' and '.join(sites[:3])}" for patient, sites in self.joining.items()]
        joint = f"; {few(joined, 2)}" * bool(joined)
        apart = " that share no patient" * bool(joined)
        return f"{counted(len(self), self.noun)}{apart} ({few(self.names, _SHOWN)}{joint})"

    def _join(self, sites: Sequence[str]) -> None:
        """Give each tile the unit of all sites that patients connect to its own."""
        spelled = one_spelling(filter(None, sites))
        own = [spelled.get(site, "") for site in sites]
        at: dict[str, dict[str, None]] = {}
        for group, site in zip(self.groups, own, strict=True):
            at.setdefault(group, {}).update({site: None} if site else {})
        parent: dict[str, str] = {name: name for name in own if name}

        def root(site: str) -> str:
            while parent[site] != site:
                parent[site] = site = parent[parent[site]]
            return site

        for found in at.values():
            first, *others = found or [""]
            for other in others:
                parent[root(other)] = root(first)
        members: dict[str, list[str]] = {}
        for site in sorted(parent):
            members.setdefault(root(site), []).append(site)
        self.of_tiles = [
            " + ".join(members[root(next(iter(at[group])))]) if at[group] else group for group in self.groups
        ]
        self.joining = {group: sorted(found) for group, found in sorted(at.items()) if len(found) > 1}
