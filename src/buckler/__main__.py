"""`python -m buckler`, and what the console script `buckler` calls."""

from __future__ import annotations

import sys

from buckler.cli import main

if __name__ == "__main__":
    sys.exit(main())
