"""The options of a container, as docker writes them, and how the short ones are parsed: environments, capabilities, ulimits.

What takes more has a module of its own: limits, networks, mounts, devices, log_config, restart_policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from lamella.containers.defaults import ALL_CAPABILITIES, CAPABILITIES, SHM_SIZE
from lamella.containers.limits import LimitOptions, Limits, Rates
from lamella.containers.log_config import LogConfig
from lamella.containers.restart_policy import RestartPolicy
from lamella.containers.runtime_spec import Mount, Rlimit
from lamella.errors import InvalidArgument
from lamella.typings import Any

_ULIMITS = frozenset(
    {
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    }
)

Environment = Mapping[str, str | None] | Sequence[str]
FileNames = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Networks = Sequence[str | Mapping[str, Any]] | Mapping[str, Mapping[str, Any] | None]
Ports = Mapping[Any, Any] | Sequence[str | int]
SpecPatch = Callable[[dict[str, Any]], dict[str, Any] | None] | Mapping[str, Any]
"""A function that changes the runtime spec or returns another, or a JSON merge patch (RFC 7386) for it."""


class Options(Limits, frozen=True, kw_only=True):
    """Every option of ``containers.create`` and ``containers.run``; see :meth:`Containers.create` for their meaning."""

    command: str | Sequence[str] | None = None
    entrypoint: str | Sequence[str] | None = None
    name: str | None = None
    environment: Environment | None = None
    env_file: FileNames | None = None
    working_dir: str | None = None
    user: str | int | None = None
    group_add: Sequence[str | int] | None = None
    hostname: str | None = None
    domainname: str | None = None
    network: str = "none"
    networks: Networks | None = None
    ports: Ports | None = None
    expose: Sequence[str | int] | None = None
    publish_all_ports: bool = False
    dns: Sequence[str] | None = None
    dns_search: Sequence[str] | None = None
    dns_options: Sequence[str] | None = None
    extra_hosts: Sequence[str] | Mapping[str, str] | None = None
    ip: str | None = None
    ip6: str | None = None
    mac_address: str | None = None
    network_aliases: Sequence[str] | None = None
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    blkio_weight_device: Rates | None = None
    cgroup_parent: str | None = None
    device_read_bps: Rates | None = None
    device_write_bps: Rates | None = None
    device_read_iops: Rates | None = None
    device_write_iops: Rates | None = None
    read_only: bool = False
    tmpfs: Sequence[str] | Mapping[str, str] | None = None
    mounts: Sequence[str | Mapping[str, Any] | Mount] | None = None
    volumes: Sequence[str] | Mapping[str, Any] | None = None
    shm_size: int | str = SHM_SIZE
    cap_add: Sequence[str] | None = None
    cap_drop: Sequence[str] | None = None
    devices: Sequence[str] | None = None
    device_cgroup_rules: Sequence[str] | None = None
    no_new_privileges: bool = False
    seccomp: Any = None
    privileged: bool = False
    masked_paths: Sequence[str] | None = None
    readonly_paths: Sequence[str] | None = None
    labels: Mapping[str, str] | None = None
    label_file: FileNames | None = None
    annotations: Mapping[str, str] | None = None
    auto_remove: bool = False
    stdin: bool = False
    tty: bool = False
    ulimits: Sequence[str] | None = None
    oom_score_adj: int | None = None
    sysctls: Mapping[str, str] | None = None
    stop_signal: str | None = None
    stop_timeout: float | None = None
    log_config: LogConfig | Mapping[str, Any] | None = None
    restart_policy: RestartPolicy | str | Mapping[str, Any] | None = None
    init: bool = False
    pid_mode: str | None = None
    ipc_mode: str | None = None
    uts_mode: str | None = None
    cgroupns: str | None = None
    userns: str | None = None
    uid_maps: str | Sequence[str] | None = None
    gid_maps: str | Sequence[str] | None = None
    platform: str | None = None
    snapshotter: str | None = None
    runtime: str | None = None
    spec: SpecPatch | None = None

    @property
    def asks_for_maps(self) -> bool:
        """Whether ids are mapped, or something is wrong with how that is asked for."""
        return bool(self.uid_maps or self.gid_maps or self.userns not in (None, "", "host"))


class CreateOptions(LimitOptions, total=False):
    """The keyword options of ``containers.create``, for type checkers and editors: the fields of Options."""

    entrypoint: str | Sequence[str] | None
    name: str | None
    environment: Environment | None
    env_file: FileNames | None
    working_dir: str | None
    user: str | int | None
    group_add: Sequence[str | int] | None
    hostname: str | None
    domainname: str | None
    network: str
    networks: Networks | None
    ports: Ports | None
    expose: Sequence[str | int] | None
    publish_all_ports: bool
    dns: Sequence[str] | None
    dns_search: Sequence[str] | None
    dns_options: Sequence[str] | None
    extra_hosts: Sequence[str] | Mapping[str, str] | None
    ip: str | None
    ip6: str | None
    mac_address: str | None
    network_aliases: Sequence[str] | None
    memory_swappiness: int | None
    oom_kill_disable: bool
    blkio_weight_device: Rates | None
    cgroup_parent: str | None
    device_read_bps: Rates | None
    device_write_bps: Rates | None
    device_read_iops: Rates | None
    device_write_iops: Rates | None
    read_only: bool
    tmpfs: Sequence[str] | Mapping[str, str] | None
    mounts: Sequence[str | Mapping[str, Any] | Mount] | None
    volumes: Sequence[str] | Mapping[str, Any] | None
    shm_size: int | str
    cap_add: Sequence[str] | None
    cap_drop: Sequence[str] | None
    devices: Sequence[str] | None
    device_cgroup_rules: Sequence[str] | None
    no_new_privileges: bool
    seccomp: Any
    privileged: bool
    masked_paths: Sequence[str] | None
    readonly_paths: Sequence[str] | None
    labels: Mapping[str, str] | None
    label_file: FileNames | None
    annotations: Mapping[str, str] | None
    auto_remove: bool
    stdin: bool
    tty: bool
    ulimits: Sequence[str] | None
    oom_score_adj: int | None
    sysctls: Mapping[str, str] | None
    stop_signal: str | None
    stop_timeout: float | None
    log_config: LogConfig | Mapping[str, Any] | None
    restart_policy: RestartPolicy | str | Mapping[str, Any] | None
    init: bool
    pid_mode: str | None
    ipc_mode: str | None
    uts_mode: str | None
    cgroupns: str | None
    userns: str | None
    uid_maps: str | Sequence[str] | None
    gid_maps: str | Sequence[str] | None
    platform: str | None
    snapshotter: str | None
    runtime: str | None
    spec: SpecPatch | None


def parse_command(value: str | Sequence[str]) -> list[str]:
    """Return arguments; a string is split as a shell would."""
    if isinstance(value, str):
        import shlex

        try:
            return shlex.split(value)
        except ValueError as error:
            raise InvalidArgument(f"the command {value!r} cannot be split: {error}") from None
    arguments = list(value)
    for argument in arguments:
        if not isinstance(argument, str) or "\0" in argument:
            raise InvalidArgument(f"the command's argument {argument!r} is not a string without NUL")
    return arguments


def parse_environment(value: Environment | None) -> dict[str, str]:
    """Return variables; ``K`` alone (or a None value) takes the caller's, and is left out where he has none."""
    if value is None:
        return {}
    pairs: Iterable[tuple[str, str | None]]
    if isinstance(value, Mapping):
        pairs = value.items()
    else:
        pairs = (
            (key, text if found else None) for key, found, text in (item.partition("=") for item in value)
        )
    result: dict[str, str] = {}
    for key, given in pairs:
        text = None if given is None else str(given)  # numbers, too, as docker-py takes them
        if not isinstance(key, str) or not key or "=" in key or "\0" in key or "\0" in (text or ""):
            raise InvalidArgument(f"the environment variable {key!r} is malformed", hint="Write NAME=VALUE.")
        resolved = os.environ.get(key) if text is None else text
        if resolved is not None:
            result[key] = resolved
    return result


