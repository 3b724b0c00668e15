"""`fastmtl prepare` and `fastmtl data check`: write a manifest of your data, and check it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import data
from ..api import rehearsal
from ..builders import datasets
from ..config import ConfigError, load_recipe, parse_overrides
from ..data.patient_names import rule_in_words
from ..utils.words import counted, few
from . import data_page
from .arguments import Parser
from .file_progress import FileProgress

_SHOWN = 20  # files without oddities that are listed
_FEW = 5  # patients


def prepare(arguments: Sequence[str]) -> int:
    """Write a manifest and print oddities; returns 1 if a file is not in the manifest."""
    parser = Parser(
        "prepare",
        "Write a manifest of a folder of tiles or slides, index the slides, and print oddities. Running it again does "
        "only what is missing. Exit status: 0 if all images and slides are in the manifest; 1 if some are not, because "
        "they cannot be read or came later, or if there is none; 2 for wrong arguments.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="searched with its sub-folders")
    parser.add_argument("--out", type=Path, metavar="FILE", help="manifest to write (default: DIR/manifest.csv)")
    parser.add_argument(
        "--patient",
        metavar="REGEX",
        help="finds the patient in a file name (default: the part before the first -)",
    )
    parser.add_argument(
        "--index-folder", type=Path, metavar="DIR", help="where slide indexes go (default: beside the slides)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="files that are read at the same time (default: 2)"
    )
    parser.add_json()
    parsed = parser.parse(arguments)
    names = {} if parsed.patient is None else {"patient": parsed.patient}
    with FileProgress() as progress:
        prepared = data.prepare(
            parsed.folder,
            parsed.out,
            index_folder=parsed.index_folder,
            workers=parsed.workers,
            on_progress=progress,
            **names,
        )
    if parsed.json:
        print(
            json.dumps(_prepared_words(prepared) | {"recipe": _recipe_words(prepared, parsed.index_folder)}, indent=1)
        )
    else:
        _show_prepared(prepared, parsed.index_folder, parsed.patient)
    return 0 if all(one.kind for one in prepared.found) and not prepared.unnamed else 1


def data_command(arguments: Sequence[str]) -> int:
    """`fastmtl data check`: open and count everything; returns 1 if something is broken or refused."""
    parser = Parser("data check", "Open every file of a data set; print counts, oddities and broken files.")
    parser.add_argument("path", type=Path, metavar="PATH", help="a manifest, or a folder in any known format")
    parser.add_argument("--recipe", metavar="RECIPE", help="read it as this recipe does, and print what it refuses")
    parser.add_set("for example data.tile_size=512")
    parser.add_json()
    if list(arguments[:1]) != ["check"]:
        print(parser.format_usage(), end="", file=sys.stderr)
        return 0 if list(arguments[:1]) in (["-h"], ["--help"]) else 2
    parsed = parser.parse(arguments[1:])
    overrides = parse_overrides(parsed.sets)
    recipe = load_recipe(parsed.recipe or "demo", overrides)
    if parsed.recipe is None and set(overrides) - {"data"}:
        raise ConfigError(f"--set of `data check` changes data.*; got {', '.join(sorted(set(overrides) - {'data'}))}.")
    dataset = datasets.read_data(recipe, parsed.path)
    found = data.examine(dataset, num_threads=recipe.data.num_threads)
    if parsed.recipe is not None:
        refused, odd, splits = rehearsal.rehearse(recipe, dataset, parsed.path, set(found["damaged_tiles"]))
        found |= {"refused": refused, "splits": splits or found["splits"]}
        found["notices"] += [{"path": str(problem.path), "reason": problem.reason} for problem in odd]
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        data_page.show(found, _console())
    return 1 if found["broken"] or found.get("refused") else 0


def _prepared_words(prepared: data.Prepared) -> dict[str, Any]:
    files = [
        {
            "path": str(one.path),
            "kind": one.kind or None,
            "mask": str(one.mask) if one.mask else None,
            "size": list(one.size),
            "levels": one.levels,
            "mpp": one.mpp,
            "problems": one.problems,
        }
        for one in prepared.found
    ]
    return {
        "manifest": str(prepared.manifest),
        "patients": list(prepared.patients),
        "existed": prepared.existed,
        "unnamed": list(prepared.unnamed),
        "files": files,
        "passed_over": prepared.passed_over,
    }


def _recipe_words(prepared: data.Prepared, index_folder: Path | None) -> dict[str, str]:
    """The keys that a recipe's [data] needs besides the manifest."""
    words = {}
    home = prepared.manifest.parent.resolve()
    paths = [path.resolve() for one in prepared.found if one.kind for path in (one.path, one.mask) if path]
    if not all(path.is_relative_to(home) for path in paths):
        words["root"] = os.path.commonpath([home, *(path.parent for path in paths)])
    if index_folder is not None:
        words["index_folder"] = str(index_folder.resolve())
    return words


def _show_prepared(prepared: data.Prepared, index_folder: Path | None, patient: str | None) -> None:
    table = data_page.table("file", "kind", "size", "levels", "mpp", "mask", "odd")
    folder = prepared.manifest.parent
    plain = 0
    for one in prepared.found:
        if one.kind == "tile" and not one.problems and len(prepared.found) > _SHOWN:
            plain += 1
            continue
        name = one.path.relative_to(folder) if one.path.is_relative_to(folder) else one.path
        size = "x".join(map(str, one.size)) if one.kind else ""
        mpp = f"{one.mpp:.4g}" if one.mpp else "unknown" if one.kind == "slide" else ""
        levels = str(one.levels) if one.kind == "slide" else ""
        mask = "yes" if one.mask else ""
        table.add_row(str(name), one.kind or "left out", size, levels, mpp, mask, "; ".join(one.problems))
    console = _console()
    if table.row_count:
        console.print(table)
    if plain:
        console.print(f"{plain} more tiles without oddities")
    if prepared.passed_over:
        others = ", ".join(f"{count} {ending}" for ending, count in sorted(prepared.passed_over.items()))
        console.print(f"passed over: {others}")
    used = [one for one in prepared.found if one.kind]
    slides = sum(one.kind == "slide" for one in used)
    what = f"{counted(len(used) - slides, 'tile')}, {counted(slides, 'slide')}"
    left_out = [str(one.path) for one in prepared.found if not one.kind]
    if left_out:
        console.print(f"left out: {counted(len(left_out), 'file')}: {few(left_out, _SHOWN)}", soft_wrap=True)
    if prepared.existed:
        console.print(f"{prepared.manifest} was there and is unchanged; the folder has {what}", soft_wrap=True)
        if prepared.unnamed:
            console.print(
                f"not in it: {few(prepared.unnamed, _SHOWN)}; add rows, or write another manifest with --out FILE",
                soft_wrap=True,
            )
    else:
        console.print(f"{prepared.manifest}: {what}; check it: fastmtl data check {prepared.manifest}", soft_wrap=True)
        rule = rule_in_words() if patient is None else rule_in_words(patient)
        console.print(
            f"patients: {len(prepared.patients)}, by {rule}: {few(prepared.patients, _FEW)}; if that is wrong, remove "
            "the manifest and give --patient REGEX, or edit its column of patients",
            soft_wrap=True,
        )
    for key, value in _recipe_words(prepared, index_folder).items():
        console.print(f"for recipes, and for --set of data check: data.{key}={value}")


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
