"""Blobs: each is hashed; a damaged or missing one is fetched again, a file that no row names is removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lamella.content import file_digest, is_whole, unlink_blobs
from lamella.digest import HEX_LENGTHS, Digest, split_digest
from lamella.disk import names_in
from lamella.errors import LamellaError, NotFound
from lamella.fsck.report import Finding
from lamella.fsck.sources import image_sources, merged, sources_of
from lamella.fsck.store import CheckedStore, NotMended, pull_command
from lamella.labels import decode_labels
from lamella.metadata import timestamp
from lamella.metadata.reachability import condemned
from lamella.transfer.progress import Progress

_SHARE_BYTES = 1024 * 1024
_SHARE_BLOBS = 100
_IMAGES_SHOWN = 5
"""Of those that need a blob: a common layer may be in thousands."""


class _Seen(NamedTuple):
    """A row of content: a blob as one namespace sees it. ``document``: it has references, or an image points at it."""

    node: int
    namespace: str
    labels: dict[str, str]
    document: bool


class BlobCheck:
    """The blobs of one store."""

    def __init__(self, store: CheckedStore) -> None:
        self._store = store

    def run(self) -> None:
        """Hash them all, mend the bad ones, then look for files without a row."""
        store = self._store
        with store.database.read() as db:
            rows = db.execute("SELECT digest, size FROM blobs ORDER BY digest").fetchall()
        report = store.report
        report.blobs = len(rows)
        total, done = sum(size for _, size in rows), 0
        bad: list[tuple[Digest, int, str]] = []
        problems = chain.from_iterable(store.parallel(self._examine_all, _shares(rows)))
        for (digest, size), problem in zip(rows, problems, strict=True):
            done += size
            if store.reporter.due(""):
                store.reporter.say(Progress(phase="checking", received=done, size=total))
            if problem is None:
                report.bytes_hashed += size
            elif self._is_there_still(digest):
                bad.append((Digest(digest), size, problem))
        for finding, fetched in store.parallel(self._judge, bad):
            report.findings.append(finding)
            report.bytes_fetched += fetched
        self._check_orphans()

    def _examine_all(self, rows: Sequence[tuple[str, int]]) -> list[str | None]:
        return [self._examine(row) for row in rows]

    def _examine(self, row: tuple[str, int]) -> str | None:
        """Hash one blob; say what is wrong with it."""
        digest, size = Digest(row[0]), row[1]
        path = self._path(digest)
        try:
            length = path.stat().st_size
            if length != size:
                return f"it has {length} bytes instead of {size}"
            found = file_digest(path, digest)
        except FileNotFoundError:
            return "its file is gone"
        except (OSError, LamellaError) as error:
            return f"it cannot be read: {error}"
        return None if found == digest else f"its bytes have the digest {found}"

    def _is_there_still(self, digest: str) -> bool:
        with self._store.database.read() as db:
            return db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is not None

    def _judge(self, blob: tuple[Digest, int, str]) -> tuple[Finding, int]:
        """Make the finding of a bad blob, mended if that is wanted, and give the bytes that were fetched for it."""
        digest, size, detail = blob
        store = self._store
        missing = not self._path(digest).exists()
        seen = self._seen(digest)
        images = store.images_above([each.node for each in seen])
        shown = images[:_IMAGES_SHOWN]
        sources = merged(sources_of(each.labels for each in seen), *(image_sources(*pair) for pair in shown))
        if images:
            more = f" and {len(images) - len(shown)} more" if len(images) > len(shown) else ""
            named = (f"{client.config.namespace}/{image.name}" for client, image in shown)
            detail += f"; needed by {', '.join(named)}{more}"
        if sources:
            detail += f"; it came from {', '.join(source.name for source in sources)}"
        pulls = "; ".join(pull_command(client, image) for client, image in shown)
        if not seen or not self._wanted(seen):
            possible = "lamella fsck --repair forgets it: nothing refers to it"
        elif sources and store.sources.fetch:
            possible = f"lamella fsck --repair fetches it{f', or: {pulls}' if pulls else ''}"
        else:
            possible = f"fetch it: {pulls}" if pulls else "lamella fsck --repair removes it"
        fetched = 0

        def mend() -> str:
            nonlocal fetched
            if is_whole(store.database, store.blobs, digest):
                return "a pull has fetched it meanwhile"
            if not self._wanted(seen):
                self._forget(digest)
                return "forgot it: nothing refers to it"
            removed = "" if missing else "removed its bytes; "
            advice = f"; fetch it: {pulls}" if pulls else ""
            if not store.sources.fetch:
                raise NotMended(f"{removed}it was not to be fetched{advice}")
            holder = seen[0]
            try:
                source = store.sources.fetch_blob(
                    store.client(holder.namespace), digest, size, sources, document=holder.document
                )
            except NotFound as error:
                raise NotMended(f"{removed}it could not be fetched: {error.message}{advice}") from None
            fetched = size
            return f"fetched it from {source}"

        return store.finding(
            "missing-blob" if missing else "damaged-blob", digest, detail, possible, mend
        ), fetched

    def _seen(self, digest: Digest) -> list[_Seen]:
        with self._store.database.read() as db:
            return [
                _Seen(node, namespace, decode_labels(labels), bool(document))
                for node, namespace, labels, document in db.execute(
                    """
                    SELECT number * 4, namespace, labels,
                        EXISTS (SELECT 1 FROM images i WHERE i.namespace = c.namespace AND i.digest = c.digest)
                        OR EXISTS (SELECT 1 FROM gc_labels WHERE owner = number * 4 AND kind = 'content')
                    FROM content c WHERE digest = ? ORDER BY number
                    """,
                    (digest,),
                )
            ]

    def _wanted(self, seen: list[_Seen]) -> bool:
        """Tell whether anything leads to a blob, in whatever namespace."""
        nodes = [each.node for each in seen]
        with self._store.database.read() as db:
            return len(condemned(db, nodes, timestamp())) < len(nodes)

    def _forget(self, digest: Digest) -> None:
        """Delete the rows of a blob whose file is gone."""
        with self._store.database.write() as db:
            if not self._path(digest).exists():
                db.execute("DELETE FROM content WHERE digest = ?", (digest,))
                db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    # Files without a row

    def _check_orphans(self) -> None:
        store = self._store

        def orphans() -> set[Digest]:
            found = {
                Digest(f"{algorithm}:{name}")
                for algorithm, length in HEX_LENGTHS.items()
                for name in names_in(store.blobs / algorithm)
                if len(name) == length
            }
            with store.database.read() as db:
                return found - {row[0] for row in db.execute("SELECT digest FROM blobs")}

        for digest in store.lasting(orphans):
            store.left(
                "orphan-blob",
                digest,
                f"{_size(self._path(digest))} bytes that no row names",
                lambda digest=digest: self._unlink(digest),  # type: ignore[misc]
            )

    def _unlink(self, digest: Digest) -> str:
        unlink_blobs(self._store.database, self._store.blobs, [digest])
        return "removed it"

    def _path(self, digest: Digest) -> Path:
        return self._store.blobs.joinpath(*split_digest(digest))


def _shares(rows: Sequence[tuple[str, int]]) -> Iterator[Sequence[tuple[str, int]]]:
    """Cut the rows into what a thread takes at a time: one blob, or many small ones."""
    start = size = 0
    for end, row in enumerate(rows, 1):
        size += row[1]
        if size >= _SHARE_BYTES or end - start == _SHARE_BLOBS or end == len(rows):
            yield rows[start:end]
            start, size = end, 0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
