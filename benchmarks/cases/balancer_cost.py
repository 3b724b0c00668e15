"""What balancing costs: whole training steps of one network, alike but for the balancer.

The network and its four tasks are those of `step_cost`, where the heads are a large part of a step. "fastmtl" is the
step with equal weights, one backward; `times_fastmtl` of the others is their price.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..registry import Case, Inputs, Run, register
from .step_cost import BATCH, SIZE, detached, make_inputs, trainer_of, true_losses

METHODS = (
    "uncertainty",
    "gradnorm",
    "famo",
    "stch",
    "go4align",
    "pcgrad",
    "mgda",
    "cagrad",
    "upgrad",
    "nash_mtl",
    "moco",
    "excess_mtl",
    "momentum_config",
)


def _contender(**balancer: Any) -> Callable[[Inputs], Run]:
    def prepare(inputs: Inputs) -> Run:
        trainer = trainer_of(inputs, **balancer)
        return lambda: detached(trainer.step(inputs["batch"])[0])

    return prepare


register(
    Case(
        op="balancer_cost",
        shape=f"joint_unet base 8, K=4, B={BATCH}, {SIZE} x {SIZE} float32",
        mode="whole step",
        make=make_inputs(4),
        contenders={
            "fastmtl": _contender(name="linear"),
            **{name: _contender(name=name) for name in METHODS},
            "pcgrad, last_layer": _contender(name="pcgrad", strategy="last_layer"),
        },
        min_bytes=0,
        tolerance=1e-3,
        truth=true_losses,
    )
)
