"""Charts as inline SVG and HTML: lines over time, a confusion matrix, a bar of shares. No script, no outside file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from ..utils.words import percent

NUM_COLOURS = 6  # --c0 to --c5 of the page's style
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 210, 42, 10, 8, 34
_MOST_POINTS = 300
UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Line:
    """One line of a chart: a value `ys[i]` at `xs[i]`; values that are not finite leave a gap. The legend has the last
    of them, or `said`."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    said: str | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    low: float = 0.0,
    high: float | None = None,
    across: str = "epoch",
    marks: Mapping[float, str] | None = None,
    square: bool = False,
) -> str:
    """A figure with its legend under the title; the axis starts at `low`, or at the lowest value below it.

    Args:
        low, high: the minimal range of the vertical axis; `high` None: from the data.
        across: the label of the horizontal axis.
        marks: position on the horizontal axis -> name of the stage that starts there; drawn as a vertical line.
        square: both axes from 0 to 1, of equal length, with the diagonal.
    """
    lines = [_thin(line) for line in lines]
    values = [y for line in lines for y in line.ys if isfinite(y)]
    levels = ticks(min([low, *values]), max([low if high is None else high, *values]))
    bottom, top = levels[0], levels[-1]
    xs = [x for line in lines for x in line.xs]
    first, last = (min(xs), max(xs)) if xs else (0, 0)
    tall = _WIDTH - _LEFT - _RIGHT + _TOP + _BOTTOM if square else _HEIGHT
    floor = tall - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT), _TOP + (top - y) / (top - bottom) * (floor - _TOP)

    drawn = []
    for mark in levels:
        y = place(first, mark)[1]
        kind = "axis" if mark in (0, bottom) else "rule"
        drawn.append(f'<line class={kind} x1={_LEFT} x2={_WIDTH - _RIGHT} y1="{y:.1f}" y2="{y:.1f}" />')
        drawn.append(f'<text x={_LEFT - 6} y="{y + 4:.1f}" text-anchor=end>{_short(mark)}</text>')
    for mark in [mark for mark in ticks(first, last, whole=not square) if first <= mark <= last] if xs else []:
        x = place(mark, bottom)[0]
        drawn.append(f'<line class=axis x1="{x:.1f}" x2="{x:.1f}" y1={floor} y2={floor + 4} />')
        drawn.append(f'<text x="{x:.1f}" y={floor + 16} text-anchor=middle>{_short(mark)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    drawn.append(f"<text x={middle} y={tall - 4} text-anchor=middle>{escape(across)}</text>")
    if square:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        drawn.append(f'<line class=mark x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" />')
    # Marks before the first value are drawn at the axis; if there are several, only the last.
    starts = {round(max(place(mark, bottom)[0], _LEFT), 1): name for mark, name in (marks or {}).items()}
    for x, name in starts.items():
        drawn.append(f'<line class=mark x1="{x}" x2="{x}" y1={_TOP} y2={floor} />')
        drawn.append(f'<text class=stage x="{x + 3:.1f}" y={_TOP + 8}>{escape(name)}</text>')
    for index, line in enumerate(lines):
        drawn += _strokes(
            index, not square, [place(x, y) if isfinite(y) else None for x, y in zip(line.xs, line.ys, strict=True)]
        )
    drawing = f'<svg viewBox="0 0 {_WIDTH} {tall}" role=img aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    if not values:
        drawing = "<p class=soft>No finite value to draw.</p>"
    return f"<figure><figcaption>{escape(title)}</figcaption>{_legend(lines)}{drawing}</figure>"


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about four steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(1, 3, whole=True)
    [1, 2, 3]
    """
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        high = low if whole else low + span
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= span)
    if whole:
        size = max(1, round(step))
        return [size * n for n in range(math.floor(low / size), math.ceil(high / size) + 1)]
    digits = max(0, 1 - math.floor(math.log10(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, digits) + 0.0 for n in range(first, last + 1)]


def confusion_matrix(classes: Sequence[str], counts: Mapping[tuple[str, str], int]) -> str:
    """A table of (true, predicted) -> images; the shade of a cell is its share of the true class."""
    heads = "".join(f"<th scope=col><span>{escape(name)}</span></th>" for name in classes)
    rows = []
    for true in classes:
        total = sum(counts.get((true, name), 0) for name in classes)
        cells = []
        for name in classes:
            count = counts.get((true, name), 0)
            share = count / total if total else 0.0
            kind = " class=full" if share > 0.8 else ""
            what = f"{count} of {total} {true} predicted as {name}"
            text = str(count) if count else "<i>0</i>"
            right = " data-right" if true == name else ""
            cells.append(f'<td{kind}{right} style="--share:{share:.0%}" title="{escape(what)}">{text}</td>')
        rows.append(f"<tr><th scope=row>{escape(true)}</th>{''.join(cells)}</tr>")
    corner = "<td class=corner>true ↓ &nbsp; predicted →</td>"
    return f"<div class=wide><table class=confusion><tr>{corner}{heads}</tr>{''.join(rows)}</table></div>"


def shares(parts: Mapping[str, float]) -> str:
    """One bar divided by `parts` (name -> seconds), with its legend."""
    total = sum(parts.values()) or 1.0
    blocks, keys = [], []
    for index, (name, seconds) in enumerate(parts.items()):
        blocks.append(f'<span style="flex-grow:{seconds / total:.4f};background:var(--c{index % NUM_COLOURS})"></span>')
        keys.append(
            f'<li><span class=block style="background:var(--c{index % NUM_COLOURS})"></span>{escape(name)} '
            f"<b>{escape(percent(seconds / total))}</b> <span class=soft>{duration(seconds)}</span></li>"
        )
    return f"<div class=bar>{''.join(blocks)}</div><ul class=legend>{''.join(keys)}</ul>"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(0.31), duration(75), duration(7322)
    ('0.3 s', '1 min 15 s', '2 h 2 min')
    """
    if not isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float | None) -> str:
    """Three digits after the point, one for larger values, a dash for what is not known."""
    if value is None or not isfinite(value):
        return UNKNOWN
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def mean(values: Sequence[float]) -> float:
    """Mean of the finite values, NaN if there are none."""
    finite = [value for value in values if isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _strokes(index: int, dots: bool, points: Sequence[tuple[float, float] | None]) -> list[str]:
    """A polyline per stretch without a gap, and dots while they can be distinguished."""
    colour = f"var(--c{index % NUM_COLOURS})"
    stretches: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            stretches.append([])
        else:
            stretches[-1].append(point)
    drawn = []
    for stretch in filter(None, stretches):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in stretch)
        drawn.append(f'<polyline points="{path}" {_dash(index)} style="stroke:{colour}"/>')
        if (dots and len(points) <= 20) or len(stretch) == 1:
            drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:{colour}"/>' for x, y in stretch]
    return drawn


