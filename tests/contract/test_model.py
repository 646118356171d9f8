"""Random sequences of operations against a small model in memory: content, ingests, snapshots, leases, collection."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lamella.digest import digest_of
from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    Unavailable,
)
from stores import Store

ROOT = "containerd.io/gc.root"
NAMESPACES = ("default", "other")
BLOBS = [b"", b"one", b"two", b"three", b"four" * 1000]
DIGESTS = [digest_of(data) for data in BLOBS]
KEYS = ["a", "b", "c", "d", "e"]

namespaces = st.sampled_from(NAMESPACES)
keys = st.sampled_from(KEYS)
parents = st.sampled_from(["", *KEYS])
blobs = st.sampled_from(range(len(BLOBS)))
labels = st.dictionaries(
    st.sampled_from(
        [
            ROOT,
            "plain",
            "containerd.io/gc.ref.content.x",
            "containerd.io/gc.ref.snapshot.overlayfs",
            "containerd.io/gc.ref.snapshot.native",
            "containerd.io/gc.bref.content.x",
            "containerd.io/gc.bref.snapshot.overlayfs",
            "containerd.io/gc.bref.snapshot.native",
        ]
    ),
    st.sampled_from(["", *DIGESTS[:3], *KEYS[:3]]),
    max_size=2,
)
PROFILE = settings(max_examples=25, stateful_step_count=40, suppress_health_check=list(HealthCheck))


def clean(given: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in given.items() if value}


class Machine(RuleBasedStateMachine):
    snapshotter = "overlayfs"
    """What others' labels and leases name is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="lamella-model-")
        root = Path(self.folder.name, "root")
        self.stores = {name: Store(root, name, self.snapshotter) for name in NAMESPACES}
        self.any = self.stores["default"]

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        self.folder.cleanup()

    def expect(self, errors: set[type[LamellaError]], action) -> bool:
        """Run ``action``; it must raise one of ``errors``, or none if there are none. Say whether it succeeded."""
        if not errors:
            action()
            return True
        with pytest.raises(LamellaError) as caught:
            action()
        assert type(caught.value) in errors, (caught.value, errors)
        return False


