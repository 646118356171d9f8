"""Which OCI runtime makes a container: lamella's own launcher, or another program of the same interface.

``lamella`` is our own, and the default; what containerd calls ``io.containerd.runc.v2`` is that, too. Any other name is a program
on this process's PATH (runc, crun, youki), or its absolute path; it gets the very same bundle. It is looked for by whoever
creates or starts the container, never in the container, and the record keeps the name, not the place. What differs between
runtimes: docs/runtimes.md.

Source: OCI runtime spec, runtime.md; the command line is runc's, which the others have too.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lamella import _core
from lamella.config import DEFAULT_RUNTIME, is_own_runtime
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from lamella.structs import encode, read_json
from lamella.typings import Any

KNOWN = ("runc", "crun", "youki")
"""The programs that :func:`installed` looks for; others work if they have the same command line."""
FOLDER = "runtime"
"""What another runtime has in a bundle."""
_TTY = 5
"""The group that terminals have."""
INIT = "/dev/lamella-init"
"""Where the init of a container lies in it, when another runtime runs it."""


_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST "
    "NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
    "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM "
    "BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITY_BITS = {f"CAP_{name}": bit for bit, name in enumerate(_CAPABILITIES.split())}
"""The kernel's numbers of capabilities (linux/capability.h)."""


def find_runtime(name: str) -> Path | None:
    """Return the absolute path of a runtime's program, None for our own launcher.

    Errors: InvalidArgument for a relative path, NotFound, PermissionDenied for a file that cannot be run.
    """
    if is_own_runtime(name):
        return None
    if "/" not in name:
        found = shutil.which(name) if name else None
        if found is None:
            there = ", ".join((DEFAULT_RUNTIME, *installed()))
            raise NotFound(
                f"there is no OCI runtime {name!r} on PATH", hint=f"Install it, or take one of: {there}."
            )
        return Path(found).absolute()
    path = Path(name)
    if not path.is_absolute():
        raise InvalidArgument(f"the runtime {name!r} is a relative path", hint="Give its name or whole path.")
    if not path.is_file():
        raise NotFound(f"there is no OCI runtime {name}")
    if not os.access(path, os.X_OK):
        raise PermissionDenied(f"the runtime {name} cannot be run")
    return path


def installed() -> dict[str, Path]:
    """Give the known runtimes that are on PATH, by name, with their programs."""
    return {name: Path(path) for name in KNOWN if (path := shutil.which(name)) is not None}


def limit_capabilities(process: dict[str, Any]) -> dict[str, Any]:
    """Return a spec's process without the capabilities that this process cannot give, as our own launcher does it.

    Other runtimes refuse all for one: ``--privileged`` as root of a machine's part that lacks some. FailedPrecondition for a user
    or group that a user who is not root has no id for, which they say in many ways.
    """
    if os.geteuid() != 0:
        _check_ids(process.get("user", {}))
    sets = process.get("capabilities")
    bounding = _own_bounding_set()
    if not sets or bounding is None:
        return process
    kept = {
        kind: [name for name in names if name not in CAPABILITY_BITS or bounding >> CAPABILITY_BITS[name] & 1]
        for kind, names in sets.items()
    }
    return process | {"capabilities": kept}


def _check_ids(user: dict[str, Any]) -> None:
    maps = _core.helper_maps()
    if maps is None:
        return
    groups = [user.get("gid", 0), *user.get("additionalGids", [])]
    for kind, wanted, extents in (("uid", [user.get("uid", 0)], maps[0]), ("gid", groups, maps[1])):
        for number in wanted:
            if not _maps(extents, number):
                raise FailedPrecondition(
                    f"the container's user namespace has no {kind} {number}",
                    hint=f"It takes ranges of at least {number} ids in /etc/sub{kind}, which the administrator gives (usermod "
                    f"--add-sub{kind}s FIRST-LAST USER); user=0 does without.",
                )


def _maps(extents: Iterable[tuple[int, int, int]], number: int) -> bool:
    return any(first <= number < first + count for first, _, count in extents)


def _own_bounding_set() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapBnd":
            return int(value, 16)
    return None


def bundle_for(
    spec: bytes, sources: Sequence[dict[str, Any]], bundle: Path, *, init: bool, has_network: bool = False
) -> tuple[bytes, list[dict[str, Any]]]:
    """Return a bundle's config.json as another runtime takes it, and its sources: nothing but what our launcher does by itself.

    With ``has_network`` the runtime is started in the container's network namespace (of a user who is not root), and makes none.
    FailedPrecondition for a container with ids of its own where others may not pass through a folder above the bundle,
    PermissionDenied for limits that take a cgroup where there can be none.
    """
    document: dict[str, Any] = read_json(spec)
    document["process"] = limit_capabilities(document["process"])
    if os.geteuid() != 0:
        _fit_user(document, has_network=has_network)
    if init:
        _add_init(document, bundle)
    sources = [*sources, *_take_mapped(document.get("mounts", []), len(sources))]
    if document.get("linux", {}).get("uidMappings"):
        _let_pass(bundle)
    return encode(document), sources


