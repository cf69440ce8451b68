"""``python -m tools.experiments``: see ``runner.py``."""

from __future__ import annotations

import os
import sys

# One thread per experiment: its matrices are small. Read when NumPy is imported, here and in the other processes.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from tools.experiments.runner import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
