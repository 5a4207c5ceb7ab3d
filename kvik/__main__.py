"""`python -m kvik` is the command `kvik`. This file knows nothing else."""

from __future__ import annotations

import sys

from kvik.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
