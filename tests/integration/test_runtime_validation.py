"""The validation programs of github.com/opencontainers/runtime-tools, each run against ``lamella-oci``.

What they complain about is listed with its reason, here and in docs/oci-runtime.md: a complaint that is not listed fails, and so
does a listed one that is not made any more. They mostly wait, so that some run at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import runtime_validation
from oci_program import COMMAND

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "oci-runtime.md"
AT_ONCE = 4
ATTEMPTS = 3
REFUSED = "it ends: exit status 1"

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.integration,
    pytest.mark.needs_program("go"),
    pytest.mark.timeout(1200),  # the first test has all of them run
]

PROGRAMS = re.findall(
    r"\w+",
    """
config_updates_without_affect create default delete delete_only_create_resources delete_resources hooks hooks_stdin hostname kill
kill_no_effect killsig linux_cgroups_blkio linux_cgroups_cpus linux_cgroups_devices linux_cgroups_hugetlb linux_cgroups_memory
linux_cgroups_network linux_cgroups_pids linux_cgroups_relative_blkio linux_cgroups_relative_cpus linux_cgroups_relative_devices
linux_cgroups_relative_hugetlb linux_cgroups_relative_memory linux_cgroups_relative_network linux_cgroups_relative_pids
linux_devices linux_masked_paths linux_mount_label linux_ns_itype linux_ns_nopath linux_ns_path linux_ns_path_type
linux_process_apparmor_profile linux_readonly_paths linux_rootfs_propagation linux_seccomp linux_sysctl linux_uid_mappings
misc_props mounts pidfile poststart poststart_fail poststop poststop_fail prestart prestart_fail process process_capabilities
process_capabilities_fail process_oom_score_adj process_rlimits process_rlimits_fail process_user root_readonly_true start state
""",
)


class Known(NamedTuple):
    """What a program complains about, and why that is so."""

    complaints: tuple[str, ...]
    reason: str


NO_KERNEL_MEMORY = "`linux.resources.memory.kernel` and `kernelTCP` are refused by name: Linux took them away"
NO_LEAF_WEIGHT = "`linux.resources.blockIO.leafWeight` is refused by name: Linux took it away"
NO_NETWORK = "`linux.resources.network` is refused by name: cgroup v1 alone has it"
KNOWN = {
    "hooks": Known(
        ("Hooks MUST be called in the listed order",),
        "it wants words that its own hooks do not write (`post-start1` for `post-start1 called`)",
    ),
    "hooks_stdin": Known(
        ('the state of the container MUST be passed to "prestart" hook over stdin',),
        "it wants the status `created` told to `prestart`, which the spec calls `creating` then",
    ),
    "linux_cgroups_blkio": Known((REFUSED,), NO_LEAF_WEIGHT),
    "linux_cgroups_memory": Known(("exit status 1",) * 6, NO_KERNEL_MEMORY),
    "linux_cgroups_network": Known((REFUSED,), NO_NETWORK),
    "linux_cgroups_relative_blkio": Known(("exit status 1",), NO_LEAF_WEIGHT),
    "linux_cgroups_relative_memory": Known(("exit status 1",), NO_KERNEL_MEMORY),
    "linux_cgroups_relative_network": Known(("exit status 1",), NO_NETWORK),
    "linux_mount_label": Known((REFUSED,), "`linux.mountLabel` is refused by name: there is no SELinux"),
    "linux_ns_itype": Known(
        ("cannot run validation tests: exit status 1",), "a container without a mount namespace is refused"
    ),
    "linux_ns_path": Known(("set mnt namespace by path",), "joining a mount namespace is refused by name"),
    "linux_process_apparmor_profile": Known(
        (REFUSED,), "`process.apparmorProfile` is refused by name: there is no AppArmor"
    ),
    "misc_props": Known(
        (
            "implementations that are reading/processing this configuration file MUST NOT generate an error"
            " if they encounter an unknown annotation key",
            "runtimes that are reading or processing this configuration file MUST NOT generate an error"
            " if they encounter an unknown property",
        ),
        "the first bundle lacks the program that is to run, which `create` tells; unknown properties are refused by name",
    ),
    "mounts": Known((REFUSED,), "a bind mount with options of a file system (`mode=`) is refused by name"),
    "poststart_fail": Known(
        ("if any poststart hook fails",),
        "as with runc, a `poststart` hook that fails ends the container and the start fails",
    ),
    "prestart": Known(
        ("Pre-start hooks MUST be called after the `start` operation is called",),
        "it wants `prestart` at `start`, where the spec had it before 1.0",
    ),
    "process_rlimits": Known(
        ("has expected soft RLIMIT_NOFILE",), "Go raises its own soft limit before the program looks at it"
    ),
    "start": Known(("exit status 1",), "a container without a `process` is refused by `create` already"),
}
MACHINE = {
    "linux_cgroups_hugetlb": Known((REFUSED,), "it takes the cgroup controller hugetlb and pages of 2 MB"),
    "linux_cgroups_relative_hugetlb": Known(
        ("get hugetlb cgroup data",), "it looks for the controller in v1"
    ),
    "linux_rootfs_propagation": Known(("check root propagation",) * 4, "it takes CAP_SYS_RESOURCE"),
    "process_capabilities": Known(
        tuple(
            f"expected {kind} capability CAP_SYS_RESOURCE set"
            for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
        ),
        "it takes CAP_SYS_RESOURCE",
    ),
}
"""What only some machines cannot do: complained about there, and not elsewhere."""
POSTSTART = 'the state of the container MUST be passed to "poststart" hook over stdin'
RACES = {
    "hooks_stdin": Known(
        (*KNOWN["hooks_stdin"].complaints, POSTSTART),
        "and it asks for the state of a container that runs `true`, which has ended or has not",
    ),
    "pidfile": Known(
        ("create with '--pid-file' option works",),
        "it kills a container that runs `true`, which has ended or has not",
    ),
}
"""What depends on who is faster, with runc too."""


Complaints = tuple[str, ...]
Results = tuple[dict[str, Complaints], Callable[[str], Complaints]]


def complaints(output: str, status: int) -> Complaints:
    """Give what TAP output says that is not well: what is ``not ok``, and errors that stand alone."""
    found, judged = [], False
    for line in output.splitlines():
        if match := re.fullmatch(r"(not )?ok \d+ ?(?:- )?(.*)", line):
            judged = True
            if match[1]:
                found.append(match[2])
        elif line == "  ...":
            judged = False
        elif not judged and (error := re.fullmatch(r' *"error": "(.+)",?', line)):
            found.append(json.loads(f'"{error[1]}"').split(",")[0].splitlines()[0])
    return tuple(found) or ((f"it ends: exit status {status}",) if status else ())


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    """Give every program's complaints, and a way to run one again."""
    programs = runtime_validation.ensure()
    # Not pytest's folder: users of user namespaces must be able to go there.
    with tempfile.TemporaryDirectory(prefix="lamella-validation-") as work:
        folder, root = Path(work), Path(work, "state")
        folder.chmod(0o755)
        command = folder / "lamella-oci"
        subprocess.run([COMMAND, "install", command], check=True)
        runtime = folder / "runtime"
        runtime.write_text(f'#!/bin/sh\nexec {command} --root {root} "$@"\n')
        runtime.chmod(0o755)
        for name in ("runtimetest", "rootfs-amd64.tar.gz"):
            shutil.copy(programs / name, folder)
        environment = os.environ | {"RUNTIME": str(runtime), "TMPDIR": str(folder)}
        cgroup = threading.Lock()  # some have one between them all

        def run(name: str) -> Complaints:
            done = subprocess.run(
                [programs / "validation" / name],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=240,
                check=False,
            )
            return complaints(done.stdout, done.returncode)

        def one(name: str) -> Complaints:
            with cgroup if "cgroups" in name else contextlib.nullcontext():
                return run(name)

        # Those that wait longest first.
        order = sorted(PROGRAMS, key=lambda name: name not in ("delete", "kill", "linux_masked_paths"))
        try:
            # To the end, before the first test looks what it leaves behind.
            with ThreadPoolExecutor(AT_ONCE) as pool:
                yield dict(zip(order, pool.map(one, order), strict=True)), run
        finally:
            left = subprocess.run(
                [command, "--root", root, "list", "-q"], stdout=subprocess.PIPE, text=True, check=True
            )
            for container in left.stdout.split():
                subprocess.run([command, "--root", root, "delete", "--force", container], check=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_complains_about_nothing_but_what_is_known(results: Results, program: str) -> None:
    known = MACHINE.get(program) or KNOWN.get(program)
    expected = [known.complaints if known else ()] + ([()] if program in MACHINE else [])
    expected += [RACES[program].complaints] if program in RACES else []
    first, again = results
    found = first[program]
    for _ in range(1, ATTEMPTS):
        # Some look at a container at a moment that a slow machine has let pass.
        if found not in expected:
            found = again(program)
    assert found in expected


def test_every_program_is_run() -> None:
    assert sorted(path.name for path in (runtime_validation.ensure() / "validation").iterdir()) == sorted(
        PROGRAMS
    )


def test_the_page_has_every_complaint_with_its_reason() -> None:
    tables = [*KNOWN.items(), *MACHINE.items(), *RACES.items()]
    rows = [f"| {name} | {known.reason} |" for name, known in tables]
    text = PAGE.read_text()
    assert [row for row in rows if row not in text] == []
