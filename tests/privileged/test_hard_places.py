"""Where it is hard for a user who is not root: what works there, and what is said of what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import layers
from users import OrdinaryUser, ordinary_user

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("useradd", "userdel", "newuidmap", "newgidmap", "setpriv", "unshare", "chroot"),
]

LAMELLA = (sys.executable, "-m", "lamella")

# A user namespace that has all ids of the one around it, and whose root allows no further ones.
NO_NAMESPACES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
(made, tell_made), (mapped, tell_mapped) = os.pipe(), os.pipe()
process = os.fork()
if process == 0:
    assert libc.unshare(0x10000000) == 0
    os.write(tell_made, b"x")
    os.read(mapped, 1)
    os.setgid(0)
    os.setuid(0)
    with open("/proc/sys/user/max_user_namespaces", "w") as limit:
        limit.write("0")
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(made, 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{process}/{name}", "w") as maps:
        maps.write("0 0 4294967295")
os.write(tell_mapped, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


@pytest.fixture
def reference(server: Any) -> str:
    return layers.history(7).push(server, "hard")


def run(
    user: OrdinaryUser, setup: str, *command: str, around: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command as the user, in a mount namespace that root has set up; ``around`` is a program of root's that starts it."""
    script = f'set -e\n{setup}\nexec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *around, *user.command(*command)],
        env=user.environment(),
        cwd=user.home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def examined(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert found.stdout, found.stderr
    return {check["name"]: check for check in json.loads(found.stdout)["checks"]}


MASKS = """
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs -o ro none /proc/irq
mount --bind /dev/null /proc/interrupts
"""
"""As in a container without privileges, and in a Kubernetes pod: parts of it are covered, others read-only."""


def test_a_masked_proc_is_no_hindrance(user: OrdinaryUser, reference: str) -> None:
    script = '"$0" -m lamella pull --plain-http "$1" && "$0" -m lamella fsck --verify-layers'
    found = run(user, MASKS, "sh", "-c", script, sys.executable, reference)
    assert found.returncode == 0, found.stderr


def test_where_proc_is_masked_containers_see_the_one_around_read_only(
    user: OrdinaryUser, small_image: str
) -> None:
    """The kernel gives a new one only to who sees all of another."""
    script = '"$0" -m lamella pull --plain-http "$1" && "$0" -m lamella run --rm "$1" /bin/sh -c "$2"'
    inside = f"id -u; ls -d /proc/{os.getpid()}; echo x >/proc/sys/kernel/hostname"
    found = run(user, MASKS, "sh", "-c", script, sys.executable, small_image, inside)
    assert found.stdout.endswith(f"0\n/proc/{os.getpid()}\n"), found.stderr
    assert "ead-only" in found.stderr


@pytest.mark.parametrize("inner", [0, 1000], ids=["its root", "a user of it"])
def test_a_nested_user_namespace_is_one_like_others(user: OrdinaryUser, reference: str, inner: int) -> None:
    """Its root needs no helper; who is not root there has a helper with one id, in a namespace further in."""
    store = f"{user.home}/nested-{inner}"
    script = f"""
    mkdir {store}
    chown {inner}:{inner} {store}
    lamella() {{
        setpriv --reuid={inner} --regid={inner} --clear-groups "$program" -m lamella --root {store}/r --state {store}/s "$@"
    }}
    program=$0
    lamella pull --plain-http "$1"
    lamella fsck --verify-layers
    "$0" -c 'from lamella import _core; _core.remove_tree("{store}")'
    """
    options = ["--user", "--map-root-user", "--map-auto"]
    found = run(
        user,
        f"chmod 711 {user.home}",
        "unshare",
        *options,
        "sh",
        "-ec",
        script,
        sys.executable,
        reference,
    )
    assert found.returncode == 0, found.stderr


def test_where_no_user_namespace_may_be_made_the_error_names_the_limit(
    user: OrdinaryUser, reference: str
) -> None:
    around = (sys.executable, "-c", NO_NAMESPACES)
    store = ("--root", f"{user.home}/without-namespaces")
    found = run(user, "", *LAMELLA, *store, "pull", "--plain-http", reference, around=around)
    assert found.returncode == 1
    assert "user.max_user_namespaces" in found.stderr and "sysctl -w" in found.stderr
    checks = examined(run(user, "", *LAMELLA, "--json", "doctor", around=around))
    assert checks["privileges"]["status"] == "fail"
    assert "sysctl -w user.max_user_namespaces" in checks["privileges"]["remedy"]
    assert checks["user namespaces"]["detail"] == "user.max_user_namespaces is 0"
    assert "privileges" in checks["overlayfs"]["remedy"]


def test_in_a_chroot_the_doctor_says_that_it_is_one(user: OrdinaryUser, reference: str) -> None:
    tree = user.home / "tree"
    setup = f"mkdir -p {tree}\nmount --rbind / {tree}\n"
    around = ("chroot", str(tree))
    store = ("--root", f"{user.home}/in-chroot")
    found = run(user, setup, *LAMELLA, *store, "pull", "--plain-http", reference, around=around)
    assert found.returncode == 1
    assert "user namespace" in found.stderr and "chroot" in found.stderr
    check = examined(run(user, setup, *LAMELLA, "--json", "doctor", around=around))["user namespaces"]
    assert check["status"] == "warn"
    assert "chroot" in check["detail"] + check["remedy"]


def test_a_file_system_without_attributes_takes_the_native_snapshotter(
    user: OrdinaryUser, reference: str
) -> None:
    point = user.home / "without"
    setup = f"mkdir -p {point}\nmount -t ramfs none {point}\nchown {user.uid} {point}\n"
    pull = ("pull", "--plain-http", reference)
    found = run(user, setup, *LAMELLA, "--root", f"{point}/store", *pull)
    assert found.returncode == 1
    assert "native" in found.stderr
    checks = examined(run(user, setup, *LAMELLA, "--root", f"{point}/store", "--json", "doctor"))
    assert checks["overlayfs"]["status"] == "fail"
    assert "--snapshotter native" in checks["overlayfs"]["remedy"]
    assert checks["disk space"]["status"] == "ok"
    script = f"""
    set -e
    lamella() {{ "$0" -m lamella --root {point}/store --snapshotter native "$@"; }}
    lamella pull --plain-http "$1"
    lamella fsck --verify-layers
    lamella images rm "$1"
    lamella gc
    """
    found = run(user, setup, "sh", "-c", script, sys.executable, reference)
    assert found.returncode == 0, found.stderr


def test_two_users_do_not_disturb_each_other(user: OrdinaryUser, reference: str) -> None:
    """Both pull the same at once, each into a store that the other cannot look into."""
    with ordinary_user() as other:
        pulls = [
            subprocess.Popen(
                who.command(*LAMELLA, "pull", "--plain-http", reference),
                env=who.environment(),
                cwd=who.home,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for who in (user, other)
        ]
        for pull in pulls:
            _, said = pull.communicate(timeout=120)
            assert pull.returncode == 0, said
        store = Path(".local/share/lamella")
        for who, neighbour in ((user, other), (other, user)):
            found = who.run(["ls", str(neighbour.home / store)], check=False)
            assert found.returncode != 0
        other.lamella("images", "rm", reference)
        other.lamella("gc")
        user.lamella("fsck", "--verify-layers")
