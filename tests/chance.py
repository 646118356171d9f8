"""Which of all that could be tried a run of the tests tries.

A seed decides: LAMELLA_SEED, which ``make test`` takes from the commit. So whoever runs the tests of a commit tries the same, and
those of the next commit try something else. Without it each run has its own. LAMELLA_NIGHTLY=1 tries much more, or all.
"""

from __future__ import annotations

import os
import time

NIGHTLY = os.environ.get("LAMELLA_NIGHTLY") == "1"
SEED = int(os.environ.get("LAMELLA_SEED") or time.time_ns() % 1_000_000)


def seeds(usual: int, *, nightly: int) -> range:
    """Give so many seeds, of which the first is SEED."""
    return range(SEED, SEED + (nightly if NIGHTLY else usual))
