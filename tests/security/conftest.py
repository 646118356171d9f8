"""Programs that try things from inside containers, compiled here: images have no compiler, and need no library for them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, require_program):
    """``compiled("calls")`` gives a folder that everybody may enter, with calls.c of this folder as a static program."""
    compiler = require_program("cc")
    made = {}

    def build(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            folder.chmod(0o755)
            source = Path(__file__).with_name(f"{name}.c")
            command = [compiler, "-static", "-O1", "-Wall", "-Werror", "-o", folder / name, source]
            subprocess.run(command, check=True)
            made[name] = folder
        return made[name]

    return build
