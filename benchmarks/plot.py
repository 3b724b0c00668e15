"""Plots the stored rows: the peers' times relative to ours, and the bandwidth that each contender reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import store
from .registry import is_floor

OURS, PEER, EDGE = "#1f6f8b", "#b9c2c9", "#30363b"


def draw(rows: Sequence[store.Stored], folder: Path) -> list[Path]:
    """Write speedup-NAME.svg and roofline-NAME.svg for each device and instruction set in `rows`; returns what was
    written.

    Rows of warm caches alone. Of each case those with its newest torch, and those with kept memory where there are
    some, marked with a star.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastmtl", "font.size": 9, "axes.axisbelow": True})
    latest = [row for row in store.newest(rows).values() if not row["cold"]]
    written = []
    for place in dict.fromkeys((row["device"], row["instructions"]) for row in latest):
        groups = _groups([row for row in latest if (row["device"], row["instructions"]) == place])
        own = [row for group in groups.values() for row in group]
        if not own:
            continue
        setting = f"{', '.join(place)}, torch {', '.join(dict.fromkeys(row['torch'] for row in own))}"
        setting += " (*: freed memory kept)" * any(row["kept_memory"] for row in own)
        folder.mkdir(parents=True, exist_ok=True)
        stem = store.default_path(*place).stem
        written.append(_save(_speedups(groups, setting), folder / f"speedup-{stem}.svg"))
        bounded = [row for row in own if row["min_bytes"]]
        if bounded:
            written.append(_save(_roofline(bounded, setting), folder / f"roofline-{stem}.svg"))
    return written


def _groups(rows: Sequence[store.Stored]) -> dict[str, list[store.Stored]]:
    """Case -> its rows of one torch version and one allocator setting, ours first; cases without our row or without a
    peer are omitted."""
    cases: dict[str, list[store.Stored]] = {}
    for row in rows:
        cases.setdefault(store.title(row), []).append(row)
    groups = {}
    for name, group in cases.items():
        ours = [row for row in group if row["contender"] == "fastmtl"]
        if not ours:
            continue
        first = max(ours, key=lambda row: (row["torch"] == ours[-1]["torch"], row["kept_memory"]))
        same = ("torch", "kept_memory")
        beside = [row for row in group if row is not first and all(row[key] == first[key] for key in same)]
        if beside:
            groups[name + (" *" if first["kept_memory"] else "")] = [first, *beside]
    return groups


def _colours(contender: str) -> dict[str, Any]:
    """A floor is not a peer, so it is drawn hollow."""
    fill = OURS if contender == "fastmtl" else "white" if is_floor(contender) else PEER
    return {"facecolor": fill, "edgecolor": EDGE if is_floor(contender) else fill}


def _speedups(groups: dict[str, list[store.Stored]], setting: str) -> Any:
    """Bars: each peer's median time over ours, whiskers from its p20 to its p80, a logarithmic axis."""
    from matplotlib.figure import Figure

    lines = sum(len(group) + 1 for group in groups.values())
    figure = Figure(figsize=(9, 0.8 + 0.23 * lines), layout="constrained")
    axes = figure.subplots()
    ticks, labels, y = [], [], 0.0
    for name, group in groups.items():
        axes.text(0.01, y, name, transform=axes.get_yaxis_transform(), va="center", weight="bold", size=8.5)
        axes.vlines(1, y + 0.5, y + len(group) + 0.5, color=EDGE, linewidth=0.8)
        y += 1
        for row in group:
            times = row["times_fastmtl"]  # from the same rounds, as in the table: a ratio of medians would drift
            low, high = times * (1 - row["p20_ms"] / row["p50_ms"]), times * (row["p80_ms"] / row["p50_ms"] - 1)
            spread = {"xerr": [[max(low, 0)], [max(high, 0)]], "ecolor": EDGE, "error_kw": {"elinewidth": 1}}
            axes.barh(y, times, linewidth=0.6, **_colours(row["contender"]), **spread)
            clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{times:.3g}", (times + high, y), bbox=clear, **beside)
            ticks.append(y)
            labels.append(f"floor: {row['contender']}" if is_floor(row["contender"]) else row["contender"])
            y += 1
    axes.set_yticks(ticks, labels)
    axes.set_ylim(y - 0.4, -0.7)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), 1.4 * high)
    _decimals(axes.xaxis)
    axes.set_xlabel("times as long as fastmtl, median over rounds (whiskers: p20 and p80 of the contender)")
    axes.set_title(setting, loc="left", size=9)
    _plain(axes)
    return figure


def _roofline(rows: Sequence[store.Stored], setting: str) -> Any:
    """Bytes that must be moved against bytes per second reached; the roof is a large copy on the same machine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    roof = max(row["gb_per_s"] / row["share_of_copy"] for row in rows)
    axes.axhline(roof, color=EDGE, linewidth=1)
    axes.annotate(f"copy: {roof:.3g} GB/s", (0, roof), (4, 4), ("axes fraction", "data"), "offset points")
    markers: dict[str, str] = {}
    for row in rows:
        name = row["contender"]
        kind = "fastmtl" if name == "fastmtl" else "floor" if is_floor(name) else "peers"
        marker = markers.setdefault(row["op"], "osD^v"[len(markers) % 5])
        label = f"{row['op']}, {kind}"
        known = label in axes.get_legend_handles_labels()[1]
        place, size = (row["min_bytes"] / 2**20, row["gb_per_s"]), 36
        look = _colours(name) | {"edgecolor": EDGE, "linewidth": 0.5 if kind != "floor" else 1}
        axes.scatter(*place, size, marker=marker, label=None if known else label, zorder=3 - (kind == "peers"), **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _decimals(axes.xaxis)
    _decimals(axes.yaxis)
    axes.set_xlabel("MiB that must cross memory")
    axes.set_ylabel("GB/s reached")
    axes.set_title(setting, loc="left", size=9)
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def _decimals(axis: Any) -> None:
    """1, 2, 5, 10, 20, ... instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})  # the same rows give the same file
    return path
