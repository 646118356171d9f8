"""Garbage collection: what is kept and why, what goes, what a dry run says, what others may do meanwhile."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lamella import gc
from lamella.digest import Digest, digest_of
from lamella.errors import PermissionDenied
from lamella.gc import GcReport
from lamella.labels import encode_labels
from lamella.locks import FileLock
from lamella.metadata import database
from stores import Store
from waiting import until

ROOT = {"containerd.io/gc.root": "x"}
PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


def kept(store: Store) -> set[str]:
    """Collect, and give the names of what is still there: the text of blobs and the names of snapshots."""
    preview = store.gc(dry_run=True)
    report = store.gc()
    assert counts(preview) == counts(report)
    assert sorted(preview.names) == sorted(report.names)
    store.check(clean=True)
    assert counts(store.gc()) == counts(GcReport(dry_run=False))
    return {store.content.read(info.digest).decode() for info in store.content.walk()} | {
        info.name for info in store.snapshots.walk()
    }


def counts(report: GcReport) -> dict[str, int]:
    return {
        field: getattr(report, field)
        for field in GcReport.__struct_fields__
        if field not in ("dry_run", "names", "times")
    }


def refs(*digests: str) -> dict[str, str]:
    return {f"containerd.io/gc.ref.content.l.{number}": digest for number, digest in enumerate(digests)}


@pytest.fixture
def pulled(store: Store) -> Digest:
    """A manifest with a config and two layers, unpacked and recorded as pull does; give the manifest's digest."""
    chain = store.stack("chain", {"a": "1"}, {"b": "2"})
    config = store.put(b"config", {"containerd.io/gc.ref.snapshot.overlayfs": chain})
    layers = [store.put(b"layer 0"), store.put(b"layer 1")]
    manifest = store.put(b"manifest", {"containerd.io/gc.ref.content.config": config, **refs(*layers)})
    index = store.put(b"index", {"containerd.io/gc.ref.content.m.0": manifest})
    store.image("nginx", index)
    return manifest


ALL = {"index", "manifest", "config", "layer 0", "layer 1", "chain-0", "chain-1"}


