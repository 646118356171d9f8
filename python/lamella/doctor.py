"""What this machine offers, checked one thing at a time; each answer is a value with a remedy where something is missing.

A check looks at what the kernel says and, where that doesn't settle it, tries the thing itself: an overlay mount in a
temporary folder beside the store, a new user namespace in a process of its own, a call of the embedded launcher.
Nothing stays behind. A check that raises is a defect of the check and is reported as a failed one.

``fail``: lamella cannot do its main work. ``warn``: a part of it will not work, or will surprise. ``ok``: it is there,
or is not needed.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from lamella.config import Config
from lamella.errors import LamellaError
from lamella.ids import GIVE_IDS, one_id
from lamella.sizes import format_size

Status = Literal["ok", "warn", "fail"]

KERNEL_MIN = (5, 12)
"""The first kernel with mount_setattr(2), and with everything else that lamella uses."""
SPACE_FAIL = 64 * 1000**2
SPACE_WARN = 2 * 1000**3
INODES_WARN = 50_000
CLOCK_MIN = 1_735_689_600
"""2025-01-01: a clock before the program was written makes every certificate look as if from the future."""
CAP_SYS_ADMIN = 21
SYS_FSOPEN = 430
"""The number is the same on all architectures that Linux 5.2 and later have in common (asm-generic/unistd.h)."""
CGROUP_CONTROLLERS = ("cpu", "memory", "pids")
_REMOTE = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs"}
)
_FICLONE = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int)."""
_UNSUITED = frozenset({"overlay", "vfat", "exfat", "msdos", "ntfs", "ntfs3", "fuseblk"})
"""Filesystems that can't hold an overlay's upper folder (native snapshots can do without), or no owners."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. ``remedy`` is one sentence, None where there is nothing to do."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


class Host:
    """The machine, seen through files below a folder; a test puts a tree of its own in the place of ``/``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Give where an absolute path of the machine is found."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Give a file's text, None when it can't be read."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """Give the number that a file holds, None when there is none."""
        text = (self.read(name) or "").strip()
        return int(text) if text.lstrip("-").isdigit() else None


def examine(config: Config, host: Host | None = None) -> list[Check]:
    """Run every check, in a fixed order. Never raises for what a check finds."""
    here = host or Host()
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("kernel", lambda: check_kernel(here, os.uname().release)),
        ("privileges", lambda: check_privileges(here)),
        (config.snapshotter, lambda: check_snapshotter(here, config)),
        ("mount api", check_mount_api),
        ("user namespaces", lambda: check_user_namespaces(here)),
        ("cgroups", lambda: check_cgroups(here)),
        ("seccomp", lambda: check_seccomp(here)),
        ("launcher", lambda: check_launcher(here)),
        ("sqlite", lambda: check_sqlite(_sqlite_version())),
        ("store", lambda: check_store(here, config)),
        ("disk space", lambda: check_space(config)),
        ("state", lambda: check_state(here, config)),
        ("clock", lambda: check_clock(_now())),
        ("certificates", check_certificates),
        ("oci runtimes", check_runtimes),
        ("networks", check_networks),
        ("id maps", lambda: check_id_maps(here)),
    ]
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a report with a hole in it helps more than none
        return Check(
            name=name, status="fail", detail=f"the check failed: {error!r}", remedy="Please report it."
        )


def _now() -> float:
    import time

    return time.time()


def is_gvisor(host: Host) -> bool:
    """Tell whether the kernel is gVisor's, which all of its releases say by one date of a build that never was."""
    return "Sun Jan 10 15:06:54 PST 2016" in (host.read("/proc/version") or "")


def check_kernel(host: Host, release: str) -> Check:
    """Compare the kernel with the oldest supported one."""
    if is_gvisor(host):
        return Check(
            name="kernel",
            status="warn",
            detail=f"gVisor, which calls itself Linux {release}: no maps of ids, no statistics, no pause",
            remedy="Where these are needed use another runtime for the sandbox around; the rest works.",
        )
    numbers = tuple(int(part) for part in release.partition("-")[0].split(".")[:2] if part.isdigit())
    if numbers < KERNEL_MIN:
        return Check(
            name="kernel",
            status="fail",
            detail=f"Linux {release}",
            remedy=f"Use Linux {KERNEL_MIN[0]}.{KERNEL_MIN[1]} or newer.",
        )
    return Check(name="kernel", status="ok", detail=f"Linux {release}")


