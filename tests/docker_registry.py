"""docker-registry as a process of its own: the one that registries, mirrors and clients of others are tried with."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from waiting import until


@contextmanager
def docker_registry_process(
    folder: Path, settings: str, *, http: str = "", env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run docker-registry with more ``settings`` (YAML), and of its port, on a free one; give ``127.0.0.1:PORT``.

    It chooses the port itself, and tells it in its log: one that was looked for before could be another's by then.
    """
    folder.mkdir(exist_ok=True)
    file, told = folder / "docker-registry.yml", folder / "docker-registry.log"
    file.write_text(
        "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/docker-registry}}}}\n"
        f"http: {{addr: '127.0.0.1:0'{http}}}\n{settings}"
    )
    with told.open("wb") as log:
        command = ["docker-registry", "serve", str(file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def address() -> str:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)[,\"]", text := told.read_text())
        assert found or process.poll() is None, text
        return found[1] if found else ""

    try:
        yield until(address)
    finally:
        process.terminate()
        process.wait(60)
