"""Published data sets, written small in their real layouts."""

import csv

import numpy as np
import pytest
from PIL import Image

from fastmtl.data.images.run_lengths import encode_runs
from helpers.tiles import random_pixels, write_folder, write_image

h5py = pytest.importorskip("h5py")
EBHI_CLASSES = ("Adenocarcinoma", "High-grade IN", "Low-grade IN", "Normal", "Polyp", "Serrated adenoma")


def drawn_mask(seed: int, height: int, width: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((height, width)) < 0.3).astype(np.uint8)


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_gi_tract(root, *, cases=(2, 7), days=(1, 3), slices=3, size=(20, 16)):
    width, height = size
    rows = [("id", "class", "segmentation")]
    for case in cases:
        for day in days:
            for number in range(1, slices + 1):
                scan = f"case{case}_day{day}"
                name = f"slice_{number:04d}_{width}_{height}_1.50_1.63.png"
                seed = (case, day, number)  # equal images of two patients are refused
                grey = np.random.default_rng(seed).integers(0, 900, (height, width)).astype(np.uint16)
                path = root / "train" / f"case{case}" / scan / "scans" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey).save(path)
                for organ, there in (("large_bowel", number > 1), ("small_bowel", True), ("stomach", False)):
                    code = encode_runs(drawn_mask(number, height, width), "row") if there else ""
                    rows.append((f"{scan}_slice_{number:04d}", organ, code))
    write_csv(root / "train.csv", rows)
    return root


def write_hep2(root, labels=("homogeneous ", "mitsp"), size=24, folds=0):
    """A patient of two patches for each of `labels`; the tables of `folds` folds, which hold out patients in turn."""
    rows = []
    for patient, label in enumerate(labels, 1):
        for patch in range(2):
            stem = f"{patient:05d}_p0_patch{patch}"
            write_image(root / "dataset" / "train" / f"{stem}.tif", random_pixels(2 * patient + patch, size)[..., 0])
            write_image(root / "dataset" / "train" / f"{stem}_Mask.tif", drawn_mask(patch, size, size) * 255)
            rows.append((f"{stem}.tif", f"{stem}_Mask.tif", label, "positive" if patch else "intermediate "))
    write_csv(root / "dataset" / "train.csv", rows)
    write_csv(root / "more.csv", rows[:2])
    each = len(rows) // max(folds, 1)
    for number, letter in enumerate("ABCDE"[:folds]):
        held_out = rows[number * each : (number + 1) * each]
        write_csv(root / f"fold{letter}_test.csv", held_out)
        write_csv(root / f"fold{letter}_train.csv", [row for row in rows if row not in held_out])
    return root


def write_hubmap(root, organs=("kidney", "lung", "kidney")):
    header = "id organ data_source img_height img_width pixel_size tissue_thickness rle age sex"
    rows = [tuple(header.split())]
    for number, organ in enumerate(organs):
        write_image(root / "train_images" / f"{100 + number}.tiff", random_pixels(number, 24)[:20])
        code = encode_runs(drawn_mask(number, 20, 24), "column")
        rows.append((str(100 + number), organ, "HPA", "20", "24", "0.4", "4", code, "61.0" if number else "", "Male"))
    write_csv(root / "train.csv", rows)
    return root


def write_pets(root, stems=("Abyssinian_1", "beagle_12", "Bombay_7")):
    """The second has no box, and the third is a GIF called .jpg."""
    for number, stem in enumerate(stems):
        pixels = random_pixels(number, 30)[:20]
        write_image(root / "images" / f"{stem}.jpg", pixels, format="GIF" if number == 2 else "JPEG")
        trimap = np.full((20, 30), 2, np.uint8)
        trimap[5:15, 10:20], trimap[8:12, 12:18] = 3, 1
        write_image(root / "annotations" / "trimaps" / f"{stem}.png", trimap)
        if number != 1:
            box = "<xmin>12</xmin><ymin>5</ymin><xmax>18</xmax><ymax>15</ymax>"
            size = "<size><width>30</width><height>20</height></size>"
            xml = f"<annotation>{size}<object><bndbox>{box}</bndbox></object></annotation>"
            (root / "annotations" / "xmls").mkdir(parents=True, exist_ok=True)
            (root / "annotations" / "xmls" / f"{stem}.xml").write_text(xml)
    return root


def write_pets_hdf5(root, size=16):
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        arrays = {
            "images": np.stack([random_pixels(number, size) for number in range(count)]),
            "masks": np.stack([drawn_mask(number, size, size)[..., None] for number in range(count)]),
            "bboxes": np.tile(np.array([2.0, 4.0, 10.0, 12.0]), (count, 1)),
            "binary": np.arange(count)[:, None] % 2,
        }
        write_arrays(root / split, arrays)
    return root


def write_arrays(folder, arrays):
    """A file NAME.h5 with the array NAME each, as the UNet-multi authors stored them."""
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file[name] = values


def write_ebhi(root):
    """Five tiles of each class: as many as folds."""
    write_folder(root, dict.fromkeys(EBHI_CLASSES, 5), tiles_per_group=1, size=64)
    return root


WRITERS = {
    "gi_tract": write_gi_tract,
    "hep2": write_hep2,
    "hubmap_hpa": write_hubmap,
    "pets": write_pets,
    "pets_hdf5": write_pets_hdf5,
}


def write_for_recipes(paper, root):
    """Data that all recipes of a paper can train on: every fold has every class."""
    write = {
        "mask2tasks": write_ebhi,
        "joint_unet": lambda root: write_hep2(root, ("homogeneous", "mitsp") * 5, size=32, folds=5),
        "gi_tract": lambda root: write_gi_tract(root, cases=range(1, 7), days=(1, 2), slices=4, size=(32, 32)),
        "switched_aux": lambda root: write_hubmap(root, ("kidney", "lung") * 5),
        "unet_multi": lambda root: write_pets(
            root, [f"{breed}_{i}" for i in range(8) for breed in ("Bombay", "beagle")]
        ),
    }
    return write[paper](root)