class TestRoots:
    def test_nothing_goes_from_a_store_in_use(self, store, pulled):
        assert kept(store) == ALL

    def test_an_image_keeps_what_its_target_leads_to_and_nothing_else(self, store, pulled):
        store.put(b"other")
        store.stack("other", {}, {})
        assert kept(store) == ALL

    def test_without_the_image_all_of_it_goes(self, store, pulled):
        store.remove_image("nginx")
        report = store.gc(dry_run=True)
        assert (report.content, report.blobs, report.snapshots, report.layers) == (5, 5, 2, 2)
        assert report.bytes_freed == len("indexmanifestconfiglayer 0layer 1") + 2 * 4096
        assert kept(store) == set()
        assert store.layer_folders() == set()

    def test_an_image_whose_target_is_not_here_harms_nobody(self, store):
        store.image("nginx", digest_of(b"absent"))
        store.put(b"other")
        assert kept(store) == set()

    def test_two_images_share_layers(self, store, pulled):
        layer = digest_of(b"layer 0")
        other = store.put(b"other manifest", refs(layer))
        store.image("other", other)
        store.remove_image("nginx")
        assert kept(store) == {"other manifest", "layer 0"}

    @pytest.mark.parametrize(
        ("labels", "stays"),
        [
            ({"containerd.io/gc.expire": PAST}, False),
            ({"containerd.io/gc.expire": FUTURE}, True),
            ({"containerd.io/gc.expire": "2999-01-01T00:00:00+01:00"}, True),
            ({"containerd.io/gc.expire": "soon"}, True),
        ],
    )
    def test_an_image_is_a_root_until_it_expires(self, store, labels, stays):
        store.image("nginx", store.put(b"manifest"), encode_labels(labels))
        assert store.gc(dry_run=True).images == (0 if stays else 1)
        assert kept(store) == ({"manifest"} if stays else set())
        with store.database.read() as db:
            assert (db.execute("SELECT name FROM images").fetchone() is not None) == stays

    def test_a_container_keeps_its_snapshot_and_not_its_image(self, store, pulled):
        store.snapshots.prepare("box", "chain-1")
        store.container("box", "box")
        store.remove_image("nginx")
        assert kept(store) == {"chain-0", "chain-1", "box"}
        store.snapshots.commit("frozen", "box")
        store.snapshots.view("view", "frozen")
        with store.database.write() as db:
            db.execute("UPDATE containers SET snapshot_key = 'view'")
        assert kept(store) == {"chain-0", "chain-1", "frozen", "view"}
        with store.database.write() as db:
            db.execute("DELETE FROM containers")
        assert kept(store) == set()

    def test_labels_of_a_container_lead_on(self, store):
        store.container("box", "")
        with store.database.write() as db:
            db.execute("UPDATE containers SET labels = ?", (encode_labels(refs(store.put(b"checkpoint"))),))
        assert kept(store) == {"checkpoint"}

    def test_an_active_snapshot_is_a_root_a_view_is_not(self, store):
        parent = store.stack("chain", {}, {})
        store.snapshots.prepare("active", parent)
        store.snapshots.view("view", "chain-0")
        store.snapshots.view("alone")
        assert kept(store) == {"chain-0", "chain-1", "active"}

    def test_what_is_marked_as_root_stays(self, store):
        store.put(b"content", {**ROOT, **refs(store.put(b"leads to"))})
        store.put(b"other")
        store.snapshots.view("view", store.stack("chain", {}), ROOT)
        store.snapshots.view("other view", "chain-0")
        assert kept(store) == {"content", "leads to", "chain-0", "view"}

    @pytest.mark.parametrize(("end", "stays"), [(PAST, False), (FUTURE, True)])
    def test_a_mark_may_expire(self, store, end, stays):
        store.put(b"content", {**ROOT, "containerd.io/gc.expire": end})
        assert kept(store) == ({"content"} if stays else set())

    def test_a_mark_that_is_taken_away_counts_no_more(self, store):
        digest = store.put(b"content", ROOT)
        store.content.update_labels(digest, {"containerd.io/gc.root": ""})
        assert kept(store) == set()

    def test_snapshots_lead_to_content_and_snapshots(self, store):
        chain = store.stack("chain", {}, {})
        labels = {
            "containerd.io/gc.ref.content": store.put(b"content"),
            "containerd.io/gc.ref.snapshot.overlayfs/a": chain,
            "containerd.io/gc.ref.snapshot.native": "chain-1",
        }
        store.snapshots.prepare("active", "", labels)
        assert kept(store) == {"active", "content", "chain-0", "chain-1"}
        store.snapshots.update("active", dict.fromkeys(labels, ""))
        assert kept(store) == {"active"}

    def test_references_in_a_circle_keep_nothing_by_themselves(self, store):
        one, two = store.put(b"one"), store.put(b"two")
        store.content.update_labels(one, refs(two))
        store.content.update_labels(two, refs(one))
        store.content.update_labels(two, {"containerd.io/gc.ref.content.self": two})
        store.image("nginx", one)
        assert kept(store) == {"one", "two"}
        store.remove_image("nginx")
        assert kept(store) == set()

    def test_back_references_keep_their_owner_while_what_they_name_is_kept(self, store, pulled):
        store.put(b"by content", {"containerd.io/gc.bref.content.x": pulled})
        store.put(b"by snapshot", {"containerd.io/gc.bref.snapshot.overlayfs": "chain-0"})
        store.put(b"by image", {"containerd.io/gc.bref.image.x": "nginx", **refs(store.put(b"and so on"))})
        store.put(b"by container", {"containerd.io/gc.bref.container": "box"})
        store.put(b"by nobody", {"containerd.io/gc.bref.image.x": "apache"})
        store.snapshots.view("view", "chain-0", {"containerd.io/gc.bref.content": digest_of(b"by content")})
        store.container("box", "")
        more = {"by content", "by snapshot", "by image", "by container", "and so on", "view"}
        assert kept(store) == ALL | more
        store.remove_image("nginx")
        assert kept(store) == {"by container"}

    def test_namespaces_have_roots_of_their_own_and_share_blobs(self, store, pulled, open_store):
        other = open_store("other")
        layer = digest_of(b"layer 0")
        other.content.adopt(layer, ROOT)
        other.put(b"manifest", {**ROOT, **refs(digest_of(b"config"))})
        other.snapshots.add_committed(
            "mine", "", store.layers.find("overlayfs", layer_of(store, "chain-0")), ROOT
        )
        store.remove_image("nginx")
        report = store.gc(dry_run=True)
        assert (report.content, report.blobs, report.snapshots, report.layers) == (5, 3, 2, 1)
        assert kept(store) == set()
        assert kept(other) == {"layer 0", "manifest", "mine"}


