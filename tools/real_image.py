#!/usr/bin/env python3
"""Build the real image: five gzip layers of Debian, as an OCI layout in the cache, once a machine.

The layers are what a distribution's package manager writes: 16,000 entries, 235 MB of gzip, 612 MB of tar,
with hard links, symbolic links, device nodes, setuid programs, a file capability, many owners and modes.
Layer 1 is ``mmdebstrap --variant=minbase``; each further layer is ``umoci unpack``, ``apt-get install`` in a
chroot, ``umoci repack``.

On disk::

    <cache>/real-image/.lock              flock, held while one process builds; others wait for it
    <cache>/real-image/<recipe>/          the finished OCI layout, tag ``latest``; appears by rename
    <cache>/real-image/.building-XXXX/    a build in progress; removed when the build fails

``<recipe>`` is a digest of what is installed, so a changed recipe builds a new image. Everything that is
mounted for a chroot is mounted inside a mount namespace of that command alone: nothing is left when it ends,
however it ends.

The package source, proxy and certificates are those that the machine's own apt uses. Needs root, mmdebstrap,
umoci and unshare. Prints the path of the layout. Doing it again is harmless and quick.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TAG = "latest"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("nginx", "ca-certificates", "curl"),
    ("python3", "python3-numpy"),
    ("nodejs", "git"),
    ("gcc", "libc6-dev"),
)
CONFIG = (
    "--config.cmd=/bin/bash",
    "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "--config.env=LANG=C.UTF-8",
    "--config.label=org.opencontainers.image.title=debian-real",
    "--config.label=org.opencontainers.image.description=Debian with nginx, python3, nodejs, git and gcc",
    "--config.workingdir=/",
    "--author=lamella",
)
RECIPE_VERSION = "1"
TOOLS = ("mmdebstrap", "umoci", "unshare", "apt-get", "apt-config", "chroot")
# VFS_CAP_REVISION_2 with the effective flag; permitted CAP_NET_BIND_SERVICE (bit 10): what
# ``setcap cap_net_bind_service=ep`` writes (linux/capability.h, struct vfs_cap_data).
NET_BIND_SERVICE = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
# Runs in a mount and PID namespace of its own: $1 is the root, the rest the command.
CHROOT_SCRIPT = """
set -eu
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
cp -L /etc/resolv.conf "$root/run/resolv.conf"
rm -f "$root/etc/resolv.conf"
ln -s /run/resolv.conf "$root/etc/resolv.conf"
exec chroot "$root" "$@"
"""


def cache_folder() -> Path:
    """Give the folder for what tests and benches keep between runs: LAMELLA_CACHE or ~/.cache/lamella."""
    return Path(os.environ.get("LAMELLA_CACHE") or Path.home() / ".cache" / "lamella")


def recipe() -> str:
    """Give the name of the present recipe: a digest of everything that decides what is in the image."""
    text = json.dumps([RECIPE_VERSION, LAYERS, CONFIG])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def layout_path(cache: Path | None = None) -> Path:
    """Give where the finished layout is, or will be."""
    return (cache or cache_folder()) / "real-image" / recipe()


def ensure(cache: Path | None = None) -> Path:
    """Build the image unless it is there; return the layout's path. Waits while another process builds."""
    layout = layout_path(cache)
    if (layout / "index.json").exists():
        return layout
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"the real image cannot be built: not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        raise SystemExit("the real image cannot be built: it needs root (chroot, device nodes, owners)")
    layout.parent.mkdir(parents=True, exist_ok=True)
    with (layout.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in layout.parent.glob(".building-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if not (layout / "index.json").exists():
            with _building_folder(layout.parent) as work:
                _build(work)
                (work / "layout").rename(layout)
    return layout


@contextlib.contextmanager
def _building_folder(parent: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _build(work: Path) -> None:
    image = f"{work}/layout:{TAG}"
    apt_conf = work / "apt.conf"
    apt_conf.write_text(_apt_settings())
    sources = work / "sources.list"
    sources.write_text(_apt_sources())
    _say("layer 1: mmdebstrap --variant=minbase")
    _run("umoci", "init", "--layout", f"{work}/layout")
    _run("umoci", "new", "--image", image)
    bundle = work / "bundle-1"
    _run("umoci", "unpack", "--image", image, str(bundle))
    rootfs = bundle / "rootfs"
    _run(
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet"),
        *(f"--aptopt={apt_conf}", "--dpkgopt=path-exclude=/usr/share/man/*", "--include=ca-certificates"),
        *("", str(rootfs), str(sources)),
    )
    (rootfs / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    _clean(rootfs)
    _repack(image, bundle)
    for number, packages in enumerate(LAYERS, start=2):
        _say(f"layer {number}: apt-get install {' '.join(packages)}")
        bundle = work / f"bundle-{number}"
        _run("umoci", "unpack", "--image", image, str(bundle))
        rootfs = bundle / "rootfs"
        _install(rootfs, apt_conf, packages)
        if "nginx" in packages:
            os.setxattr(rootfs / "usr/sbin/nginx", "security.capability", NET_BIND_SERVICE)
        _clean(rootfs)
        _repack(image, bundle)
    _run("umoci", "config", "--no-history", "--image", image, *CONFIG)
    _run("umoci", "gc", "--layout", f"{work}/layout")


def _install(rootfs: Path, apt_conf: Path, packages: Sequence[str]) -> None:
    conf = rootfs / "etc/apt/apt.conf.d/zz-build"
    conf.write_text(apt_conf.read_text())
    policy = rootfs / "usr/sbin/policy-rc.d"  # no package may start a service in the chroot
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    had_resolver = (rootfs / "etc/resolv.conf").is_symlink() or (rootfs / "etc/resolv.conf").exists()
    try:
        script = f"apt-get -q update && apt-get -q -y --no-install-recommends install {' '.join(packages)}"
        environment = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
        _run(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", CHROOT_SCRIPT, "sh", str(rootfs)),
            *("/usr/bin/env", "-i", *environment, "sh", "-c", script),
        )
    finally:
        conf.unlink()
        policy.unlink()
        if not had_resolver:
            (rootfs / "etc/resolv.conf").unlink(missing_ok=True)


def _clean(rootfs: Path) -> None:
    """Remove what differs from run to run and serves nobody: indexes, downloads, logs."""
    for pattern in (
        "var/lib/apt/lists/*",
        "var/cache/apt/*",
        "var/log/apt/*",
        "var/log/*.log",
        "var/cache/ldconfig/*",
    ):
        for path in rootfs.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _repack(image: str, bundle: Path) -> None:
    _run("umoci", "repack", "--image", image, str(bundle))
    shutil.rmtree(bundle)


def _apt_sources() -> str:
    """Give the machine's own Debian package sources in one-line form."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    query = ("apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian")
    lines = _output(*query).splitlines()
    if not lines:  # apt learns the origin from what it downloads
        _run("apt-get", "-o", "DPkg::Lock::Timeout=600", "update")
        lines = _output(*query).splitlines()
    if not lines:
        raise SystemExit("apt knows no Debian package source")
    return "\n".join(sorted(set(lines))) + "\n"


def _apt_settings() -> str:
    """Give the machine's own proxy settings for apt, and a few that make the image small."""
    settings = _output("apt-config", "dump", "Acquire::http", "Acquire::https").splitlines()
    kept = [line for line in settings if "proxy" in line.lower() and not line.endswith('"";')]
    for scheme in ("http", "https"):
        if proxy := os.environ.get(f"{scheme}_proxy"):
            kept.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    kept += ['Acquire::Languages "none";', 'Acquire::Retries "3";', 'APT::Install-Recommends "false";']
    return "\n".join(kept) + "\n"


def _say(text: str) -> None:
    sys.stderr.write(f"real image: {text}\n")


def _run(*command: str) -> None:
    """Run a program quietly; show what it said when it fails."""
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-8000:])
        raise SystemExit(f"{command[0]} failed with status {done.returncode}")


def _output(*command: str) -> str:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description="Build the real Debian image once and print the path of its OCI layout."
    )
    parser.add_argument(
        "--cache", type=Path, help="where it is kept (default: LAMELLA_CACHE or ~/.cache/lamella)"
    )
    parser.add_argument("--print-path", action="store_true", help="only say where it is or will be")
    arguments = parser.parse_args()
    try:
        layout = layout_path(arguments.cache) if arguments.print_path else ensure(arguments.cache)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SystemExit(f"the disk is full: {error.filename}") from error
        raise
    sys.stdout.write(f"{layout}\n")


if __name__ == "__main__":
    main()
