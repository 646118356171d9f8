"""The options of a container, parsed at the edge: sizes, environments, volumes, limits, as docker writes them.

Nothing here touches the disk but to see that the source of a bind mount exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lamella.config import check_identifier
from lamella.containers.defaults import ALL_CAPABILITIES, CAPABILITIES, SHM_SIZE
from lamella.containers.limits import LimitOptions, Limits, Rates, parse_size
from lamella.containers.log_config import LogConfig
from lamella.containers.restart_policy import RestartPolicy
from lamella.containers.runtime_spec import Device, Mount, Rlimit
from lamella.errors import InvalidArgument, NotFound, PermissionDenied, Unsupported

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
    hostname: str | None = None
    network: str = "none"
    ports: Ports | None = None
    dns: Sequence[str] | None = None
    dns_search: Sequence[str] | None = None
    dns_options: Sequence[str] | None = None
    extra_hosts: Sequence[str] | Mapping[str, str] | None = None
    ip: str | None = None
    mac_address: str | None = None
    network_aliases: Sequence[str] | None = None
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
    platform: str | None = None
    snapshotter: str | None = None
    spec: SpecPatch | None = None


class CreateOptions(LimitOptions, total=False):
    """The keyword options of ``containers.create``, for type checkers and editors: the fields of Options."""

    entrypoint: str | Sequence[str] | None
    name: str | None
    environment: Environment | None
    env_file: FileNames | None
    working_dir: str | None
    user: str | int | None
    hostname: str | None
    network: str
    ports: Ports | None
    dns: Sequence[str] | None
    dns_search: Sequence[str] | None
    dns_options: Sequence[str] | None
    extra_hosts: Sequence[str] | Mapping[str, str] | None
    ip: str | None
    mac_address: str | None
    network_aliases: Sequence[str] | None
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
    platform: str | None
    snapshotter: str | None
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


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True):
    """A volume of the store (``""``: a fresh, anonymous one) in a container. ``copy``: it may take the image's content there."""

    name: str
    destination: str
    options: list[str]
    copy: bool = True


def parse_mounts(options: Options) -> list[Mount | VolumeMount]:
    """Parse volumes, mounts and tmpfs, in this order."""
    result = _volumes(options.volumes)
    result += [_mount(item) for item in options.mounts or ()]
    tmpfs = options.tmpfs
    pairs = (
        tmpfs.items() if isinstance(tmpfs, Mapping) else (item.partition(":")[::2] for item in several(tmpfs))
    )
    for destination, text in pairs:
        extra = [option for option in text.split(",") if option]
        result.append(
            Mount(
                destination=_absolute(destination, "tmpfs"),
                type="tmpfs",
                source="tmpfs",
                options=["nosuid", "nodev", *([] if "exec" in extra else ["noexec"]), *extra],
            )
        )
    return result


def _volumes(volumes: Sequence[str] | Mapping[str, Any] | None) -> list[Mount | VolumeMount]:
    if not isinstance(volumes, Mapping):
        return [_volume(text) for text in several(volumes)]
    result: list[Mount | VolumeMount] = []
    for source, entry in volumes.items():
        if isinstance(entry, Mapping) and "bind" in entry:
            target, mode = entry["bind"], entry.get("mode", "rw")
        else:
            target, mode = entry, "rw"
        if not all(isinstance(value, str) for value in (source, target, mode)):
            raise InvalidArgument(
                f"volume {source!r}: {entry!r} is malformed",
                hint="Write {SOURCE: {'bind': TARGET, 'mode': 'ro'}}.",
            )
        result.append(_from_source(source, target, _volume_options(f"{source}:{target}:{mode}", mode)))
    return result


def _volume(text: str) -> Mount | VolumeMount:
    parts = text.split(":")
    if len(parts) == 1 and text.startswith("/"):
        return _named("", text, [])
    if len(parts) == 2 and all(parts):
        return _from_source(parts[0], parts[1], [])
    if len(parts) == 3 and all(parts) and not parts[2].startswith("/"):
        return _from_source(parts[0], parts[1], _volume_options(text, parts[2]))
    raise InvalidArgument(
        f"volume {text!r} is malformed",
        hint="Write SOURCE:TARGET[:ro]; for a path with ':' use a mount: type=bind,source=SOURCE,target=TARGET.",
    )


def _from_source(source: str, destination: str, options: list[str]) -> Mount | VolumeMount:
    """Give what docker understands by a volume: a bind mount of a path, else the volume of that name."""
    if not source.startswith("/"):
        return _named(source, destination, options)
    if "nocopy" in options:
        raise InvalidArgument(f"volume source {source} is bound: nothing is copied", hint="Leave nocopy out.")
    return _bind(source, destination, options)


def _named(name: str, destination: str, options: list[str]) -> VolumeMount:
    if name:
        check_identifier(name, "volume name")
    return VolumeMount(
        name=name,
        destination=_absolute(destination, "volume"),
        options=[option for option in options if option != "nocopy"],
        copy="nocopy" not in options,
    )


def volume_bind(mount: VolumeMount, source: str) -> Mount:
    """Give the bind mount that shows a volume's folder ``source``."""
    return _bind_mount(source, mount.destination, mount.options)


