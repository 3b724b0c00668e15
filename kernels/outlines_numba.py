"""Trace the outlines of the components of a map, row by row, in memory that does not grow with the map.

A component is a set of pixels of one value, not 0, that share edges. While rows are added, its corners wait in a linked
list; once no later row can belong to it, they are joined to rings. In an outline along pixel edges, the corners of each
row of vertices are in order the ends of its horizontal edges, and those of each column the ends of its vertical ones.

If more corners wait than there is room for, all components are cut along the row. Releases the interpreter lock.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiled_numba import compiled

# A corner is one integer: vertex * 4 + 2 * (its horizontal edge goes right, not left) + (its vertical edge goes down,
# not up), where vertex is row * (width + 1) + column. They are sorted by row, column, and ends before starts.
_LEFT_UP, _LEFT_DOWN, _RIGHT_UP, _RIGHT_DOWN = 0, 1, 2, 3
_START, _STOP, _VALUE, _OWN, _ROOT = 0, 1, 2, 3, 4  # columns of the runs of a row
# What `State.counts` counts.
NUM_ROWS, NUM_RUNS, USED, FREE, WAITING, FREE_IDS, NUM_POINTS, NUM_RINGS, NUM_POLYGONS = 0, 1, 2, 3, 4, 5, 6, 7, 8
_PER_RUN = 8  # corners at most: two ends, of up to four components each


class State(NamedTuple):
    """What is kept between two calls: N components, P corners and Q points at most. Memory is taken page by page, when
    it is first used.

    Attributes:
        counts: int64 [9], see above.
        before: int32 [width + 1, 5], the runs of the last row.
        fresh: likewise, of the row that is added.
        parents: int32 [N], of each component the one it was found to be part of, or itself.
        chains: int32 [N, 3], first and last corner of a component, -1 for none, and their number.
        areas: int64 [N], pixels.
        seen: int64 [N], the last row with a run of the component.
        values: uint8 [N].
        free_ids: int32 [N], numbers of components that are not in use.
        pool: int64 [P], corners.
        links: int32 [P], the next corner of the component.
        keys: int64 [P], the corners of the component that is closed.
        partners: int32 [P], of each the other end of its vertical edge, -1 once it is in a ring.
        columns: int32 [width + 1], the corner whose vertical edge is open.
        points: int32 [Q, 2], x and y of the rings.
        rings: int64 [Q // 4, 2], where a ring ends in `points`, and its area.
        polygons: int64 [Q // 4, 3], where a polygon ends in `rings`, its value and number of pixels; its first ring is
            the outer one.
    """

    counts: np.ndarray
    before: np.ndarray
    fresh: np.ndarray
    parents: np.ndarray
    chains: np.ndarray
    areas: np.ndarray
    seen: np.ndarray
    values: np.ndarray
    free_ids: np.ndarray
    pool: np.ndarray
    links: np.ndarray
    keys: np.ndarray
    partners: np.ndarray
    columns: np.ndarray
    points: np.ndarray
    rings: np.ndarray
    polygons: np.ndarray


def new_state(width, max_corners):
    """For a map of `width` columns; so many corners wait at most."""
    runs, components = width + 1, 2 * (width + 2)
    corners = max(max_corners, 4 * _PER_RUN * runs)
    points = corners + 4 * _PER_RUN * runs
    state = State(
        np.zeros(9, np.int64),
        np.empty((runs, 5), np.int32),
        np.empty((runs, 5), np.int32),
        np.empty(components, np.int32),
        np.empty((components, 3), np.int32),
        np.empty(components, np.int64),
        np.empty(components, np.int64),
        np.empty(components, np.uint8),
        np.arange(components, dtype=np.int32),
        np.empty(corners, np.int64),
        np.empty(corners, np.int32),
        np.empty(corners, np.int64),
        np.empty(corners, np.int32),
        np.empty(width + 1, np.int32),
        np.empty((points, 2), np.int32),
        np.empty((points // 4, 2), np.int64),
        np.empty((points // 4, 3), np.int64),
    )
    state.counts[FREE], state.counts[FREE_IDS] = -1, components
    return state


@compiled
def _find(parents, number):
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


@compiled
def _find_runs(row, left, fresh):
    """Write the runs of equal values but 0 of row uint8 [w] to `fresh`, counted from `left`; returns their number."""
    count, value = 0, np.uint8(0)
    for x in range(row.size):
        if row[x] != value:
            if value:
                fresh[count - 1, _STOP] = left + x
            value = row[x]
            if value:
                fresh[count, _START], fresh[count, _VALUE] = left + x, value
                count += 1
    if value:
        fresh[count - 1, _STOP] = left + row.size
    return count


@compiled
def _join(state, one, other):
    """Component `other` is part of `one`."""
    chains = state.chains
    state.parents[other] = one
    state.areas[one] += state.areas[other]
    if chains[other, 0] >= 0:
        if chains[one, 0] < 0:
            chains[one, 0] = chains[other, 0]
        else:
            state.links[chains[one, 1]] = chains[other, 0]
        chains[one, 1] = chains[other, 1]
        chains[one, 2] += chains[other, 2]


@compiled
def _label(state, num_now):
    """Give the fresh runs their components, by the runs above them."""
    before, fresh, counts = state.before, state.fresh, state.counts
    num_before, first = counts[NUM_RUNS], 0
    for number in range(num_now):
        start, stop, own = fresh[number, _START], fresh[number, _STOP], -1
        while first < num_before and before[first, _STOP] <= start:
            first += 1
        above = first
        while above < num_before and before[above, _START] < stop:
            if before[above, _VALUE] == fresh[number, _VALUE]:
                other = _find(state.parents, before[above, _OWN])
                if own < 0:
                    own = other
                elif other != own:
                    _join(state, own, other)
            above += 1
        if own < 0:
            counts[FREE_IDS] -= 1
            own = state.free_ids[counts[FREE_IDS]]
            state.parents[own], state.areas[own], state.values[own] = own, 0, fresh[number, _VALUE]
            state.chains[own, 0], state.chains[own, 1], state.chains[own, 2] = -1, -1, 0
        state.areas[own] += stop - start
        fresh[number, _OWN] = own
    for number in range(num_now):
        own = _find(state.parents, fresh[number, _OWN])
        fresh[number, _OWN], fresh[number, _ROOT], state.seen[own] = own, own, counts[NUM_ROWS]
    for number in range(num_before):
        before[number, _ROOT] = _find(state.parents, before[number, _OWN])


@compiled
def _add(state, component, vertex, kind):
    counts, chains = state.counts, state.chains
    at = counts[FREE]
    if at >= 0:
        counts[FREE] = state.links[at]
    else:
        at = counts[USED]
        counts[USED] += 1
    counts[WAITING] += 1
    state.pool[at], state.links[at] = vertex * 4 + kind, -1
    if chains[component, 0] < 0:
        chains[component, 0] = at
    else:
        state.links[chains[component, 1]] = at
    chains[component, 1] = at
    chains[component, 2] += 1


@compiled
def _add_corner(state, component, pixels, vertex):
    """`pixels` has a bit for each pixel of the component around the vertex: 1, 2 above it, 4, 8 below it."""
    if pixels == 1 or pixels == 14 or pixels == 9:
        _add(state, component, vertex, _LEFT_UP)
    if pixels == 2 or pixels == 13 or pixels == 6:
        _add(state, component, vertex, _RIGHT_UP)
    if pixels == 4 or pixels == 11 or pixels == 6:
        _add(state, component, vertex, _LEFT_DOWN)
    if pixels == 8 or pixels == 7 or pixels == 9:
        _add(state, component, vertex, _RIGHT_DOWN)


@compiled
def _add_corners(state, num_now):
    """The corners between the row before and the fresh one."""
    before, fresh, num_before = state.before, state.fresh, state.counts[NUM_RUNS]
    width = state.columns.size
    none = np.int32(2**31 - 1)
    above, below, in_above, in_below = 0, 0, False, False
    a, c = np.int32(-1), np.int32(-1)  # the components left of x: above and below the vertex
    while True:
        next_above, next_below = none, none
        if above < num_before:
            next_above = before[above, _STOP] if in_above else before[above, _START]
        if below < num_now:
            next_below = fresh[below, _STOP] if in_below else fresh[below, _START]
        x = min(next_above, next_below)
        if x == none:
            return
        b, d = a, c  # right of it
        if next_above == x:
            above += in_above
            in_above = above < num_before and before[above, _START] == x
            b = before[above, _ROOT] if in_above else np.int32(-1)
        if next_below == x:
            below += in_below
            in_below = below < num_now and fresh[below, _START] == x
            d = fresh[below, _ROOT] if in_below else np.int32(-1)
        vertex = state.counts[NUM_ROWS] * width + x
        if a >= 0:
            _add_corner(state, a, 1 + 2 * (b == a) + 4 * (c == a) + 8 * (d == a), vertex)
        if b >= 0 and b != a:
            _add_corner(state, b, 2 + 4 * (c == b) + 8 * (d == b), vertex)
        if c >= 0 and c != a and c != b:
            _add_corner(state, c, 4 + 8 * (d == c), vertex)
        if d >= 0 and d != a and d != b and d != c:
            _add_corner(state, d, 8, vertex)
        a, c = b, d


@compiled
def _pair_vertically(state, count):
    """Fill `partners`. Where a component touches itself at a vertex, its two corners there are joined so that no ring
    touches itself."""
    keys, partners, columns = state.keys, state.partners, state.columns
    at = 0
    while at < count:
        number = 1
        if at + 1 < count and keys[at] >> 2 == keys[at + 1] >> 2:
            number = 2
            keys[at] ^= 1
            keys[at + 1] ^= 1
        for turn in range(number):
            # The edge from above ends before the one below begins.
            one = at + turn if number == 1 or keys[at] & 1 == 0 else at + 1 - turn
            column = (keys[one] >> 2) % columns.size
            if keys[one] & 1:
                columns[column] = one
            else:
                partners[one] = columns[column]
                partners[columns[column]] = one
        at += number


@compiled
def _close(state, component, min_area):
    """Write the polygon of a component, if it and its rings are large enough, and free its corners."""
    counts, keys, partners, points = state.counts, state.keys, state.partners, state.points
    head, tail, count = state.chains[component, 0], state.chains[component, 1], state.chains[component, 2]
    if state.areas[component] >= min_area:
        at = head
        for number in range(count):
            keys[number] = state.pool[at]
            at = state.links[at]
        keys[:count].sort()
        _pair_vertically(state, count)
        width = state.columns.size
        for first in range(count):
            if partners[first] < 0:
                continue
            begin, area, at = counts[NUM_POINTS], np.int64(0), np.int64(first)
            while partners[at] >= 0:
                other = at ^ 1  # the other end of its horizontal edge
                for one in (at, other):
                    points[counts[NUM_POINTS], 0] = (keys[one] >> 2) % width
                    points[counts[NUM_POINTS], 1] = (keys[one] >> 2) // width
                    counts[NUM_POINTS] += 1
                area += np.int64((keys[other] >> 2) - (keys[at] >> 2)) * ((keys[at] >> 2) // width)
                following = np.int64(partners[other])
                partners[at], partners[other] = -1, -1
                at = following
            area = abs(area)
            if first > 0 and area < min_area:
                counts[NUM_POINTS] = begin
                continue
            state.rings[counts[NUM_RINGS], 0], state.rings[counts[NUM_RINGS], 1] = counts[NUM_POINTS], area
            counts[NUM_RINGS] += 1
        polygon = counts[NUM_POLYGONS]
        state.polygons[polygon, 0], state.polygons[polygon, 1] = counts[NUM_RINGS], state.values[component]
        state.polygons[polygon, 2] = state.areas[component]
        counts[NUM_POLYGONS] += 1
    state.links[tail] = counts[FREE]
    counts[FREE] = head
    counts[WAITING] -= count


@compiled
def _step(state, num_now, min_area):
    """Put the fresh runs below the row before."""
    before, counts = state.before, state.counts
    _label(state, num_now)
    _add_corners(state, num_now)
    for number in range(counts[NUM_RUNS]):
        own, root = before[number, _OWN], before[number, _ROOT]
        if state.parents[own] < 0:  # freed by another run
            continue
        if own == root and state.seen[own] == counts[NUM_ROWS]:
            continue
        if own == root:
            _close(state, own, min_area)
        state.parents[own] = -1
        state.free_ids[counts[FREE_IDS]] = own
        counts[FREE_IDS] += 1
    before[:num_now] = state.fresh[:num_now]
    counts[NUM_RUNS] = num_now


@compiled
def add_rows(state, rows, left, min_area):
    """Add rows uint8 [h, w], whose first column is `left` and beside which the map is 0; returns how many were added:
    fewer than all if `points` must be emptied first (`clear`). Without rows, the map ends.

    Components and holes of fewer than `min_area` pixels are left out.
    """
    counts = state.counts
    for number in range(max(rows.shape[0], 1)):
        while True:
            num_now = _find_runs(rows[number], left, state.fresh) if rows.shape[0] else 0
            most = _PER_RUN * (counts[NUM_RUNS] + num_now)
            if state.points.shape[0] - counts[NUM_POINTS] < counts[WAITING] + most:
                return number if rows.shape[0] else -1
            if state.pool.size - counts[WAITING] >= most + _PER_RUN * num_now:
                break
            _step(state, 0, min_area)  # cut
        _step(state, num_now, min_area)
        counts[NUM_ROWS] += rows.shape[0] > 0
    return rows.shape[0]


def clear(state):
    """Empty `points`, `rings` and `polygons`."""
    state.counts[NUM_POINTS] = state.counts[NUM_RINGS] = state.counts[NUM_POLYGONS] = 0
