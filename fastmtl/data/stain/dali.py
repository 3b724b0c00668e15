"""Stain normalisation as a step inside a DALI graph, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.stain.stain_normalize import check_method
from ...utils.optional_imports import require


def stain_numba_function(convention: str = "torchstain") -> Any:
    """A DALI operator: (image uint8 [H, W, 3], recipe float32 [44]) -> float32 [3, H, W], normalised.

    Recipes are rows of `StainNormalizer.recipes`, fed beside the images (`fn.external_source(batch=True)`): stains of
    stored slides, colour, mean, std and augmentation in one pass. Equal to the normaliser's own call to
    1e-3 grey levels.

    Args:
        convention: the normaliser's.

    Raises:
        ValueError: there is no such convention.
        ImportError: DALI or Numba is not installed, with the command that installs it.
    """
    chosen = check_method("macenko", convention)
    numba = require("numba", "stain normalisation inside a DALI graph")
    fn, types = require("nvidia.dali.fn", "loading tiles"), require("nvidia.dali.types", "loading tiles")
    operator = require("nvidia.dali.plugin.numba.fn.experimental", "loading tiles")
    from ...kernels.stain_apply_numba import restain_image

    table, lasso = chosen.densities().numpy().astype(np.float32), chosen.solver == "lasso"

    @numba.njit
    def run(out, image, recipe):  # type: ignore[no-untyped-def]
        restain_image(out, image, recipe, table, lasso)

    @numba.njit
    def setup(outs, ins):  # type: ignore[no-untyped-def]  # without it DALI gives the output the input's size in bytes
        for sample in range(len(outs[0])):
            outs[0][sample][0] = 3
            outs[0][sample][1] = ins[0][sample][0]
            outs[0][sample][2] = ins[0][sample][1]

    def step(images: Any, recipes: Any) -> Any:
        made = operator.numba_function(
            images,
            recipes,
            run_fn=run.py_func,
            setup_fn=setup.py_func,
            out_types=[types.FLOAT],
            in_types=[types.UINT8, types.FLOAT],
            outs_ndim=[3],
            ins_ndim=[3, 1],
        )
        return fn.reshape(made, layout="CHW")

    return step
