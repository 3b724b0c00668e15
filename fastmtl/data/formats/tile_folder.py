"""Index a folder of labelled tiles: images, their masks, classes and patients.

Layout: `ROOT/CLASS/image/NAME.(png|jpg|...)` and `ROOT/CLASS/label/NAME.(png|...)`, as EBHI-Seg is published.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..dataset import Dataset, Problem, Tile, with_one_spelling
from ..identifiers import clean_name, identifier_key, tell_apart, unicode_form
from ..images.pictures import IMAGE_SUFFIXES
from ..patient_names import PATIENT, group_of, rule_in_words


def read_tile_folder(root: str | Path, class_names: Sequence[str] | None = None, patient: str = PATIENT) -> Dataset:
    """Index `root`; opens no image (see `fastmtl.data.check_tiles` for that).

    Args:
        root: folder with one sub-folder per class, each with `image` and, if there are masks, `label`.
        class_names: the classes in label order; sorted folder names if None. A class without a folder is allowed
            (a small validation set), a folder without a class is not.
        patient: finds the patient in a file's name, see `group_of`.

    Raises:
        FileNotFoundError: `root` is not a folder, or has no class with images.
        ValueError: a class folder missing from `class_names`, or two images with the same name.
    """
    root = Path(root)
    folders = _class_folders(root)
    names = tuple(sorted(folders)) if class_names is None else tuple(class_names)
    forms = {unicode_form(name): name for name in names}
    folders = {forms.get(unicode_form(name), name): folder for name, folder in folders.items()}
    _check_names(root, names, folders)
    tiles: list[Tile] = []
    problems: list[Problem] = []
    for label, name in enumerate(names):
        if name in folders:
            _read_class(folders[name], name, label, patient, tiles, problems)
    if not tiles:
        raise FileNotFoundError(f"no images in {root}: expected files such as {root / names[0] / 'image' / 'NAME.png'}")
    return with_one_spelling(Dataset(root, names, tuple(tiles), tuple(problems), patients_from=rule_in_words(patient)))


def is_tile_folder(root: Path) -> bool:
    """Whether `root` has a sub-folder with a folder `image` in it."""
    return root.is_dir() and any((entry / "image").is_dir() for entry in root.iterdir())


def _class_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder that holds CLASS/image and CLASS/label")
    folders = {entry.name: entry for entry in root.iterdir() if (entry / "image").is_dir()}
    seen: dict[str, Path] = {}
    for folder in sorted(entry for entry in root.iterdir() if (entry / "image").is_dir() or (entry / "label").is_dir()):
        if (other := seen.setdefault(unicode_form(folder.name), folder)) != folder:
            raise ValueError(f"{tell_apart(other, folder)} would be one class; move all into one folder")
    if not folders:
        below = sorted(entry.parent.parent for entry in root.glob("*/*/image") if entry.is_dir())
        hint = f"; did you mean {below[0]}?" if below else "; expected CLASS/image and CLASS/label folders"
        raise FileNotFoundError(f"no class folders in {root}{hint}")
    return folders


def _check_names(root: Path, names: tuple[str, ...], folders: Iterable[str]) -> None:
    if not names or len(set(names)) != len(names):
        raise ValueError(f"`class_names` must be distinct and not empty; got {list(names)}")
    for folder in sorted(folders):
        if folder not in names:
            near = difflib.get_close_matches(folder, map(str, names), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{root / folder} is no class in `class_names` {list(names)}{hint}")


def _read_class(folder: Path, name: str, label: int, patient: str, tiles: list[Tile], problems: list[Problem]) -> None:
    masks = _by_stem(folder / "label", problems) if (folder / "label").is_dir() else {}
    images = _by_stem(folder / "image", problems)
    for key, image in images.items():
        tiles.append(Tile(f"{name}/{image.stem}", image, masks.pop(key, None), label, group_of(image.name, patient)))
    near = {identifier_key(key): image.name for key, image in images.items()}
    for key, mask in masks.items():
        image = near.get(identifier_key(key))
        hint = f"; if it is that of {image}, rename it" if image else ""
        problems.append(Problem(mask, f"a mask without an image of the same name{hint}"))


def _by_stem(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """Cleaned file name without suffix -> file, sorted by name, without hidden files."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(Problem(path, f"not one of {', '.join(sorted(IMAGE_SUFFIXES))}"))
        elif (other := found.setdefault(clean_name(path.stem), path)) != path:
            raise ValueError(f"{tell_apart(path, other)} would have the same id; rename or remove one")
    return found
