"""Every field of the runtime spec (1.2, config.md and config-linux.md, and what 1.3 adds), and what the launcher makes of it.

The table in docs/oci-runtime.md has the same rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Field(NamedTuple):
    """A field with a value of it; ``note`` says what is particular, or why it is refused."""

    path: str
    value: Any
    note: str = ""


SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW"}
ARGUMENT = {"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
RULE = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}
DEVICE = {"major": 8, "minor": 0}
RATE = [{**DEVICE, "rate": 1 << 30}]
OPTIONS = ["nosuid", "noatime", "tmpcopyup", "size=1m"]
TMPFS = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}

SUPPORTED = [
    Field("annotations", {"a.b/c": "d"}),
    Field("domainname", "example"),
    Field("hooks.createContainer", []),
    Field("hooks.createRuntime", []),
    Field("hooks.poststart", []),
    Field("hooks.poststop", []),
    Field("hooks.prestart", []),
    Field("hooks.startContainer", []),
    Field("hostname", "name"),
    Field("linux.cgroupsPath", None, "a path; a systemd unit is refused"),
    Field(
        "linux.devices",
        [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}],
    ),
    Field("linux.gidMappings", None, "with a new user namespace, or those of the one to join"),
    Field("linux.maskedPaths", ["/proc/kcore"]),
    Field(
        "linux.namespaces",
        None,
        "a new `mount` must be there; the others new or by path",
    ),
    Field("linux.personality.domain", "LINUX32"),
    Field("linux.readonlyPaths", ["/proc/sys"]),
    Field("linux.resources.blockIO.throttleReadBpsDevice", RATE),
    Field("linux.resources.blockIO.throttleReadIOPSDevice", RATE),
    Field("linux.resources.blockIO.throttleWriteBpsDevice", RATE),
    Field("linux.resources.blockIO.throttleWriteIOPSDevice", RATE),
    Field("linux.resources.blockIO.weight", 100),
    Field("linux.resources.blockIO.weightDevice", [{**DEVICE, "weight": 100}]),
    Field("linux.resources.cpu.burst", 1000),
    Field("linux.resources.cpu.cpus", "0"),
    Field("linux.resources.cpu.idle", 0),
    Field("linux.resources.cpu.mems", "0"),
    Field("linux.resources.cpu.period", 100000),
    Field("linux.resources.cpu.quota", 100000),
    Field("linux.resources.cpu.shares", 512),
    Field("linux.resources.devices", [{"allow": False, "access": "rwm"}]),
    Field("linux.resources.hugepageLimits", [{"pageSize": "2MB", "limit": 1 << 21}]),
    Field("linux.resources.memory.checkBeforeUpdate", True),
    Field("linux.resources.memory.disableOOMKiller", False),
    Field("linux.resources.memory.limit", 1 << 28),
    Field("linux.resources.memory.reservation", 1 << 27),
    Field("linux.resources.memory.swap", -1),
    Field("linux.resources.memory.swappiness", 10, "cgroup v1"),
    Field("linux.resources.memory.useHierarchy", True, "`true`, as it always is"),
    Field("linux.resources.pids.limit", 100),
    Field("linux.resources.unified", {"pids.max": "100"}, "cgroup v2"),
    Field("linux.rootfsPropagation", "rprivate"),
    Field("linux.seccomp.architectures", ["SCMP_ARCH_NATIVE"]),
    Field("linux.seccomp.defaultAction", "SCMP_ACT_ALLOW"),
    Field("linux.seccomp.defaultErrnoRet", 1),
    Field("linux.seccomp.flags", ["SECCOMP_FILTER_FLAG_LOG"], "`TSYNC`, `LOG`, `SPEC_ALLOW`"),
    Field("linux.seccomp.syscalls", [{**RULE, "errnoRet": 1, "args": [ARGUMENT]}], "no `SCMP_ACT_NOTIFY`"),
    Field("linux.sysctl", {"kernel.shmmax": "1000000"}, "those of a new namespace"),
    Field("linux.timeOffsets", None, "with a new time namespace"),
    Field("linux.uidMappings", None, "with a new user namespace, or those of the one to join"),
    Field("mounts[].destination", None),
    Field("mounts[].options", [{**TMPFS, "options": OPTIONS}], "`rro`, `rnodev` and `tmpcopyup` among them"),
    Field("mounts[].source", None),
    Field("mounts[].type", None),
    Field("ociVersion", "1.2.0", "any 1.x"),
    Field("process.args", ["/bin/true"]),
    Field("process.capabilities.ambient", []),
    Field("process.capabilities.bounding", ["CAP_CHOWN"]),
    Field("process.capabilities.effective", ["CAP_CHOWN"]),
    Field("process.capabilities.inheritable", []),
    Field("process.capabilities.permitted", ["CAP_CHOWN"]),
    Field("process.consoleSize", {"height": 24, "width": 80}),
    Field("process.cwd", "/usr"),
    Field("process.env", ["A=b"]),
    Field("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 4}),
    Field("process.noNewPrivileges", True),
    Field("process.oomScoreAdj", 100),
    Field("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),
    Field("process.scheduler", {"policy": "SCHED_BATCH", "nice": 5}),
    Field("process.terminal", False),
    Field("process.user.additionalGids", [5]),
    Field("process.user.gid", 5),
    Field("process.user.uid", 5),
    Field("process.user.umask", 0o27),
    Field("root.path", None),
    Field("root.readonly", True),
]

NO_SELINUX = "there is no SELinux support; empty is fine"
REFUSED = [
    Field("linux.intelRdt", {}, "few machines have it"),
    Field("linux.memoryPolicy", {"mode": "MPOL_DEFAULT"}, "1.3"),
    Field("linux.mountLabel", "label", NO_SELINUX),
    Field("linux.netDevices", {"eth0": {}}, "1.3; the library's networks"),
    Field("linux.personality.flags", ["x"], "the spec has none"),
    Field("linux.resources.blockIO.leafWeight", 10, "Linux took it away"),
    Field("linux.resources.cpu.realtimePeriod", 1000, "few kernels have it"),
    Field("linux.resources.cpu.realtimeRuntime", 1000, "few kernels have it"),
    Field("linux.resources.memory.kernel", 1 << 28, "Linux took it away"),
    Field("linux.resources.memory.kernelTCP", 1 << 28, "cgroup v1 alone has it"),
    Field("linux.resources.network", {"classID": 1}, "cgroup v1 alone has it"),
    Field("linux.resources.rdma", {"mlx": {"hcaHandles": 1}}, "few machines have it"),
    Field("linux.seccomp.listenerMetadata", "x", "goes with the next"),
    Field("linux.seccomp.listenerPath", "/x", "no process is asked about calls"),
    Field(
        "mounts[].gidMappings",
        [{"containerID": 0, "hostID": 1, "size": 1}],
        "the library maps snapshots and volumes itself",
    ),
    Field("mounts[].uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}], "as before"),
    Field("process.apparmorProfile", "profile", "there is no AppArmor support; empty is fine"),
    Field("process.commandLine", "x", "Windows"),
    Field("process.execCPUAffinity", {"initial": "0"}, "`linux.resources.cpu.cpus`"),
    Field("process.selinuxLabel", "label", NO_SELINUX),
    Field("process.user.username", "x", "Windows"),
    Field("solaris", {}, "Solaris"),
    Field("vm", {}, "virtual machines"),
    Field("windows", {}, "Windows"),
    Field("zos", {}, "z/OS"),
]


def rows() -> list[str]:
    """Give the rows of the page's table."""
    table = [(field, "yes") for field in SUPPORTED] + [(field, "refused") for field in REFUSED]
    return [f"| `{field.path}` | {verdict} | {field.note} |" for field, verdict in sorted(table)]


def put(spec: dict[str, Any], field: Field) -> None:
    """Give a document the field, with its value."""
    *parents, name = field.path.split(".")
    if parents and parents[0].endswith("[]"):
        spec["mounts"] += field.value if name == "options" else [{**TMPFS, name: field.value}]
        return
    if "personality" in parents:
        spec["linux"]["personality"] = {"domain": "LINUX"}
    for parent in parents:
        spec = spec.setdefault(parent, {})
    spec[name] = field.value