def check_privileges(host: Host) -> Check:
    """See whether this process may mount and change owners."""
    if os.geteuid() != 0:
        return _check_helper(host)
    effective = capabilities(host.read("/proc/self/status") or "")
    if not effective >> CAP_SYS_ADMIN & 1:
        return Check(
            name="privileges",
            status="fail",
            detail="root without CAP_SYS_ADMIN may not mount",
            remedy="Start the surrounding container privileged, or with CAP_SYS_ADMIN.",
        )
    return Check(name="privileges", status="ok", detail="root with CAP_SYS_ADMIN")


def _check_helper(host: Host) -> Check:
    """See whether the helper of a user who is not root starts, and how many ids it has."""
    from lamella import _core

    name, user = "privileges", f"user {os.geteuid()}"
    try:
        maps = _core.helper_maps()
    except LamellaError as error:
        return Check(
            name=name,
            status="fail",
            detail=f"{user} may not set owners, and has no user namespace to do it in: {error.message}",
            remedy=_memfd_remedy(host) or error.hint,
        )
    if maps is None:
        return Check(name=name, status="ok", detail=f"{user} with the rights over files that root has")
    users, groups, notes = maps
    if notes:
        return Check(
            name=name,
            status="warn",
            detail=f"{user} has one id in a user namespace: {'; '.join(notes)}",
            remedy=GIVE_IDS,
        )
    count = min(sum(extent[2] for extent in extents) for extents in (users, groups))
    return Check(name=name, status="ok", detail=f"{user} with {count} ids in a user namespace")


def capabilities(status: str) -> int:
    """Read the effective capabilities from the text of /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def check_snapshotter(host: Host, config: Config) -> Check:
    """See whether the snapshotter that is asked for works beside the store."""
    name, attempt = ("native", _try_native) if config.snapshotter == "native" else ("overlayfs", _try_overlay)
    try:
        with _scratch(config.root) as folder:
            return attempt(host, folder)
    except OSError as error:
        return Check(
            name=name,
            status="warn",
            detail=f"cannot be tried beside {config.root}: {error.strerror or error}",
            remedy="Choose a --root that can be written, or run as its owner.",
        )


def _try_native(host: Host, folder: Path) -> Check:
    """Copy a file, and see whether the copy shares its blocks."""
    import fcntl

    (folder / "file").write_bytes(bytes(1 << 16))
    with (folder / "file").open("rb") as source, (folder / "copy").open("wb") as copy:
        try:
            fcntl.ioctl(copy, _FICLONE, source.fileno())
            detail = "copies share their blocks"
        except OSError:
            detail = "copies take as much room as what they are copies of"
    return Check(name="native", status="ok", detail=f"{detail} on {_filesystem(host, folder)}")


def _try_overlay(host: Host, folder: Path) -> Check:
    """Mount an overlay, with its upper folder in ``folder``, as this process's snapshots would be."""
    from lamella import _core
    from lamella.snapshots.folders import needs_user_attributes

    known = {line.split()[-1] for line in (host.read("/proc/filesystems") or "").splitlines() if line.split()}
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    # As mounts of snapshots are written: a backslash protects what would end a path.
    path = str(folder).replace("\\", "\\\\")
    lower = path.replace(":", "\\:")
    options = [f"lowerdir={lower}/lower", f"upperdir={path}/upper", f"workdir={path}/work"]
    if needs_user_attributes():
        options.append("userxattr")
        try:
            os.setxattr(folder / "lower", "user.lamella.tried", b"y")
        except OSError as error:
            return Check(
                name="overlayfs",
                status="fail",
                detail=f"{_filesystem(host, folder)} holds no attributes of users here: {error.strerror}",
                remedy="Choose a --root on ext4, xfs, btrfs or a tmpfs of Linux 6.6, or --snapshotter native.",
            )
    target = str(folder / "merged")
    try:
        _core.try_mount([("overlay", "overlay", options)], target, "file")
        written = (folder / "upper/file").exists()
    except LamellaError as error:
        if "overlay" not in known:
            remedy = "Load it: modprobe overlay. Or do without: --snapshotter native."
        elif _filesystem(host, folder) in _UNSUITED:
            remedy = "Choose a --root on ext4, xfs, btrfs or tmpfs, or --snapshotter native."
        elif os.geteuid() != 0 and _check_helper(host).status == "fail":
            remedy = "First of all a user namespace is needed; see privileges."
        else:
            remedy = "See the kernel's log (dmesg) for the reason."
        return Check(name="overlayfs", status="fail", detail=error.message, remedy=remedy)
    if not written:
        return Check(
            name="overlayfs",
            status="fail",
            detail="what is written to an overlay does not reach its upper folder",
        )
    return Check(name="overlayfs", status="ok", detail=f"mounts on {_filesystem(host, folder)}")