def _fit_user(document: dict[str, Any], *, has_network: bool) -> None:
    """Leave out of a user's container what the machine keeps for root, as our launcher does by itself: a runtime gives up there.

    That is a cgroup where none can be made, a sysfs of the machine's network, in whose place the machine's is bound, the
    group of terminals where it has no id, and device nodes under other names than theirs, which are bound.
    """
    from lamella.containers.cgroups import may_make
    from lamella.containers.devices import path_of_node

    linux = document.get("linux", {})
    if not may_make(linux.get("cgroupsPath", "")):
        limits = linux.get("resources", {}).keys() - {"devices"}
        if limits:
            raise PermissionDenied(
                f"limits ({', '.join(sorted(limits))}) take a cgroup, and none can be made here",
                hint="Start this within one that was delegated to you (systemd-run --user --scope -p Delegate=yes ...), or name "
                "one by cgroup_parent.",
            )
        linux.pop("cgroupsPath", None)
    namespaces = linux.get("namespaces", [])
    apart = [namespace for namespace in namespaces if namespace["type"] != "network"]
    if has_network:
        linux["namespaces"] = apart
    elif apart == namespaces:
        for mount in document.get("mounts", []):
            if mount.get("type") == "sysfs":
                mount.update(type="bind", source="/sys", options=[*mount.get("options", []), "rbind", "ro"])
    for device in list(linux.get("devices", [])):
        path = path_of_node(device["type"], device["major"], device["minor"], device["path"])
        if path not in (None, device["path"]):
            linux["devices"].remove(device)
            bind = {"destination": device["path"], "type": "bind", "source": path, "options": ["bind"]}
            document.setdefault("mounts", []).append(bind)
    maps = _core.helper_maps()
    for mount in document.get("mounts", []):
        if mount.get("type") == "devpts" and maps is not None and not _maps(maps[1], _TTY):
            mount["options"] = [option for option in mount.get("options", []) if option != f"gid={_TTY}"]


def _take_mapped(mounts: Iterable[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """Have what is bound with mapped ids made by the launcher, as sources from ``number`` on: other runtimes bind those."""
    for mount in mounts:
        options = mount.get("options", [])
        maps = [option for option in options if option.startswith(("uidmap=", "gidmap="))]
        if maps:
            bind = {"type": "bind", "source": mount["source"], "options": ["rbind", *maps]}
            yield {"mount": bind, "subpath": ""}
            mount["source"], number = f"sources/{number}", number + 1
            mount["options"] = [option for option in options if option not in maps]


def _let_pass(bundle: Path) -> None:
    """Let the container's root, who is nobody on this machine, pass through to the bundle's root: runtimes open it by its path.

    Nobody else gets at more of the bundle than the names that he knows, and what everybody may read.
    """
    for folder in (bundle.parent.parent, bundle.parent, bundle, bundle / "rootfs"):
        folder.chmod(0o711)
    for folder in bundle.parent.parents:
        if not folder.stat().st_mode & 0o001:
            raise FailedPrecondition(
                f"another runtime cannot make a container with ids of its own: {folder} lets none but its owner pass",
                hint=f"Let others pass (chmod o+x {folder}), or choose another folder for the state (--state).",
            )


def end_first_process(bundle: Path) -> None:
    """Kill the first process that a runtime made, by its id in the bundle, where no cgroup may tell which they are.

    One that began after the id was written down is another that got it later. Harmless where there is none.
    """
    record = bundle / "pid"
    try:
        pid = int(record.read_text(encoding="ascii"))
        process = os.pidfd_open(pid)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        if age >= time.time() - record.stat().st_mtime - 1:
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return
    finally:
        os.close(process)


def _add_init(document: dict[str, Any], bundle: Path) -> None:
    """Have the program run beneath our init, which the launcher puts into the bundle.

    It is mounted read-only, so that nobody can write to it (CVE-2019-5736), and it is this container's own copy.
    """
    document["process"]["args"] = [INIT, "--", *document["process"]["args"]]
    document["mounts"].append(
        {
            "destination": INIT,
            "type": "bind",
            "source": str(bundle / "init"),
            "options": ["bind", "ro", "exec", "nosuid", "nodev", "private"],
        }
    )
