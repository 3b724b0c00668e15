"""`python -m helpers.chaos`."""

import sys

from .suite import main  # elsewhere, because processes that are spawned do not import this module

if __name__ == "__main__":
    sys.exit(main())
