"""The kernels of the balancing methods and of Mask2Former's matching: argument types and limits of the code."""

from __future__ import annotations

from dataclasses import replace

from .compile import SIZE, Kernel


def _gram(label: str, J: str, T: int, vector: int, triangle: bool) -> list[Kernel]:
    """`triangle` False: two tiles, for more rows than one tile has."""
    types = {"J": J, "partials": "*fp64"} | dict.fromkeys(("K", "P", "row_stride", "split_columns"), "i32")
    constants = {"T": T, "LANES": 128, "VEC": vector, "RUN": 128, "TRIANGLE": triangle}
    divisible = ("row_stride", "split_columns")  # P need not be: the remaining columns are handled separately
    rows = T * (1 if triangle else 2)
    kernel = Kernel("gram_triton", "gram_partials_kernel", types, constants, divisible, rows, label=label)
    return [replace(kernel, bytes_per_element=rows * SIZE[J])]


def _combine(label: str, J: str, out: str, wide_loads: int) -> list[Kernel]:
    types = {"J": J, "w": "*fp64", "out": out, "P": "i32", "row_stride": "i32"}
    constants, moved = {"K": 3, "BLOCK": 1024}, 3 * SIZE[J] + SIZE[out]
    kernel = Kernel("combine_triton", "combine_kernel", types, constants, ("row_stride",), wide_loads, label=label)
    return [replace(kernel, bytes_per_element=moved)]


def _assignment(block: int, num_warps: int, cost: str) -> Kernel:
    """Steps with some hundred costs each, read with a stride: no 16-byte loads."""
    types = {"cost": cost, "num_targets": "*i64", "matches": "*i64"}
    types |= dict.fromkeys(("cb", "cq", "ct", "queries", "targets", "factor"), "i32")
    constants, label = {"HAS_NUMBER": True, "BLOCK": block}, f"{cost[1:]}-{block}"
    return Kernel("assignment_triton", "assignment_kernel", types, constants, (), 0, num_warps, label)


def _points(maps: str) -> Kernel:
    """Neighbouring pixels can be anywhere in memory: single loads, except for the points themselves."""
    types = {"maps": maps, "coordinates": "*fp32", "out": "*fp32", "batch_stride": "i32", "channel_stride": "i32"}
    types |= dict.fromkeys(("channels", "height", "width", "points", "blocks"), "i32")
    return Kernel("points_triton", "sample_points_kernel", types, {"BLOCK": 512}, (), 0, label=maps[1:])


BALANCING = [
    *_gram("f32-1", "*fp32", 1, 4, True),
    *_gram("f32-3", "*fp32", 3, 4, True),
    *_gram("f32-8", "*fp32", 8, 4, True),
    *_gram("f32-64", "*fp32", 6, 4, False),
    *_gram("bf16-8", "*bf16", 8, 8, True),
    *_gram("f16-64", "*fp16", 5, 8, False),
    *_gram("f64-5", "*fp64", 5, 2, True),
    *_gram("f64-64", "*fp64", 4, 2, False),
    Kernel(
        "gram_triton",
        "gram_finish_kernel",
        {"partials": "*fp64", "G": "*fp64", "K": "i32", "splits": "i32"},
        {"T": 8, "NORMS": False, "BLOCK": 256},
        wide_loads=0,  # at most a thousand partial sums per pair
        num_warps=2,
    ),
    *_combine("f32", "*fp32", "*fp32", 6),
    *_combine("bf16", "*bf16", "*fp32", 3),
    *_combine("f64", "*fp64", "*fp64", 12),
    *[
        Kernel(
            "pcgrad_triton",
            "pcgrad_kernel",
            {"G": "*fp64", "order": "*i64", "w": "*fp64", "K": "i32", "M": "i32"},
            {"SIZE": size, "MEAN": True},
            wide_loads=0,  # K x K numbers
            num_warps=1 if size <= 16 else 8,
            label=str(size),
        )
        for size in (1, 4, 16, 64)
    ],
    # The small problems of the balancing methods: K x K numbers, so no wide loads. More than 32 tasks do not fit into
    # the registers of one block, which then spills to the cache: this is slower, and not checked here.
    *[
        Kernel(
            "nonnegative_qp_triton",
            "nonnegative_qp_kernel",
            {"H": "*fp64", "q": "*fp64", "out": "*fp64", "K": "i32"},
            {"SIZE": size, "ITERATIONS": 40},
            wide_loads=0,
            num_warps=4 if size == 32 else 1,
            label=str(size),
        )
        for size in (4, 16, 32)
    ],
    *[
        Kernel(
            "equilibrium_triton",
            "equilibrium_kernel",
            {"C": "*fp64", "r": "*fp64", "power": "*fp64", "out": "*fp64", "K": "i32"},
            {"SIZE": size, "ITERATIONS": 150, "HALVINGS": 8},
            wide_loads=0,
            num_warps=4 if size == 32 else 1,
            label=str(size),
        )
        for size in (4, 16, 32)
    ],
    *[
        Kernel(
            "eigh_triton",
            "eigh_kernel",
            {"A": "*fp64", "V": "*fp64", "N": "i32"},
            {"SIZE": size, "SWEEPS": 12},
            wide_loads=0,
            num_warps=4 if size == 32 else 1,
            label=str(size),
        )
        for size in (4, 16, 32)
    ],
]
MATCHING = [
    _assignment(128, 1, "*fp32"),
    _assignment(256, 1, "*fp64"),
    _assignment(1024, 8, "*fp32"),
    *[_points(maps) for maps in ("*fp32", "*bf16", "*u8")],
]