def check_mount_api() -> Check:
    """Call fsopen(2): the new mount API has no limit of one page on the length of the options.

    Who is not root mounts in user namespaces alone, and is refused here; the overlay that is tried tells of those.
    """
    import ctypes
    import errno

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(SYS_FSOPEN, b"tmpfs", 1)
    if descriptor >= 0:
        os.close(descriptor)
        return Check(name="mount api", status="ok", detail="fsopen is there")
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        return Check(
            name="mount api",
            status="warn",
            detail="fsopen is missing; mount(2) is used, with fewer layers",
            remedy="Use Linux 5.2 or newer.",
        )
    if number == errno.EPERM and os.geteuid() != 0:
        return Check(
            name="mount api", status="ok", detail="fsopen is there, for who is root in a user namespace"
        )
    return Check(
        name="mount api",
        status="warn",
        detail=f"fsopen is refused: {os.strerror(number)}",
        remedy="Allow the mount system calls (capability, seccomp profile).",
    )


_TRY_USER_NAMESPACE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
sys.exit(0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno() or 1)
"""


def check_user_namespaces(host: Host) -> Check:
    """Make a user namespace in a process of its own. Root does not need one."""
    import errno
    import subprocess

    name = "user namespaces"
    if not host.path("/proc/self/ns/user").exists():
        return Check(
            name=name, status="warn", detail="the kernel has none", remedy="Use a kernel with CONFIG_USER_NS."
        )
    limits = {
        "user.max_user_namespaces": host.number("/proc/sys/user/max_user_namespaces"),
        "kernel.unprivileged_userns_clone": host.number("/proc/sys/kernel/unprivileged_userns_clone"),
    }
    for key, value in limits.items():
        if value == 0:
            return Check(
                name=name, status="warn", detail=f"{key} is 0", remedy=f"Allow them: sysctl -w {key}=15000."
            )
    tried = subprocess.run([sys.executable, "-I", "-S", "-c", _TRY_USER_NAMESPACE], check=False)
    if tried.returncode:
        refused = f"unshare is refused: {os.strerror(tried.returncode)}"
        if tried.returncode == errno.EPERM and _is_chroot(host):
            return Check(
                name=name,
                status="warn",
                detail=f"{refused}; this is a chroot",
                remedy="Enter the tree by a mount namespace instead (unshare --mount, pivot_root), or run outside of it.",
            )
        return Check(
            name=name,
            status="warn",
            detail=refused,
            remedy="Allow it in the surrounding container's seccomp profile; in a chroot nobody may.",
        )
    if host.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        return Check(
            name=name,
            status="warn",
            detail="AppArmor restricts them for users other than root",
            remedy="sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for the program.",
        )
    most = limits["user.max_user_namespaces"]
    return Check(name=name, status="ok", detail="allowed" if most is None else f"allowed, at most {most}")


def _is_chroot(host: Host) -> bool:
    """Tell whether it is a chroot that keeps this process from making a user namespace (user_namespaces(7), EPERM).

    There the root folder need not be a mount, as that of a mount namespace is; and no filter of system calls has to be at work.
    """
    points = [line.split()[4:5] for line in (host.read("/proc/self/mountinfo") or "").splitlines()]
    no_filter = "\nSeccomp:\t0\n" in (host.read("/proc/self/status") or "")
    return (bool(points) and ["/"] not in points) or no_filter


class Cgroups(msgspec.Struct, frozen=True, kw_only=True):
    """How control groups are mounted: ``mode``, and where each controller is."""

    mode: Literal["v2", "v1", "hybrid", "none"]
    controllers: dict[str, str]


def parse_cgroups(mountinfo: str, unified_controllers: str) -> Cgroups:
    """Read /proc/self/mountinfo (proc(5)) and the root's cgroup.controllers."""
    controllers: dict[str, str] = {}
    unified: str | None = None
    first_version = False
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            unified = fields[4]
        elif kind[0] == "cgroup":
            names = [name for name in kind[2].split(",") if name in _V1_CONTROLLERS]
            first_version |= bool(names)
            controllers.update(dict.fromkeys(names, fields[4]))
    if unified is not None:
        for name in unified_controllers.split():
            controllers.setdefault(name, unified)
    if unified is None:
        return Cgroups(mode="v1" if first_version else "none", controllers=controllers)
    return Cgroups(mode="hybrid" if first_version else "v2", controllers=controllers)


