"""`python launch.py` runs the embedded experiment; `python launch.py --help` says what else it does."""

import sys

from medtl.cli import run

if __name__ == "__main__":
    sys.exit(run())
