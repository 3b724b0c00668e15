"""What the Triton kernels become on an NVIDIA GPU, found out without one: machine code, and a predicted bandwidth."""

from .compile import Compiled as Compiled
from .compile import compile_cases as compile_cases
