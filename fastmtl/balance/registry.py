"""Creates balancers by the names that recipes use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..utils.suggestions import check_options, nearest
from .cagrad import CAGrad
from .du_gate import DuGate
from .excess_mtl import ExcessMTL
from .fair import FairGrad, NashMTL
from .famo import FAMO
from .go4align import GO4Align
from .graddrop import GradDrop
from .gradient_balancer import GradientBalancer
from .gradient_ema import DBMTL, MoCo
from .gradnorm import GradNorm
from .gradvac import GradVac
from .linear import Linear
from .loss_base import LossBalancer
from .mgda import MGDA
from .modo import MoDo
from .momentum_config import MomentumConFIG
from .pcgrad import PCGrad
from .sdmgrad import SDMGrad
from .spectral import IMTLG, AlignedMTL, ConFIG
from .static_weights import DWA, RLW, Constant, Decay
from .stch import STCH
from .uncertainty import GLS, IMTLL, Uncertainty
from .upgrad import UPGrad

_BALANCERS: dict[str, Callable[..., GradientBalancer | LossBalancer]] = {
    "aligned_mtl": AlignedMTL,
    "cagrad": CAGrad,
    "config_grad": ConFIG,
    "constant": Constant,
    "db_mtl": DBMTL,
    "decay": Decay,
    "du_gate": DuGate,
    "dwa": DWA,
    "excess_mtl": ExcessMTL,
    "fairgrad": FairGrad,
    "famo": FAMO,
    "gls": GLS,
    "go4align": GO4Align,
    "graddrop": GradDrop,
    "gradnorm": GradNorm,
    "gradvac": GradVac,
    "imtl_g": IMTLG,
    "imtl_l": IMTLL,
    "linear": Linear,
    "mgda": MGDA,
    "moco": MoCo,
    "modo": MoDo,
    "momentum_config": MomentumConFIG,
    "nash_mtl": NashMTL,
    "pcgrad": PCGrad,
    "rlw": RLW,
    "sdmgrad": SDMGrad,
    "stch": STCH,
    "uncertainty": Uncertainty,
    "upgrad": UPGrad,
}

_OF_USE = ("strategy", "reuse")


def list_balancers() -> list[str]:
    """Return the names that `create_balancer` accepts, sorted.

    >>> list_balancers()[:3]
    ['aligned_mtl', 'cagrad', 'config_grad']
    """
    return sorted(_BALANCERS)


def create_balancer(name: str, **options: Any) -> GradientBalancer | LossBalancer:
    """Create the balancer `name` with `options`; "strategy" and "reuse" are passed to its `use`.

    Raises:
        ValueError: the name or an option is unknown; the message lists the closest names.

    >>> create_balancer("pcgrad", reduction="mean", strategy="last_layer", reuse=4)
    PCGrad(reduction='mean', seed=0, with_self=False)
    """
    if name not in _BALANCERS:
        raise ValueError(f"unknown balancer {name!r}; {nearest(name.lower(), list_balancers())}")
    made = _BALANCERS[name]
    used = {option: options[option] for option in _OF_USE if option in options}
    rest = {option: value for option, value in options.items() if option not in used}
    check_options(made, rest, f"balancer {name!r}")
    balancer = made(**rest)
    if not used:
        return balancer
    if not isinstance(balancer, GradientBalancer):
        raise ValueError(f"balancer {name!r} runs one backward per step and has no option {next(iter(used))!r}.")
    return balancer.use(**used)