class GraphMachine(Machine):
    """Content, snapshots, leases and images of two namespaces, and what of them garbage collection takes."""

    def __init__(self) -> None:
        super().__init__()
        self.content: dict[tuple[str, str], dict[str, str]] = {}
        self.present: set[str] = set()
        self.snapshots: dict[tuple[str, str], tuple[str, str, dict[str, str]]] = {}  # kind, parent, labels
        self.images: dict[tuple[str, str], str] = {}
        self.leases: dict[tuple[str, str], tuple[bool, set[tuple[str, str]]]] = {}  # flat, resources

    # Content

    @rule(namespace=namespaces, blob=blobs, given=labels)
    def write(self, namespace, blob, given):
        digest = DIGESTS[blob]
        self.stores[namespace].content.write(
            "ref", BLOBS[blob], digest=digest, size=len(BLOBS[blob]), labels=given
        )
        known = self.content.get((namespace, digest), {})
        self.content[namespace, digest] = clean({**known, **given})
        self.present.add(digest)

    @rule(namespace=namespaces, blob=blobs, given=labels)
    def adopt(self, namespace, blob, given):
        digest = DIGESTS[blob]
        there = digest in self.present
        adopt = self.stores[namespace].content.adopt
        if self.expect(set() if there else {NotFound}, lambda: adopt(digest, given)):
            known = self.content.get((namespace, digest), {})
            self.content[namespace, digest] = clean({**known, **given})

    @rule(namespace=namespaces, blob=blobs, given=labels)
    def label(self, namespace, blob, given):
        key = (namespace, DIGESTS[blob])
        update = self.stores[namespace].content.update_labels
        if self.expect(set() if key in self.content else {NotFound}, lambda: update(key[1], given)):
            self.content[key] = clean({**self.content[key], **given})

    @rule(namespace=namespaces, blob=blobs)
    def delete(self, namespace, blob):
        key = (namespace, DIGESTS[blob])
        delete = self.stores[namespace].content.delete
        if self.expect(set() if key in self.content else {NotFound}, lambda: delete(key[1])):
            del self.content[key]
            self.drop_unused_blobs({key[1]})

    def drop_unused_blobs(self, digests):
        """A blob goes with its last content row, unless a lease of any namespace names it."""
        used = {name for _, name in self.content}
        used |= {name for _, resources in self.leases.values() for _, name in resources}
        self.present -= digests - used

    # Snapshots

    @rule(
        namespace=namespaces, key=keys, parent=parents, given=labels, kind=st.sampled_from(["active", "view"])
    )
    def create(self, namespace, key, parent, given, kind):
        errors: set[type[LamellaError]] = set()
        if (namespace, key) in self.snapshots:
            errors.add(AlreadyExists)
        elif parent and (namespace, parent) not in self.snapshots:
            errors.add(NotFound)
        elif parent and self.snapshots[namespace, parent][0] != "committed":
            errors.add(InvalidArgument)
        snapshots = self.stores[namespace].snapshots
        method = snapshots.prepare if kind == "active" else snapshots.view
        if self.expect(errors, lambda: method(key, parent, given)):
            self.snapshots[namespace, key] = (kind, parent, clean(given))

    @rule(namespace=namespaces, name=keys, key=keys, given=labels)
    def commit(self, namespace, name, key, given):
        errors: set[type[LamellaError]] = set()
        if (namespace, name) in self.snapshots:
            errors.add(AlreadyExists)
        elif (namespace, key) not in self.snapshots:
            errors.add(NotFound)
        elif self.snapshots[namespace, key][0] != "active":
            errors.add(FailedPrecondition)
        commit = self.stores[namespace].snapshots.commit
        if self.expect(errors, lambda: commit(name, key, given)):
            _, parent, _ = self.snapshots.pop((namespace, key))
            self.snapshots[namespace, name] = ("committed", parent, clean(given))

    @rule(namespace=namespaces, key=keys)
    def remove(self, namespace, key):
        errors: set[type[LamellaError]] = set()
        if (namespace, key) not in self.snapshots:
            errors.add(NotFound)
        elif any(space == namespace and each[1] == key for (space, _), each in self.snapshots.items()):
            errors.add(FailedPrecondition)
        remove = self.stores[namespace].snapshots.remove
        if self.expect(errors, lambda: remove(key)):
            del self.snapshots[namespace, key]

    @rule(namespace=namespaces, key=keys, given=labels)
    def update(self, namespace, key, given):
        errors = set() if (namespace, key) in self.snapshots else {NotFound}
        update = self.stores[namespace].snapshots.update
        if self.expect(errors, lambda: update(key, given)):
            kind, parent, before = self.snapshots[namespace, key]
            self.snapshots[namespace, key] = (kind, parent, clean({**before, **given}))

    @rule(namespace=namespaces, key=keys)
    def mounts(self, namespace, key):
        errors: set[type[LamellaError]] = set()
        if (namespace, key) not in self.snapshots:
            errors.add(NotFound)
        elif self.snapshots[namespace, key][0] == "committed":
            errors.add(FailedPrecondition)
        self.expect(errors, lambda: self.stores[namespace].snapshots.mounts(key))

    # Roots

    @rule(namespace=namespaces, name=keys, blob=blobs)
    def add_image(self, namespace, name, blob):
        if (namespace, name) not in self.images:
            self.stores[namespace].image(name, DIGESTS[blob])
            self.images[namespace, name] = DIGESTS[blob]

    @rule(namespace=namespaces, name=keys)
    def remove_image(self, namespace, name):
        self.stores[namespace].remove_image(name)
        self.images.pop((namespace, name), None)

    @rule(namespace=namespaces, name=keys, flat=st.booleans())
    def create_lease(self, namespace, name, flat):
        errors = {AlreadyExists} if (namespace, name) in self.leases else set()
        given = {"containerd.io/gc.flat": "x"} if flat else {}
        create = self.stores[namespace].leases.create
        if self.expect(errors, lambda: create(name, labels=given)):
            self.leases[namespace, name] = (flat, set())

    @rule(
        namespace=namespaces,
        name=keys,
        resource=st.one_of(
            st.tuples(st.just("content"), st.sampled_from(DIGESTS)),
            st.tuples(st.sampled_from(["snapshots/overlayfs", "snapshots/native"]), keys),
        ),
    )
    def add_resource(self, namespace, name, resource):
        errors = set() if (namespace, name) in self.leases else {NotFound}
        add = self.stores[namespace].leases.add
        if self.expect(errors, lambda: add(name, *resource)):
            self.leases[namespace, name][1].add(resource)

    @rule(namespace=namespaces, name=keys)
    def delete_lease(self, namespace, name):
        errors = set() if (namespace, name) in self.leases else {NotFound}
        delete = self.stores[namespace].leases.delete
        if self.expect(errors, lambda: delete(name)):
            del self.leases[namespace, name]

    # Collection

    def reachable(self) -> set[tuple[str, str, str]]:
        """Give (namespace, "content" or "snapshot", name) of all that is kept, the plain way."""
        nodes = {(space, "content", name): given for (space, name), given in self.content.items()}
        nodes |= {(space, "snapshot", name): each[2] for (space, name), each in self.snapshots.items()}
        edges: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {node: set() for node in nodes}
        for node, given in nodes.items():
            space = node[0]
            for label, kind in (("content.x", "content"), (f"snapshot.{self.snapshotter}", "snapshot")):
                if f"containerd.io/gc.ref.{label}" in given:
                    edges[node].add((space, kind, given[f"containerd.io/gc.ref.{label}"]))
                back = (space, kind, given.get(f"containerd.io/gc.bref.{label}", ""))
                if back in edges:
                    edges[back].add(node)
        for (space, name), (_, parent, _) in self.snapshots.items():
            if parent:
                edges[space, "snapshot", name].add((space, "snapshot", parent))
        roots = {node for node, given in nodes.items() if ROOT in given}
        roots |= {
            (space, "snapshot", name) for (space, name), each in self.snapshots.items() if each[0] == "active"
        }
        roots |= {(space, "content", digest) for (space, _), digest in self.images.items()}
        flat_roots = set()
        for (space, _), (flat, resources) in self.leases.items():
            for kind, name in resources:
                if kind not in ("content", f"snapshots/{self.snapshotter}"):
                    continue
                (flat_roots if flat else roots).add((space, kind.partition("/")[0].removesuffix("s"), name))
        found: set[tuple[str, str, str]] = set()
        todo = [node for node in roots if node in nodes]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += [each for each in edges[node] if each in nodes]
        todo = [node for node in flat_roots if node in nodes]
        while todo:
            node = todo.pop()
            found.add(node)
            if node[1] == "snapshot" and (parent := self.snapshots[node[0], node[2]][1]):
                todo.append((node[0], "snapshot", parent))
        return found

    @rule()
    def collect(self):
        preview, report = self.any.gc(dry_run=True), self.any.gc()
        assert sorted(preview.names) == sorted(report.names)
        kept = self.reachable()
        gone = {key for key in self.content if (key[0], "content", key[1]) not in kept}
        assert report.content == len(gone)
        for key in gone:
            del self.content[key]
        self.drop_unused_blobs(set(DIGESTS))
        gone = {key for key in self.snapshots if (key[0], "snapshot", key[1]) not in kept}
        assert report.snapshots == len(gone)
        for key in gone:
            del self.snapshots[key]
        self.any.check(clean=True)

    @invariant()
    def the_store_is_as_the_model_says(self):
        assert {digest for digest in DIGESTS if self.any.content.exists(digest)} == self.present
        for namespace, store in self.stores.items():
            assert {info.digest: info.labels for info in store.content.walk()} == {
                name: given for (space, name), given in self.content.items() if space == namespace
            }
            assert {info.name: (info.kind, info.parent, info.labels) for info in store.snapshots.walk()} == {
                name: each for (space, name), each in self.snapshots.items() if space == namespace
            }
        self.any.check(clean=True)


