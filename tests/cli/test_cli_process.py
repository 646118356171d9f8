"""How the process of a command ends: at once, but after all that was to come before."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import atexit, threading, time
from lamella import cli

def work():
    time.sleep(0.2)
    print("thread")

def main():
    threading.Thread(target=work).start()
    print("output")
    return 7

atexit.register(lambda: print("registered"))
cli.main = main
cli.command()
"""


def test_it_ends_with_the_status_after_its_threads_and_what_was_registered_and_loses_no_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "output\nthread\nregistered\n", "")
