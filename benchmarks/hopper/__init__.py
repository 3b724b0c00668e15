"""Compiles every Triton kernel for Hopper, without a GPU."""

from .balancing import BALANCING, MATCHING
from .compile import Code as Code
from .compile import Kernel as Kernel
from .compile import compile_kernels as compile_kernels
from .data import DATA
from .losses import LOSSES

KERNELS = [*LOSSES, *BALANCING, *MATCHING, *DATA]
