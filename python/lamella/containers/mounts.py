"""Volumes, mounts and tmpfs of a container, parsed at the edge, in docker's words.

``volumes``: ``SOURCE:TARGET[:OPTIONS]``, ``NAME:TARGET``, ``TARGET``, or docker-py's mapping. ``mounts``: ``--mount``'s fields as
text or as a mapping, docker-py's ``types.Mount``, or a mount of the runtime spec. ``tmpfs``: ``TARGET[:OPTIONS]``.

Nothing here touches the disk but to see what the source of a bind mount is.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lamella.config import check_identifier
from lamella.containers.limits import parse_size
from lamella.containers.options import several
from lamella.containers.runtime_spec import Mount
from lamella.errors import InvalidArgument, NotFound, PermissionDenied, Unsupported
from lamella.structs import Struct
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.containers.options import Options

PROPAGATIONS = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_FLAGS = frozenset({"ro", "rw", "rro", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "noatime"})
_IGNORED = frozenset({"cached", "delegated", "consistent"})
"""Of docker on a Mac: how strictly both sides see the same."""
_SELINUX = frozenset({"z", "Z"})
_TMPFS_VALUES = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"})
_DOCKER_NAMES = {
    "Target": "target",
    "Source": "source",
    "Type": "type",
    "ReadOnly": "readonly",
    "Consistency": "consistency",
    "Propagation": "bind-propagation",
    "NonRecursive": "bind-nonrecursive",
    "CreateMountpoint": "bind-create-src",
    "NoCopy": "volume-nocopy",
    "Labels": "volume-label",
    "Subpath": "subpath",
    "SizeBytes": "tmpfs-size",
    "Mode": "tmpfs-mode",
}
"""The members of docker's API object (docker-py's types.Mount), by the names that ``--mount`` has for them."""


class VolumeMount(Struct, frozen=True, kw_only=True):
    """A volume of the store (``""``: a fresh, anonymous one) in a container.

    ``copy``: it may take the image's content there. ``subpath``: the part that is shown. ``labels`` are for one that is made.
    """

    name: str
    destination: str
    options: list[str]
    copy: bool = True
    subpath: str = ""
    labels: dict[str, str] = {}


class ImageMount(Struct, frozen=True, kw_only=True):
    """The files of an image in a container, read-only. ``subpath``: the part of them that is shown."""

    image: str
    destination: str
    options: list[str]
    subpath: str = ""


AnyMount = Mount | VolumeMount | ImageMount


def parse_mounts(options: Options) -> list[AnyMount]:
    """Parse volumes, mounts and tmpfs, in this order.

    Errors: InvalidArgument, Unsupported for what docker has and lamella does not, NotFound for a source that is not there.
    """
    result = _volumes(options.volumes)
    result += [_mount(item) for item in options.mounts or ()]
    tmpfs = options.tmpfs
    pairs: Iterable[tuple[str, str]] = (
        tmpfs.items()
        if isinstance(tmpfs, Mapping)
        else ((target, text) for target, _, text in (item.partition(":") for item in several(tmpfs)))
    )
    result += [_tmpfs(target, [word for word in text.split(",") if word]) for target, text in pairs]
    targets = [posixpath.normpath(mount.destination) for mount in result]
    for target in targets:
        if targets.count(target) > 1:
            raise InvalidArgument(f"two mounts have the target {target}", hint="Leave one out.")
    return result


# Volumes


def _volumes(volumes: Sequence[str] | Mapping[str, Any] | None) -> list[AnyMount]:
    if not isinstance(volumes, Mapping):
        return [_volume(text) for text in several(volumes)]
    result: list[AnyMount] = []
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


def _volume(text: str) -> AnyMount:
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


def _volume_options(text: str, words: str) -> list[str]:
    """Give the options behind the target of a volume."""
    options = []
    known = _FLAGS | PROPAGATIONS | {"nocopy"}
    for word in words.split(","):
        if word in _SELINUX:
            _refuse_selinux(text, word)
        elif word in known:
            options.append(word)
        elif word not in _IGNORED:
            raise InvalidArgument(
                f"volume {text!r} has the unknown option {word!r}",
                hint=f"Known: {', '.join(sorted(known | _SELINUX))}.",
            )
    return options


def _refuse_selinux(text: str, word: str) -> None:
    """Labels of SELinux are nothing where it is off, as for docker; else they would be left out silently."""
    if os.path.exists("/sys/fs/selinux/enforce"):  # noqa: PTH110 (as in the rest of the way to a container's start)
        raise Unsupported(
            f"volume {text!r}: the option {word} relabels files for SELinux, which lamella does not",
            hint="Relabel them yourself: chcon -Rt container_file_t SOURCE.",
        )


def _from_source(source: str, destination: str, options: list[str]) -> AnyMount:
    """Give what docker understands by a volume: a bind mount of a path, else the volume of that name."""
    if not source.startswith("/"):
        return _named(source, destination, options)
    if "nocopy" in options:
        raise InvalidArgument(f"volume source {source} is bound: nothing is copied", hint="Leave nocopy out.")
    return _bind(source, destination, options)


def _named(
    name: str,
    destination: str,
    options: list[str],
    *,
    subpath: str = "",
    labels: Mapping[str, str] | None = None,
) -> VolumeMount:
    if name:
        check_identifier(name, "volume name")
    elif subpath:
        raise InvalidArgument("an anonymous volume is empty: there is no part of it to show")
    return VolumeMount(
        name=name,
        destination=_absolute(destination, "volume"),
        options=[option for option in options if option != "nocopy"],
        # What a part shows is not what the volume would begin with.
        copy="nocopy" not in options and not subpath,
        subpath=subpath,
        labels=dict(labels or {}),
    )


def volume_bind(mount: VolumeMount | ImageMount, source: str) -> Mount:
    """Give the bind mount that shows ``source``: a volume's folder, or what is made at the start (:mod:`..mount_sources`)."""
    return _bind_mount(source, mount.destination, mount.options, devices=False)