def layer_of(store: Store, name: str) -> str:
    """Give the diffID of a snapshot's layer."""
    with store.database.read() as db:
        query = "SELECT diff_id FROM snapshots s JOIN layers l ON l.id = s.layer WHERE s.name = ?"
        return str(db.execute(query, (name,)).fetchone()[0])


class TestLeases:
    def test_a_lease_keeps_what_it_names_and_what_that_leads_to(self, store, pulled):
        store.remove_image("nginx")
        store.leases.create("mine")
        store.leases.add("mine", "content", pulled)
        assert kept(store) == ALL - {"index"}
        store.leases.delete("mine")
        assert kept(store) == set()

    def test_a_lease_on_a_snapshot_keeps_its_parents(self, store, pulled):
        store.remove_image("nginx")
        store.leases.create("mine")
        store.leases.add("mine", "snapshots/overlayfs", "chain-1")
        assert kept(store) == {"chain-0", "chain-1"}

    def test_a_flat_lease_keeps_only_what_it_names(self, store, pulled):
        store.remove_image("nginx")
        store.leases.create("mine", labels={"containerd.io/gc.flat": "x"})
        store.leases.add_all("mine", [("content", pulled), ("snapshots/overlayfs", "chain-1")])
        assert kept(store) == {"manifest", "chain-0", "chain-1"}

    def test_a_lease_of_another_namespace_keeps_the_blob_and_not_its_row(self, store, pulled, open_store):
        """So that its owner, who found it in the store, can still adopt it."""
        other = open_store("other")
        store.remove_image("nginx")
        other.leases.create("mine")
        other.leases.add("mine", "content", pulled)
        other.leases.add("mine", "snapshots/overlayfs", "chain-1")
        assert store.gc(dry_run=True).blobs == 4
        assert kept(store) == set()
        assert other.content.exists(pulled)
        other.leases.create("gone", labels={"containerd.io/gc.expire": PAST})
        other.leases.add("gone", "content", pulled)
        other.leases.delete("mine")
        assert store.gc(dry_run=True).blobs == 1
        assert kept(store) == set()
        assert not other.content.exists(pulled)

    def test_a_blob_that_is_deleted_while_a_lease_names_it_can_be_adopted(self, store, open_store):
        other = open_store("other")
        digest = store.put(b"x")
        with other.leases.hold() as lease:
            other.leases.add(lease.id, "content", digest)
            store.content.delete(digest)
            assert other.content.exists(digest)
            other.content.adopt(digest, ROOT)
        assert kept(other) == {"x"}

    def test_an_expired_lease_keeps_nothing_and_goes(self, store, pulled):
        store.remove_image("nginx")
        store.leases.create("mine", labels={"containerd.io/gc.expire": PAST})
        store.leases.add("mine", "content", pulled)
        assert store.gc(dry_run=True).leases == 1
        assert len(store.leases.list()) == 1
        assert kept(store) == set()
        assert store.leases.list() == []

    def test_a_lease_may_name_what_comes_later(self, store):
        store.leases.create("mine")
        store.leases.add("mine", "content", digest_of(b"later"))
        store.leases.add("mine", "snapshots/overlayfs", "later too")
        store.gc()
        store.put(b"later")
        store.snapshots.view("later too")
        assert kept(store) == {"later", "later too"}

    def test_a_lease_keeps_an_image_that_has_expired(self, store):
        store.image("nginx", store.put(b"manifest"), encode_labels({"containerd.io/gc.expire": PAST}))
        store.leases.create("mine")
        store.leases.add("mine", "images", "nginx")
        assert kept(store) == {"manifest"}
        store.leases.delete("mine")
        assert kept(store) == set()

    def test_a_lease_keeps_unpacked_layers_that_no_snapshot_has_yet(self, store):
        layer = store.layer({"a": "1"})
        store.leases.create("mine")
        store.leases.add("mine", "layers", layer.diff_id)
        assert kept(store) == set()
        assert layer.path.is_dir()
        store.leases.delete("mine")
        assert kept(store) == set()
        assert not layer.path.exists()


