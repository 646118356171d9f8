"""Typed models of the OCI runtime spec's config.json, the parts that lamella sets.

Source: OCI runtime spec 1.2, config.md and config-linux.md. Fields that are absent keep the runtime's default; what a caller
adds beyond these models goes into the document as plain JSON (``spec=`` of :meth:`Containers.create`).
"""

from __future__ import annotations

from lamella.structs import Struct
from lamella.typings import Any


class _Document(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The JSON form of the spec: camelCase, absent instead of null."""


class User(_Document):
    """The ids a process runs as."""

    uid: int
    gid: int
    umask: int | None = None
    additional_gids: list[int] = []


class Capabilities(_Document):
    """Capability sets by name, such as ``CAP_CHOWN``."""

    bounding: list[str] = []
    effective: list[str] = []
    permitted: list[str] = []
    inheritable: list[str] = []
    ambient: list[str] = []


class Rlimit(_Document):
    """One resource limit, such as ``RLIMIT_NOFILE``."""

    type: str
    soft: int
    hard: int


class Process(_Document):
    """The container's first process."""

    args: list[str]
    cwd: str
    env: list[str]
    user: User
    terminal: bool = False
    capabilities: Capabilities | None = None
    rlimits: list[Rlimit] = []
    no_new_privileges: bool = False
    oom_score_adj: int | None = None


class Root(_Document):
    """The root filesystem's mount point, relative to the bundle."""

    path: str
    readonly: bool = False


class Mount(_Document):
    """One mount inside the container."""

    destination: str
    type: str
    source: str
    options: list[str] = []


class Namespace(_Document):
    """A namespace to make, or to join when ``path`` is given."""

    type: str
    path: str = ""


class Device(_Document):
    """A device node inside the container."""

    type: str
    path: str
    major: int
    minor: int
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceRule(_Document):
    """What the devices controller allows or denies."""

    allow: bool
    access: str
    type: str = ""
    major: int | None = None
    minor: int | None = None


class MemoryLimits(_Document, rename={"disable_oom_killer": "disableOOMKiller"}):
    """Bytes; ``swap`` counts memory and swap together."""

    limit: int | None = None
    swap: int | None = None
    reservation: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None


class CpuLimits(_Document):
    """Microseconds of CPU time (``quota``) in each ``period``."""

    quota: int | None = None
    period: int | None = None
    shares: int | None = None
    cpus: str | None = None
    mems: str | None = None


class PidsLimits(_Document):
    """The number of processes and threads."""

    limit: int


class ThrottleDevice(_Document):
    """A block device's upper bound, in bytes or operations a second."""

    major: int
    minor: int
    rate: int


class WeightDevice(_Document):
    """A block device's share of what processes get when they compete, 10 to 1000."""

    major: int
    minor: int
    weight: int


class BlockIo(
    _Document,
    rename={
        "throttle_read_iops_device": "throttleReadIOPSDevice",
        "throttle_write_iops_device": "throttleWriteIOPSDevice",
    },
):
    """Input and output of block devices."""

    weight: int | None = None
    weight_device: list[WeightDevice] = []
    throttle_read_bps_device: list[ThrottleDevice] = []
    throttle_write_bps_device: list[ThrottleDevice] = []
    throttle_read_iops_device: list[ThrottleDevice] = []
    throttle_write_iops_device: list[ThrottleDevice] = []


class Resources(_Document, rename={"block_io": "blockIO"}):
    """What the cgroup limits."""

    devices: list[DeviceRule] = []
    memory: MemoryLimits | None = None
    cpu: CpuLimits | None = None
    pids: PidsLimits | None = None
    block_io: BlockIo | None = None


class IdMapping(Struct, rename={"container_id": "containerID", "host_id": "hostID"}):
    """Ids in the container, from the first on, and the ids of this machine that stand for them."""

    container_id: int
    host_id: int
    size: int


class Linux(_Document):
    """The Linux part."""

    namespaces: list[Namespace]
    cgroups_path: str
    resources: Resources
    uid_mappings: list[IdMapping] = []
    gid_mappings: list[IdMapping] = []
    devices: list[Device] = []
    seccomp: dict[str, Any] | None = None
    masked_paths: list[str] = []
    readonly_paths: list[str] = []
    sysctl: dict[str, str] = {}
    rootfs_propagation: str | None = None


class Spec(_Document):
    """The whole document."""

    oci_version: str
    process: Process
    root: Root
    hostname: str
    mounts: list[Mount]
    linux: Linux
    annotations: dict[str, str] = {}
    domainname: str = ""
