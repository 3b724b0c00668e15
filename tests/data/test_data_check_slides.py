"""`fastmtl data check` on slides: their scales, foreground and polygons, and a page that stays short."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.data_check import checked, page_of, reasons_of, write_rows
from helpers.slides import tissue_like, write_tiff


def _square(left: int, side: int, name: str) -> dict:
    right, low = left + side, side
    ring = [[left, 0], [right, 0], [right, low], [left, low], [left, 0]]
    return {
        "type": "Feature",
        "properties": {"classification": {"name": name}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


@pytest.fixture(scope="module")
def made_slides(tmp_path_factory) -> Path:
    """Four slides of 128x128 with 0.5 micrometres per pixel, one with 0.25, one that does not say; two patients."""
    folder = tmp_path_factory.mktemp("slides")
    rows = []
    for number in range(6):
        options = {4: {"resolution": (40000, 40000)}, 5: {"resolution": (1, 1), "resolutionunit": "NONE"}}
        write_tiff(folder / f"s{number}.tiff", tissue_like(128, 128, number), levels=2, **options.get(number, {}))
        polygons = [_square(0, 32 + 32 * (number > 2), "Tumor"), _square(64, 32, ("tumor ", "Stroma")[number % 2])]
        content = {"type": "FeatureCollection", "features": polygons}
        (folder / f"s{number}.geojson").write_text(json.dumps(content))
        rows.append(f"s{number}.tiff,{f's{number}.geojson' if number else ''},P{number // 3}")
    write_rows(folder, "slide,mask,patient", rows)
    return folder


@pytest.mark.long
def test_slides_by_scale(made_slides: Path, capsys):
    found, code = checked(made_slides, capsys)
    assert code == 0
    assert [slide["mpp"] for slide in found["slides"]] == [0.5, 0.5, 0.5, 0.5, 0.25, None]
    assert [slide["tile_width"] for slide in found["slides"]] == [32, 32, 32, 32, 16, None]
    assert {slide["vendor"] for slide in found["slides"]} == {"generic"}
    reasons = reasons_of(found)
    assert "tiles of different width, in micrometres: 16 on 1, 32 on 4 slides" in reasons
    assert "micrometres per pixel are unknown, of 1 of the 6 slides" in reasons
    page = page_of(found)
    assert "mpp: 0.5" in page
    assert (
        page.index("s5.tiff  128x128  unknown") < page.index("s4.tiff  128x128  0.25") < page.index("s1.tiff  128x128")
    )


def test_a_scale_that_the_manifest_tells(made_slides: Path, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(made_slides, tmp_path / "slides"))
    write_rows(folder, "slide,mpp", [f"s{number}.tiff,{0.5 if number > 3 else ''}" for number in range(6)])
    found, _ = checked(folder, capsys)
    assert [slide["mpp"] for slide in found["slides"]] == [0.5] * 6
    assert [slide["mpp_from"] for slide in found["slides"]] == ["resolution tags"] * 4 + ["manifest"] * 2
    assert found["slides"][5]["problems"] == []
    assert "of different width" not in reasons_of(found)
    assert "unknown" not in reasons_of(found)


def test_slides_brought_to_one_scale_are_in_peace(made_slides: Path, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(made_slides, tmp_path / "slides"))
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join(lines[:-1]) + "\n")
    found, _ = checked(folder, capsys, "--set", "data.mpp=1.0", "--set", "data.tile_size=16")
    assert {slide["tile_width"] for slide in found["slides"]} == {16}
    assert "of different width" not in reasons_of(found)


def test_foreground_by_slide_and_patient(made_slides: Path, capsys):
    masks = checked(made_slides, capsys)[0]["masks"]["mask"]
    small, large = 2 * 32**2 / 128**2, (64**2 + 32**2) / 128**2
    by_slide = {Path(name).name: share for name, share in masks["slides"].items()}
    assert by_slide == pytest.approx(
        {"s1.tiff": small, "s2.tiff": small, **dict.fromkeys(("s3.tiff", "s4.tiff", "s5.tiff"), large)}
    )
    assert masks["patients"] == {"P0": pytest.approx(small), "P1": pytest.approx(large)}


def test_polygons_by_class(made_slides: Path, capsys):
    found, _ = checked(made_slides, capsys)
    polygons = found["polygons"]
    assert polygons["classes"] == {
        "Tumor": {"polygons": 5, "files": 5, "drawn": "255"},
        "Stroma": {"polygons": 3, "files": 3, "drawn": "255"},
        "tumor": {"polygons": 2, "files": 2, "drawn": "255"},
    }
    assert [Path(name).name for name in polygons["without"]] == ["s0.tiff"]
    assert "polygons: classes that differ only by spaces, case, dashes or Unicode form: 'Tumor' (5), 'tumor' (2)" in (
        reasons_of(found)
    )
    assert "'tumor'" in page_of(found)


def test_polygons_beside_the_classes_of_a_recipe(made_slides: Path, capsys):
    classes = 'data.polygon_classes=["none", "Tumor", "Stroma", "Necrosis"]'
    found, code = checked(made_slides, capsys, "--set", classes)
    assert code == 1
    assert {Path(each["path"]).name for each in found["broken"]} == {"s2.geojson", "s4.geojson"}
    assert "data.polygon_classes lists 'Necrosis', but no polygon has that class" in reasons_of(found)
    page = page_of(found)
    assert "not in data.polygon_classes" in page
    assert "masks: 12 of 24, values 0, 1, 2" in page  # 1, 3 and 5; the masks of 2 and 4 cannot be drawn


def test_classes_that_are_spelt_in_two_ways_are_merged(made_slides: Path, capsys):
    rename, classes = 'data.polygon_rename={"tumor" = "Tumor"}', 'data.polygon_classes=["none", "Tumor"]'
    found, code = checked(made_slides, capsys, "--set", rename, classes, 'data.polygon_ignore=["Stroma"]')
    assert code == 0
    drawn = {name: each["drawn"] for name, each in found["polygons"]["classes"].items()}
    assert drawn == {"Tumor": "1", "tumor": "1", "Stroma": "ignored"}
    assert not any("classes that differ only" in reason for reason in reasons_of(found))


def test_the_page_stays_short_for_thousands(made_slides: Path, capsys):
    found, _ = checked(made_slides, capsys)
    slide, shares = found["slides"][0], {f"s{number}": number / 4000 for number in range(4000)}
    found["slides"] = [slide | {"path": f"/far/s{number}.svs", "problems": ["odd"]} for number in range(4000)]
    found["masks"]["mask"] |= {"slides": shares, "patients": shares, "near_empty": shares}
    found["polygons"]["without"] = list(shares)
    found["sizes"] = {f"{number}x{number}": 1 for number in range(1, 4000)}
    found["patients"] = dict.fromkeys(shares, 3)
    found["columns"]["label"] = {
        "kind": "label",
        "present": 9,
        "classes": dict.fromkeys(shares, 1),
        "patients": dict.fromkeys(shares, 1),
    }
    found["notices"] = [{"path": name, "reason": "is odd"} for name in shares]
    found["broken"] = [{"path": name, "reason": "is broken"} for name in shares]
    page = page_of(found)
    assert len(page.splitlines()) < 160
    assert "s0 and 3999 others: is odd" in page
    assert "and 3980 more; --json lists all" in page
    assert "3999 different, 1 to 3999 wide" in page