class IngestMachine(Machine):
    """Ingests of one namespace: two writers who take turns, give up, come back."""

    TEXT = b"0123456789" * 3
    TARGET = digest_of(TEXT)
    refs = st.sampled_from(["r", "s"])

    @initialize()
    def start(self) -> None:
        self.data: dict[str, bytes] = {}
        self.expected: dict[str, tuple[int, str]] = {}
        self.open: dict[str, object] = {}
        self.present = False

    @rule(
        ref=refs,
        size=st.sampled_from([0, len(TEXT), 17]),
        digest=st.sampled_from([None, TARGET, DIGESTS[1]]),
    )
    def writer(self, ref, size, digest):
        errors: set[type[LamellaError]] = set()
        if digest == self.TARGET and self.present:
            errors.add(AlreadyExists)
        elif ref in self.open:
            errors.add(Unavailable)
        opened = []
        writer = self.any.content.writer
        if not self.expect(errors, lambda: opened.append(writer(ref, size=size, digest=digest))):
            return
        self.open[ref] = opened[0]
        known_size, known_digest = self.expected.get(ref, (0, ""))
        total, expected = size or known_size, digest or ""
        if (
            ref not in self.expected
            or (known_size and total != known_size)
            or (known_digest and expected and expected != known_digest)
            or (total and len(self.data[ref]) > total)
        ):
            self.data[ref] = b""
            total, expected = size, digest or ""
        self.expected[ref] = (total, expected)
        assert opened[0].offset == len(self.data[ref])

    @rule(ref=refs, count=st.integers(0, 12), right=st.booleans())
    def write(self, ref, count, right):
        ingest = self.open.get(ref)
        if ingest is None:
            return
        at = len(self.data[ref])
        piece = self.TEXT[at : at + count] if right else b"x" * count
        total = self.expected[ref][0]
        errors = {FailedPrecondition} if total and at + len(piece) > total else set()
        if self.expect(errors, lambda: ingest.write(piece)):
            self.data[ref] += piece

    @rule(ref=refs, size=st.integers(0, 40))
    def truncate(self, ref, size):
        ingest = self.open.get(ref)
        if ingest is None:
            return
        errors = {InvalidArgument} if size > len(self.data[ref]) else set()
        if self.expect(errors, lambda: ingest.truncate(size)):
            self.data[ref] = self.data[ref][:size]

    @rule(ref=refs)
    def close(self, ref):
        ingest = self.open.pop(ref, None)
        if ingest is not None:
            ingest.close()

    @rule(ref=refs)
    def discard(self, ref):
        ingest = self.open.pop(ref, None)
        if ingest is not None:
            ingest.discard()
            del self.data[ref], self.expected[ref]

    @rule(ref=refs)
    def abort(self, ref):
        errors: set[type[LamellaError]] = set()
        if ref not in self.expected:
            errors.add(NotFound)
        elif ref in self.open:
            errors.add(Unavailable)
        if self.expect(errors, lambda: self.any.content.abort(ref)):
            del self.data[ref], self.expected[ref]

    @rule(ref=refs, size=st.sampled_from([0, len(TEXT)]), digest=st.sampled_from([TARGET, DIGESTS[1]]))
    def commit(self, ref, size, digest):
        ingest = self.open.get(ref)
        if ingest is None:
            return
        data, (total, expected) = self.data[ref], self.expected[ref]
        found = digest_of(data)
        errors: set[type[LamellaError]] = set()
        if (size or total) not in (0, len(data)) or found != digest or (expected and expected != digest):
            errors.add(FailedPrecondition)
        elif found == self.TARGET and self.present:
            errors.add(AlreadyExists)
        succeeded = self.expect(errors, lambda: ingest.commit(size=size, digest=digest))
        if succeeded and found == self.TARGET:
            self.present = True
        elif succeeded:
            self.any.content.delete(found)
        if succeeded or AlreadyExists in errors:
            del self.open[ref], self.data[ref], self.expected[ref]

    @rule()
    def delete(self):
        if self.expect(set() if self.present else {NotFound}, lambda: self.any.content.delete(self.TARGET)):
            self.present = False

    @rule(fresh=st.booleans())
    def collect(self, fresh):
        self.any.gc(ingest_seconds=3600 if fresh else 0)
        self.present = False
        for ref in () if fresh else [ref for ref in self.expected if ref not in self.open]:
            del self.data[ref], self.expected[ref]

    @invariant()
    def the_store_is_as_the_model_says(self):
        statuses = {status.ref: status for status in self.any.content.ingests()}
        assert {ref: (each.offset, each.total, each.expected) for ref, each in statuses.items()} == {
            ref: (len(self.data[ref]), *self.expected[ref]) for ref in self.expected
        }
        assert self.any.content.exists(self.TARGET) == self.present
        self.any.check()

    def teardown(self) -> None:
        for ingest in self.open.values():
            with suppress(LamellaError):
                ingest.close()
        super().teardown()


class NativeGraphMachine(GraphMachine):
    snapshotter = "native"


GraphMachine.TestCase.settings = PROFILE
NativeGraphMachine.TestCase.settings = PROFILE
IngestMachine.TestCase.settings = PROFILE
TestGraph = GraphMachine.TestCase
TestNativeGraph = NativeGraphMachine.TestCase
TestIngests = IngestMachine.TestCase