def _volume_options(text: str, words: str) -> list[str]:
    options = words.split(",")
    known = {
        "ro",
        "rw",
        "rro",
        "nosuid",
        "dev",
        "nodev",
        "nocopy",
        "noexec",
        "private",
        "rprivate",
        "slave",
        "rslave",
        "shared",
        "rshared",
    }
    for option in options:
        if option not in known:
            raise InvalidArgument(
                f"volume {text!r} has the unknown option {option!r}",
                hint=f"Known: {', '.join(sorted(known))}.",
            )
    return options


def _mount(value: str | Mapping[str, Any] | Mount) -> Mount | VolumeMount:
    if isinstance(value, Mount):
        return value
    if isinstance(value, str):
        fields = dict(part.partition("=")[::2] for part in value.split(","))
    else:
        fields = {
            key: str(entry) if entry is not True else "" for key, entry in value.items() if entry is not False
        }
    kind = fields.pop("type", "bind")
    destination = _pop_first(fields, "target", "destination", "dst")
    source = _pop_first(fields, "source", "src")
    options = ["ro" for name in ("readonly", "ro") if _pop_flag(fields, name)]
    if propagation := fields.pop("bind-propagation", None):
        options.append(propagation)
    if kind == "tmpfs":
        options += _tmpfs_options(fields)
    if kind == "volume" and _pop_flag(fields, "volume-nocopy"):
        options.append("nocopy")
    if fields:
        raise InvalidArgument(f"mount {value!r} has the unknown field {next(iter(fields))!r}")
    if destination is None:
        raise InvalidArgument(f"mount {value!r} has no target")
    return _mount_of(kind, source, destination, options)


def _mount_of(kind: str, source: str | None, destination: str, options: list[str]) -> Mount | VolumeMount:
    if kind == "tmpfs":
        return Mount(
            destination=_absolute(destination, "tmpfs"),
            type="tmpfs",
            source="tmpfs",
            options=["nosuid", "nodev", "noexec", *options],
        )
    if kind == "volume":
        return _named(source or "", destination, options)
    if kind != "bind":
        raise Unsupported(f"mount type {kind!r} is not one of bind, tmpfs, volume")
    if source is None:
        raise InvalidArgument(f"the bind mount at {destination} has no source")
    return _bind(source, destination, options)


def _pop_flag(fields: dict[str, str], name: str) -> bool:
    return fields.pop(name, "false").lower() in ("", "true", "1")


def _pop_first(fields: dict[str, str], *names: str) -> str | None:
    return next((fields.pop(name) for name in names if name in fields), None)


def _tmpfs_options(fields: dict[str, str]) -> list[str]:
    options = []
    if "tmpfs-size" in fields:
        options.append(f"size={parse_size(fields.pop('tmpfs-size'), 'tmpfs-size')}")
    if "tmpfs-mode" in fields:
        options.append(f"mode={fields.pop('tmpfs-mode')}")
    return options


def _bind(source: str, destination: str, options: list[str]) -> Mount:
    if not source.startswith("/"):
        raise InvalidArgument(
            f"the source {source!r} of a bind mount is not an absolute path",
            hint="Give the path of a folder or file of this machine; for a volume by name: type=volume.",
        )
    try:
        exists = Path(source).exists()
    except PermissionError:
        raise PermissionDenied(f"volume source {source} cannot be reached") from None
    if not exists:
        raise NotFound(f"volume source {source} is not there", hint="Create it first.")
    return _bind_mount(source, destination, options)


def _bind_mount(source: str, destination: str, options: list[str]) -> Mount:
    # Read-only means what is mounted beneath the source, too; plain "ro" would leave that writable.
    options = ["rro" if option == "ro" else option for option in options]
    if not {"dev", "nodev"} & set(options) and not _holds_devices(source):
        # A node that the container's root makes there opens nothing, with or without a devices controller.
        options.append("rnodev")
    propagation = (
        [] if any("private" in o or "slave" in o or "shared" in o for o in options) else ["rprivate"]
    )
    return Mount(
        destination=_absolute(destination, "volume"),
        type="bind",
        source=source,
        options=["rbind", *options, *propagation],
    )


def _holds_devices(source: str) -> bool:
    """Tell whether a bind mount is there for its device nodes: /dev, what lies in it, or a node elsewhere."""
    import stat

    mode = os.stat(source).st_mode  # noqa: PTH116 (as in the rest of the way to a container's start)
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or f"{os.path.realpath(source)}/".startswith("/dev/")


def _absolute(path: str, what: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{what} target {path!r} is not an absolute path")
    if os.path.normpath(path) == "/":
        raise InvalidArgument(f"{what} target {path!r} would hide the root filesystem")
    return path


def parse_device(text: str) -> tuple[Device, str]:
    """Parse ``HOST[:CONTAINER[:PERMISSIONS]]``; return the node and its permissions (``rwm`` by default)."""
    parts = text.split(":")
    path = parts[1] if len(parts) > 1 and parts[1] else parts[0]
    access = parts[2] if len(parts) > 2 else "rwm"
    if len(parts) > 3 or not access or not set(access) <= set("rwm") or not path.startswith("/"):
        raise InvalidArgument(f"device {text!r} is malformed", hint="Write HOST[:CONTAINER[:rwm]].")
    return device_node(parts[0], path), access


def device_node(source: str, path: str) -> Device:
    """Describe the device node ``source`` of this machine, to appear as ``path``."""
    import stat

    try:
        found = Path(source).stat()
    except FileNotFoundError:
        raise NotFound(f"device {source} is not there") from None
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else None
    if kind is None:
        raise InvalidArgument(f"{source} is not a device node")
    return Device(
        type=kind,
        path=path,
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        file_mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
    )
