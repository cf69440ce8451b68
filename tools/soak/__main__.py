"""``python -m tools.soak``: see ``runner.py``."""

from __future__ import annotations

import sys

from tools.soak.runner import main

if __name__ == "__main__":
    sys.exit(main())
