"""The documents of skopeo's ``dir:`` form, which ``podman save --format docker-dir`` writes too: a manifest, and blobs beside it.

Nothing in it says what the image is called. Source: containers-transports(5), "dir:"; the names of the files are those of
containers/image, directory/directory_transport.go.
"""

from __future__ import annotations

from lamella import oci
from lamella.digest import digest_of, split_digest
from lamella.transfer.archives.contents import Contents, Entry
from lamella.transfer.archives.docker import MANIFEST
from lamella.transfer.archives.files import Files

VERSION = "version"
_BEGINNING = b"Directory Transport Version: 1."
_DOCUMENTS = oci.INDEX_TYPES | oci.MANIFEST_TYPES


def read_directory(files: Files) -> Contents | None:
    """Read manifest.json; None where the file ``version`` does not say that it is of this form. Errors as oci.document_type."""
    version = files.find(VERSION)
    if version is None or files.head(version, len(_BEGINNING)) != _BEGINNING:
        return None
    data = files.read(files.need(MANIFEST))
    target = oci.Descriptor(media_type=oci.document_type(data, None), digest=digest_of(data), size=len(data))
    contents = Contents(entries=[Entry(target)], made={target.digest: data})
    waiting = [(data, target.media_type)]
    while waiting:
        for _, part in oci.references(*waiting.pop()):
            if part.digest in contents.places:
                continue
            place = split_digest(part.digest)[1]
            if part.media_type in _DOCUMENTS:
                place += ".manifest.json"
                if (member := files.find(place)) is not None:
                    waiting.append((files.read(member), part.media_type))
            contents.places[part.digest] = place
    return contents