def _short(mark: float) -> str:
    """A number beside an axis, at most five characters.

    >>> _short(0.75), _short(0.0015), _short(20000.0)
    ('0.75', '1.5e-3', '20000')
    """
    plain = f"{mark:g}"
    if len(plain) <= 5 and "e" not in plain:
        return plain
    digits, power = f"{mark:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _legend(lines: Sequence[Line]) -> str:
    keys = []
    for index, line in enumerate(lines):
        sample = f'<polyline points="0,5 24,5" {_dash(index)} style="stroke:var(--c{index % NUM_COLOURS})"/>'
        last = next((y for y in reversed(line.ys) if isfinite(y)), None)
        said = escape(number(last) if line.said is None else line.said)
        keys.append(f'<li><svg class=sample viewBox="0 0 24 10">{sample}</svg>{escape(line.name)} <b>{said}</b></li>')
    return f"<ul class=legend>{''.join(keys)}</ul>"


def _dash(index: int) -> str:
    """Dashes as well as colours, for prints in grey."""
    dash = _DASHES[index % len(_DASHES)]
    return f'stroke-dasharray="{dash}"' if dash else ""


def _thin(line: Line) -> Line:
    """Means of neighbours if there are more points than pixels."""
    group = math.ceil(len(line.xs) / _MOST_POINTS)
    if group < 2:
        return line
    starts = range(0, len(line.xs), group)
    ys = [mean(line.ys[start : start + group]) for start in starts]
    xs = [line.xs[min(start + group, len(line.xs)) - 1] for start in starts]
    return Line(line.name, xs, ys, line.said)
