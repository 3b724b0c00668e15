"""The output of `fastmtl data check`: a summary, tables, then notices, refusals and broken files."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from ..api import notices
from ..utils.words import counted, few, named

SHOWN = 20  # rows of a table, and entries of a line, before "and N more"
_ENDS = 5  # the lowest and the highest of many shares


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the result of `data.examine`, and "refused": what a recipe would refuse, if one was given."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)  # a long line stays one line, so that it can be searched

    for line in _summary(found):
        say(line)
    for rows, hidden in _tables(found):
        if rows.row_count:
            console.print()
            console.print(rows)
            if hidden:
                say(f"and {hidden} more; --json lists all")
    say("")
    of_slides = ({"path": slide["path"], "reason": said} for slide in found["slides"] for said in slide["problems"])
    for line in notices.lines((each["path"], each["reason"]) for each in (*found["notices"], *of_slides)):
        say(f"note: {line}")
    for reason in found.get("refused", ()):
        say(f"refused: {reason}")
    if found["broken"]:
        console.print(table("broken", "why", rows=[(each["path"], each["reason"]) for each in found["broken"][:SHOWN]]))
        if len(found["broken"]) > SHOWN:
            say(f"and {len(found['broken']) - SHOWN} more; --json lists all")
    else:
        say("no file is broken")


def _summary(found: Mapping[str, Any]) -> Iterable[str]:
    slides = f" from {counted(found['num_slides'], 'slide')}" if found["num_slides"] else ""
    yield f"{found['path']}: {counted(found['num_tiles'], 'tile')}{slides}, {counted(found['num_patients'], 'patient')}"
    yield from found["summary"]
    for column, masks in found["masks"].items():
        name = "masks" if column == "mask" else f"masks {column}"
        empty = f", {masks['empty']} empty, {len(masks['near_empty'])} nearly, {masks['full']} full"
        values = "value" if len(masks["values"]) == 1 else "values"
        yield (
            f"{name}: {masks['masks']} of {found['num_tiles']}, {values} {_values(masks['values'])}; foreground is "
            f"{masks['foreground']}: {masks['share']:.1%} of the pixels{empty}"
        )
    if polygons := found["polygons"]:
        number = sum(each["polygons"] for each in polygons["classes"].values())
        without = f"; {counted(len(polygons['without']), 'image')} without" if polygons["without"] else ""
        classes = "1 class" if len(polygons["classes"]) == 1 else f"{len(polygons['classes'])} classes"
        yield f"polygons: {number}, of {classes}, in {counted(polygons['files'], 'file')}{without}"
    if found["slides"]:
        yield f"mpp: {_by_slides(_mpp(slide) for slide in found['slides'])}"
    for side, counts in found["splits"].items():
        sites = f" from {counted(counts['sites'], 'site')}" if counts["sites"] else ""
        yield f"split {side}: {counted(counts['tiles'], 'tile')} of {counted(counts['patients'], 'patient')}{sites}"
    yield f"sizes: {_sizes(found['sizes'])}"


def _tables(found: Mapping[str, Any]) -> Iterable[tuple[Table, int]]:
    """Pairs of a table and the number of rows left out of it."""
    total = found["num_tiles"]
    rows = [
        (name, each["kind"], f"{each['present']} of {total}", _held(each)) for name, each in found["columns"].items()
    ]
    yield table("column", "kind", "labelled", "holds", rows=rows), 0
    ways = found["patients_found"]
    rows = [(way, each["patients"], each["tiles"]) for way, each in ways.items()]
    yield table("patients found by", "patients", "tiles", rows=rows if len(ways) > 1 else ()), 0
    most = sorted(found["patients"].items(), key=lambda item: -item[1])
    differ = len(set(found["patients"].values())) > 1
    yield table("patients with most tiles", "tiles", rows=most[:_ENDS] if differ else ()), 0
    home = os.path.join(found["path"] if os.path.isdir(found["path"]) else os.path.dirname(found["path"]), "")
    for column, masks in found["masks"].items():
        yield from _mask_tables("" if column == "mask" else f"{column}: ", masks, home)
    if polygons := found["polygons"]:
        classes = polygons["classes"].items()
        rows = [(_class(name), each["polygons"], each["files"], each["drawn"]) for name, each in classes]
        yield table("polygons of class", "polygons", "files", "drawn as", rows=rows[:SHOWN]), len(rows[SHOWN:])
        rows = [(path.removeprefix(home),) for path in polygons["without"]]
        yield table("without polygons", rows=rows[:_ENDS]), len(rows[_ENDS:])
    yield from _side_tables(found["splits"])
    slides = _odd_first(found["slides"])
    heads = ("slide", "size", "mpp", "from", "vendor", "tiles", "a tile shows")
    yield table(*heads, rows=[_slide(slide, home) for slide in slides[:SHOWN]]), len(slides[SHOWN:])


def _side_tables(sides: Mapping[str, Any]) -> Iterable[tuple[Table, int]]:
    """The tiles of each class, and the polygons, on each side of a split."""
    contents = [{**side["classes"], "polygons of": side["polygons"]} for side in sides.values()]
    for column in dict.fromkeys(column for each in contents for column in each):
        names = dict.fromkeys(name for each in contents for name in each.get(column, ()))
        rows = [(_class(name), *(each.get(column, {}).get(name, 0) for each in contents)) for name in names]
        yield table(f"{column} class", *sides, rows=rows[:SHOWN]), len(rows[SHOWN:])


def _mask_tables(of: str, masks: Mapping[str, Any], home: str) -> Iterable[tuple[Table, int]]:
    if len(masks["values"]) <= SHOWN:
        rows = [(value, f"{each['share']:.2%}", each["masks"]) for value, each in masks["values"].items()]
        yield table(f"{of}mask value", "share of pixels", "masks with it", rows=rows), 0
    kinds = list(masks["kinds"].items())
    if len(kinds) > 1:
        yield table(f"{of}values of a mask", "masks", rows=kinds[:SHOWN]), len(kinds[SHOWN:])
    one_each = list(masks["slides"].values()) == list(masks["patients"].values())  # a slide of each patient
    for name, what in (("slides", "slide"), ("patients", "patient"))[: 1 if one_each else 2]:
        shares = [(one.removeprefix(home), share) for one, share in masks[name].items()]
        ends = shares if len(shares) <= 2 * _ENDS else [*shares[:_ENDS], None, *shares[-_ENDS:]]
        rows = [
            ("...", f"median {median(masks[name].values()):.2%}") if end is None else (end[0], f"{end[1]:.2%}")
            for end in ends
        ]
        yield table(f"{of}{what}", "foreground", rows=rows), 0
    near = [(name, f"{share:.4%}") for name, share in masks["near_empty"].items()]
    yield table(f"{of}nearly empty mask", "foreground", rows=near[:SHOWN]), len(near[SHOWN:])


def _held(column: Mapping[str, Any]) -> str:
    if "range" in column:
        return "{:g} to {:g}".format(*column["range"])
    classes = [
        f"{named(_class(label))} {count} ({counted(column['patients'][label], 'patient')})"
        for label, count in column.get("classes", {}).items()
    ]
    return few(classes, SHOWN)


def _class(name: str) -> str:
    """The name of a class; escaped if it has unusual spaces or characters that could hide a difference."""
    plain = name.isprintable() and unicodedata.is_normalized("NFC", name) and name == " ".join(name.split())
    return (name if plain else ascii(name)) if name else "(none)"


def _mpp(slide: Mapping[str, Any]) -> str:
    if slide["mpp"] is None:
        return "unknown"
    return f"{slide['mpp']:.3g}" + (f" ({slide['mpp_from']})" if slide["mpp_from"] else "")


def _odd_first(slides: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Slides without a scale first, then those with a rare scale of tiles, then those with problems."""
    alike = Counter(map(_scale, slides))
    return sorted(slides, key=lambda slide: (slide["mpp"] is not None, alike[_scale(slide)], not slide["problems"]))


