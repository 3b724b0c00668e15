"""Which differences between rows are real: a paired bootstrap over patients against one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation.bootstrap import RESAMPLES, Difference, Interval, differences, holm, intervals
from .cells import label, metrics_of, table, title
from .plan import Result, RunKey
from .runs import ImageResults

_LEVEL = 0.05
_FEW = 20  # patients, below which the intervals of a bootstrap are too narrow


@dataclass(frozen=True)
class Comparison:
    """The rows' differences in one metric.

    Attributes:
        reference: the row they are compared with.
        differences: row -> its score minus the reference's, over the runs that both have.
        corrected: row -> p, corrected for the number of rows (Holm).
        runs: row -> number of runs that both have.
        apart: rows that held out other images.
    """

    reference: Result
    differences: Mapping[str, Difference]
    corrected: Mapping[str, float]
    runs: Mapping[str, int]
    apart: frozenset[str]

    def is_real(self, row: str) -> bool:
        """Whether the corrected p is below 0.05 and the interval does not hold 0."""
        low, high = self.differences[row].interval
        return self.corrected[row] < _LEVEL and not low <= 0 <= high


@dataclass(frozen=True)
class Evidence:
    """What a bootstrap over patients shows about the rows.

    Attributes:
        intervals: (row, metric) -> 95% interval over patients of the mean over the row's runs.
        comparisons: metric -> comparison of the rows.
    """

    intervals: Mapping[tuple[str, str], Interval]
    comparisons: Mapping[str, Comparison]

    @classmethod
    def of(cls, results: Sequence[Result], against: str = "") -> Evidence:
        """From the run folders of `results`; `against`: see `compare`."""
        images = ImageResults(results)
        return cls(_own_intervals(results, images), compare(results, images, against))


def _own_intervals(results: Sequence[Result], images: ImageResults) -> dict[tuple[str, str], Interval]:
    """(row, metric) -> the 95% interval over patients of the mean over the row's runs."""
    wanted = {
        f"{result.row.name}\n{key}": list(found.values())
        for result in results
        for key in metrics_of(results)
        if (found := images.statistics(result, key)) and len(found) == len(result.summaries)
    }
    spans: dict[tuple[str, str], Interval] = {}
    for name, one in intervals(wanted).items():
        row, _, key = name.partition("\n")
        spans[row, key] = one
    return spans


def compare(results: Sequence[Result], images: ImageResults, against: str = "") -> dict[str, Comparison]:
    """Metric -> comparison of all rows with one: `against`, else the first row.

    Where that row lacks the metric, it is the first row that has it. Metrics that a single row has are left out.
    """
    ordered = sorted(results, key=lambda result: result.row.name != against) if against else list(results)
    found = {}
    for key in metrics_of(results):
        having = [(result, images.statistics(result, key)) for result in ordered]
        having = [(result, runs) for result, runs in having if runs]
        if len(having) > 1:
            found[key] = _compare(key, having, images)
    return found


def _compare(key: str, having: Sequence[tuple[Result, Mapping[RunKey, object]]], images: ImageResults) -> Comparison:
    (reference, runs), *others = having
    pairs, counts, apart = {}, {}, set()
    for result, own in others:
        both = [run for run in own if run in runs]
        same = [run for run in both if images.images(result, run, key) == images.images(reference, run, key)]
        if both and not same:
            apart.add(result.row.name)
        if same:
            sides = tuple([images.statistics(one, key)[run] for run in same] for one in (result, reference))
            pairs[result.row.name], counts[result.row.name] = (sides[0], sides[1]), len(same)
    found = differences(pairs)
    corrected = holm({name: one.p for name, one in found.items()})
    return Comparison(reference, found, corrected, counts, frozenset(apart))


def differences_section(results: Sequence[Result], found: Mapping[str, Comparison]) -> list[str]:
    """The section of the page; [] if nothing can be compared."""
    columns = {key: one for key, one in found.items() if one.differences or one.apart}
    if not columns:
        return []
    counts = [one.num_patients for each in columns.values() for one in each.differences.values()]
    note = (
        "A row minus the row named above the column, over the runs that both have. The 95% intervals and p are of "
        f"{RESAMPLES:,} bootstrap resamples{_of(counts)}: all images of a drawn patient count in both rows and in all "
        "runs, whose scores are averaged. p is corrected for the number of rows in the column (Holm). Bold: real at "
        f"p < {_LEVEL}. The intervals are of these trained networks: what another seed changes is in ±, not in them."
    )
    if counts and min(counts) < _FEW:
        note += " **Intervals of so few patients are too narrow.**"
    heads = ["Row", *(f"{label(key)}, minus {title(one.reference)}" for key, one in columns.items())]
    rows = []
    for result in results:
        cells = [_cell(one, result) for one in columns.values()]
        if any(cells):
            rows.append([title(result), *cells])
    return ["## Which differences are real\n", note, table(heads, rows)]


def _of(counts: Sequence[int]) -> str:
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f" of the {low} patients" if low == high else f" of {low} to {high} patients"


def _cell(one: Comparison, result: Result) -> str:
    name = result.row.name
    if result is one.reference:
        return "reference"
    if name in one.apart:
        return "other images"
    if name not in one.differences:
        return ""
    difference, p = one.differences[name], one.corrected[name]
    low, high = difference.interval
    text = f"{difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"
    of = len(one.reference.summaries)
    some = "" if one.runs[name] == of else f" ({one.runs[name]} of {of} runs)"
    probability = f"p {p:.3f}" if p >= 0.001 else "p < 0.001"
    return (
        f"**{text}**, {probability}{some}" if one.is_real(name) else f"{text}, not distinguishable, {probability}{some}"
    )