_V1_CONTROLLERS = frozenset(
    {
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    }
)


def check_cgroups(host: Host) -> Check:
    """See which version is mounted, and whether the controllers that limit a container are there and ours to use."""
    mountinfo = host.read("/proc/self/mountinfo") or ""
    unified = next((line.split()[4] for line in mountinfo.splitlines() if " - cgroup2 " in line), None)
    found = parse_cgroups(mountinfo, (host.read(f"{unified}/cgroup.controllers") or "") if unified else "")
    if found.mode == "none":
        mount = "Mount them: mount -t cgroup2 none /sys/fs/cgroup."
        return Check(
            name="cgroups",
            status="warn",
            detail="not mounted; limits and statistics are not available",
            remedy="Give the limits to the sandbox around." if is_gvisor(host) else mount,
        )
    missing = [name for name in CGROUP_CONTROLLERS if name not in found.controllers]
    if missing:
        return Check(
            name="cgroups",
            status="warn",
            detail=f"{found.mode}, without {', '.join(missing)}",
            remedy="Boot with these controllers enabled (cgroup_enable=memory), or have them delegated.",
        )
    closed = sorted(
        {
            path
            for name in CGROUP_CONTROLLERS
            if not os.access(host.path(path := found.controllers[name]), os.W_OK)
        }
    )
    if closed:
        return Check(
            name="cgroups",
            status="warn",
            detail=f"{found.mode}, not writable: {', '.join(closed)}",
            remedy="Mount them writable, or have a group delegated: systemd-run --user --scope -p Delegate=yes.",
        )
    return Check(name="cgroups", status="ok", detail=f"{found.mode} with {', '.join(CGROUP_CONTROLLERS)}")


def check_seccomp(host: Host) -> Check:
    """See whether the kernel filters system calls."""
    if is_gvisor(host):  # it does not list actions
        return Check(name="seccomp", status="ok", detail="filters")
    actions = (host.read("/proc/sys/kernel/seccomp/actions_avail") or "").split()
    if not {"allow", "errno"} <= set(actions):
        return Check(
            name="seccomp",
            status="fail",
            detail="the kernel can't filter system calls; containers with a profile are refused",
            remedy="Use a kernel with CONFIG_SECCOMP_FILTER, or --security-opt seccomp=unconfined.",
        )
    return Check(name="seccomp", status="ok", detail=f"filters, with {', '.join(actions)}")


def _memfd_remedy(host: Host) -> str | None:
    """Say what lets the launcher start where the kernel runs no program that is in memory (Linux 6.3, memfd_create(2))."""
    if (host.read("/proc/sys/vm/memfd_noexec") or "").strip() != "2":
        return None
    return "An administrator lets programs be run from memory: sysctl -w vm.memfd_noexec=1."


