"""The seccomp section of a spec: the default profile, widened by capabilities as Docker does, or the caller's own.

The default profile is data of the launcher (``lamella._core.DEFAULT_SECCOMP``), which has it compiled already; a section that is
equal to it costs nothing to load. Source: seccomp(2); OCI runtime spec, config-linux.md, "Seccomp".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lamella import _core
from lamella.errors import InvalidArgument, NotFound

UNCONFINED = "unconfined"

CAPABILITY_CALLS: dict[str, list[str]] = {
    "CAP_BPF": ["bpf"],
    "CAP_DAC_READ_SEARCH": ["open_by_handle_at"],
    "CAP_PERFMON": ["perf_event_open"],
    "CAP_SYSLOG": ["syslog"],
    "CAP_SYS_ADMIN": [
        "bpf",
        "clone",
        "clone3",
        "fanotify_init",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "quotactl",
        "quotactl_fd",
        "setdomainname",
        "sethostname",
        "setns",
        "syslog",
        "umount2",
        "unshare",
    ],
    "CAP_SYS_BOOT": ["reboot"],
    "CAP_SYS_MODULE": ["delete_module", "finit_module", "init_module"],
    "CAP_SYS_NICE": ["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"],
    "CAP_SYS_PACCT": ["acct"],
    "CAP_SYS_PTRACE": [
        "kcmp",
        "pidfd_getfd",
        "process_madvise",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
    ],
    "CAP_SYS_RAWIO": ["ioperm", "iopl"],
    "CAP_SYS_TIME": ["clock_adjtime", "clock_settime", "settimeofday"],
    "CAP_SYS_TTY_CONFIG": ["vhangup"],
}
"""System calls that the default profile refuses and that a capability which is not among the defaults needs."""


def seccomp_section(
    profile: str | Path | Mapping[str, Any] | None, *, capabilities: Collection[str], privileged: bool
) -> msgspec.Raw | None:
    """Give the ``linux.seccomp`` object, None for no confinement.

    ``profile``: None for the default, ``"unconfined"``, the path of a JSON file, or the object itself.
    """
    if profile == UNCONFINED or (profile is None and privileged):
        return None
    if profile is None:
        extra = sorted({call for cap in capabilities for call in CAPABILITY_CALLS.get(cap, ())})
        if not extra:
            return msgspec.Raw(_core.DEFAULT_SECCOMP.encode())
        document = msgspec.json.decode(_core.DEFAULT_SECCOMP)
        # An earlier rule for the same call (clone without new namespaces) would still refuse; the capability lifts it.
        document["syscalls"] = [
            *(
                {**rule, "names": kept}
                for rule in document["syscalls"]
                if (kept := _without(rule["names"], extra))
            ),
            {"names": extra, "action": "SCMP_ACT_ALLOW"},
        ]
        return msgspec.Raw(msgspec.json.encode(document))
    if isinstance(profile, Mapping):
        return msgspec.Raw(msgspec.json.encode(dict(profile)))
    try:
        data = Path(profile).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"seccomp profile {profile} is not there") from None
    try:
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"seccomp profile {profile} is not a JSON object: {error}") from None
    return msgspec.Raw(data)


def _without(names: list[str], removed: list[str]) -> list[str]:
    return [name for name in names if name not in removed]
