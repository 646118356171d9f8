"""A stream becomes files that can be read in any order: what is large goes into the content store as it comes by.

A stream comes once, and says what its files are for at the end only (``manifest.json``, ``index.json``). So a body is hashed
and written in the one pass that there is, under a lease, as the blob that it is; what no image turns out to need goes again
after the import. Small files stay in memory, up to a limit.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from lamella import oci
from lamella.digest import Digest, parse_digest
from lamella.disk import translated
from lamella.errors import AlreadyExists, DataLoss, InvalidArgument, Unsupported
from lamella.transfer.archives.files import Files, Memory, Table
from lamella.transfer.archives.inputs import StreamInput
from lamella.transfer.archives.tar import Member, walk
from lamella.transfer.endpoints import BlobReader
from lamella.transfer.progress import Phase, Progress, Reporter
from lamella.transfer.stored import FileReader

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.content import Ingest

SMALL = 256 * 1024
"""Bytes of a file that is kept in memory, while all of them have at most KEPT_MAX."""
KEPT_MAX = 32 * 1024 * 1024


class Stash:
    """What takes streams into the content store of a client, under a lease that the caller holds.

    ``stored`` gets the digests of what it puts there.
    """

    def __init__(self, client: Client, lease: str, reporter: Reporter, stored: list[Digest]) -> None:
        self.client = client
        self.lease = lease
        self.reporter = reporter
        self.stored = stored

    def __call__(self, archive: StreamInput) -> Files:
        """Read a stream to its end. Errors as :func:`lamella.transfer.archives.tar.walk`; DataLoss for a wrong digest."""
        return _Stashed(self, archive)


class _Stashed(Files):
    """The files of a stream that was read to its end."""

    def __init__(self, stash: Stash, archive: StreamInput) -> None:
        super().__init__()
        self._stash = stash
        self._content = stash.client.content
        self._archive = archive
        self._bodies: dict[int, bytes | Digest] = {}  # by offset: a name may come twice
        self._table = Table(self)
        kept = 0
        for member in walk(archive):
            if member.kind == "file":
                small = member.size <= SMALL and kept + member.size <= KEPT_MAX
                body = self._archive.read(member.size) if small else self._store(member)
                kept += member.size if small else 0
                if body is None:
                    continue
                self._bodies[member.offset] = body
            self._table.add(member)

    def look(self, name: str) -> Member | None:
        """Look into the table."""
        return self._table.get(name)

    def reader(self, member: Member, offset: int) -> BlobReader:
        """Read from memory or from the content store."""
        body = self._bodies[member.offset]
        if isinstance(body, bytes):
            return Memory(body, offset)
        return FileReader(self._content.open(body), _describe(member, body), offset)

    def digest(self, member: Member, algorithm: str = "sha256") -> Digest:
        """Give the digest, which is known where the body was stored."""
        body = self._bodies[member.offset]
        if isinstance(body, str) and body.startswith(f"{algorithm}:"):
            return body
        return super().digest(member, algorithm)

    def _store(self, member: Member) -> Digest | None:
        """Make a body a blob; None for one whose name is a digest of an unknown kind, which nothing can ask for."""
        try:
            expected = blob_digest(member.name)
        except (InvalidArgument, Unsupported):
            return None
        if expected is not None and self._is_here(member, expected):
            return expected
        stash = self._stash
        try:
            ingest = self._content.writer(
                f"archive-{expected or os.urandom(16).hex()}",
                size=member.size,
                digest=expected,
                wait=True,
                waiting=stash.reporter.deliver,
                shared=expected is not None,
            )
        except AlreadyExists:
            assert expected is not None
            return expected
        try:
            ingest.truncate(0)
            found = self._write(member, ingest, expected)
            stash.client.leases.add(stash.lease, "content", found)
            stash.stored.append(found)
            with suppress(AlreadyExists):
                ingest.commit(size=member.size, digest=found, verified=found)
        finally:
            ingest.discard()  # nothing, after a commit; a stream cannot go on where it stopped
            ingest.close()
        return found

    def _is_here(self, member: Member, digest: Digest) -> bool:
        """Say whether the store has the blob, from now on for this namespace too."""
        self._stash.client.leases.add(self._stash.lease, "content", digest)
        if not self._content.exists(digest):
            return False
        self._stash.stored.append(digest)
        if self._content.adopt(digest).size != member.size:
            raise DataLoss(f"{member.name!r} in the archive has another size than the blob of that digest")
        return True

    def _write(self, member: Member, ingest: Ingest, expected: Digest | None) -> Digest:
        """Hash and write the body in one pass. DataLoss when it is not what its name says, or ends early."""
        algorithm = expected.partition(":")[0] if expected else "sha256"
        hasher = hashlib.new(algorithm)
        reporter, left = self._stash.reporter, member.size
        self._report(member, expected, 0)
        with translated(f"write {member.name!r} of the archive"), ingest.data_path.open("r+b", 0) as file:
            while left:
                data = self._archive.some(left)
                if not data:
                    raise self._ends(member)
                left -= len(data)
                hasher.update(data)
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                if reporter.due(expected or member.name):
                    self._report(member, expected, member.size - left)
        found = Digest(f"{algorithm}:{hasher.hexdigest()}")
        if expected not in (None, found):
            raise DataLoss(
                f"{member.name!r} in the archive has the digest {found}", hint="Make or copy it once more."
            )
        self._report(member, expected, member.size, "done")
        reporter.rename(member.name, found)
        return found

    def _report(
        self, member: Member, expected: Digest | None, received: int, phase: Phase = "reading"
    ) -> None:
        """Report a blob under its digest, or, before that is known, under its name in the archive."""
        self._stash.reporter.say(
            Progress(phase=phase, digest=expected or member.name, received=received, size=member.size)
        )

    def _ends(self, member: Member) -> DataLoss:
        return DataLoss(
            f"the archive ends too early: within {member.name[:200]!r}", hint="Make or copy it once more."
        )


def blob_digest(name: str) -> Digest | None:
    """Read the digest that ``blobs/<algorithm>/<hex>`` says; None for another name. Errors as :func:`parse_digest`."""
    folder, _, rest = name.partition("/")
    algorithm, slash, encoded = rest.partition("/")
    return parse_digest(f"{algorithm}:{encoded}") if folder == "blobs" and slash else None


def _describe(member: Member, digest: Digest) -> oci.Descriptor:
    return oci.Descriptor(media_type="application/octet-stream", digest=digest, size=member.size)
