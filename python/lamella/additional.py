"""Additional stores: images that an administrator has laid out once, which all users of the machine use without copying them.

On disk::

    <store>/oci-layout, index.json        an OCI image layout: images by name (``io.containerd.image.name``)
    <store>/blobs/<algorithm>/<hex>       0444
    <store>/layers/<snapshotter>/<diffID's hex>[-<chainID's hex>]/{layer.json,fs/}
    <store>/layers/.<id>/                 0700  being made
    <store>/lock                          flock: of who adds to it or removes from it

A client that has no image of a name looks for it in its additional stores, in their order, and pulls it without a registry if one
has it. Every pull takes from them what they have of an image. It gets rows as ever; but its layers' blobs are symlinks into the
store, and so is ``fs`` in its layers' folders, whose ids begin with ``linked-``. Garbage collection removes these symlinks, as
files of the user's store. What the additional store loses counts as not there: a pull fetches it.

All of it can be read by everybody, also in a user namespace in which its owner has no id, where nothing overrides a mode. So
files and folders of layers that are added get the bits to read (and search) them, if they lack those. They lose set-id bits and
file capabilities, which would hold on the machine itself, and devices are left out. Only their owner may write to files, and
folders that everybody may write to are sticky. Files belong to nobody in the containers of
users: they are there to be read, and written to by who owns them. What an opaque folder is is said in both of overlayfs's ways.
Root can show a user the store on a mount with that user's ids (an ID-mapped one, mount_setattr(2)): files there have the
owners of the image.

An additional store must belong to root or to who uses it, and nobody else may be able to write to it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lamella import _core, oci
from lamella.digest import Digest, digest_of, split_digest
from lamella.disk import translated
from lamella.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from lamella.locks import FileLock
from lamella.logs import Log
from lamella.metadata import timestamp
from lamella.metadata.boot import boot_id
from lamella.ownership import check_owner
from lamella.reference import Reference
from lamella.structs import Struct, decode, encode, replace
from lamella.transfer.archives.catalog import MARKER_DATA
from lamella.transfer.archives.layout import CONTAINERD_NAME, INDEX, MARKER
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image
    from lamella.snapshots.layers import Layer, Staging

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_log = Log("lamella")


class _LayerFile(Struct):
    """What ``layer.json`` says: of which diffID, bound to which chainID."""

    diff_id: str
    chain_id: str | None = None
    opaque_root: bool = False


class AdditionalStore:
    """One additional store. FailedPrecondition where there is none; PermissionDenied for one that others may write to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        with translated(f"open the additional store {self.path}"):
            if not (self.path / MARKER).is_file():
                raise FailedPrecondition(
                    f"{self.path} is no additional store",
                    hint="An administrator makes one: lamella additional-stores add DIR IMAGE.",
                )
            check_owner(self.path)
            for pattern in ("blobs", "blobs/*", "layers", "layers/[!.]*"):
                for folder in self.path.glob(pattern):
                    check_owner(folder)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> AdditionalStore:
        """Make one that is empty, if there is none. Twice is harmless."""
        folder = Path(path).absolute()
        with translated(f"make the additional store {folder}"):
            _make_folder(folder)
            for name in ("blobs", "layers"):
                _make_folder(folder / name)
            if not (folder / INDEX).exists():
                _write(folder / INDEX, encode(oci.Index(manifests=[])))
            if not (folder / MARKER).exists():
                _write(folder / MARKER, MARKER_DATA)
        return cls(folder)

    # Reading

    def images(self) -> dict[str, oci.Descriptor]:
        """Give what each name points at."""
        with translated(f"read {self.path / INDEX}"):
            index = oci.parse_index((self.path / INDEX).read_bytes())
        named = ((entry, (entry.annotations or {}).get(CONTAINERD_NAME)) for entry in index.manifests)
        return {name: replace(entry, annotations=None) for entry, name in named if name}

    def document(self, descriptor: oci.Descriptor) -> bytes:
        """Read a manifest, index or config, and check its digest. NotFound; DataLoss."""
        path = self.blob(descriptor.digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"the blob {descriptor.digest} is not in the additional store {self.path}"
            ) from None
        if digest_of(data, descriptor.digest.partition(":")[0]) != descriptor.digest:
            raise DataLoss(
                f"{path} is not what its name says", hint="Have the administrator add the image again."
            )
        return data

    def blob(self, digest: Digest) -> Path:
        """Give where a blob is."""
        return self.path.joinpath("blobs", *split_digest(digest))

    def layer(self, snapshotter: str, diff_id: Digest, chain_id: Digest) -> tuple[Path, _LayerFile] | None:
        """Give a layer's folder, the one for its chain first; None where it is not here."""
        _, encoded = split_digest(diff_id)
        for name in (f"{encoded}-{split_digest(chain_id)[1]}", encoded):
            folder = self.path / "layers" / snapshotter / name
            with suppress(FileNotFoundError):
                said = decode((folder / "layer.json").read_bytes(), _LayerFile)
                if said.diff_id == diff_id and said.chain_id in (None, chain_id):
                    return folder / "fs", said
        return None

    # Changes

    def add(self, client: Client, ref: str | Reference) -> Image:
        """Copy an image of a client's store, with its layers as its snapshotter has them. Twice is harmless.

        NotFound where the image, or a part of it, is not here; FailedPrecondition where it is not unpacked, or its layers' blobs
        were not kept. Who is killed leaves a folder that the next addition removes.
        """
        image = client.images.get(ref)
        if image.layers_discarded:
            raise FailedPrecondition(
                f"the layers of {image.name} were not kept", hint=f"Fetch them: lamella pull {image.name}"
            )
        with self._locked():
            for path in (self.path / "layers").glob(".*"):
                _core.remove_tree(str(path))
            assert image.chain_ids
            for diff_id, chain_id in zip(image.diff_ids, image.chain_ids, strict=True):
                layer = client.layers.find(client.config.snapshotter, diff_id, chain_id)
                if layer is None:
                    raise FailedPrecondition(
                        f"{image.name} is not unpacked", hint=f"Unpack it: lamella images unpack {image.name}"
                    )
                self._add_layer(client.config.snapshotter, layer)
            documents = [image.manifest_descriptor, image.manifest.config]
            for part in (*documents, *image.layers):
                self._add_blob(client.content.path(part.digest), part.digest)
            target = replace(
                image.manifest_descriptor, platform=None, annotations={CONTAINERD_NAME: image.name}
            )
            self._change_index(image.name, target)
        return image

    def remove(self, name: str) -> None:
        """Take a name away, and what no other one needs. NotFound. Images that users have of it take it from a registry again."""
        name = str(Reference.parse(name))
        with self._locked():
            if name not in self.images():
                raise NotFound(f"the image {name} is not in the additional store {self.path}")
            self._change_index(name, None)
            blobs, layers = self._needed()
            with translated(f"remove what {name} had in {self.path}"):
                for blob in (self.path / "blobs").glob("*/*"):
                    if blob not in blobs:
                        blob.unlink()
            for folder in (self.path / "layers").glob("*/*"):
                if folder.name.partition("-")[0] not in layers:
                    _core.remove_tree(str(folder))

    def mount(self, target: str | os.PathLike[str], *, user: str) -> None:
        """Show the store on a folder, which is made if it is not there, read-only and with a user's ids. For root.

        To programs in the user's containers files then have the owners of the image, as far as the ranges reach that the user has
        now. The mount stays until ``umount`` or the machine's restart; a second one lies on the first. InvalidArgument: there is
        no such user; PermissionDenied: this is not root, or others may write to the folder; Unsupported: the kernel, or the file
        system that the store is on, has no ID-mapped mounts (Linux 5.12, with overlayfs above them 5.19).
        """
        from lamella.ids import maps_of_user

        if os.geteuid() != 0:
            raise PermissionDenied(
                "only root can show files with other ids (ID-mapped mounts)",
                hint="Have the administrator do it; without it the store's files belong to nobody in your containers.",
            )
        maps = maps_of_user(user)
        point = Path(target).absolute()
        with translated(f"show the additional store on {point}"):
            point.mkdir(parents=True, exist_ok=True)
            check_owner(point)
        options = ["rbind", "ro", "nosuid", "nodev", *maps.options]
        _core.mount([("bind", str(self.path), options)], str(point))

    def _needed(self) -> tuple[set[Path], set[str]]:
        blobs, layers = set(), set()
        for target in self.images().values():
            manifest = oci.parse_manifest(self.document(target))
            config = oci.parse_config(self.document(manifest.config))
            blobs |= {self.blob(part.digest) for part in (target, manifest.config, *manifest.layers)}
            layers |= {split_digest(diff_id)[1] for diff_id in config.rootfs.diff_ids}
        return blobs, layers

    def _locked(self) -> FileLock:
        return FileLock(self.path / "lock", what=f"the additional store {self.path}")

    def _change_index(self, name: str, target: oci.Descriptor | None) -> None:
        entries = {
            known: replace(entry, annotations={CONTAINERD_NAME: known})
            for known, entry in self.images().items()
            if known != name
        }
        if target is not None:
            entries[name] = target
        with translated(f"write {self.path / INDEX}"):
            _write(
                self.path / INDEX,
                encode(oci.Index(manifests=[entries[key] for key in sorted(entries)])),
            )

    def _add_blob(self, source: Path, digest: Digest) -> None:
        target = self.blob(digest)
        with translated(f"add {digest} to {self.path}"):
            _make_folder(target.parent)
            if not target.exists():
                made = target.with_name(f".{target.name}")
                shutil.copyfile(source, made)
                made.chmod(0o444)
                made.rename(target)

    def _add_layer(self, snapshotter: str, layer: Layer) -> None:
        assert layer.diff_id is not None
        name = split_digest(Digest(layer.diff_id))[1]
        if layer.chain_id is not None:
            name += f"-{split_digest(Digest(layer.chain_id))[1]}"
        target = self.path / "layers" / snapshotter / name
        if target.exists():
            return
        made = self.path / "layers" / f".{os.urandom(8).hex()}"
        with translated(f"add the layer {layer.diff_id} to {self.path}"):
            _make_folder(target.parent)
            made.mkdir(0o700)
            tree = made / "fs"
            tree.mkdir()
            for note in _core.copy_tree(str(layer.path), str(tree)):
                _log.warning("layer %(layer)s: %(reason)s", layer=layer.diff_id, reason=note)
            _open_to_all(tree)
            said = _LayerFile(diff_id=layer.diff_id, chain_id=layer.chain_id, opaque_root=layer.opaque_root)
            _write(made / "layer.json", encode(said))
            made.chmod(0o755)
            made.rename(target)


