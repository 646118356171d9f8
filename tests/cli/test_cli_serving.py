"""What commands that serve until a signal have in common."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time

CODE = """
import os
from lamella.cli.serving import until_signalled

while True:
    with until_signalled() as wait:
        os.write(1, b"x")
        wait()
"""
SIGNALS = 5000


def test_a_signal_ends_the_wait_whenever_it_comes() -> None:
    """As the wait begins, too: where it took a lock, or looked before it slept, one in a thousand was lost."""
    # Outside of the block it is ignored.
    with subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{CODE}"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            for number in range(SIGNALS):
                assert select.select([process.stdout], [], [], 60)[0], f"it waits after {number} signals"
                os.read(process.stdout.fileno(), 1)
                until = time.perf_counter() + random.random() * 3e-5
                while time.perf_counter() < until:
                    pass
                process.send_signal(signal.SIGTERM)
        finally:
            process.kill()