def check_launcher(host: Host) -> Check:
    """Start the embedded launcher with a request that it has to refuse."""
    from lamella import _core

    try:
        reply = _core.launch(b'{"version": 0}')
    except LamellaError as error:
        return Check(
            name="launcher",
            status="fail",
            detail=f"the embedded launcher does not start: {error.message}",
            remedy=_memfd_remedy(host)
            or error.hint
            or "Install lamella again; memfd_create and execveat must be allowed.",
        )
    if b'"error"' not in reply:
        return Check(
            name="launcher",
            status="fail",
            detail="the launcher took a request of version 0",
            remedy="Install lamella again.",
        )
    return Check(
        name="launcher", status="ok", detail=f"lamella {_core.__version__}, embedded and able to start"
    )


def _sqlite_version() -> str:
    import apsw

    return apsw.sqlite_lib_version()


def check_sqlite(version: str) -> Check:
    """Compare SQLite with the oldest one that keeps a shared database whole."""
    from lamella.metadata.database import SQLITE_MINIMUM

    major, minor, patch = (int(part) for part in version.split(".")[:3])
    if major * 1_000_000 + minor * 1000 + patch < SQLITE_MINIMUM:
        return Check(
            name="sqlite",
            status="fail",
            detail=f"SQLite {version} can damage a store that several processes use",
            remedy="Install a current apsw: pip install --upgrade apsw.",
        )
    return Check(name="sqlite", status="ok", detail=f"SQLite {version}")


def check_store(host: Host, config: Config) -> Check:
    """See whether the store can be written, by us alone, and lies on a filesystem that suits it."""
    root = config.root
    existing = _existing(root)
    kind = _filesystem(host, existing)
    detail = f"{root} on {kind}" + ("" if existing == root else ", not made yet")
    if not existing.is_dir():
        return Check(
            name="store", status="fail", detail=f"{existing} is not a folder", remedy="Choose another --root."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name="store",
            status="fail",
            detail=f"{existing} is not writable",
            remedy="Choose another --root, or run as its owner.",
        )
    if kind in _UNSUITED and (kind, config.snapshotter) != ("overlay", "native"):
        return Check(
            name="store",
            status="fail",
            detail=f"{detail}, which can't hold snapshots",
            remedy="Choose a --root on ext4, xfs, btrfs or tmpfs"
            + (", or --snapshotter native." if kind == "overlay" else "."),
        )
    if kind in _REMOTE:
        return Check(
            name="store",
            status="warn",
            detail=f"{detail}, whose locks may not hold between machines",
            remedy="Choose a --root on a local disk.",
        )
    if existing == root and stat.S_IMODE(root.stat().st_mode) & 0o077:
        return Check(
            name="store",
            status="warn",
            detail=f"{detail}, open to other users (mode {stat.S_IMODE(root.stat().st_mode):o})",
            remedy=f"Close it: chmod 700 {root}. Images may hold setuid programs.",
        )
    return Check(name="store", status="ok", detail=detail)


def check_space(config: Config) -> Check:
    """See how many bytes and inodes are free where the store is."""
    found = os.statvfs(_existing(config.root))
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    if found.f_blocks == 0:  # ramfs, and others that take what memory there is
        return Check(name="disk space", status="ok", detail="the file system has no limit of its own")
    detail = f"{format_size(free)} free"
    counted = found.f_files > 0  # btrfs and others have no fixed number
    if counted:
        detail += f", {inodes} inodes"
    short = counted and inodes < INODES_WARN
    if free >= SPACE_WARN and not short:
        return Check(name="disk space", status="ok", detail=detail)
    return Check(
        name="disk space",
        status="fail" if free < SPACE_FAIL or (counted and inodes == 0) else "warn",
        detail=detail,
        remedy="Free space (lamella gc removes what nothing refers to), or choose another --root.",
    )


def check_state(host: Host, config: Config) -> Check:
    """See whether the state of running containers can be kept, in a place that a restart empties."""
    existing = _existing(config.state)
    kind = _filesystem(host, existing)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name="state",
            status="fail",
            detail=f"{existing} is not a writable folder",
            remedy="Choose another --state.",
        )
    if kind in _REMOTE:
        return Check(
            name="state",
            status="fail",
            detail=f"{config.state} on {kind}, which can't hold the sockets of containers",
            remedy="Choose a --state on tmpfs, such as below /run.",
        )
    return Check(name="state", status="ok", detail=f"{config.state} on {kind}")


