"""`python -m opd`, so that `accelerate launch -m opd train ...` works."""

import sys

from opd.cli import main

if __name__ == "__main__":
    sys.exit(main())