def stores_of(client: Client) -> list[AdditionalStore]:
    """Open a client's additional stores, in their order. Errors: those of :class:`AdditionalStore`."""
    return [AdditionalStore(path) for path in client.config.additional_stores]


def find(client: Client, ref: str | Reference) -> bool:
    """Look for an image in a client's additional stores, and let its namespace see the first that is found; tell whether it does.

    Its layers are taken from there as far as they are there, and unpacked else. Errors: those of :class:`AdditionalStore` for a
    store that is not to be used, and those of a pull.
    """
    try:
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
    except InvalidArgument:
        return False
    for store in stores_of(client):
        target = store.images().get(str(reference))
        if target is not None:
            from lamella.transfer.pull import Pull
            from lamella.transfer.unpack import NoRegistry

            Pull(client, reference, NoRegistry(str(reference))).complete(target)
            _log.info(
                "the image %(image)s is used from %(store)s", image=str(reference), store=str(store.path)
            )
            return True
    return False


def document(stores: Sequence[AdditionalStore], descriptor: oci.Descriptor) -> bytes | None:
    """Read a manifest, index or config from the first of some stores that has it. DataLoss."""
    for store in stores:
        with suppress(NotFound):
            return store.document(descriptor)
    return None


def link_blob(client: Client, stores: Sequence[AdditionalStore], part: oci.Descriptor) -> bool:
    """Have a blob that is not here where it is, in the first of some stores that has it; tell whether one does.

    A lease has to hold it. Twice is harmless.
    """
    sources = (store.blob(part.digest) for store in stores)
    source = next((path for path in sources if path.is_file() and path.stat().st_size == part.size), None)
    if source is None:
        return False
    target = client.config.root.joinpath("blobs", *split_digest(part.digest))
    with client.database.write() as db, translated(f"link the blob {part.digest}"):
        if client.content.exists(part.digest):  # it came meanwhile
            return True
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source)
        db.execute(
            """
            INSERT INTO blobs (digest, size, created_at, boot_id, synced) VALUES (?, ?, ?, ?, 1)
            ON CONFLICT (digest) DO UPDATE SET size = excluded.size, boot_id = excluded.boot_id, synced = 1
            """,
            (part.digest, part.size, timestamp(), boot_id()),
        )
    return True


