"""Images over the socket are those of the library."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from lamella.errors import NotFound
from lamella.oci import Descriptor
from lamella.serve.api import images_pb2 as pb
from lamella.serve.api import leases_pb2, types_pb2
from rpc import refusal

CODES = grpc.StatusCode
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NAME = "docker.io/library/app:latest"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def target(number: int = 1, **fields: Any) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(**{"media_type": MANIFEST, "digest": digest(number), "size": 7} | fields)


def image(name: str = NAME, **fields: Any) -> pb.Image:
    return pb.Image(**{"name": name, "target": target()} | fields)


@pytest.fixture
def images(served: Any) -> Any:
    return served.stub(pb, "Images")


def test_an_image_made_here_is_the_librarys_and_the_reverse(served, images) -> None:
    made = images.Create(pb.CreateImageRequest(image=image(labels={"a": "b"}))).image
    assert made.created_at == made.updated_at
    assert served.client.images.get("app").labels == {"a": "b"}
    assert served.client.images.get("app").digest == digest(1)
    served.client.images.put(
        "docker.io/library/other:1", Descriptor(media_type=MANIFEST, digest=digest(2), size=3)
    )
    found = images.Get(pb.GetImageRequest(name="docker.io/library/other:1")).image
    assert (found.target.media_type, found.target.digest, found.target.size) == (MANIFEST, digest(2), 3)
    assert [each.name for each in images.List(pb.ListImagesRequest()).images] == [
        NAME,
        "docker.io/library/other:1",
    ]
    images.Delete(pb.DeleteImageRequest(name=NAME))
    with pytest.raises(NotFound):
        served.client.images.get("app")


@pytest.mark.parametrize(
    "name", ["plain", "Upper Case", "sha256:" + "0" * 64, "0" * 64, "import-2026-01-01@" + digest(3)]
)
def test_a_name_is_taken_as_it_stands(served, images, name) -> None:
    images.Create(pb.CreateImageRequest(image=image(name)))
    assert images.Get(pb.GetImageRequest(name=name)).image.name == name
    found = served.client.images.get(name)
    assert found.name == name
    assert found.familiar_name == name
    served.client.images.remove(name)
    assert refusal(images.Get, pb.GetImageRequest(name=name)) is CODES.NOT_FOUND


def test_a_name_is_not_taken_for_another_that_it_stands_for(served, images) -> None:
    images.Create(pb.CreateImageRequest(image=image()))
    assert refusal(images.Get, pb.GetImageRequest(name="app")) is CODES.NOT_FOUND
    assert refusal(images.Delete, pb.DeleteImageRequest(name="app")) is CODES.NOT_FOUND
    images.Create(pb.CreateImageRequest(image=image("app", target=target(2))))
    assert images.Get(pb.GetImageRequest(name="app")).image.target.digest == digest(2)
    assert served.client.images.get("app").digest == digest(1)
    images.Delete(pb.DeleteImageRequest(name="app"))
    assert served.client.images.get("app").digest == digest(1)


@pytest.mark.parametrize(
    ("paths", "labels", "annotations", "number"),
    [
        ([], {"new": "2"}, {"n": "2"}, 2),
        (["labels"], {"new": "2"}, {"o": "1"}, 1),
        (["labels.new"], {"old": "1", "new": "2"}, {"o": "1"}, 1),
        (["labels.old"], {}, {"o": "1"}, 1),
        (["target"], {"old": "1"}, {"n": "2"}, 2),
        (["annotations"], {"old": "1"}, {"n": "2"}, 1),
        (["annotations.n"], {"old": "1"}, {"o": "1", "n": "2"}, 1),
        (["target", "labels.new"], {"old": "1", "new": "2"}, {"n": "2"}, 2),
    ],
)  # fmt: skip
def test_a_mask_says_what_is_updated(images, paths, labels, annotations, number) -> None:
    old = image(labels={"old": "1"}, target=target(1, annotations={"o": "1"}))
    images.Create(pb.CreateImageRequest(image=old))
    new = image(labels={"new": "2"}, target=target(2, annotations={"n": "2"}))
    request = pb.UpdateImageRequest(image=new, update_mask=FieldMask(paths=paths))
    assert images.Update(request).image.target.digest == digest(number)
    updated = images.Get(pb.GetImageRequest(name=NAME)).image
    assert (dict(updated.labels), dict(updated.target.annotations)) == (labels, annotations)
    assert updated.target.digest == digest(number)


def test_times_can_be_given(images) -> None:
    request = pb.CreateImageRequest(image=image(), source_date_epoch=Timestamp(seconds=1))
    assert images.Create(request).image.created_at.seconds == 1


def test_listing_is_filtered(images) -> None:
    for number in range(3):
        made = image(f"i{number}", target=target(number), labels={"odd": str(number % 2)})
        images.Create(pb.CreateImageRequest(image=made))

    def names(*filters: str) -> list[str]:
        return [each.name for each in images.List(pb.ListImagesRequest(filters=filters)).images]

    assert names("name==i1") == ["i1"]
    assert names("labels.odd==0") == ["i0", "i2"]
    assert names(f"target.digest=={digest(2)}", "name~=1") == ["i1", "i2"]
    assert not images.List(pb.ListImagesRequest(), namespace="other").images
    assert refusal(images.List, pb.ListImagesRequest(filters=["=="])) is CODES.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "bad",
    [
        image(""),
        image("n" * 5000),
        image("nul\0"),
        image(target=target(digest="")),
        image(target=target(digest="sha256:../../x")),
        image(target=target(digest="md5:" + "0" * 32)),
        image(target=target(size=0)),
        image(target=target(size=-1)),
        image(target=target(media_type="")),
        image(labels={"k": "v" * 5000}),
        pb.Image(name="without-target"),
    ],
    ids=lambda each: repr(str(each)[:30]),
)
def test_what_is_no_image_is_refused(images, bad) -> None:
    assert refusal(images.Create, pb.CreateImageRequest(image=bad)) is CODES.INVALID_ARGUMENT
    assert not images.List(pb.ListImagesRequest()).images


def test_refusals_are_those_of_containerd(images) -> None:
    images.Create(pb.CreateImageRequest(image=image()))
    assert refusal(images.Create, pb.CreateImageRequest(image=image())) is CODES.ALREADY_EXISTS
    for call, request in [
        (images.Get, pb.GetImageRequest(name="none")),
        (images.Get, pb.GetImageRequest()),
        (images.Delete, pb.DeleteImageRequest(name="none")),
        (images.Update, pb.UpdateImageRequest(image=image("none"))),
    ]:
        assert refusal(call, request) is CODES.NOT_FOUND
    assert refusal(images.Get, pb.GetImageRequest(name=NAME), namespace="other") is CODES.NOT_FOUND
    assert refusal(images.Update, pb.UpdateImageRequest()) is CODES.INVALID_ARGUMENT
    for path in ("name", "created_at", "target.digest", "nonsense", "labels-x"):
        request = pb.UpdateImageRequest(image=image(), update_mask=FieldMask(paths=[path]))
        assert refusal(images.Update, request) is CODES.INVALID_ARGUMENT


def test_a_deletion_can_ask_for_the_target(images) -> None:
    images.Create(pb.CreateImageRequest(image=image()))
    request = pb.DeleteImageRequest(name=NAME, target=target(2))
    assert refusal(images.Delete, request) is CODES.NOT_FOUND
    images.Delete(pb.DeleteImageRequest(name=NAME, target=target(1)))


def test_a_synchronous_deletion_collects(served, images) -> None:
    content = served.client.content
    content.write(
        "r", b"data", digest="sha256:3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7", size=4
    )
    (held,) = content.walk()
    images.Create(pb.CreateImageRequest(image=image(target=target(digest=held.digest))))
    served.client.gc()
    assert content.exists(held.digest)
    images.Delete(pb.DeleteImageRequest(name=NAME, sync=True))
    assert not content.exists(held.digest)


def test_a_lease_holds_an_image_that_expires(served, images) -> None:
    leases = served.stub(leases_pb2, "Leases")
    lease = leases.Create(leases_pb2.CreateRequest()).lease.id
    expires = {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}
    images.Create(pb.CreateImageRequest(image=image("held", labels=expires)), lease=lease)
    images.Create(pb.CreateImageRequest(image=image("lost", labels=expires)))
    served.client.gc()
    assert [each.name for each in served.client.images.list()] == ["held"]
    request = pb.CreateImageRequest(image=image("other", labels=expires))
    assert refusal(images.Create, request, lease="none") is CODES.NOT_FOUND
    assert refusal(images.Get, pb.GetImageRequest(name="other")) is CODES.NOT_FOUND
