"""Time per tile, memory and ranks of `fastmtl predict` on one synthetic slide:

    OMP_NUM_THREADS=1 python -m benchmarks.predict_slide 6144      # prints JSON; the slide's side in pixels

A short training makes the run. The slide is noise, the worst case for masks and outlines, in JPEG tiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch

from fastmtl.api.ensembles import load
from fastmtl.protocols import Batch

TILE = 256
_RECIPE = ("--set", f"data.tile_size={TILE}", f"data.size={TILE}", "data.min_tissue=0.0", "data.mpp=2.0")
_RECIPE += ("data.max_tiles=40", "model.base_channels=16", "training.precision=float32", "--epochs", "1")


def main(side: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        _run(["-m", "fastmtl", "train", "demo_slides", "--out", str(run), *_RECIPE])
        results: dict[str, Any] = {"side": side, "tile": TILE, "forward_ms": _forward_ms(run)}
        for ranks in (1, 2):
            small, large = (_predicted(run, size, ranks) for size in (side // 4, side))
            tiles = (side // TILE) ** 2 - (side // 4 // TILE) ** 2  # without start and end of the command
            results[f"ranks: {ranks}"] = {
                "wall_ms_a_tile": round(1000 * (large.wall - small.wall) / tiles, 2),
                "processor_ms_a_tile": round(1000 * (large.processor - small.processor) / tiles, 2),
                "MiB_of_the_largest_process": large.mebibytes,
            }
        return results


class _Used(NamedTuple):
    wall: float  # seconds
    processor: float  # seconds, of all processes
    mebibytes: int  # of the largest process


def _predicted(run: Path, side: int, ranks: int) -> _Used:
    slide, out = run.parent / f"noise-{side}.tif", run.parent / f"out-{side}-{ranks}"
    if not slide.exists():
        _write_slide(slide, side)
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return _run([*launcher, "-m", "fastmtl", "predict", str(run), str(slide), "--out", str(out), "--device", "cpu"])


def _run(arguments: list[str]) -> _Used:
    environment, began = os.environ | {"OMP_NUM_THREADS": "1"}, time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return _Used(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024)


def _write_slide(path: Path, side: int) -> None:
    random = np.random.default_rng(0)
    tiles = (random.integers(0, 256, (TILE, TILE, 3), np.uint8) for _ in range((side // TILE) ** 2))
    options = {"photometric": "rgb", "compression": "jpeg", "tile": (TILE, TILE)}
    scale = {"resolution": (5000, 5000), "resolutionunit": "CENTIMETER"}  # pixels of 2 micrometres
    tifffile.imwrite(path, tiles, shape=(side, side, 3), dtype=np.uint8, **options, **scale)


@torch.inference_mode()
def _forward_ms(run: Path) -> float:
    """Processor time of the network alone for a tile, in batches as `predict` has them."""
    trained = load(run, None, "cpu", None)
    size = trained.recipe.data.val_batch_size or trained.recipe.data.batch_size
    batch = Batch(torch.randn(size, 3, TILE, TILE), {}, torch.ones(size, len(trained.tasks), dtype=torch.bool))
    times = []
    for _ in range(7):
        start = time.process_time()
        trained.model(batch)
        times.append((time.process_time() - start) / size)
    return round(1000 * float(np.median(times)), 2)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1])), indent=1))