def variables_of(environment: Environment | None, env_file: FileNames | None) -> dict[str, str]:
    """Return the variables of files and, over them, those that are given one by one. Errors: those of both."""
    if env_file is None:
        return parse_environment(environment)
    from lamella.containers.option_files import read_env_files

    return parse_environment(read_env_files(env_file)) | parse_environment(environment)


def labels_of(options: Options) -> dict[str, str]:
    """Return the labels of files and, over them, those that are given one by one. Errors as for reading the files."""
    given = dict(options.labels or {})
    if options.label_file is None:
        return given
    from lamella.containers.option_files import read_label_files

    return read_label_files(options.label_file) | given


def several(value: Iterable[str] | None) -> list[str]:
    """Return the items of an option that takes several; a string is one of them, never its characters."""
    return [value] if isinstance(value, str) else list(value or ())


def parse_capabilities(
    add: Sequence[str] | None, drop: Sequence[str] | None, *, privileged: bool
) -> list[str]:
    """Return the capability set, sorted. Drops win over the defaults, adds over drops of ALL, as in docker."""
    added, dropped = _capability_names(add), _capability_names(drop)
    everything = privileged or "ALL" in added
    base = set(ALL_CAPABILITIES if everything else CAPABILITIES)
    if "ALL" in dropped:
        base = set()
        if "ALL" in added:
            raise InvalidArgument("capabilities ALL are both added and dropped")
    return sorted((base | (added - {"ALL"})) - (dropped - {"ALL"}))


def _capability_names(names: Sequence[str] | None) -> set[str]:
    result = set()
    for name in several(names):
        upper = name.upper()
        full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
        if full != "ALL" and full not in ALL_CAPABILITIES:
            raise InvalidArgument(f"there is no capability {name!r}", hint="See capabilities(7), or use ALL.")
        result.add(full)
    return result


def parse_ulimit(value: str) -> Rlimit:
    """Parse ``nofile=1024:2048`` or ``nofile=1024``; ``unlimited`` or -1 stands for no limit."""
    name, separator, limits = value.partition("=")
    soft, _, hard = limits.partition(":")
    unlimited = 2**64 - 1
    try:
        numbers = [unlimited if part in ("unlimited", "-1") else int(part) for part in (soft, hard or soft)]
    except ValueError:
        numbers = []
    if not separator or not numbers or min(numbers) < 0 or numbers[0] > numbers[1]:
        raise InvalidArgument(
            f"ulimit {value!r} is malformed", hint="Write NAME=SOFT[:HARD], such as nofile=1024."
        )
    if name.lower() not in _ULIMITS:
        raise InvalidArgument(f"there is no ulimit {name!r}", hint=f"Known: {', '.join(sorted(_ULIMITS))}.")
    return Rlimit(type=f"RLIMIT_{name.upper()}", soft=numbers[0], hard=numbers[1])
