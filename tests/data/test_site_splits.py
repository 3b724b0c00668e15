"""Splits that keep sites whole: hospitals and laboratories, which a network recognises by their stain and scanner."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.tiles import random_pixels, write_image

from fastmtl import data
from fastmtl.builders.datasets import read_splits
from fastmtl.cli import main
from fastmtl.config import load_recipe
from fastmtl.config.check_sets import data_of
from fastmtl.config.schema import DataConfig
from fastmtl.config.sets import SetConfig
from fastmtl.data import Dataset, Split, Tile
from fastmtl.data.splits.site_folds import _counts, _Folds, balanced_folds
from fastmtl.data.splits.sites import Units


def _folder(num_sites: int = 12, seed: int = 0) -> Dataset:
    """Sites of 1 to 9 patients with 1 to 3 tiles each; the share of class 1 differs from site to site."""
    rng = np.random.default_rng(seed)
    tiles = []
    for site in range(num_sites):
        share = rng.uniform()
        for patient in range(rng.integers(1, 10)):
            label = int(rng.uniform() < share)
            for number in range(rng.integers(1, 4)):
                name = f"s{site}p{patient}"
                tiles.append(Tile(f"{name}-{number}", Path("i"), None, label, name, {"site": f"Site {site}"}))
    return data.with_sites(Dataset(Path("folder"), ("a", "b"), tuple(tiles)), "site")


def _sites(folder: Dataset, ids: tuple[str, ...]) -> set[str]:
    return {tile.site for tile in folder.subset(ids).tiles}


@pytest.mark.parametrize("num_folds", [2, 3, 5])
@pytest.mark.parametrize("num_sites", [5, 12, 40])
def test_every_site_is_held_out_once_and_never_trained_on_then(num_sites: int, num_folds: int):
    folder = _folder(num_sites)
    folds = data.kfold(folder, num_folds)
    held_out = [site for fold in folds for site in _sites(folder, fold.val)]
    assert sorted(held_out) == sorted({tile.site for tile in folder.tiles})
    for fold in folds:
        assert not _sites(folder, fold.train) & _sites(folder, fold.val)
        fold.apply(folder)
    assert sorted(group for fold in folds for group in fold.held_out_groups) == sorted(
        group.upper() for group in folder.groups
    )


def test_folds_have_similar_classes():
    folder = _folder(40)
    labels = np.array([tile.label for tile in folder.tiles])
    for fold in data.kfold(folder, 4):
        mine = np.array([tile.label for tile in folder.subset(fold.val).tiles])
        for label in (0, 1):
            assert (mine == label).sum() == pytest.approx((labels == label).sum() / 4, rel=0.1)


@pytest.mark.parametrize("seed", range(12))
def test_no_assignment_is_better(seed: int):
    folder = _folder(3 + seed % 6, seed)
    units = Units(folder)
    labels = [tile.label or 0 for tile in folder.tiles]
    num_folds = 2 + seed % 2
    names, counts = _counts(labels, units.groups, units.of_tiles)
    folds = _Folds(counts, num_folds)
    best = min(float(folds.cost(folds.sums(np.array(at))).sum()) for at in product(range(num_folds), repeat=len(names)))
    found = balanced_folds(labels, units.groups, units.of_tiles, num_folds, seed)
    fold_of = {name: number for number, fold in enumerate(found) for name in fold}
    assert float(folds.cost(folds.sums(np.array([fold_of[name] for name in names]))).sum()) == pytest.approx(best)


def test_a_class_at_enough_sites_is_in_every_fold():
    tiles = [
        Tile(f"{site}-{n}", Path("i"), None, int(n == 0 and site % 4 == 0), f"{site}-{n}", {"site": str(site)})
        for site in range(16)
        for n in range(3)
    ]
    folder = data.with_sites(Dataset(Path("folder"), ("a", "rare"), tuple(tiles)), "site")
    for fold in data.kfold(folder, 4):
        assert {tile.label for tile in folder.subset(fold.val).tiles} == {0, 1}


def test_folds_depend_on_the_seed_alone_and_not_on_the_order_of_tiles():
    folder = _folder()
    shuffled = Dataset(folder.root, folder.class_names, folder.tiles[::-1])
    assert data.kfold(folder, 3) == data.kfold(folder, 3, seed=0)
    assert [fold.held_out_groups for fold in data.kfold(folder, 3)] == [
        fold.held_out_groups for fold in data.kfold(shuffled, 3)
    ]


@pytest.mark.parametrize("test_fraction", [0.0, 0.2])
def test_shares_and_the_inner_share_hold_whole_sites(test_fraction: float):
    folder = _folder(20)
    split = data.with_inner_share(folder, data.grouped_split(folder, 0.3, test_fraction=test_fraction), 0.2)
    found = [_sites(folder, ids) for ids in split.sides.values()]
    assert sum(map(len, found)) == len(set().union(*found)) == 20
    assert len(split.val) / len(folder) == pytest.approx(0.3, abs=0.12)
    assert split.inner


def test_a_patient_at_two_sites_joins_them_and_that_is_said():
    rows = [("p1", "A"), ("p1", "B"), ("p2", "b "), ("p3", "C"), ("p4", "D")]
    tiles = [Tile(str(n), Path("i"), None, n % 2, patient, {"site": site}) for n, (patient, site) in enumerate(rows)]
    folder = data.with_sites(Dataset(Path("folder"), ("a", "b"), tuple(tiles)), "site")
    assert Units(folder).names == ["A + B", "C", "D"]
    (notice,) = data.site_notices(folder)
    assert notice.reason == "a patient is at several sites, which a split then keeps together: 'p1' at A, B"
    assert any("'b '" in problem.reason or "'b'" in problem.reason for problem in folder.problems)
    for fold in data.kfold(folder, 3):
        assert {"0", "1", "2"} <= set(fold.val) or not {"0", "1", "2"} & set(fold.val)
    joined = r"3 sites that share no patient \(A \+ B, C, D; patient 'p1' is at A and B\)"
    said = rf"4 folds .* as many sites; folder has {joined}"
    with pytest.raises(ValueError, match=said):
        data.kfold(folder, 4)


def test_few_sites_are_refused_in_one_line():
    folder = _folder(1)
    for split in (lambda: data.kfold(folder, 2), lambda: data.grouped_split(folder, 0.2)):
        with pytest.raises(ValueError, match=r"1 site \(Site 0\)") as caught:
            split()
        assert "\n" not in str(caught.value)
    two = _folder(2)
    with pytest.raises(ValueError, match="one training site, and an inner share needs 2"):
        data.with_inner_share(two, data.kfold(two, 2)[0], 0.2)


def test_a_split_that_divides_a_site_is_refused():
    folder = _folder(3)
    by_patient = Split(
        tuple(tile.id for tile in folder.tiles if tile.group != "s0p0"),
        tuple(tile.id for tile in folder.tiles if tile.group == "s0p0"),
        ("s0p0",),
    )
    with pytest.raises(
        ValueError, match=r"1 site\(s\) are in training and in validation: Site 0; draw the split by site"
    ):
        by_patient.apply(folder)


@pytest.mark.parametrize(
    ("group", "file", "site"),
    [
        ("TCGA-A2-A0T2", "x.png", "A2"),
        ("TCGA", "TCGA-ar-a1ax-01Z-00-DX1.6C.png", "AR"),
        ("p", "slide_TCGA-02-0001-01Z.png", "02"),
    ],
)
def test_sites_in_tcga_barcodes(group: str, file: str, site: str):
    tile = Tile("t", Path(file), None, None, group)
    assert data.with_sites(Dataset(Path(), (), (tile,)), "tcga_site").tiles[0].site == site


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("tcga_site", "`site`: .*tile t has no tcga_site"),
        ("hospital", "`site` names 'hospital'; "),
        ("center", "tile t has no center"),
        ("{", "`site` must read like"),
    ],
)
def test_sites_that_cannot_be_read(template: str, said: str):
    tile = Tile("t", Path("XTCGA-02-0001.png"), None, None, "p", {"center": None, "stain": "HE"})
    with pytest.raises(ValueError, match=said):
        data.with_sites(Dataset(Path(), (), (tile,)), template)


def _manifest(root: Path, column: str = "center", sites: int = 4, split: bool = False) -> Path:
    rows = [f"image,mask,label,patient,{column}" + ",split" * split]
    for number in range(4 * sites):
        write_image(root / f"{number}.png", random_pixels(number, 32))
        side = f",{'val' if number % 4 == 0 else 'train'}" * split
        write_image(root / f"m{number}.png", np.pad(np.full((16, 16), 255, np.uint8), 8))
        rows.append(f"{number}.png,m{number}.png,{'ab'[number % 2]},p{number},H{number // 4}{side}")
    (root / "manifest.csv").write_text("\n".join(rows))
    return root / "manifest.csv"


def _recipe(**options):
    return load_recipe("demo", {"data": {"size": 32, **options}})


def test_the_split_line_and_the_summary_say_that_folds_are_by_site(tmp_path: Path):
    splits = read_splits(_recipe(site="center", folds=4), _manifest(tmp_path))
    assert splits.origin == f"fold 0 of 4, stratified by class; by site: 1 of 4 sites held out ({_held_out(splits)})"
    assert "sites: a split keeps together 4 sites (H0, H1, H2, H3)" in splits.summary


def _held_out(splits) -> str:
    (site,) = {tile.site for tile in splits.validation.tiles}
    return site


def test_a_recipe_refuses_few_sites_and_a_column_that_divides_one(tmp_path: Path):
    with pytest.raises(ValueError, match=r"5 folds need 2 or more, and as many sites; .* has 4 sites"):
        read_splits(_recipe(site="center", folds=5), _manifest(tmp_path))
    with pytest.raises(ValueError, match=r"4 site\(s\) are in training and in validation: H0, H1, H2, H3"):
        read_splits(_recipe(site="center"), _manifest(tmp_path / "column", split=True))


def test_sites_and_group_by(tmp_path: Path):
    """Tiles as groups still keep their site together."""
    path = _manifest(tmp_path)
    splits = read_splits(_recipe(site="center", group_by="tile", folds=2), path)
    assert not {tile.site for tile in splits.train.tiles} & {tile.site for tile in splits.validation.tiles}


def test_an_unused_column_of_sites_is_told(tmp_path: Path):
    said = (
        "column 'center' has 4 values, and one may be on two sides of a split; if they are hospitals or laboratories, "
        'set data.site = "center"'
    )
    path = _manifest(tmp_path)
    assert said in [problem.reason for problem in read_splits(_recipe(), path).problems]
    assert said not in [problem.reason for problem in read_splits(_recipe(site="center"), path).problems]


@pytest.mark.long
def test_a_run_by_site_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    small = ["--epochs", "1", "--size", "32", "--batch-size", "4", "--set", "model.base_channels=2"]
    command = ["train", "demo", "--data", str(_manifest(tmp_path / "data")), "--out", str(run), *small]
    assert main([*command, "data.site=center", "data.folds=2"]) == 0, capsys.readouterr().err
    assert "; by site: 2 of 4 sites held out (" in (run / "run.json").read_text()
    assert main(["report", str(run)]) == 0
    assert "by site: 2 of 4 sites" in next(run.glob("*.html")).read_text()


def test_a_set_may_have_its_own_column_of_sites():
    one = SetConfig(name="a", data="a", tasks=["x"], options={"site": "center"})
    assert data_of(DataConfig(site="hospital"), one).site == "center"
