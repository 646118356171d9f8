"""Text that images, registries and containers choose cannot drive the terminal of who looks at it, whatever command shows it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from lamella.cli.session import Session
from lamella.digest import digest_of
from lamella.registry.server import RegistryServer
from layers import Built, file, folder, program, tar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from program import Program, Result

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb\x7f\u2028c\x85\r\td"
"""Sets a terminal's title, clears it, does so in 8 bits, turns the writing direction, and returns to overwrite the line."""
_DRIVES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def checked(result: Result) -> Result:
    """Let nothing but printable text and ends of lines pass."""
    for stream in (result.out, result.err):
        found = _DRIVES.search(stream)
        assert found is None, stream[max(0, found.start() - 200) : found.end() + 50].encode("unicode_escape")
    return result


class Hostile(Built):
    """An image whose every word is hostile."""

    def __init__(self) -> None:
        layer = tar(
            folder("bin"),
            file("bin/stays", program(None), mode=0o755),
            file(f"bin/{EVIL}", program(None), mode=0o755),
            folder(f"data{EVIL}"),
        )
        config = {
            "Entrypoint": [f"/bin/{EVIL}", EVIL],
            "Cmd": [EVIL, EVIL * 1000],
            "Env": ["PATH=/bin", f"EVIL={EVIL}", f"{EVIL}=x", f"LONG={EVIL * 1000}"],
            "Labels": {EVIL: EVIL},
            "WorkingDir": f"/data{EVIL}",
            "StopSignal": "SIGTERM",
            "Volumes": {f"/v{EVIL}": {}},
        }
        super().__init__(layer, config=config)

    @property
    def config(self) -> bytes:
        document = json.loads(super().config)
        document |= {"author": EVIL, "created": "2026-01-01T00:00:00Z"}
        document["history"] = [{"created_by": EVIL, "comment": EVIL, "author": EVIL}]
        return json.dumps(document, ensure_ascii=False).encode()

    @property
    def manifest(self) -> bytes:
        document = json.loads(super().manifest)
        return json.dumps(
            document | {"annotations": {EVIL: EVIL, "long": EVIL * 4000}}, ensure_ascii=False
        ).encode()


@pytest.fixture
def hostile(lamella: Program) -> Iterator[tuple[Program, str]]:
    """Give the command on a store that has the hostile image, and its reference."""
    with RegistryServer() as server:
        ref = Hostile().push(server)
        assert checked(lamella("pull", "--progress", "plain", ref)).status == 0
        yield lamella, ref


def both(lamella: Program, *words: str) -> Any:
    """Run a command for people and for programs; give the document."""
    checked(lamella(*words)).ok()
    return json.loads(checked(lamella("--json", *words)).ok().out)


def test_nothing_of_an_image_drives_the_terminal(hostile: tuple[Program, str]) -> None:
    lamella, ref = hostile
    for words in (
        "images ls",
        "snapshots ls",
        "snapshots tree",
        "content ls",
        "du",
        "graph",
        "leases ls",
        "fsck",
    ):
        both(lamella, *words.split())
    shown = both(lamella, "images", "inspect", ref)
    assert shown["config"]["config"]["Labels"][EVIL] == EVIL  # it is shown, and means what it meant
    both(lamella, "graph", ref)
    both(lamella, "registry", "inspect", ref)
    checked(lamella("graph", "--format", "dot")).ok()
    checked(lamella("--json", "events", "--no-follow")).ok()
    checked(lamella("events", "--no-follow")).ok()
    for word in (
        "run",
        "pull",
        "images inspect",
        "snapshots info",
        "content get",
        "volumes inspect",
        "logs",
        "networks inspect",
    ):
        assert checked(lamella("-vv", *word.split(), EVIL)).status
    assert checked(lamella(EVIL)).status == 2
    assert checked(lamella("images", f"--{EVIL}")).status == 2


@pytest.mark.privileged
def test_nothing_of_a_container_but_its_output_drives_the_terminal(hostile: tuple[Program, str]) -> None:
    lamella, ref = hostile
    label = f"{EVIL}={EVIL}"
    name = (
        checked(
            lamella("run", "-d", "--name", "box", "--label", label, "--annotation", label, "-e", label, ref)
        )
        .ok()
        .out.strip()
    )
    assert name
    for words in ("ps -a", "containers inspect box", "containers diff box", "volumes ls", "graph"):
        both(lamella, *words.split())
    (process,) = both(lamella, "top", "box")
    assert process["command"][1] == EVIL
    both(lamella, "stats", "--no-stream", "box")
    both(lamella, "volumes", "create", "--label", label, "kept")
    both(lamella, "volumes", "inspect", "kept")
    checked(lamella("leases", "create", "--label", label, f"lease{EVIL}")).ok()
    both(lamella, "leases", "ls")
    both(lamella, "snapshots", "ls")
    assert checked(lamella("-v", "exec", "box", f"/bin/missing{EVIL}")).status == 127
    assert checked(lamella("exec", "-w", f"/missing{EVIL}", "box", "/bin/stays")).status
    assert checked(lamella("exec", "-u", f"nobody{EVIL}", "box", "/bin/stays")).status
    assert checked(lamella("cp", f"box:/missing{EVIL}", "/tmp")).status
    checked(lamella("events", "--no-follow")).ok()
    checked(lamella("--json", "events", "--no-follow")).ok()


def test_what_a_registry_chose_is_visible_on_a_terminal_and_as_it_is_elsewhere(
    hostile: tuple[Program, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lamella, ref = hostile
    config = digest_of(Hostile().config)
    for words in (("registry", "inspect", "--config", ref), ("content", "get", config)):
        plain = lamella(*words).ok()
        assert plain.out.encode() == Hostile().config
        with monkeypatch.context() as patch:
            patch.setattr(Session, "stdout_is_terminal", property(lambda _: True))
            assert checked(lamella(*words)).ok().out != plain.out
