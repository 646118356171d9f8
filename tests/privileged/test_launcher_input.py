"""The launcher checks its whole input before it acts: what it refuses it has made nothing for, not even for a moment.

strace tells: a launcher whose request or spec is wrong makes no call that makes a namespace, a mount, a folder or a socket, and
no process but the one that reads; one whose documents are right does. What is wrong is each value of a document in turn, of
another type or out of its bounds, or with a field beside it that nobody knows.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from launcher_box import Box

from chance import SEED

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.privileged, pytest.mark.needs_program("strace")]
MAKES = {
    "bind", "clone", "clone3", "fork", "fsmount", "fsopen", "mkdir", "mkdirat", "mount", "move_mount", "open_tree", "pivot_root",
    "setdomainname", "sethostname", "setns", "unshare", "vfork",
}  # fmt: skip
FORK = "clone3"
LAUNCH = """
import json, os, sys
from lamella import _core
for line in sys.stdin:
    bundle, request, config = json.loads(line)
    with open(os.path.join(bundle, "config.json"), "w") as file:
        file.write(config)
    reply = json.loads(_core.launch(request.encode(), []))
    print(json.dumps(reply), flush=True)
"""
OTHERS: dict[type, list[Any]] = {
    str: [5, [], {}, None, "\0", "a\0b"],
    int: ["x", [], {}, -1, 2**32, 2**64, 1.5],
    bool: ["x", 5, []],
    list: ["x", 5, {}, [5], [[]]],
    dict: ["x", 5, []],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path of each value in a document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from places(entry, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    result = copy.deepcopy(document)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return result


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def wrong(document: dict[str, Any], chance: random.Random) -> Iterator[Any]:
    """Give documents that are wrong in one place each."""
    for path in places(document):
        value = at(document, path)
        yield changed(document, path, chance.choice(OTHERS[type(value)]))
        if isinstance(value, dict):
            yield changed(document, (*path, "nobodyKnows"), 1)
    yield {**document, "nobodyKnows": 1}


def test_nothing_is_made_for_a_document_that_is_refused(box: Box, tmp_path: Path) -> None:
    print(f"LAMELLA_SEED={SEED}")
    chance = random.Random(SEED)
    box.linux["seccomp"]["syscalls"] = box.linux["seccomp"]["syscalls"][-4:]
    box.spec["mounts"] = box.spec["mounts"][:3]
    box.linux["resources"] = {"memory": {"limit": 1 << 26}, "unified": {}}
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5}]
    request, config = box.request(), box.spec
    tries = [(json.dumps(one), json.dumps(config)) for one in wrong(request, chance)]
    tries += [(json.dumps(request), json.dumps(one)) for one in wrong(config, chance)]
    tries += [(json.dumps(request), text) for text in ("", "{", "[]", "null", '"x"', "\xff", "{}")]
    late = changed(config, ("linux", "resources"), {"unified": {"nobody.knows": "1"}})
    tries.append((json.dumps(request), json.dumps(late)))
    lines = [json.dumps([str(box.folder), request, config]) for request, config in tries]
    good = json.dumps([str(box.folder), json.dumps(request), json.dumps(config)])
    replies, traced = run([*lines, good], tmp_path / "trace")
    assert len(traced) == len(replies) == len(lines) + 1
    # Some values are wrong only to a reader, such as another name of a host.
    refused = [
        (reply, calls) for reply, calls in zip(replies[:-1], traced[:-1], strict=True) if "error" in reply
    ]
    # What only the kernel can tell, such as the name of a file system, it tells in the words of a call.
    ours = ("InvalidArgument", "Unsupported")
    early = [
        (reply, calls)
        for reply, calls in refused
        if reply["error"]["kind"] in ours and "fsopen" not in reply["error"]["message"]
    ]
    assert len(early) > len(tries) * 0.8
    assert [reply["error"]["message"] for reply, calls in early if calls] == []
    assert {FORK, "bind", "mkdir", "fsopen"} <= set(traced[-1])


def run(lines: list[str], trace: Path) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Launch one after the other under strace; give the replies, and what each launcher called of what makes something.

    What the processes called that it made is among that.
    """
    command = ["strace", "-f", "-qq", "-e", f"trace=execve,{','.join(sorted(MAKES))}", "-o", trace]
    ended = subprocess.run(
        [*command, sys.executable, "-c", LAUNCH],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    calls: dict[str, list[str]] = defaultdict(list)
    children: dict[str, list[str]] = defaultdict(list)
    launchers = []
    for line in trace.read_text(errors="replace").splitlines():
        pid, _, text = line.partition(" ")
        name = text.strip().removeprefix("<... ").partition("(")[0].partition(" ")[0]
        if name == "execve" and '"/proc/self/fd/' in text:
            launchers.append(pid)
        elif name in MAKES and " resumed>" not in text:
            calls[pid].append(name)
        if name == FORK and (made := text.rpartition(" = ")[2]).isdigit():
            children[pid].append(made)

    def all_calls(pid: str) -> list[str]:
        return [*calls[pid], *(name for child in children[pid] for name in all_calls(child))]

    return [json.loads(line) for line in ended.stdout.splitlines()], [all_calls(pid) for pid in launchers]
