#!/usr/bin/env python3
"""Generate python/lamella/serve/api from the .proto files beside it. Doing it again is harmless; what is left over goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SERVE = Path(__file__).resolve().parent.parent / "python/lamella/serve"


def generate(folder: Path) -> Path:
    """Generate the modules below ``folder``, and give theirs. CalledProcessError, with protoc's words, for a mistake."""
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"-Ilamella/serve/api={SERVE / 'protos'}"),
        *(f"--python_out={folder}", f"--pyi_out={folder}"),
        *sorted(str(path) for path in (SERVE / "protos").glob("*.proto")),
    ]
    subprocess.run(command, check=True)
    return folder / "lamella/serve/api"


def main() -> None:
    """Put them in their place."""
    with tempfile.TemporaryDirectory() as scratch:
        made = generate(Path(scratch))
        for old in (SERVE / "api").glob("*_pb2.py*"):
            old.unlink()
        for new in made.iterdir():
            shutil.move(new, SERVE / "api" / new.name)


if __name__ == "__main__":
    main()