# Mounts


def _mount(value: str | Mapping[str, Any] | Mount) -> AnyMount:
    if isinstance(value, Mount):
        if value.type != "image":
            return value
        return _image(value.source, value.destination, "")
    fields = _text_fields(value) if isinstance(value, str) else _mapping_fields(value)
    shown = repr(value)
    destination = _pop_first(fields, "target", "destination", "dst")
    source = _pop_first(fields, "source", "src")
    kind = fields.pop("type", "bind" if source and source.startswith("/") else "volume")
    if destination is None:
        raise InvalidArgument(f"mount {shown} has no target")
    fields.pop("consistency", None)
    flags = [_pop_flag(fields, name) for name in ("readonly", "ro")]
    makers = {"bind": _bind_fields, "volume": _volume_fields, "tmpfs": _tmpfs_fields, "image": _image_fields}
    if kind not in makers:
        raise Unsupported(f"mount type {kind!r} is not one of {', '.join(sorted(makers))}")
    mount = makers[kind](source, destination, fields, read_only=any(flags))
    if fields:
        raise InvalidArgument(f"mount {shown} has the unknown field {next(iter(fields))!r}")
    return mount


def _text_fields(text: str) -> dict[str, str]:
    """Split ``--mount``'s fields: CSV, as in docker, so that a path with a comma can stand in quotes."""
    if '"' in text:
        import csv

        parts = next(csv.reader([text]))
    else:
        parts = text.split(",")
    fields: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name in ("volume-label", "volume-opt") and name in fields:
            value = f"{fields[name]}\n{value}"
        fields[name] = value
    return fields


def _mapping_fields(value: Mapping[str, Any]) -> dict[str, str]:
    """Give the fields of a mapping; one of docker's API has its options a level deeper."""
    items: dict[str, Any] = {}
    for key, entry in value.items():
        if key in ("BindOptions", "VolumeOptions", "TmpfsOptions", "ImageOptions"):
            items |= entry or {}
        else:
            items[key] = entry
    driver = items.pop("DriverConfig", None) or {}
    check_driver(driver.get("Name"), driver.get("Options"))
    return {
        _DOCKER_NAMES.get(key, key): _field_text(key, entry)
        for key, entry in items.items()
        if not (entry is None or entry is False or entry in ({}, []))
    }


def _field_text(name: str, entry: Any) -> str:
    if isinstance(entry, Mapping):
        return "\n".join(f"{label}={text}" for label, text in entry.items())
    if name == "Mode" and isinstance(entry, int):
        return f"{entry:o}"
    return "" if entry is True else str(entry)


