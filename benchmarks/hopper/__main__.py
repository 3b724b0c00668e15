"""Entry point of the process that `compile_kernels` starts."""

from .compile import main

main()
