"""Start the command line: `python launch.py` runs the embedded experiment; see `--help`."""

import sys

from medtl.cli import run

if __name__ == "__main__":
    sys.exit(run())
