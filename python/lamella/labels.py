"""Labels: short strings by which clients describe objects, and by which garbage collection knows what refers to what.

Images, content, snapshots, containers, leases and namespaces carry them. The rules are containerd's (labels/validate.go,
docs/garbage-collection.md): a key and its value have at most 4096 bytes together, an empty value means that there is no such
label. The garbage collector's names keep containerd's prefix, so that a client of either writes the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from lamella.errors import InvalidArgument
from lamella.structs import decode, encode

LABEL_MAX = 4096
"""Bytes of a key and its value together, UTF-8."""

GC_PREFIX = "containerd.io/gc."
GC_ROOT = "containerd.io/gc.root"
"""On content and snapshots: keep this and what it refers to. The value is free; ctr writes the time."""
GC_EXPIRE = "containerd.io/gc.expire"
"""On leases and images, and beside GC_ROOT: an RFC 3339 time after which the object is no root any more."""
GC_FLAT = "containerd.io/gc.flat"
"""On leases: keep what the lease names, not what that refers to."""
GC_REF_CONTENT = "containerd.io/gc.ref.content"
"""Followed by nothing, ``.suffix`` or ``/suffix``: the value is the digest of content to keep."""
GC_REF_SNAPSHOT = "containerd.io/gc.ref.snapshot."
"""Followed by a snapshotter's name and perhaps ``/suffix``: the value is the name of a snapshot to keep."""
GC_BACK_REF_CONTENT = "containerd.io/gc.bref.content"
"""Like GC_REF_CONTENT, the other way round: while that content is kept, so is this object."""
GC_BACK_REF_SNAPSHOT = "containerd.io/gc.bref.snapshot."
GC_BACK_REF_IMAGE = "containerd.io/gc.bref.image"
GC_BACK_REF_CONTAINER = "containerd.io/gc.bref.container"

SUBJECT = GC_BACK_REF_CONTENT + ".subject"
"""On a manifest that refers to another (its ``subject``): the digest of that one, with which it is kept."""

DISTRIBUTION_SOURCE = "containerd.io/distribution.source."
"""On content, followed by a registry's domain: the repositories of it that have this content, sorted, joined by commas."""

UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"
"""On views and active snapshots: ``containerID:hostID:size``, several with commas between them. Their mounts show mapped ids."""

COLLECTABLE = "lamella.dev/collectable"
"""On an active snapshot: it is no root of garbage collection by itself, as in containerd. Made over containerd's API."""

LAYERS_DISCARDED = "lamella.dev/layers-discarded"
"""On a manifest: its compressed layers were dropped once they were unpacked. The value is the time."""
PULLED_MANIFEST = "lamella.dev/pull"
"""On a lease: it is that of the pull of this manifest. One runs at a time; a lease of another one is what a killed one left."""
DISCARDED_LAYER = "lamella.dev/discarded.l."
"""On such a manifest, followed by a number: the digest of a dropped layer, in the place of a GC_REF_CONTENT label."""

PUSHED = "lamella.dev/pushed"
"""On a lease: the repository that was pushed to. On an image: when its manifest was pushed without a tag."""
MEDIA_TYPE = "lamella.dev/media-type"
"""On a manifest that does not say it itself: the media type that it was pushed with."""


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a copy without the labels whose value is empty. InvalidArgument for one that is too long or has no key."""
    checked = {}
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidArgument(f"label {key!r} and its value are not both strings")
        if not key:
            raise InvalidArgument("a label's key is empty")
        try:
            length = len(key.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise InvalidArgument(f"label {key[:40]!r} is not valid Unicode") from None
        if length > LABEL_MAX:
            raise InvalidArgument(
                f"label {key[:40]!r} has {length} bytes with its value, at most {LABEL_MAX} fit"
            )
        if value:
            checked[key] = value
    return checked


def merge_labels(labels: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Return ``labels`` with ``changes`` applied; an empty value removes. Errors as :func:`check_labels`."""
    checked = check_labels(changes)
    merged = {key: value for key, value in labels.items() if key not in changes}
    merged.update(checked)
    return merged


def adopt_labels(labels: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Merge as :func:`merge_labels`, for content that came once more: repositories that it came from are added to the others.

    The rule is containerd's (core/remotes/docker/handler.go): sorted, each once; what would be too long is left as it was.
    """
    joined = dict(more)
    for key, value in more.items():
        if key.startswith(DISTRIBUTION_SOURCE) and value and key in labels:
            text = ",".join(sorted({*labels[key].split(","), *value.split(",")}))
            joined[key] = text if len(key.encode()) + len(text.encode()) <= LABEL_MAX else labels[key]
    return merge_labels(labels, joined)


def encode_labels(labels: Mapping[str, str]) -> str:
    """Give the JSON text that the metadata keeps. Keys are sorted; slashes stand as they are (triggers look for them)."""
    return encode(dict(sorted(labels.items()))).decode() if labels else "{}"


def decode_labels(text: str) -> dict[str, str]:
    """Read what :func:`encode_labels` wrote."""
    return decode(text, dict[str, str]) if text != "{}" else {}