class TestDisk:
    def test_an_unfinished_ingest_stays_for_a_day(self, store):
        with store.content.writer("ref") as ingest:
            ingest.write(b"x" * 1000)
            folder = ingest.data_path.parent
        assert store.gc().ingests == 0
        for path in (ingest.data_path, folder / "ref.json", folder / "lock", folder):
            os.utime(path, (time.time() - 23 * 3600,) * 2)
        assert store.gc().ingests == 0
        for path in (ingest.data_path, folder / "ref.json", folder):
            os.utime(path, (time.time() - 25 * 3600,) * 2)
        preview = store.gc(dry_run=True)
        assert (preview.ingests, preview.bytes_freed, preview.names) == (1, 1000, ["ingest ref"])
        assert folder.exists()
        assert counts(store.gc()) == counts(preview)
        store.check(clean=True)

    def test_an_ingest_that_is_written_or_leased_stays(self, store):
        with store.content.writer("open") as ingest:
            ingest.write(b"x")
            assert store.gc(ingest_seconds=0).ingests == 0
            assert store.gc(dry_run=True, ingest_seconds=0).ingests == 0
        store.leases.create("mine")
        store.leases.add("mine", "ingests", "open")
        assert store.gc(ingest_seconds=0).ingests == 0
        store.leases.delete("mine")
        assert store.gc(ingest_seconds=0).ingests == 1

    def test_an_ingest_that_is_made_while_it_is_looked_at_stays(self, store, monkeypatch):
        with store.content.writer("ref") as ingest:
            record = ingest.data_path.parent / "ref.json"
        text = record.read_bytes()
        record.unlink()
        look = gc.is_locked

        def meanwhile(path):
            record.write_bytes(text)
            return look(path)

        monkeypatch.setattr(gc, "is_locked", meanwhile)
        assert store.gc().ingests == 0
        assert store.content.status("ref").ref == "ref"

    def test_an_ingest_without_a_record_goes_at_once(self, store):
        (store.root / "ingest" / "x").mkdir(parents=True)
        assert store.gc(dry_run=True).ingests == 1
        assert store.gc().ingests == 1
        store.check(clean=True)

    def test_a_dry_run_passes_over_what_others_remove_meanwhile(self, store, monkeypatch):
        store.put(b"kept", {"containerd.io/gc.root": "x"})
        orphan = store.root / "blobs" / "sha256" / ("0" * 64)
        names_in = gc.names_in

        def slow(folder):
            names = names_in(folder)
            return [*names, orphan.name] if folder == orphan.parent else names

        monkeypatch.setattr(gc, "names_in", slow)
        assert store.gc(dry_run=True).orphans == 0

    def test_an_ingest_that_is_being_opened_stays(self, store):
        lock = FileLock(store.root / "ingest" / "x" / "lock", what="x")
        with lock:
            assert store.gc().ingests == 0
            assert lock.path.exists()

    def test_files_that_no_row_names_go(self, store, pulled):
        orphan = store.root / "blobs" / "sha256" / ("0" * 64)
        orphan.write_bytes(b"x" * 10)
        (store.root / "blobs" / "sha512").mkdir()
        (store.root / "blobs" / "sha512" / ("1" * 128)).write_bytes(b"x")
        trash = store.root / "ingest" / "trash-0123"
        trash.write_bytes(b"x" * 5)
        folders = store.root / "snapshots" / "overlayfs"
        for name in ("0123456789abcdef", "trash-fedcba9876543210"):
            (folders / name / "fs").mkdir(parents=True)
            (folders / name / "fs" / "file").write_text("x")
        (store.root / "snapshots" / "gone-snapshotter" / ("0" * 16)).mkdir(parents=True)
        preview = store.gc(dry_run=True)
        assert preview.orphans == 6
        assert orphan.exists()
        assert kept(store) == ALL
        assert list((store.root / "snapshots" / "gone-snapshotter").iterdir()) == []

    def test_strange_files_in_blobs_are_left_alone(self, store):
        store.put(b"x", ROOT)
        strange = store.root / "blobs" / "sha256" / "README"
        strange.write_text("mine")
        assert store.gc().orphans == 0
        assert strange.exists()

    def test_lock_files_of_the_dead_go_and_of_the_living_stay(self, store):
        dead = store.root / "locks" / "layer-overlayfs-sha256-0"
        dead.parent.mkdir(exist_ok=True)
        dead.write_text("")
        with store.layers.stage("overlayfs", digest_of(b"x")):
            store.gc(dry_run=True)
            assert dead.exists()
            store.gc()
            assert len(list(store.root.glob("locks/layer-*"))) == 1
        assert not dead.exists()
        assert list(store.root.glob("locks/*")) == []

    def test_a_dry_run_touches_nothing(self, store, pulled):
        store.remove_image("nginx")
        store.leases.create("mine", labels={"containerd.io/gc.expire": PAST})
        (store.root / "blobs" / "sha256" / ("0" * 64)).write_bytes(b"x")

        def look() -> object:
            with store.database.read() as db:
                version = db.execute("PRAGMA data_version").fetchall()
            files = {
                path: path.lstat().st_mtime_ns
                for path in store.root.rglob("*")
                if "metadata" not in path.name
            }
            return version, files

        before = look()
        assert store.gc(dry_run=True).blobs == 5
        assert look() == before

    def test_what_cannot_be_deleted_is_said_after_all_else_is_done(self, store, pulled, monkeypatch):
        real = gc.LayerFolders.destroy
        stubborn = f"trash-{min(store.layer_folders())}"
        held = [True]

        def destroy(self, trash):
            if held and trash.name == stubborn:
                raise PermissionDenied("cannot remove it")
            return real(self, trash)

        monkeypatch.setattr(gc.LayerFolders, "destroy", destroy)
        store.remove_image("nginx")
        with pytest.raises(PermissionDenied, match="cannot remove it"):
            store.gc()
        assert store.layer_folders() == {stubborn}
        held.clear()
        assert store.gc().orphans == 1
        store.check(clean=True)

    def test_an_empty_store_has_nothing_to_collect(self, store):
        assert re.fullmatch(r"removed nothing \(0 B\) in \d+\.\d\d s", str(store.gc()))
        assert store.gc(dry_run=True) == GcReport(dry_run=True)