def _bind_fields(
    source: str | None, destination: str, fields: dict[str, str], *, read_only: bool
) -> AnyMount:
    if source is None:
        raise InvalidArgument(f"the bind mount at {destination} has no source")
    if _pop_flag(fields, "bind-create-src"):
        raise Unsupported(
            f"the source {source} of a bind mount is never made (bind-create-src)",
            hint="Make the folder first, with the owner that it should have.",
        )
    options = ["ro"] if read_only else []
    propagation = fields.pop("bind-propagation", "")
    if propagation:
        if propagation not in PROPAGATIONS:
            raise InvalidArgument(
                f"bind-propagation {propagation!r} is not known",
                hint=f"Known: {', '.join(sorted(PROPAGATIONS))}.",
            )
        options.append(propagation)
    recursion = fields.pop(
        "bind-recursive", "disabled" if _pop_flag(fields, "bind-nonrecursive") else "enabled"
    )
    if recursion not in ("enabled", "disabled", "writable", "readonly"):
        raise InvalidArgument(
            f"bind-recursive {recursion!r} is not known", hint="Known: enabled, disabled, writable, readonly."
        )
    if recursion in ("writable", "readonly") and not read_only:
        raise InvalidArgument(f"bind-recursive={recursion} is for a mount that is readonly")
    if recursion == "readonly" and propagation != "rprivate":
        raise InvalidArgument("bind-recursive=readonly takes bind-propagation=rprivate, as in docker")
    return _bind(source, destination, options, recursion=recursion)


def _volume_fields(
    source: str | None, destination: str, fields: dict[str, str], *, read_only: bool
) -> AnyMount:
    check_driver(fields.pop("volume-driver", ""), fields.pop("volume-opt", ""))
    labels = {}
    for text in filter(None, fields.pop("volume-label", "").split("\n")):
        key, _, value = text.partition("=")
        labels[key] = value
    options = [*(["ro"] if read_only else []), *(["nocopy"] if _pop_flag(fields, "volume-nocopy") else [])]
    subpath = _pop_subpath(fields, "volume-subpath")
    return _named(source or "", destination, options, subpath=subpath, labels=labels)


def check_driver(driver: str | None, options: object = None) -> None:
    """Refuse drivers of volumes, and their options: there is the one of this machine's disk."""
    if driver not in (None, "", "local"):
        raise Unsupported(
            f"the volume driver {driver!r} is not there",
            hint="Volumes are folders of the store (local); mount the other thing yourself, and bind it.",
        )
    if options:
        raise Unsupported(
            "options of a volume's driver are not there",
            hint="Mount the file system yourself and bind it; for memory: type=tmpfs.",
        )


def _image_fields(
    source: str | None, destination: str, fields: dict[str, str], *, read_only: bool
) -> AnyMount:
    if not source:
        raise InvalidArgument(f"the image mount at {destination} has no source", hint="Name an image.")
    return _image(source, destination, _pop_subpath(fields, "image-subpath"))


def _image(source: str, destination: str, subpath: str) -> ImageMount:
    return ImageMount(
        image=source, destination=_absolute(destination, "image"), options=["ro"], subpath=subpath
    )


def _tmpfs_fields(
    source: str | None, destination: str, fields: dict[str, str], *, read_only: bool
) -> AnyMount:
    if source not in (None, "", "tmpfs"):
        raise InvalidArgument(f"the tmpfs at {destination} has no source, but {source!r} is given")
    words = ["ro"] if read_only else []
    if size := fields.pop("tmpfs-size", ""):
        words.append(f"size={parse_size(size, 'tmpfs-size')}")
    words += [
        f"{key}={fields.pop(f'tmpfs-{key}')}" for key in ("mode", "uid", "gid") if f"tmpfs-{key}" in fields
    ]
    if inodes := fields.pop("tmpfs-nr-inodes", ""):
        words.append(f"nr_inodes={inodes}")
    if _pop_flag(fields, "tmpfs-exec"):
        words.append("exec")
    return _tmpfs(destination, words)