def _scale(slide: Mapping[str, Any]) -> str:
    return "" if slide["tile_width"] is None else f"{slide['tile_width']:.1g}"


def _slide(slide: Mapping[str, Any], home: str) -> tuple[str, ...]:
    width = f"{slide['tile_pixels']:g} pixels" if slide["tile_width"] is None else f"{slide['tile_width']:.4g} um"
    mpp = "unknown" if slide["mpp"] is None else f"{slide['mpp']:.4g}"
    size = f"{slide['width']}x{slide['height']}"
    return slide["path"].removeprefix(home), size, mpp, slide["mpp_from"], slide["vendor"], slide["tiles"], width


def _values(values: Mapping[str, Any]) -> str:
    if len(values) <= SHOWN:
        return ", ".join(values)
    numbers = sorted(map(int, values))
    return f"{numbers[0]} to {numbers[-1]} ({len(numbers)} different)"


def _sizes(sizes: Mapping[str, int]) -> str:
    if len(sizes) <= _ENDS:
        return few([f"{size} {count}" for size, count in sizes.items()], SHOWN)
    sides = [tuple(map(int, size.split("x"))) for size in sizes]
    widths, heights = zip(*sides, strict=True)
    most, count = next(iter(sizes.items()))
    return (
        f"{len(sizes)} different, {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high; "
        f"most often {most} ({count})"
    )


def _by_slides(words: Iterable[str]) -> str:
    return few([f"{word} on {counted(count, 'slide')}" for word, count in Counter(words).most_common()], SHOWN)


def table(*heads: str, rows: Iterable[Sequence[object]] = ()) -> Table:
    """A rich table without lines; long cells are folded."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        made.add_column(head, overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made
