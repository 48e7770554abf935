"""`python -m medtl`: as `medtl`."""

import sys

from medtl.cli import run

if __name__ == "__main__":
    sys.exit(run())