def _tmpfs(destination: str, words: list[str]) -> Mount:
    for word in words:
        name, equals, value = word.partition("=")
        if not (name in _TMPFS_VALUES and value if equals else name in _FLAGS):
            raise InvalidArgument(
                f"the tmpfs at {destination} has the unknown option {word!r}",
                hint=f"Known: {', '.join(sorted((_FLAGS - {'rro'}) | {f'{known}=' for known in _TMPFS_VALUES}))}.",
            )
        is_octal = value and set(value) <= set("01234567") and int(value, 8) <= 0o7777
        if (name == "mode" and not is_octal) or (name in ("uid", "gid") and not value.isdigit()):
            raise InvalidArgument(f"the tmpfs at {destination}: {word!r} is malformed")
    usual = [name for name in ("nosuid", "nodev", "noexec") if name.removeprefix("no") not in words]
    return Mount(
        destination=_absolute(destination, "tmpfs"), type="tmpfs", source="tmpfs", options=[*usual, *words]
    )


def _pop_subpath(fields: dict[str, str], name: str) -> str:
    """Give a relative path without ``..``; where symlinks lead is seen when the container starts."""
    text = _pop_first(fields, name, "subpath") or ""
    if text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise InvalidArgument(
            f"{name} {text!r} is not a path beneath", hint="Give a relative path without '..'."
        )
    return "" if posixpath.normpath(text) == "." else posixpath.normpath(text)


def _pop_flag(fields: dict[str, str], name: str) -> bool:
    return fields.pop(name, "false").lower() in ("", "true", "1")


def _pop_first(fields: dict[str, str], *names: str) -> str | None:
    return next((fields.pop(name) for name in names if name in fields), None)


# Bind mounts


def _bind(source: str, destination: str, options: list[str], *, recursion: str = "enabled") -> Mount:
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
    if recursion == "enabled" and not Path(source).is_dir():
        recursion = "disabled"  # Nothing is mounted beneath a file, and crun 1.8 refuses it attributes that go deeper.
    return _bind_mount(source, destination, options, devices=_holds_devices(source), recursion=recursion)


def _bind_mount(
    source: str, destination: str, options: list[str], *, devices: bool, recursion: str = "enabled"
) -> Mount:
    # Read-only means what is mounted beneath the source, too; plain "ro" would leave that writable.
    if recursion in ("enabled", "readonly"):
        options = ["rro" if option == "ro" else option for option in options]
    if not {"dev", "nodev"} & set(options) and not devices:
        # A node that the container's root makes there opens nothing, with or without a devices controller.
        options.append("nodev" if recursion == "disabled" else "rnodev")
    return Mount(
        destination=_absolute(destination, "volume"),
        type="bind",
        source=source,
        options=[
            "bind" if recursion == "disabled" else "rbind",
            *options,
            *([] if PROPAGATIONS & set(options) else ["rprivate"]),
        ],
    )


def rootfs_propagation(mounts: Iterable[Mount]) -> str | None:
    """Give what the root has to be for bind mounts to spread as they should; None where none of them does.

    As docker does it: shared for one that is to be seen on the host, slave for one that only sees what the host mounts.
    FailedPrecondition for a source whose mount on the host does not spread itself.
    """
    found: str | None = None
    for mount in mounts:
        words = set(mount.options)
        if mount.type != "bind" or not words & {"shared", "rshared", "slave", "rslave"}:
            continue
        _check_spreads(mount.source, wants_both=bool(words & {"shared", "rshared"}))
        if words & {"shared", "rshared"}:
            return "shared"
        found = "rslave"
    return found


def _check_spreads(source: str, *, wants_both: bool) -> None:
    from lamella.errors import FailedPrecondition

    real = os.path.realpath(source)
    point, fields = "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:  # noqa: PTH123
        for line in table:
            words = line.split(" ")
            path = (
                words[4].encode(errors="surrogateescape").decode("unicode_escape")
                if "\\" in words[4]
                else words[4]
            )
            if (real == path or real.startswith(f"{path.rstrip('/')}/")) and len(path) >= len(point):
                point, fields = path, " ".join(words[6 : words.index("-")])
    if "shared:" in fields or (not wants_both and "master:" in fields):
        return
    raise FailedPrecondition(
        f"the mount {point or '/'} of the source {source} is not {'shared' if wants_both else 'shared or slave'}",
        hint=f"Make it so: mount --make-rshared {point or '/'}.",
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
