"""What every part of a check works with: the store, what may be done to it, and how a finding comes about."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamella.config import DEFAULT_NAMESPACE
from lamella.digest import Digest
from lamella.errors import LamellaError, NotFound, PermissionDenied
from lamella.fsck.report import Finding, FindingKind, FsckReport, LeftoverKind
from lamella.fsck.sources import Sources
from lamella.logs import Log
from lamella.metadata.reachability import images_above
from lamella.reserve import with_reserve
from lamella.transfer.progress import INTERVAL

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.images import Image
    from lamella.transfer.progress import Reporter

_PAUSES = (0.05, 0.25)
"""Seconds between looks. A machine with much to do may leave somebody between two steps for longer than the first."""
_log = Log("lamella.fsck")
_T = TypeVar("_T", str, Digest, tuple[str, str], tuple[Path, Path])
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class NotMended(Exception):
    """Mending did what it could, which its text says, and something is wrong still."""


class CheckedStore:
    """The store of one check, in all its namespaces. A context manager; usable from several threads."""

    def __init__(
        self, client: Client, report: FsckReport, sources: Sources, reporter: Reporter, jobs: int
    ) -> None:
        self.config = client.config
        self.database = client.database
        self.root = client.config.root
        self.blobs = self.root / "blobs"
        self.report = report
        self.repair = report.repair
        self.sources = sources
        self.reporter = reporter
        self._jobs = max(1, jobs)
        self._clients: dict[tuple[str, str], Client] = {}
        self._open = ExitStack()

    def __enter__(self) -> CheckedStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def client(self, namespace: str, snapshotter: str | None = None) -> Client:
        """Give a client that sees a namespace, with the snapshotter of this check or another."""
        from lamella.client import Client

        config = self.config
        chosen = namespace, snapshotter or config.snapshotter
        found = self._clients.get(chosen)
        if found is None:
            found = self._open.enter_context(Client(config.root, config.state, *chosen))
            found = self._clients.setdefault(chosen, found)
        return found

    def found(
        self,
        kind: FindingKind,
        name: str,
        detail: str,
        possible: str,
        mend: Callable[[], str | None] | None = None,
    ) -> None:
        """Note what is wrong, mended if that is wanted. ``mend`` says what it did, or None where it could not."""
        self.report.findings.append(self.finding(kind, name, detail, possible, mend))

    def left(self, kind: LeftoverKind, name: str, detail: str, mend: Callable[[], str | None]) -> None:
        """Note what a killed process left."""
        possible = "lamella gc or lamella fsck --repair removes it"
        self.report.leftovers.append(self.finding(kind, name, detail, possible, mend))

    def finding(
        self,
        kind: FindingKind | LeftoverKind,
        name: str,
        detail: str,
        possible: str,
        mend: Callable[[], str | None] | None = None,
    ) -> Finding:
        """Make a finding, mended if that is wanted; it is not in the report yet."""
        finding = Finding(kind=kind, name=name, detail=detail, action=possible)
        if self.repair and mend is not None:
            try:
                done = with_reserve(self.root, mend)
            except NotMended as tried:
                finding.action = str(tried)
            except (LamellaError, OSError) as error:
                finding.action = f"{possible} (it failed: {error})"
            else:
                if done is not None:
                    finding.action, finding.mended = done, True
                    _log.info(
                        "mended %(finding)s %(content)s: %(reason)s", finding=kind, content=name, reason=done
                    )
        return finding

    def parallel(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Give the results of the check's threads, in the order of the items; what is left is dropped on an error."""
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="lamella-fsck")
        try:
            results = deque(pool.submit(work, item) for item in items)
            while results:
                first = results.popleft()
                while not wait([first], INTERVAL).done:
                    self.reporter.deliver()
                self.reporter.deliver()
                yield first.result()
        except BaseException:
            self.sources.interrupt()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def lasting(self, look: Callable[[], set[_T]]) -> list[_T]:
        """Give what is found again and again: what is being made or removed looks like damage for a moment."""
        found = look()
        for pause in _PAUSES:
            if not found:
                break
            time.sleep(pause)
            # Whoever made something has its row when the database can be written to.
            with suppress(PermissionDenied), self.database.write():
                pass
            found &= look()
        return sorted(found)

    def images_above(self, nodes: list[int], snapshotter: str | None = None) -> list[tuple[Client, Image]]:
        """Give the images that lead to nodes (:mod:`lamella.metadata.reachability`), each with a client that sees it."""
        with self.database.read() as db:
            names = images_above(db, nodes)
        images = []
        for namespace, name in names:
            try:
                client = self.client(namespace, snapshotter)
                images.append((client, client.images.get(name)))
            except NotFound:  # removed meanwhile
                continue
        return images


def pull_command(client: Client, image: Image) -> str:
    """Say how a user fetches an image."""
    namespace = client.config.namespace
    chosen = "" if namespace == DEFAULT_NAMESPACE else f"-n {namespace} "
    return f"lamella {chosen}pull {image.familiar_name}"
