"""The options of a container, shared by ``run`` and ``containers create``; in docker's words.

Here is only what the command line adds to the library's options: reading files, paths relative to the working folder,
and the forms of ``--security-opt``. Everything else goes to the library as it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lamella.cli.parser import REST, SNAPSHOTTERS, SUPPRESS, Arguments, Parser, UsageError
from lamella.cli.values import (
    DETACH_KEYS,
    Suggestions,
    argument,
    parse_boolean,
    parse_cpus,
    parse_detach_keys,
    parse_duration,
    parse_labels,
    parse_limit,
    parse_pair,
    parse_signal,
    parse_size,
    parse_ulimit,
)
from lamella.typings import Any

USAGE = "[OPTIONS] REF [COMMAND [ARGUMENTS...]]"


def add_process_options(parser: Parser) -> None:
    """Add the options that shape a process: those that ``run`` and ``exec`` share."""
    add = parser.add_argument
    add("-i", "--interactive", action="store_true", help="Connect stdin.")
    add("-t", "--tty", action="store_true", help="Give it a terminal.")
    add(
        "-e",
        "--env",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="Set a variable; KEY alone passes yours on.",
    )
    add("--env-file", metavar="FILE", action="append", default=[], help="Read variables from a file.")
    add("-w", "--workdir", metavar="DIR", help="Start in this folder.")
    add("-u", "--user", metavar="USER", help="Run as NAME, UID, NAME:GROUP or UID:GID.")


def add_limits(add: Callable[..., object]) -> None:
    """Add the limits that can be changed while a container runs: those that ``run`` and ``update`` share."""
    add(
        "-m", "--memory", metavar="SIZE", type=argument(parse_limit), help="Limit memory, such as 512m or 2g."
    )
    add(
        "--memory-swap",
        metavar="SIZE",
        type=argument(parse_limit),
        help="Limit memory and swap together; -1 for no limit.",
    )
    add(
        "--memory-reservation",
        metavar="SIZE",
        type=argument(parse_size),
        help="Keep this much where memory is short.",
    )
    add("--cpus", metavar="NUMBER", type=argument(parse_cpus), help="Limit processor time, such as 0.5 or 2.")
    add(
        "--cpu-shares",
        metavar="NUMBER",
        type=int,
        help="Weigh it against others where processors are short (1024 is usual).",
    )
    add("--cpu-quota", metavar="MICROSECONDS", type=int, help="Limit processor time in each period.")
    add(
        "--cpu-period", metavar="MICROSECONDS", type=int, help="Set the length of a period (default: 100000)."
    )
    add("--cpuset-cpus", metavar="LIST", help="Run on these processors alone, such as 0-3 or 0,2.")
    add("--cpuset-mems", metavar="LIST", help="Take memory of these NUMA nodes alone.")
    add("--pids-limit", metavar="NUMBER", type=int, help="Limit the number of processes; -1 for no limit.")
    add(
        "--blkio-weight",
        metavar="NUMBER",
        type=int,
        help="Weigh it against others where a disk is busy (10 to 1000).",
    )


def limits(arguments: Arguments) -> dict[str, Any]:
    """Give the keyword arguments for what :func:`add_limits` has added; those alone that were given."""
    names = ("memory", "memory_swap", "memory_reservation", "cpus", "cpu_shares", "cpu_quota", "cpu_period")
    found = {name: getattr(arguments, name) for name in (*names, "cpuset_mems", "pids_limit", "blkio_weight")}
    found["cpuset"] = arguments.cpuset_cpus
    return {name: value for name, value in found.items() if value is not None}


def _add_file_options(add: Callable[..., object]) -> None:
    add(
        "-v",
        "--volume",
        metavar="[SRC:]DST[:OPTIONS]",
        action="append",
        default=[],
        help="Bind a file or folder of the host that is there, or mount a volume by its name; DST alone: a fresh volume. "
        "Options: ro, nocopy, noexec, nosuid, rslave...",
    )
    add(
        "--mount",
        metavar="FIELDS",
        action="append",
        default=[],
        help="Mount type=bind,source=SRC,target=DST (readonly, bind-propagation=rslave, bind-nonrecursive), "
        "type=volume,source=NAME,target=DST (volume-nocopy, volume-subpath=PATH), type=image,source=REF,target=DST "
        "(image-subpath=PATH; always read-only) or type=tmpfs,target=DST (tmpfs-size=64m, tmpfs-mode=1777, tmpfs-uid=UID); "
        "what stands in brackets is optional, with commas between.",
    )
    add(
        "--tmpfs",
        metavar="DIR[:OPTIONS]",
        action="append",
        default=[],
        help="Mount an empty folder in memory; options: size=64m, mode=700, uid=, gid=, nr_inodes=, exec, ro.",
    )
    add("--read-only", action="store_true", help="Make the root filesystem read-only.")
    add(
        "--device",
        metavar="DEVICE[:PATH[:rwm]]",
        action="append",
        default=[],
        help="Add a device of the host, or all of a folder such as /dev/dri.",
    )
    add(
        "--device-cgroup-rule",
        metavar="RULE",
        action="append",
        default=[],
        help="Let it use what is bound from /dev: 'c 189:* rw' (type, major:minor, of r, w, m).",
    )
    add("--gpus", metavar="REQUEST", type=_gpus, help=SUPPRESS)


def _add_limits_of_a_start(add: Callable[..., object]) -> None:
    add_limits(add)
    add(
        "--memory-swappiness",
        metavar="NUMBER",
        type=int,
        help="Swap readily (100) or hardly (0); -1 for the machine's own. cgroup v1 alone.",
    )
    add(
        "--oom-kill-disable",
        action="store_true",
        help="Wait for memory instead of being killed. cgroup v1 alone.",
    )
    add(
        "--blkio-weight-device",
        metavar="DEVICE:WEIGHT",
        action="append",
        default=[],
        help="Weigh it against others where this disk is busy, such as /dev/sda:300.",
    )
    add("--cgroup-parent", metavar="PATH", help="Make its cgroup in this one, such as /builds/1.")
    add(
        "--shm-size",
        metavar="SIZE",
        type=argument(parse_size),
        help="Set the size of /dev/shm (default: 64m).",
    )
    for what, word in (
        ("read", "bytes"),
        ("write", "bytes"),
        ("read", "operations"),
        ("write", "operations"),
    ):
        add(
            f"--device-{what}-{'bps' if word == 'bytes' else 'iops'}",
            metavar="DEVICE:RATE",
            action="append",
            default=[],
            help=f"Limit the {word} a second that it may {what}, such as /dev/sda:10m.",
        )
    add(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        type=argument(parse_ulimit),
        action="append",
        default=[],
        help="Set a resource limit, such as nofile=1024.",
    )
    add(
        "--oom-score-adj",
        metavar="NUMBER",
        type=int,
        help="Be killed earlier (up to 1000) or later when memory is out.",
    )
    add(
        "--sysctl",
        metavar="KEY=VALUE",
        type=argument(parse_pair),
        action="append",
        help="Set a kernel parameter.",
    )


def add_container_options(parser: Parser) -> None:
    """Add every option that shapes a container, and REF with the command behind it."""
    add = parser.add_argument
    add("--name", metavar="NAME", help="Give the container a name.")
    add("--cidfile", metavar="FILE", help="Write its id to this file, which must not be there.")
    add("--rm", action="store_true", help="Remove it at its end, and its anonymous volumes.")
    add("--branch", action="store_true", help="REF is a branch (lamella branches ls), not an image.")
    add_process_options(parser)
    add("--group-add", metavar="GROUP", action="append", default=[], help="Add a group, by name or number.")
    add("--hostname", metavar="NAME", help="Set the host name.")
    add("--domainname", metavar="NAME", help="Set the domain that belongs to it.")
    add("--entrypoint", metavar="PROGRAM", help="Replace the image's entrypoint; '' drops it.")
    add(
        "--network",
        metavar="NETWORK",
        choices=Suggestions(("none", "host", "bridge", "pasta")),
        action="append",
        default=[],
        help="none: loopback alone (default); host, container:NAME, pasta, or CNI networks such as bridge, also several: "
        "name=NAME,alias=NAME,ip=ADDRESS says what is asked of one.",
    )
    add("--label", metavar="KEY=VALUE", type=argument(parse_pair), action="append", help="Attach a label.")
    add("--label-file", metavar="FILE", action="append", default=[], help="Read labels from a file.")
    add(
        "--annotation",
        metavar="KEY=VALUE",
        type=argument(parse_pair),
        action="append",
        help="Add to the runtime spec.",
    )
    add(
        "--stop-signal",
        metavar="SIGNAL",
        type=argument(parse_signal),
        help="What 'containers stop' sends first.",
    )
    add(
        "--stop-timeout",
        metavar="DURATION",
        type=argument(parse_duration),
        help="How long 'containers stop' waits before it kills (default: 10s).",
    )
    add(
        "--restart",
        metavar="POLICY",
        help="When it has ended: no (default), on-failure[:N], always; unless-stopped is the same as always.",
    )
    add(
        "--snapshotter",
        metavar="NAME",
        choices=SNAPSHOTTERS,
        help="Keep its root by this snapshotter: overlayfs or native (default: as before the command, or overlayfs).",
    )
    add(
        "--init",
        action="store_true",
        help="Run the command beneath an init that passes signals on and reaps.",
    )
    add(
        "--runtime",
        metavar="NAME",
        choices=Suggestions(("lamella", "runc", "crun", "youki")),
        help="The OCI runtime that makes it, by its name on PATH or its path (LAMELLA_RUNTIME; default: lamella, our own).",
    )
    add(
        "--log-driver",
        metavar="DRIVER",
        choices=("json-file", "none"),
        help="json-file: keep what it writes for 'logs' (default); none: keep nothing.",
    )
    add(
        "--log-opt",
        metavar="KEY=VALUE",
        type=argument(parse_pair),
        action="append",
        help="max-size=10m: bytes of one log file, -1 for no end; max-file=5: how many are kept.",
    )

    _add_network_options(parser)

    _add_file_options(parser.add_argument_group("Files").add_argument)

    _add_limits_of_a_start(parser.add_argument_group("Limits").add_argument)

    add = parser.add_argument_group("Security").add_argument
    add(
        "--cap-add",
        metavar="NAME",
        action="append",
        default=[],
        help="Add a capability, such as NET_ADMIN; ALL for all.",
    )
    for name, what in (
        ("pid", "processes"),
        ("ipc", "System V's and POSIX's shared memory"),
        ("uts", "host name"),
        ("cgroupns", "view of cgroups"),
    ):
        add(
            f"--{name}",
            metavar="MODE",
            choices=("private", "host"),
            help=f"With host: share the machine's {what}.",
        )
    add(
        "--userns",
        metavar="MODE",
        help="host (default), auto[:size=N]: ids of its own, mapped to a free range; container:NAME: with the same --network.",
    )
    for what, who in (("uid", "users"), ("gid", "groups")):
        add(
            f"--{what}map",
            metavar="CONTAINER:HOST:SIZE",
            action="append",
            default=[],
            help=f"Map {who} of the container to others of this machine.",
        )
    add("--cap-drop", metavar="NAME", action="append", default=[], help="Drop a capability; ALL for all.")
    add("--privileged", action="store_true", help="All capabilities and devices, no seccomp, nothing masked.")
    add(
        "--security-opt",
        metavar="OPTION",
        action="append",
        default=[],
        help="no-new-privileges, seccomp=unconfined, seccomp=FILE, systempaths=unconfined (nothing of /proc and /sys masked) or "
        "mask=PATH:PATH (these besides).",
    )
    add(
        "--spec",
        metavar="FILE",
        help="Change the OCI runtime spec by a JSON merge patch (RFC 7386); - is stdin.",
    )

    parser.add_argument(
        "words", metavar="REF", nargs=REST, help="The image, then the command instead of the image's own."
    )


def _gpus(text: str) -> None:
    raise UsageError(
        "lamella: --gpus is not there: it takes a vendor's hook",
        hint="Give the device nodes (--device /dev/dri, --device /dev/nvidia0 ...) and bind the driver's libraries (-v).",
    )


def _add_network_options(parser: Parser) -> None:
    add = parser.add_argument_group("Network").add_argument
    add(
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]PORT[/PROTO]",
        action="append",
        default=[],
        help="Publish a port: 8080:80; 80 alone takes a free one.",
    )
    add(
        "-P",
        "--publish-all",
        action="store_true",
        help="Publish what the image or --expose names, each at a free port of the host.",
    )
    add(
        "--expose",
        metavar="PORT[/PROTO]",
        action="append",
        default=[],
        help="Say that it serves a port, or a range of them.",
    )
    add("--dns", metavar="ADDRESS", action="append", default=[], help="Ask this resolver for names.")
    add("--dns-search", metavar="DOMAIN", action="append", default=[], help="Complete names by this domain.")
    add("--dns-option", metavar="OPTION", action="append", default=[], help="Set an option of resolv.conf.")
    add(
        "--add-host",
        metavar="NAME:ADDRESS",
        action="append",
        default=[],
        help="Add a line to /etc/hosts; host-gateway stands for the host.",
    )
    add("--ip", metavar="ADDRESS", help="Take this address in the first network.")
    add("--ip6", metavar="ADDRESS", help="Take this IPv6 address there.")
    add("--mac-address", metavar="MAC", help="Take this MAC address there.")
    add(
        "--network-alias",
        metavar="NAME",
        action="append",
        default=[],
        help="Be found by this name, too, there.",
    )


def container_options(arguments: Arguments) -> dict[str, Any]:
    """Give the keyword arguments of ``client.containers.create`` but for image and command. UsageError for a bad value."""
    options: dict[str, Any] = {
        "name": arguments.name,
        **process_options(arguments),
        "hostname": arguments.hostname,
        "domainname": arguments.domainname,
        "networks": arguments.network,
        "ports": arguments.publish,
        "expose": arguments.expose,
        "publish_all_ports": arguments.publish_all or None,
        "dns": arguments.dns,
        "dns_search": arguments.dns_search,
        "dns_options": arguments.dns_option,
        "extra_hosts": arguments.add_host,
        "ip": arguments.ip,
        "ip6": arguments.ip6,
        "mac_address": arguments.mac_address,
        "network_aliases": arguments.network_alias,
        "read_only": arguments.read_only,
        "tmpfs": arguments.tmpfs,
        "mounts": arguments.mount,
        "volumes": [_volume(text) for text in arguments.volume],
        "cap_add": arguments.cap_add,
        "cap_drop": arguments.cap_drop,
        "devices": arguments.device,
        "device_cgroup_rules": arguments.device_cgroup_rule,
        "privileged": arguments.privileged,
        "auto_remove": arguments.rm,
        "annotations": parse_labels(arguments.annotation),
        "spec": _spec(arguments),
        "stop_signal": arguments.stop_signal,
        "stop_timeout": arguments.stop_timeout,
        "log_config": _log_config(arguments),
        "restart_policy": arguments.restart,
        "init": arguments.init,
        "group_add": arguments.group_add,
        "pid_mode": arguments.pid,
        "ipc_mode": arguments.ipc,
        "uts_mode": arguments.uts,
        "cgroupns": arguments.cgroupns,
        "userns": arguments.userns,
        "uid_maps": arguments.uidmap,
        "gid_maps": arguments.gidmap,
        "snapshotter": arguments.snapshotter,
        "runtime": arguments.runtime,
        **limits(arguments),
        "memory_swappiness": arguments.memory_swappiness,
        "oom_kill_disable": arguments.oom_kill_disable,
        "blkio_weight_device": arguments.blkio_weight_device,
        "cgroup_parent": arguments.cgroup_parent,
        "device_read_bps": arguments.device_read_bps,
        "device_write_bps": arguments.device_write_bps,
        "device_read_iops": arguments.device_read_iops,
        "device_write_iops": arguments.device_write_iops,
        "shm_size": arguments.shm_size,
        "oom_score_adj": arguments.oom_score_adj,
        "sysctls": parse_labels(arguments.sysctl),
        "labels": parse_labels(arguments.label),
        "label_file": arguments.label_file,
        "stdin": arguments.interactive,
        "ulimits": arguments.ulimit,
        **_security(arguments.security_opt),
    }
    if arguments.entrypoint is not None:
        options["entrypoint"] = [arguments.entrypoint] if arguments.entrypoint else []
    return {
        name: value for name, value in options.items() if value not in (None, [], {}) or name == "entrypoint"
    }


def reference(arguments: Arguments) -> str:
    """Give REF."""
    return _words(arguments)[0]


def command(arguments: Arguments) -> list[str]:
    """Give the words behind REF."""
    return _words(arguments)[1:]


def _words(arguments: Arguments) -> list[str]:
    words: list[str] = list(arguments.words)
    if words[0] == "--":  # ends the options; one behind REF belongs to the command
        words = words[1:]
    if not words or not words[0]:
        raise UsageError("lamella: the image is missing", hint="Give a reference such as nginx:latest.")
    return words


def process_options(arguments: Arguments) -> dict[str, Any]:
    """Give the keyword arguments for what :func:`add_process_options` has added, as containers and execs take them."""
    return {
        "environment": arguments.env,
        "env_file": arguments.env_file or None,
        "working_dir": arguments.workdir,
        "user": arguments.user,
        "tty": arguments.tty,
    }


def add_terminal_options(parser: Parser) -> None:
    """Add the options of what stays with a container's streams."""
    parser.add_argument(
        "--detach-keys",
        metavar="KEYS",
        type=argument(parse_detach_keys),
        default=DETACH_KEYS,
        help="Leave its terminal by these keys; it goes on (default: ctrl-p,ctrl-q; '' for none).",
    )


