"""Image config + options -> OCI runtime spec.

The result is a plain document: the launcher takes it, and so does any OCI runtime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lamella import oci
from lamella.containers import defaults
from lamella.containers.defaults import ALL_CAPABILITIES
from lamella.containers.id_maps import IdMaps, spec_mappings
from lamella.containers.limits import cpu_limits, io_limits, memory_limits, parse_size, pids_limits
from lamella.containers.options import (
    Environment,
    FileNames,
    Options,
    parse_capabilities,
    parse_command,
    parse_ulimit,
    several,
    variables_of,
)
from lamella.containers.runtime_spec import (
    Capabilities,
    Device,
    DeviceRule,
    Linux,
    Mount,
    Namespace,
    Process,
    Resources,
    Root,
    Spec,
    User,
)
from lamella.containers.seccomp import seccomp_section
from lamella.containers.user import ReadFile, resolve_groups, resolve_user
from lamella.errors import InvalidArgument, Unsupported
from lamella.structs import Struct, decode, encode, read_json, to_builtins
from lamella.typings import Any

HOSTNAME_MAX = 64


def build_spec(
    image: oci.RunConfig,
    options: Options,
    *,
    container_id: str,
    namespace: str,
    files_folder: str,
    network_path: str,
    mounts: list[Mount],
    read_file: ReadFile,
    id_maps: IdMaps | None = None,
) -> tuple[bytes, str]:
    """Return config.json, and the host name that it gives, '' for none.

    ``mounts`` are the options' own, volumes in place. ``files_folder`` will hold hosts, hostname and resolv.conf;
    ``network_path`` is the namespace to join ('' for a new one, 'host' for the host's); ``read_file`` reads /etc/passwd and
    /etc/group of the image. Errors: InvalidArgument for a malformed option, NotFound for a missing device, Unsupported for what
    there is not.
    """
    args = arguments(image, options)
    user_text = str(options.user) if options.user is not None else image.user
    user = resolve_user(user_text, read_file)
    groups = user.additional_gids
    if options.group_add:
        groups = sorted({*groups, *resolve_groups(options.group_add, read_file)})
    shared = shared_namespaces(options)
    hostname = _hostname(options, container_id, is_machines="uts" in shared or network_path == "host")
    capabilities = parse_capabilities(options.cap_add, options.cap_drop, privileged=options.privileged)
    devices, device_rules = _devices(options)
    spec = Spec(
        oci_version=defaults.OCI_VERSION,
        process=Process(
            args=args,
            cwd=_working_dir(image, options),
            env=_environment(image, options, hostname=hostname, home=user.home),
            user=User(uid=user.uid, gid=user.gid, additional_gids=groups),
            terminal=options.tty,
            capabilities=_capability_sets(capabilities),
            rlimits=[parse_ulimit(text) for text in several(options.ulimits)],
            no_new_privileges=options.no_new_privileges,
            oom_score_adj=options.oom_score_adj,
        ),
        root=Root(path="rootfs", readonly=options.read_only),
        hostname="" if "uts" in shared else hostname,
        domainname="" if "uts" in shared else _domainname(options),
        mounts=_mounts(options, mounts, files_folder, shared),
        linux=Linux(
            namespaces=_namespaces(network_path, shared),
            cgroups_path=_cgroups_path(options.cgroup_parent, namespace, container_id),
            resources=Resources(
                devices=device_rules,
                memory=memory_limits(
                    options,
                    swappiness=options.memory_swappiness,
                    disable_oom_killer=options.oom_kill_disable,
                ),
                cpu=cpu_limits(options),
                pids=pids_limits(options),
                block_io=io_limits(
                    options,
                    read_bps=options.device_read_bps,
                    write_bps=options.device_write_bps,
                    read_iops=options.device_read_iops,
                    write_iops=options.device_write_iops,
                    weights=options.blkio_weight_device,
                ),
            ),
            devices=devices,
            seccomp=seccomp_section(
                options.seccomp, capabilities=capabilities, privileged=options.privileged
            ),
            masked_paths=_paths(options.masked_paths, "masked_paths", options, defaults.masked_paths()),
            readonly_paths=_paths(options.readonly_paths, "readonly_paths", options, defaults.READONLY_PATHS),
            sysctl=dict(options.sysctls or {}),
            rootfs_propagation=_propagation(mounts),
        ),
        annotations=dict(options.annotations or {}),
    )
    if id_maps is not None:
        _map_ids(spec, id_maps, files_folder, owns_network=network_path != "host")
    document = _encode(spec)
    if options.spec is None:
        return document, spec.hostname
    patched: dict[str, Any] = read_json(document)
    if isinstance(options.spec, Mapping):
        document = _encode(merge(patched, options.spec))
    else:
        returned = options.spec(patched)
        document = _encode(patched if returned is None else returned)
    return document, decode(document, _Names).hostname


class _Names(Struct, frozen=True):
    """What is read of a spec that somebody has changed."""

    hostname: str = ""


def _map_ids(spec: Spec, maps: IdMaps, files_folder: str, *, owns_network: bool) -> None:
    """Give a container a user namespace of its own; the files that are ours it sees as its own root's.

    A sysfs shows the network namespace of who mounts it, who has to be root there; so the machine's is bound.
    """
    spec.linux.namespaces.append(Namespace(type="user"))
    spec.linux.uid_mappings, spec.linux.gid_mappings = spec_mappings(maps.users), spec_mappings(maps.groups)
    spec.mounts = [
        maps.show(mount) if mount.source.startswith(f"{files_folder}/") else mount for mount in spec.mounts
    ]
    for mount in spec.mounts:
        if mount.type == "sysfs" and not owns_network:
            mount.type, mount.source = "bind", mount.destination
            mount.options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"]


def merge(document: Any, patch: Any) -> Any:
    """Apply a JSON merge patch: objects are merged, None removes a member, everything else (lists, too) replaces. RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(document) if isinstance(document, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def _capability_sets(names: Sequence[str]) -> Capabilities:
    """Give the sets of a process that has these; neither inheritable nor ambient ones (CVE-2022-24769)."""
    held = list(names)
    return Capabilities(bounding=held, effective=held, permitted=held)


def _paths(given: Sequence[str] | None, what: str, options: Options, usual: list[str]) -> list[str]:
    """Give what was asked for, else the usual ones; none in a privileged container."""
    if given is None:
        return [] if options.privileged else usual
    paths = several(given)
    for path in paths:
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument(f"{what}: {path!r} is not an absolute path")
    return paths


def _encode(spec: Spec | dict[str, Any]) -> bytes:
    try:
        return encode(spec)
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{error.object!r} is not valid Unicode, and the runtime spec is JSON",
            hint="Names, arguments, variables and paths of a container have to be UTF-8.",
        ) from None


def exec_process(
    spec: bytes,
    args: list[str],
    *,
    environment: Environment | None,
    env_file: FileNames | None = None,
    working_dir: str | None,
    user: str | int | None,
    tty: bool,
    privileged: bool = False,
    read_file: ReadFile,
) -> dict[str, Any]:
    """Return the process object of an exec: the container's own, with what was asked for changed.

    ``spec`` is the container's config.json. Of what ``privileged`` gives a container, an exec gets the capabilities: devices and
    seccomp are the container's, as in docker. Errors: InvalidArgument for a malformed option, NotFound for an ``env_file``.
    """
    process: dict[str, Any] = read_json(spec)["process"]
    if not args or not args[0]:
        raise InvalidArgument("there is no command to execute")
    variables = dict(item.partition("=")[::2] for item in process["env"])
    if user is not None:
        resolved = resolve_user(str(user), read_file)
        process["user"] = {
            "uid": resolved.uid,
            "gid": resolved.gid,
            "additionalGids": resolved.additional_gids,
        }
        variables["HOME"] = resolved.home
    if tty:
        variables.setdefault("TERM", "xterm")
    variables.update(variables_of(environment, env_file))
    if privileged:
        process["capabilities"] = to_builtins(_capability_sets(ALL_CAPABILITIES))
    if working_dir is not None:
        process["cwd"] = _absolute_folder(working_dir)
    process.update(args=args, terminal=tty, env=[f"{key}={value}" for key, value in variables.items()])
    process.pop("consoleSize", None)
    return process


def arguments(image: oci.RunConfig, options: Options) -> list[str]:
    """Combine entrypoint and command: an entrypoint that is given hides the image's command, as in docker."""
    entrypoint = image.entrypoint or []
    command = image.cmd or []
    if options.entrypoint is not None:
        entrypoint, command = parse_command(options.entrypoint), []
    if options.command is not None:
        command = parse_command(options.command) or command
    args = [*entrypoint, *command]
    if not args or not args[0]:
        raise InvalidArgument("the image names no command", hint="Give one: run IMAGE COMMAND [ARG...].")
    return args


def _environment(image: oci.RunConfig, options: Options, *, hostname: str, home: str) -> list[str]:
    variables = {"PATH": defaults.PATH, "HOSTNAME": hostname}
    if options.tty:
        variables["TERM"] = "xterm"
    for item in image.env or ():
        key, equals, value = item.partition("=")
        if key and equals:  # a program would not find anything else; docker lets it pass, too
            variables[key] = value
    variables.update(variables_of(options.environment, options.env_file))
    variables.setdefault("HOME", home)
    return [f"{key}={value}" for key, value in variables.items()]


def _working_dir(image: oci.RunConfig, options: Options) -> str:
    path = options.working_dir if options.working_dir is not None else image.working_dir or "/"
    return _absolute_folder(path)


def _absolute_folder(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"the working folder {path!r} is not an absolute path")
    return os.path.normpath(path)


def _hostname(options: Options, container_id: str, *, is_machines: bool) -> str:
    hostname = options.hostname or (os.uname().nodename if is_machines else container_id[:12])
    if (
        len(hostname) > HOSTNAME_MAX
        or not hostname.isascii()
        or not hostname.isprintable()
        or "/" in hostname
    ):
        raise InvalidArgument(
            f"the hostname {hostname!r} is not valid", hint=f"At most {HOSTNAME_MAX} ASCII characters."
        )
    return hostname


def _cgroups_path(parent: str | None, namespace: str, container_id: str) -> str:
    """Give the cgroup's path from the root of each hierarchy: below ``parent``, else where containers usually are."""
    if parent is None:
        top = ""
        # Root of a user namespace may not write there.
        if not os.access("/sys/fs/cgroup", os.W_OK):
            from lamella.containers.cgroups import delegated

            top = delegated()
        return f"{top}/lamella/{namespace}/{container_id}"
    parts = [part for part in parent.split("/") if part]
    if "\0" in parent or not parts or not {".", ".."}.isdisjoint(parts):
        raise InvalidArgument(
            f"cgroup_parent {parent!r} is no path of a cgroup",
            hint="Write it from the root, such as /builds/1.",
        )
    return "/".join(("", *parts, container_id))


def shared_namespaces(options: Options) -> frozenset[str]:
    """Return the kinds of namespaces that the container has none of its own of, but the machine's. InvalidArgument, Unsupported.

    Of uts that is the host name, of ipc also /dev/shm.
    """
    modes = {
        "pid_mode": ("pid", options.pid_mode),
        "ipc_mode": ("ipc", options.ipc_mode),
        "uts_mode": ("uts", options.uts_mode),
        "cgroupns": ("cgroup", options.cgroupns),
    }
    found = set()
    # Where the kernel has no cgroup namespaces (gVisor), every container is in the machine's.
    if options.cgroupns in (None, "") and not os.path.exists("/proc/self/ns/cgroup"):  # noqa: PTH110 (speed)
        found.add("cgroup")
    for option, (kind, mode) in modes.items():
        if mode == "host":
            found.add(kind)
        elif mode not in (None, "", "private"):
            raise Unsupported(
                f"{option} {mode!r} is not supported",
                hint=f"Use host or private; what else joins a namespace by its path: spec (linux.namespaces, {kind}).",
            )
    if "uts" in found and (options.hostname is not None or options.domainname):
        raise InvalidArgument("a container in the machine's UTS namespace has the machine's host name")
    return frozenset(found)


def _domainname(options: Options) -> str:
    name = options.domainname or ""
    if len(name) > HOSTNAME_MAX or not name.isascii() or not name.isprintable() or {"/", " "} & set(name):
        raise InvalidArgument(
            f"the domainname {name!r} is not valid", hint=f"At most {HOSTNAME_MAX} ASCII characters."
        )
    return name


def _namespaces(network_path: str, shared: frozenset[str]) -> list[Namespace]:
    kinds = ("mount", "pid", "uts", "ipc", "cgroup")
    namespaces = [Namespace(type=kind) for kind in kinds if kind not in shared]
    if network_path != "host":
        namespaces.append(Namespace(type="network", path=network_path))
    return namespaces


def _mounts(
    options: Options, own: list[Mount], files_folder: str, shared: frozenset[str] = frozenset()
) -> list[Mount]:
    mounts = defaults.mounts(
        shm_size=parse_size(options.shm_size, "shm_size"),
        writable_sys=options.privileged,
    )
    if "ipc" in shared:
        # POSIX's shared memory and message queues are files there. Root alone may mount the machine's queues (mq_overview(7)).
        own_queues = os.geteuid() == 0 and not os.path.ismount("/dev/mqueue")
        for mount in mounts:
            if mount.destination == "/dev/shm" or (mount.type == "mqueue" and not own_queues):  # noqa: S108
                mount.type, mount.source = "bind", mount.destination
                mount.options = ["rbind", "rprivate", "nosuid", "nodev", "noexec"]
        mounts = [mount for mount in mounts if mount.type != "bind" or os.path.isdir(mount.source)]  # noqa: PTH112
    taken = {os.path.normpath(mount.destination) for mount in own}
    for name in ("hosts", "hostname", "resolv.conf"):
        if f"/etc/{name}" not in taken:
            mounts.append(
                Mount(
                    destination=f"/etc/{name}",
                    type="bind",
                    source=f"{files_folder}/{name}",
                    options=["rbind", "rprivate", "nosuid", "nodev", "noexec"],
                )
            )
    kept = [mount for mount in mounts if mount.destination not in taken]
    return [*kept, *sorted(own, key=lambda mount: os.path.normpath(mount.destination).count("/"))]


def _propagation(own: list[Mount]) -> str | None:
    if not own:
        return None
    from lamella.containers.mounts import rootfs_propagation

    return rootfs_propagation(own)


def _devices(options: Options) -> tuple[list[Device], list[DeviceRule]]:
    if not (options.devices or options.device_cgroup_rules or options.privileged):
        return [], list(defaults.DEVICE_RULES)
    from lamella.containers.devices import devices_and_rules

    return devices_and_rules(options)
