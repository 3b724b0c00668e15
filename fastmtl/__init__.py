"""fastmtl: a multi-task training engine for medical and whole-slide images, and fused ops for any PyTorch loop."""

import torch  # noqa: F401  loads the OpenMP runtime that fastmtl._C shares with it

__version__ = "0.1.0"
