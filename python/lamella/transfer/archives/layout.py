"""The documents of an OCI image layout: index.json, which says what there is (OCI image spec 1.1, image-layout.md).

docker (since 25), containerd, BuildKit, skopeo, podman, buildah and umoci write it. A name stands in one of two annotations:
containerd's holds all of it, the spec's only the tag as a rule, or all of it where skopeo and podman wrote it.
"""

from __future__ import annotations

import re

from lamella import oci
from lamella.digest import Digest, digest_of, split_digest
from lamella.errors import Unsupported
from lamella.structs import Struct
from lamella.transfer.archives.contents import Contents, Entry
from lamella.transfer.archives.files import Files

INDEX = "index.json"
MARKER = "oci-layout"
VERSION = "1.0.0"
CONTAINERD_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
_REFERRERS_TAG = re.compile(r"(sha256|sha384|sha512)-([0-9a-f]{64,128})\Z")
_DOCUMENTS = oci.INDEX_TYPES | oci.MANIFEST_TYPES


class _Marker(Struct, rename="camel"):
    image_layout_version: str


def place(digest: Digest) -> str:
    """Give the name of a blob's file."""
    return "/".join(("blobs", *split_digest(digest)))


def read_layout(files: Files) -> Contents | None:
    """Read index.json; None where there is none. InvalidArgument, Unsupported."""
    found = files.find(INDEX)
    if found is None:
        return None
    marker = files.find(MARKER)
    if marker is not None:
        version = files.decode(marker, _Marker).image_layout_version
        if not version.startswith("1."):
            raise Unsupported(f"the archive is an OCI layout of version {version[:40]!r}, not {VERSION}")
    data = files.read(found)
    index = oci.parse_index(data)
    itself = oci.Descriptor(
        media_type=index.media_type or oci.OCI_INDEX, digest=digest_of(data), size=len(data)
    )
    contents = Contents(index=itself, made={itself.digest: data})
    for descriptor in index.manifests:
        annotations = descriptor.annotations or {}
        name, tag = annotations.get(CONTAINERD_NAME), annotations.get(REF_NAME)
        stands_for = _REFERRERS_TAG.match(tag) if tag else None
        if name:
            contents.entries.append(Entry(descriptor, names=[name]))
        elif tag and not stands_for:
            contents.entries.append(Entry(descriptor, tag=tag))
        elif not _note_referrers(files, contents, descriptor, stands_for):
            contents.entries.append(Entry(descriptor))
    return contents


def _note_referrers(
    files: Files, contents: Contents, descriptor: oci.Descriptor, tag: re.Match[str] | None
) -> bool:
    """Take what refers to an image, or, under the tag that stands for one, lists what does; tell whether it is either."""
    member = files.find(place(descriptor.digest)) if descriptor.media_type in _DOCUMENTS else None
    data = files.read(member) if member is not None else b"{}"
    if digest_of(data, split_digest(descriptor.digest)[0]) != descriptor.digest:
        return False  # whoever takes it for an image is told
    if tag and oci.document_type(data, descriptor.media_type) in oci.INDEX_TYPES:
        subject, found = Digest(f"{tag[1]}:{tag[2]}"), oci.parse_index(data).manifests
    elif related := oci.subject_of(data):
        subject, found = related.digest, [oci.describe_referrer(descriptor.digest, data)]
    else:
        return False
    contents.referrers.setdefault(subject, []).extend(found)
    return True