def check_clock(now: float) -> Check:
    """See whether the clock could be right."""
    if now < CLOCK_MIN:
        return Check(
            name="clock",
            status="warn",
            detail="the clock is years behind; certificates of registries will look invalid",
            remedy="Set it, for example by NTP.",
        )
    return Check(name="clock", status="ok", detail="plausible")


def check_certificates() -> Check:
    """Find the authorities that registries are checked against, as requests does."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if named is None:
        try:
            import certifi
        except ImportError:
            return Check(
                name="certificates",
                status="warn",
                detail="certifi is missing",
                remedy="Install it: pip install certifi.",
            )
        named = certifi.where()
    if not Path(named).exists():
        return Check(
            name="certificates",
            status="warn",
            detail=f"{named} is not there; no registry can be reached by HTTPS",
            remedy="Correct or unset REQUESTS_CA_BUNDLE.",
        )
    return Check(name="certificates", status="ok", detail=named)


def check_runtimes() -> Check:
    """Name the other OCI runtimes. None is needed."""
    from lamella.containers.runtimes import installed

    found = ", ".join(f"{name} ({path})" for name, path in installed().items())
    return Check(
        name="oci runtimes",
        status="ok",
        detail=f"our own; {found} by --runtime" if found else "none but our own; none is needed",
    )


def check_networks() -> Check:
    """Name what plugs containers into networks beyond none and host. None is needed."""
    import shutil

    from lamella.containers.networks.configuration import plugin_folders

    wanted = ("bridge", "host-local", "portmap", "firewall")
    folders = [folder for folder in plugin_folders() if (Path(folder) / "bridge").exists()]
    missing = [
        name for name in wanted if not any((Path(folder) / name).exists() for folder in plugin_folders())
    ]
    found = [f"CNI plugins in {', '.join(folders)}"] if folders else []
    found += [path for name in ("iptables", "pasta") if (path := shutil.which(name))]
    detail = ", ".join(found) or "none and host alone; neither CNI plugins nor pasta"
    if folders and (missing or not shutil.which("iptables")):
        lacking = ", ".join([*missing, *([] if shutil.which("iptables") else ["iptables"])])
        return Check(
            name="networks",
            status="warn",
            detail=f"{detail}; {lacking} is missing",
            remedy="Install it (Debian: containernetworking-plugins, iptables); bridges need it.",
        )
    return Check(name="networks", status="ok", detail=detail)


def check_id_maps(host: Host) -> Check:
    """See whether a user without privileges could map a range of ids. Root does not need it."""
    import shutil

    if os.geteuid() != 0:  # what counts is what the helper got, wherever ranges come from
        reason = one_id()
        if reason is not None:
            detail = f"{reason}; so an image's owners other than root cannot be represented"
            return Check(name="id maps", status="warn", detail=detail, remedy=GIVE_IDS)
        return Check(name="id maps", status="ok", detail="as many as there are (see privileges)")
    tools = all(shutil.which(name) for name in ("newuidmap", "newgidmap"))
    ranges = all(_has_range(host.read(f"/etc/{name}") or "") for name in ("subuid", "subgid"))
    if tools and ranges:
        detail = "newuidmap, newgidmap and a range of ids for this user"
    else:
        detail = "no range of ids for this user; only needed without root"
    return Check(name="id maps", status="ok", detail=detail)


def _has_range(text: str) -> bool:
    """Look for root in the text of /etc/subuid (subuid(5))."""
    return any(line.partition(":")[0] in ("0", "root") for line in text.splitlines() if ":" in line)


def _existing(path: Path) -> Path:
    """Give the nearest folder above that is there."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110 (what may not be looked at is not there)
        path = path.parent
    return path


def _filesystem(host: Host, path: Path) -> str:
    """Give the type of the filesystem that a path lies on, by the mount table."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best = ("", "an unknown filesystem")
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
        inside = path == Path(point) or Path(point) in path.parents
        # btrfs shows another device number in stat than in the table; then the longest mount point decides.
        if inside and (fields[2] == wanted or len(point) >= len(best[0])):
            best = (point, right.split()[0])
    return best[1]


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Give an empty folder on the filesystem of the store, removed afterwards."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix=".lamella-doctor-", dir=_existing(root)) as folder:
        yield Path(folder)