def link_layer(
    client: Client,
    stores: Sequence[AdditionalStore],
    staging: Staging,
    diff_id: Digest,
    chain_id: Digest,
    *,
    bound: bool,
) -> Layer | None:
    """Have a layer's files where they are, in the first of some stores that has it; None where none does.

    ``staging`` is that of the layer, which is not here, and ends with this. ``bound``: only one that is bound to the chain.
    """
    for store in stores:
        found = store.layer(client.config.snapshotter, diff_id, chain_id)
        if found is None or (bound and found[1].chain_id is None):
            continue
        source, said = found
        with staging:
            staging.link(source)
            return staging.commit(
                diff_id=diff_id, chain_id=said.chain_id, disk_bytes=0, inodes=0, opaque_root=said.opaque_root
            )
    return None


def _make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def _write(path: Path, data: bytes) -> None:
    """Put a file in place that all may read."""
    made = path.with_name(f".{path.name}.new")
    made.write_bytes(data)
    made.chmod(0o644)
    made.rename(path)


def _open_to_all(tree: Path) -> None:
    """Let everybody read a tree, and nobody become somebody else by it; it has no devices afterwards.

    What others may write to in an image they could write to here, at its path on the machine, and so into the containers of all:
    files lose that, folders become sticky, so that containers still make files there (/tmp) and nobody exchanges what is there.
    """
    for folder, _, files in os.walk(tree):
        _open_folder(folder)
        for name in files:
            path = os.path.join(folder, name)  # noqa: PTH118 (for each file of an image)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                with suppress(OSError):
                    os.removexattr(path, "security.capability")
                execute = 0o111 if status.st_mode & 0o111 else 0
                os.chmod(path, stat.S_IMODE(status.st_mode) & 0o1755 | 0o444 | execute)  # noqa: PTH101
            elif (stat.S_ISCHR(status.st_mode) and status.st_rdev != 0) or stat.S_ISBLK(status.st_mode):
                before = os.stat(folder)  # noqa: PTH116 (its time tells what its layer says of it)
                os.unlink(path)  # noqa: PTH108
                os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def _open_folder(path: str) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode) & 0o1757  # noqa: PTH116
    sticky = stat.S_ISVTX if mode & stat.S_IWOTH else 0
    os.chmod(path, mode | sticky | 0o555)  # noqa: PTH101, S103 (that is what it is for)
    with suppress(OSError):
        present = set(_OPAQUE).intersection(os.listxattr(path))
        if any(os.getxattr(path, name) == b"y" for name in present):
            for name in _OPAQUE:
                with suppress(PermissionError):
                    os.setxattr(path, name, b"y")
