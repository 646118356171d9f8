"""Attributes that are computed once, without a lock that a transaction could wait for."""

from __future__ import annotations

import threading

from lamella.client import Client
from lamella.digest import digest_of
from lamella.images import Image
from lamella.lazy import cached_property
from lamella.oci import OCI_MANIFEST, Descriptor
from layers import Built, file, tar


def test_it_is_computed_once_for_each_object():
    class Counted:
        count = 0

        @cached_property
        def value(self) -> int:
            """What it is."""
            Counted.count += 1
            return Counted.count

    one, two = Counted(), Counted()
    assert (one.value, one.value, two.value, one.value) == (1, 1, 2, 1)
    assert Counted.value.__doc__ == "What it is."


def test_a_transaction_that_reads_an_image_does_not_wait_for_a_thread_that_waits_for_it(tmp_path):
    manifest = Built(tar(file("a"))).manifest
    with Client(tmp_path / "root", tmp_path / "state") as client:
        target = Descriptor(media_type=OCI_MANIFEST, digest=digest_of(manifest), size=len(manifest))
        client.content.write("manifest", manifest, digest=target.digest, size=target.size)
        ours, theirs = (
            Image(client, name="x", target=target, labels={}, created_at="", updated_at="") for _ in range(2)
        )
        reading, done = threading.Event(), threading.Event()
        real = client.content.read

        def read(digest):
            reading.set()
            return real(digest)

        client.content.read = read

        def write():
            with client.database.write():
                other = threading.Thread(target=lambda: theirs.manifest_descriptor, daemon=True)
                other.start()
                assert reading.wait(30)
                assert ours.manifest_descriptor == target
            other.join(30)
            done.set()

        threading.Thread(target=write, daemon=True).start()
        assert done.wait(30)
