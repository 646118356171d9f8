#!/usr/bin/env python3
"""The main job from beginning to end: pull an image, look at its content and snapshots, run a container, clean up.

    make demo                     an image made of this machine's own programs; needs no network
    make demo REF=nginx:latest    any image that can be reached

The store is a temporary folder that is removed at the end, or LAMELLA_ROOT, where what was pulled stays.
Without root it is the same, where users may have user namespaces; where not, nothing is unpacked and run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import lamella
import machine_image
from lamella import _core, graph
from lamella.errors import CommandNotFound, LamellaError, NotFound
from lamella.registry.server import RegistryServer
from lamella.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

VIEW = "demo-readonly-snapshot"
CONTAINER = "demo-container-abc123"
SCRIPT = """
echo "hello from $(uname -s), host name $(hostname), process $$ of $(ls -d /proc/[0-9]*/ | wc -l), user $(id -u)"
echo "written by the container" > /note
ls -l /note
"""


def main() -> None:
    """Run from the command line: with a reference pull that, else an image made here."""
    reference = sys.argv[1] if len(sys.argv) > 1 else None
    try:
        with _store() as client, _image_to_pull(reference) as found:
            _tell(client, found, ours=reference is None)
    except LamellaError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        raise SystemExit(1) from None


def _tell(client: lamella.Client, reference: str, *, ours: bool) -> None:
    _title(f"pull {reference}")
    print("one pass a layer: hash and write the blob, inflate, hash the tar, apply it; layers in parallel\n")
    unpack = _can_unpack()
    image = client.images.pull(reference, progress=_show, unpack=unpack)
    print(f"\n{image.name} is {image.digest}, {len(image.layers)} layers, {format_size(image.size)}")
    before = time.perf_counter()
    client.images.pull(reference, unpack=unpack)
    print(f"pulled again: {(time.perf_counter() - before) * 1e3:.0f} ms, nothing was fetched or unpacked")

    _title("content: blobs by digest, shared by all images")
    for info in client.content.walk():
        print(f"  {info.digest[:19]}...  {format_size(info.size):>9}  {_kind(image, info.digest)}")

    if not unpack:
        _title("the graph")
        print(graph.render_mermaid(graph.build(client, reference)))
        _title("what is missing")
        print(
            "Snapshots and containers take root, or a user namespace: lamella doctor says what is in its way here."
        )
        print(f"See the rest with: sudo {sys.executable} {Path(__file__).resolve()}")
        return

    _title("snapshots: each layer committed on the one beneath; a view is read-only, an active one writable")
    client.snapshots.view(VIEW, parent=image.chain_id)
    container = client.containers.create(image, ["/bin/sh", "-c", SCRIPT], name=CONTAINER)
    try:
        _snapshots(client)
        print(f"\nto mount {VIEW}:")
        for mount in client.snapshots.mounts(VIEW):
            print(f"  type {mount.type}, source {mount.source}")
            for option in mount.options:
                print("    " + option.replace(":", "\n             "))
        if os.geteuid() != 0:
            _look_inside(client)

        _title("the graph (paste it where Mermaid is drawn)")
        print(graph.render_mermaid(graph.build(client, reference)))

        _title(f"run {CONTAINER}")
        _run(container)
        if ours:
            print("\nand what the image brought itself:")
            result = client.containers.run(image, ["/app/hello"], remove=True)
            print(f"  {result.stdout.decode(errors='replace').strip()}   ({result.duration * 1e3:.0f} ms)")
    finally:
        container.remove(force=True)

    _title(f"deleted {CONTAINER}: its active snapshot went with it, and nothing else")
    _snapshots(client)
    if "LAMELLA_ROOT" in os.environ:
        client.snapshots.remove(VIEW)
        print(
            f"\nthe image stays in {client.config.root}: try lamella run --rm {reference} /bin/sh -c 'echo hello'"
        )
        return

    _clean_up(client, reference)


def _can_unpack() -> bool:
    """Tell whether images can be unpacked here: by root, or in a user namespace."""
    try:
        _core.helper_maps()
    except LamellaError as error:
        print(f"nothing is unpacked: {error} ({error.hint})\n")
        return False
    return True


def _look_inside(client: lamella.Client) -> None:
    print("\nwhat is in it; without root a copy shows it:")
    with client.snapshots.mounted(VIEW) as folder:
        print("  " + "  ".join(sorted(entry.name for entry in folder.iterdir())))


def _clean_up(client: lamella.Client, reference: str) -> None:
    _title("delete the view and the image, then collect what nothing refers to")
    client.snapshots.remove(VIEW)
    client.images.remove(reference)
    report = client.gc()
    print(f"removed: {report.blobs} blobs, {report.snapshots} snapshots, {report.layers} layers", end="")
    print(f" ({format_size(report.bytes_freed)})")
    left = sum(1 for _ in client.content.walk()), sum(1 for _ in client.snapshots.walk())
    print(f"left: {left[0]} blobs, {left[1]} snapshots, {len(client.containers.list(all=True))} containers")


def _run(container: lamella.Container) -> None:
    try:
        container.start()
    except CommandNotFound:
        print("  the image has no /bin/sh, so there is nothing to run in it for this demo")
        return
    status = container.wait(timeout=30)
    for stream, data in container.logs():
        for line in data.decode(errors="replace").splitlines():
            print(f"  {stream}: {line}")
    print(f"  exit status {status}")


def _snapshots(client: lamella.Client) -> None:
    infos = list(client.snapshots.walk())
    children: dict[str, list[str]] = {}
    for info in infos:
        children.setdefault(info.parent or "", []).append(info.name)
    kinds = {info.name: info.kind for info in infos}

    def show(name: str, depth: int) -> None:
        usage = client.snapshots.usage(name)
        title = f"{name[:19]}..." if name.startswith("sha256:") else name
        print(f"  {'   ' * depth}{title}  {kinds[name]}, {format_size(usage.size)}")
        for child in sorted(children.get(name, [])):
            show(child, depth + 1)

    for name in sorted(children.get("", [])):
        show(name, 0)


def _show(progress: lamella.Progress) -> None:
    if progress.digest and progress.phase in ("done", "exists"):
        print(f"  {progress.digest[:19]}...  {progress.phase:6}  {format_size(progress.size):>9}")


def _kind(image: lamella.Image, digest: str) -> str:
    if digest == image.manifest_descriptor.digest:
        return "manifest"
    if digest == image.target.digest:
        return "index"
    if digest == image.manifest.config.digest:
        return "config"
    digests = [layer.digest for layer in image.layers]
    return f"layer {digests.index(digest) + 1}" if digest in digests else ""


@contextlib.contextmanager
def _store() -> Iterator[lamella.Client]:
    with tempfile.TemporaryDirectory(prefix="lamella-demo-", ignore_cleanup_errors=True) as folder:
        root = os.environ.get("LAMELLA_ROOT") or f"{folder}/root"
        state = os.environ.get("LAMELLA_STATE") or f"{folder}/state"
        with lamella.Client(root=root, state=state, namespace="demo") as client:
            print(f"lamella {lamella.__version__}, store {root}")
            with contextlib.suppress(NotFound):  # of a run that was cut off
                client.containers.get(CONTAINER).remove(force=True)
            with contextlib.suppress(NotFound):
                client.snapshots.remove(VIEW)
            yield client


@contextlib.contextmanager
def _image_to_pull(reference: str | None) -> Iterator[str]:
    if reference is not None:
        yield reference
        return
    image = machine_image.build()
    with RegistryServer() as server:
        image.push(server.address, "machine", "latest")
        _title("an image of this machine's own sh and tools, in a registry of this process")
        print(
            f"{len(image.blobs)} blobs, {format_size(sum(map(len, image.blobs.values())))}, at {server.address}"
        )
        yield f"{server.address}/machine:latest"


def _title(text: str) -> None:
    print(f"\n== {text}")


if __name__ == "__main__":
    main()
