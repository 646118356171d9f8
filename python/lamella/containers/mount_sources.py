"""What a container mounts that is not simply a path of this machine: volumes, parts of them, and images.

The runtime spec binds ``sources/N`` of the bundle where a part of a volume or an image is mounted. What is to be there is in the
container's record (``Extra.sources``), for it is made anew at each start, by the launcher, in the container's own mount namespace
(rust/launcher/src/rootfs/sources.rs): a volume changes between two starts, and so may the folder of an image's layer.

An image is mounted through a view of its top layer, one for each mount, which shares the layers' folders with every other. The
label ``containerd.io/gc.bref.container`` has garbage collection keep it as long as the container is there, with all layers, and
another the image's manifest, whatever becomes of its name. It goes in the transaction in which the container goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lamella.containers.container import usable_mounts
from lamella.containers.defaults import mounts as default_mounts
from lamella.containers.mounts import PROPAGATIONS, AnyMount, ImageMount, VolumeMount, volume_bind
from lamella.containers.record import Extra, Source
from lamella.errors import NotFound
from lamella.labels import GC_BACK_REF_CONTAINER, GC_REF_CONTENT, GC_ROOT
from lamella.structs import Struct, replace
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.config import Config
    from lamella.containers.id_maps import IdMaps
    from lamella.containers.runtime_spec import Mount
    from lamella.images import Image

_MANIFEST = f"{GC_REF_CONTENT}.manifest"


class Attached(Struct):
    """The options' mounts as the spec has them, the names of the volumes, and the sources."""

    mounts: list[Mount]
    volumes: list[str] = []
    sources: list[Source] = []


@contextmanager
def attaching(
    client: Client,
    parent: str,
    container_id: str,
    mounts: Sequence[AnyMount],
    id_maps: IdMaps | None,
) -> Iterator[Callable[[], Attached]]:
    """Give a container its volumes and images in two steps: what takes long before the block, the rest by the function it gets.

    ``parent`` is the committed snapshot of the container's own image. The function is to be called once, in the transaction that
    records the container. When the block fails anonymous volumes go again; those with a name stay, as in docker. ``id_maps``
    are the container's: volumes and images show their files as its own.
    NotFound for an image that is not here, or not unpacked for this snapshotter.
    """
    from lamella.containers.volumes import filling

    images = {
        mount.image: client.images.get(mount.image) for mount in mounts if isinstance(mount, ImageMount)
    }
    with filling(client, parent, [m for m in mounts if isinstance(m, VolumeMount)]) as place_volumes:

        def attach() -> Attached:
            names = place_volumes()
            attached = Attached(mounts=[], volumes=sorted(set(names)))
            each = iter(names)
            for mount in mounts:
                if isinstance(mount, VolumeMount):
                    name = next(each)
                    if mount.subpath:
                        source = Source(volume=name, subpath=mount.subpath)
                    else:
                        path = client.config.root / "volumes" / client.config.namespace / name / "data"
                        bound = volume_bind(mount, str(path))
                        attached.mounts.append(bound if id_maps is None else id_maps.show(bound))
                        continue
                elif isinstance(mount, ImageMount):
                    key = _key(container_id, len(attached.sources))
                    _make_view(client, key, images[mount.image], container_id, id_maps)
                    source = Source(image=images[mount.image].name, snapshot=key, subpath=mount.subpath)
                else:
                    attached.mounts.append(mount)
                    continue
                attached.mounts.append(volume_bind(mount, f"sources/{len(attached.sources)}"))
                attached.sources.append(source)
            return attached

        yield attach


def _key(container_id: str, number: int) -> str:
    return f"{container_id}-source-{number}"


def _make_view(client: Client, key: str, image: Image, container_id: str, id_maps: IdMaps | None) -> None:
    labels = {**_held_by(container_id), _MANIFEST: str(image.manifest_descriptor.digest)}
    if id_maps is not None:
        labels |= id_maps.labels
    try:
        client.snapshots.view(key, str(image.chain_id), labels)
    except NotFound:
        raise NotFound(
            f"image {image.name} is not unpacked for the {client.config.snapshotter} snapshotter",
            hint=f"Unpack it: lamella pull {image.name}",
        ) from None


def _held_by(container_id: str) -> dict[str, str]:
    """Give the labels of a view that is kept by its container, and is no root as other views are."""
    return {GC_ROOT: "", GC_BACK_REF_CONTAINER: container_id}


def copy_views(client: Client, sources: Sequence[Source], container_id: str) -> list[Source]:
    """Give another container views of the same images, in the transaction that records it."""
    copied = []
    for number, source in enumerate(sources):
        key = ""
        if source.snapshot:
            view, key = client.snapshots.stat(source.snapshot), _key(container_id, number)
            client.snapshots.view(key, view.parent, {**view.labels, **_held_by(container_id)})
        copied.append(replace(source, snapshot=key))
    return copied


def remove_views(client: Client, sources: Iterable[Source]) -> None:
    """Let go of a container's images, in the transaction that forgets it. Harmless twice."""
    for source in sources:
        if source.snapshot:
            with suppress(NotFound):
                client.snapshots.remove(source.snapshot)


def for_launcher(client: Client, extra: Extra) -> list[dict[str, Any]]:
    """Give what the launcher is to make of the sources; an image's layers that a power cut may have spoiled are unpacked anew.

    NotFound for a view or a volume that is gone.
    """
    return [
        {"mount": _mount_of(client, source, extra.id_maps), "subpath": source.subpath}
        for source in extra.sources
    ]


def _mount_of(client: Client, source: Source, id_maps: IdMaps | None) -> dict[str, Any]:
    if source.volume:
        path = client.volumes.get(source.volume).path
        shown = id_maps.options if id_maps is not None else []
        return {"type": "bind", "source": str(path), "options": ["rbind", *shown]}
    [mount] = usable_mounts(
        client, source.snapshot, source.image
    )  # a view is one mount, whatever the snapshotter
    return {"type": mount.type, "source": mount.source, "options": mount.options}


def describe(
    mounts: Iterable[Mapping[str, Any]], sources: Sequence[Source], config: Config
) -> list[dict[str, Any]]:
    """Give a container's own mounts, from its spec, as plain data.

    Fields: type (``bind``, ``volume``, ``image``, ``tmpfs``, or a file system's), source (a path, a volume's or image's name),
    target, subpath, read_only, propagation, options.
    """
    volumes = f"{config.root}/volumes/{config.namespace}/"
    files = f"{config.root}/containers/{config.namespace}/"
    usual = {mount.destination for mount in default_mounts(shm_size=0, writable_sys=False)}
    found = []
    for mount in mounts:
        kind, source, options = mount["type"], mount.get("source", ""), mount.get("options", [])
        if source.startswith(files) or (mount["destination"] in usual and kind != "bind"):
            continue
        subpath = ""
        if kind == "bind" and source.startswith("sources/"):
            made = sources[int(source.partition("/")[2])]
            kind, source, subpath = (
                "image" if made.image else "volume",
                made.image or made.volume,
                made.subpath,
            )
        elif kind == "bind" and source.startswith(volumes):
            kind, source = "volume", source[len(volumes) :].partition("/")[0]
        found.append(
            {
                "type": kind,
                "source": "" if kind == "tmpfs" else source,
                "target": mount["destination"],
                "subpath": subpath,
                "read_only": bool({"ro", "rro"} & set(options)),
                "propagation": next((word for word in options if word in PROPAGATIONS), ""),
                "options": options,
            }
        )
    return found