class TestReport:
    def test_it_prints_itself(self):
        report = GcReport(dry_run=True, blobs=1, snapshots=2, leases=1, bytes_freed=7)
        assert str(report) == "would remove 1 lease, 1 blob, 2 snapshots (7 B)"

    def test_names_are_not_endless(self, store, monkeypatch):
        monkeypatch.setattr(gc, "NAMES_MAX", 5)
        for number in range(gc.NAMES_MAX + 5):
            store.snapshots.view(str(number))
        report = store.gc()
        assert report.snapshots == gc.NAMES_MAX + 5
        assert len(report.names) == gc.NAMES_MAX


class TestMeanwhile:
    """What others do between marking and sweeping, at the worst moment."""

    @pytest.fixture
    def after_marking(self, store, monkeypatch) -> Callable[[Callable[[], None]], None]:
        """``after_marking(work)`` has the next collection run ``work`` when it has marked."""

        def arrange(work: Callable[[], None]) -> None:
            real = gc._Collection._sweep_leases

            def sweep(self, report):
                monkeypatch.setattr(gc._Collection, "_sweep_leases", real)
                work()
                real(self, report)

            monkeypatch.setattr(gc._Collection, "_sweep_leases", sweep)

        return arrange

    def test_an_image_that_comes_back_keeps_everything(self, store, pulled, after_marking):
        store.remove_image("nginx")
        after_marking(lambda: store.image("again", digest_of(b"index")))
        assert store.gc().content == 0
        assert kept(store) == ALL

    def test_an_image_of_a_part_keeps_that_part(self, store, pulled, after_marking):
        store.remove_image("nginx")
        after_marking(lambda: store.image("again", pulled))
        assert store.gc().content == 1
        assert kept(store) == ALL - {"index"}

    def test_a_snapshot_that_was_just_prepared_keeps_its_parents(self, store, pulled, after_marking):
        store.remove_image("nginx")
        after_marking(lambda: store.snapshots.prepare("box", "chain-1"))
        store.gc()
        assert kept(store) == {"chain-0", "chain-1", "box"}

    def test_a_snapshot_that_was_just_prepared_keeps_what_its_parents_refer_to(self, store, after_marking):
        store.stack("chain", {}, {})
        store.snapshots.update("chain-0", {"containerd.io/gc.ref.content": store.put(b"content")})
        after_marking(lambda: store.snapshots.prepare("box", "chain-1"))
        store.gc()
        assert kept(store) == {"chain-0", "chain-1", "box", "content"}

    def test_a_view_that_was_just_made_keeps_its_parents_for_now(self, store, pulled, after_marking):
        store.remove_image("nginx")
        after_marking(lambda: store.snapshots.view("view", "chain-1"))
        assert store.gc().snapshots == 0
        assert {info.name for info in store.snapshots.walk()} == {"chain-0", "chain-1", "view"}
        store.check()
        assert kept(store) == set()

    def test_a_lease_that_was_just_taken_counts(self, store, pulled, after_marking):
        store.remove_image("nginx")

        def work() -> None:
            store.leases.create("mine")
            store.leases.add("mine", "content", pulled)

        after_marking(work)
        assert store.gc().content == 1
        assert kept(store) == ALL - {"index"}

    def test_a_flat_lease_that_was_just_taken_keeps_what_it_names(self, store, pulled, after_marking):
        store.remove_image("nginx")

        def work() -> None:
            store.leases.create("mine", labels={"containerd.io/gc.flat": "x"})
            store.leases.add_all("mine", [("content", pulled), ("snapshots/overlayfs", "chain-1")])

        after_marking(work)
        store.gc()
        assert kept(store) == {"manifest", "chain-0", "chain-1"}

    @pytest.mark.parametrize(
        "labels",
        [ROOT, refs(digest_of(b"config"))],
        ids=["a root", "a reference from something that is not kept"],
    )
    def test_labels_that_were_just_set_count(self, store, pulled, after_marking, labels):
        store.remove_image("nginx")
        after_marking(lambda: store.content.update_labels(digest_of(b"manifest"), labels))
        store.gc()
        rest = ALL - {"index"} if labels is ROOT else set()
        assert {store.content.read(info.digest).decode() for info in store.content.walk()} == {
            name for name in rest if "chain" not in name
        }
        assert kept(store) == rest

    def test_a_back_reference_that_was_just_set_counts(self, store, pulled, after_marking):
        late = store.put(b"late")
        after_marking(lambda: store.content.update_labels(late, {"containerd.io/gc.bref.image.x": "nginx"}))
        store.gc()
        assert kept(store) == ALL | {"late"}

    def test_a_container_that_was_just_made_counts(self, store, pulled, after_marking):
        store.remove_image("nginx")
        store.snapshots.view("view", "chain-1")
        after_marking(lambda: store.container("box", "view"))
        store.gc()
        assert kept(store) == {"chain-0", "chain-1", "view"}

    def test_an_image_whose_expiry_was_just_moved_stays(self, store, after_marking):
        store.image("nginx", store.put(b"manifest"), encode_labels({"containerd.io/gc.expire": PAST}))

        def work() -> None:
            with store.database.write() as db:
                db.execute("UPDATE images SET labels = '{}'")

        after_marking(work)
        assert store.gc().images == 0
        assert kept(store) == {"manifest"}

    def test_content_that_comes_back_while_its_file_is_removed_stays(self, store, monkeypatch):
        digest = store.put(b"content")
        real = gc.unlink_blobs

        def unlink(*arguments):
            store.put(b"content", ROOT)
            return real(*arguments)

        monkeypatch.setattr(gc, "unlink_blobs", unlink)
        assert store.gc().content == 1
        assert store.content.read(digest) == b"content"
        store.check(clean=True)

    def test_a_snapshot_on_a_layer_that_is_unused_keeps_it(self, store, monkeypatch):
        layer = store.layer({"a": "1"})
        real = gc._Collection._sweep_layers

        def sweep(self, batch, report):
            store.snapshots.add_committed("base", "", layer, ROOT)
            real(self, batch, report)

        monkeypatch.setattr(gc._Collection, "_sweep_layers", sweep)
        assert store.gc().layers == 0
        assert kept(store) == {"base"}

    def test_a_folder_that_gets_its_row_while_orphans_are_looked_for_stays(self, store, monkeypatch):
        real = gc._Collection._discard_orphan
        staging = store.layers.stage("overlayfs", digest_of(b"x"))
        layers = []
        name = staging.path.parent.name

        def discard(self, folders, orphan):
            layers.append(staging.commit(diff_id=digest_of(b"x"), disk_bytes=1, inodes=1, opaque_root=False))
            staging.close()
            return real(self, folders, orphan)

        monkeypatch.setattr(gc._Collection, "_discard_orphan", discard)
        monkeypatch.setattr(gc, "is_locked", lambda path: False)
        assert store.gc().orphans == 0
        assert layers[0].path.is_dir()
        assert layers[0].id == name

    def test_a_folder_that_is_locked_while_orphans_are_looked_for_stays(self, store, monkeypatch):
        staging = store.layers.stage("overlayfs", digest_of(b"x"))
        folder = staging.path
        real = gc.is_locked
        first = iter([False])
        monkeypatch.setattr(gc, "is_locked", lambda path: next(first, None) is None and real(path))
        assert store.gc().orphans == 0
        assert folder.is_dir()
        staging.close()