def add_signal_option(parser: Parser) -> None:
    """Add the option that keeps signals to us from the container."""
    parser.add_argument(
        "--sig-proxy",
        metavar="BOOL",
        type=argument(parse_boolean),
        nargs="?",
        const=True,
        default=True,
        help="Pass signals on (default); with false they end lamella, and the container goes on.",
    )


def _log_config(arguments: Arguments) -> dict[str, Any] | None:
    if arguments.log_driver is None and not arguments.log_opt:
        return None
    return {"type": arguments.log_driver, "config": parse_labels(arguments.log_opt)}


def _spec(arguments: Arguments) -> dict[str, Any] | None:
    if arguments.spec is None:
        return None
    import sys

    import msgspec

    try:
        data = sys.stdin.buffer.read() if arguments.spec == "-" else Path(arguments.spec).read_bytes()
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UsageError(f"lamella: --spec {arguments.spec}: {error}", hint="Give a JSON object.") from None


def _volume(text: str) -> str:
    source, colon, rest = text.partition(":")
    if source in (".", "..") or source.startswith(("./", "../")):
        source = str(Path(source).absolute().resolve())
    return f"{source}{colon}{rest}"


def _security(options: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    masked: list[str] = []
    for text in options:
        key, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
        if key == "no-new-privileges" and value in ("", "true", "false"):
            found["no_new_privileges"] = value != "false"
        elif key == "seccomp" and value:
            found["seccomp"] = value if value == "unconfined" else str(Path(value).absolute())
        elif key == "systempaths" and value == "unconfined":
            found |= {"masked_paths": (), "readonly_paths": ()}
        elif key == "mask" and value:
            masked += value.split(":")
        else:
            raise UsageError(
                f"lamella: --security-opt {text!r} is not known",
                hint="Use no-new-privileges, seccomp=unconfined, seccomp=FILE, systempaths=unconfined or mask=PATH:PATH.",
            )
    if masked:
        from lamella.containers.defaults import masked_paths

        found["masked_paths"] = [*found.get("masked_paths", masked_paths()), *masked]
    return found