class TestMany:
    def test_writers_get_their_turn(self, store, open_store, monkeypatch):
        """Between any two transactions of the collector others can write: they are let in at once."""
        monkeypatch.setattr(gc, "_BATCH_MAX", 8)
        monkeypatch.setattr(gc, "_BATCH_FIRST", 8)
        other = open_store()
        with store.database.write():
            for number in range(200):
                store.put(b"%d" % number)
        done = threading.Event()
        turns, pauses = [], []

        def pause(seconds: float) -> None:
            assert seconds > database._POLL_MAX  # whoever waits looks once meanwhile
            pauses.append(len(turns))
            until(lambda: len(turns) > pauses[-1])

        def write() -> None:
            while not done.is_set():
                other.snapshots.prepare("key")
                other.snapshots.remove("key")
                turns.append(1)

        monkeypatch.setattr(gc, "time", SimpleNamespace(**vars(time) | {"sleep": pause}))
        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert store.gc().blobs == 200
        finally:
            done.set()
            thread.join()
        assert len(pauses) >= 200 / 8
        store.check(clean=True)

    def test_two_collections_at_once_do_the_work_once(self, store, open_store):
        other = open_store()
        with store.database.write():
            for number in range(100):
                store.put(b"%d" % number)
                store.snapshots.view(str(number))
        reports: list[GcReport] = []
        threads = [
            threading.Thread(target=lambda each=each: reports.append(each.gc())) for each in (store, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(report.blobs for report in reports) == 100
        assert sum(report.snapshots for report in reports) == 100
        store.check(clean=True)

    def test_some_roots_among_much_garbage_stay(self, store):
        wanted = set()
        with store.database.write():
            for number in range(300):
                text = f"blob {number}"
                store.put(text.encode(), ROOT if number % 37 == 0 else {})
                if number % 37 == 0:
                    wanted.add(text)
        assert kept(store) == wanted
