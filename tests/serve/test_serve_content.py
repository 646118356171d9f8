"""Content over the socket is that of the library, with containerd's rules for writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from lamella.ingest import Ingest
from lamella.serve.api import content_pb2 as pb
from lamella.serve.api import leases_pb2
from rpc import refusal
from waiting import until

CODES = grpc.StatusCode
DATA = bytes(range(256)) * 4096  # 1 MiB


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def content(served: Any) -> Any:
    return served.stub(pb, "Content")


def write(content: Any, *requests: pb.WriteContentRequest, **options: Any) -> list[pb.WriteContentResponse]:
    return list(content.Write(iter(requests), **options))


def whole(data: bytes, ref: str = "r", **fields: Any) -> pb.WriteContentRequest:
    return pb.WriteContentRequest(
        action=pb.COMMIT, ref=ref, total=len(data), expected=sha256(data), data=data, **fields
    )


def read(content: Any, digest: str, offset: int = 0, size: int = 0) -> bytes:
    request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
    return b"".join(each.data for each in content.Read(request))


def test_a_blob_written_here_is_the_librarys_and_the_reverse(served, content) -> None:
    write(content, whole(DATA, labels={"a": "b"}))
    assert served.client.content.read(sha256(DATA)) == DATA
    assert served.client.content.info(sha256(DATA)).labels == {"a": "b"}
    served.client.content.write("other", b"other", digest=sha256(b"other"), size=5)
    assert read(content, sha256(b"other")) == b"other"
    info = content.Info(pb.InfoRequest(digest=sha256(DATA))).info
    assert (info.size, dict(info.labels)) == (len(DATA), {"a": "b"})
    assert info.created_at.ToDatetime() == info.updated_at.ToDatetime()


def test_a_write_says_where_it_is(content) -> None:
    requests = [
        pb.WriteContentRequest(action=pb.STAT, ref="r", total=8, expected=sha256(b"01234567")),
        pb.WriteContentRequest(action=pb.WRITE, data=b"0123"),
        pb.WriteContentRequest(action=pb.WRITE, offset=4, data=b"4567"),
        pb.WriteContentRequest(action=pb.COMMIT, offset=8),
    ]
    answers = write(content, *requests)
    assert [each.offset for each in answers] == [0, 4, 8, 8]
    assert [each.action for each in answers] == [pb.STAT, pb.WRITE, pb.WRITE, pb.COMMIT]
    assert answers[0].total == 8
    assert answers[0].started_at.seconds
    assert answers[1].digest == sha256(b"0123")
    assert answers[3].digest == sha256(b"01234567")


def test_a_write_that_was_left_is_gone_on_with(content) -> None:
    begun = [pb.WriteContentRequest(action=pb.WRITE, ref="r", total=8, data=b"0123")]
    assert write(content, *begun)[0].offset == 4
    assert content.Status(pb.StatusRequest(ref="r")).status.offset == 4
    answers = write(
        content,
        pb.WriteContentRequest(action=pb.STAT, ref="r", total=8),
        pb.WriteContentRequest(action=pb.COMMIT, offset=4, data=b"4567", expected=sha256(b"01234567")),
    )
    assert answers[0].offset == 4
    assert answers[0].digest == sha256(b"0123")
    assert read(content, sha256(b"01234567")) == b"01234567"
    assert refusal(content.Status, pb.StatusRequest(ref="r")) is CODES.NOT_FOUND


def test_a_client_that_goes_away_leaves_an_ingest_that_can_be_gone_on_with(content) -> None:
    def requests() -> Iterator[pb.WriteContentRequest]:
        yield pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"0123")
        yield pb.WriteContentRequest(action=pb.WRITE, offset=4, data=b"4567")

    stream = content.Write(requests())
    assert next(stream).offset == 4
    stream.cancel()

    def once_the_server_has_noticed() -> list[pb.WriteContentResponse]:
        try:
            return write(content, pb.WriteContentRequest(action=pb.STAT, ref="r"))
        except grpc.RpcError as error:
            assert error.code() is CODES.UNAVAILABLE
            return []

    assert until(once_the_server_has_noticed)[0].offset in (4, 8)


def test_offset_zero_starts_over(content) -> None:
    write(content, pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"wrong"))
    write(content, pb.WriteContentRequest(action=pb.COMMIT, ref="r", data=b"right"))
    assert read(content, sha256(b"right")) == b"right"


@pytest.mark.parametrize(
    ("requests", "code"),
    [
        ([{}], CODES.INVALID_ARGUMENT),
        ([{"ref": "r", "expected": "nonsense"}], CODES.INVALID_ARGUMENT),
        ([{"ref": "r", "expected": "md5:" + "0" * 32}], CODES.INVALID_ARGUMENT),
        ([{"ref": "r", "action": pb.WRITE, "offset": 3, "data": b"x"}], CODES.OUT_OF_RANGE),
        ([{"ref": "r", "action": pb.WRITE, "offset": -1, "data": b"x"}], CODES.OUT_OF_RANGE),
        ([{"ref": "r", "action": pb.COMMIT, "total": 2, "data": b"x"}], CODES.FAILED_PRECONDITION),
        ([{"ref": "r", "action": pb.COMMIT, "expected": sha256(b"y"), "data": b"x"}], CODES.FAILED_PRECONDITION),
        ([{"ref": "r", "action": pb.COMMIT, "data": b"x", "labels": {"k": "v" * 5000}}], CODES.INVALID_ARGUMENT),
        ([{"ref": "r" * 10000}], CODES.INVALID_ARGUMENT),
    ],
    ids=["no-ref", "no-digest", "md5", "ahead", "negative", "size", "digest", "label", "huge-ref"],
)  # fmt: skip
def test_writes_that_are_refused(content, requests, code) -> None:
    assert refusal(content.Write, iter([pb.WriteContentRequest(**each) for each in requests])) is code


def test_a_refused_commit_leaves_the_ingest(content) -> None:
    request = pb.WriteContentRequest(action=pb.COMMIT, ref="r", expected=sha256(b"y"), data=b"x")
    assert refusal(content.Write, iter([request])) is CODES.FAILED_PRECONDITION
    assert content.Status(pb.StatusRequest(ref="r")).status.offset == 1


def test_content_that_is_here_is_not_written_again(content) -> None:
    write(content, whole(DATA))
    assert refusal(content.Write, iter([whole(DATA)])) is CODES.ALREADY_EXISTS
    late = [
        pb.WriteContentRequest(action=pb.WRITE, ref="late", data=DATA),
        pb.WriteContentRequest(action=pb.COMMIT, offset=len(DATA), expected=sha256(DATA)),
    ]
    assert refusal(content.Write, iter(late)) is CODES.ALREADY_EXISTS
    assert not content.ListStatuses(pb.ListStatusesRequest()).statuses


def test_another_namespace_gets_content_that_is_here_without_a_byte_on_the_way(content) -> None:
    write(content, whole(DATA))
    asked = pb.WriteContentRequest(action=pb.STAT, ref="y", expected=sha256(DATA), total=len(DATA))
    commit = pb.WriteContentRequest(action=pb.COMMIT, offset=len(DATA), total=len(DATA))
    found, _ = content.Write(iter([asked, commit]), namespace="other")
    assert (found.offset, found.digest) == (len(DATA), sha256(DATA))
    assert content.Info(pb.InfoRequest(digest=sha256(DATA)), namespace="other").info.size == len(DATA)


def test_content_of_another_namespace_is_seen_once_it_was_committed(content) -> None:
    write(content, whole(DATA))
    asked = pb.WriteContentRequest(action=pb.STAT, ref="y", expected=sha256(DATA), total=len(DATA))
    list(content.Write(iter([asked]), namespace="other"))
    missing = pb.InfoRequest(digest=sha256(DATA))
    assert refusal(content.Info, missing, namespace="other") is CODES.NOT_FOUND
    (status,) = content.ListStatuses(pb.ListStatusesRequest(), namespace="other").statuses
    assert status.offset == len(DATA)


def test_a_size_that_comes_with_the_commit_is_checked(content) -> None:
    begun = pb.WriteContentRequest(action=pb.WRITE, ref="sized", data=DATA)
    commit = pb.WriteContentRequest(action=pb.COMMIT, offset=len(DATA), total=len(DATA) + 1)
    assert refusal(content.Write, iter([begun, commit])) is CODES.FAILED_PRECONDITION


def test_what_an_earlier_write_expected_is_forgotten(content) -> None:
    first = pb.WriteContentRequest(action=pb.COMMIT, ref="r", data=DATA, expected=sha256(b"other"))
    assert refusal(content.Write, iter([first])) is CODES.FAILED_PRECONDITION
    write(content, pb.WriteContentRequest(action=pb.COMMIT, ref="r", offset=len(DATA)))
    assert content.Info(pb.InfoRequest(digest=sha256(DATA))).info.size == len(DATA)


def test_a_ref_has_one_writer(served, content) -> None:
    with served.client.content.writer("r"):
        request = pb.WriteContentRequest(action=pb.STAT, ref="r")
        assert refusal(content.Write, iter([request])) is CODES.UNAVAILABLE
        assert refusal(content.Abort, pb.AbortRequest(ref="r")) is CODES.UNAVAILABLE
    assert write(content, pb.WriteContentRequest(action=pb.STAT, ref="r"))[0].offset == 0
    content.Abort(pb.AbortRequest(ref="r"))
    assert refusal(content.Abort, pb.AbortRequest(ref="r")) is CODES.NOT_FOUND


def test_parts_are_read(content) -> None:
    write(content, whole(DATA))
    digest = sha256(DATA)
    assert read(content, digest) == DATA
    assert read(content, digest, offset=1000, size=10) == DATA[1000:1010]
    assert read(content, digest, offset=len(DATA) - 5, size=100) == DATA[-5:]
    assert read(content, digest, offset=-7, size=3) == DATA[:3]
    assert read(content, digest, offset=len(DATA)) == b""
    beyond = pb.ReadContentRequest(digest=digest, offset=len(DATA) + 1)
    assert refusal(content.Read, beyond) is CODES.OUT_OF_RANGE


def test_labels_are_updated_by_mask(content) -> None:
    write(content, whole(DATA, labels={"old": "1"}))

    def update(paths: list[str], **labels: str) -> dict[str, str]:
        info = pb.Info(digest=sha256(DATA), labels=labels)
        answer = content.Update(pb.UpdateRequest(info=info, update_mask=FieldMask(paths=paths)))
        return dict(answer.info.labels)

    assert update(["labels.new"], new="2", passed_over="3") == {"old": "1", "new": "2"}
    assert update(["labels.old"]) == {"new": "2"}
    assert update(["labels"], third="3") == {"third": "3"}
    assert update([], fourth="4") == {"fourth": "4"}
    request = pb.UpdateRequest(info=pb.Info(digest=sha256(DATA)), update_mask=FieldMask(paths=["size"]))
    assert refusal(content.Update, request) is CODES.INVALID_ARGUMENT


def test_listing_is_filtered_and_comes_in_parts(served, content) -> None:
    for number in range(150):
        data = str(number).encode()
        served.client.content.write(f"r{number}", data, digest=sha256(data), size=len(data))
    write(content, whole(DATA, labels={"mine": "yes"}))
    parts = list(content.List(pb.ListContentRequest()))
    assert [len(part.info) for part in parts] == [100, 51]
    (part,) = content.List(pb.ListContentRequest(filters=["labels.mine==yes"]))
    assert [each.digest for each in part.info] == [sha256(DATA)]
    assert refusal(content.List, pb.ListContentRequest(filters=["=="])) is CODES.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:../../etc/passwd", "x" * 100000, "sha256:" + "A" * 64, "sha1:" + "0" * 40],
)
def test_what_is_no_digest_is_refused(content, digest) -> None:
    for call, request in [
        (content.Info, pb.InfoRequest(digest=digest)),
        (content.Read, pb.ReadContentRequest(digest=digest)),
        (content.Delete, pb.DeleteContentRequest(digest=digest)),
        (content.Update, pb.UpdateRequest(info=pb.Info(digest=digest))),
    ]:
        assert refusal(call, request) is CODES.INVALID_ARGUMENT


def test_what_is_not_there_is_not_found_in_any_namespace_but_its_own(content) -> None:
    write(content, whole(DATA))
    for digest, namespace in ((sha256(b"none"), "default"), (sha256(DATA), "other")):
        for call, request in [
            (content.Info, pb.InfoRequest(digest=digest)),
            (content.Read, pb.ReadContentRequest(digest=digest)),
            (content.Delete, pb.DeleteContentRequest(digest=digest)),
            (content.Update, pb.UpdateRequest(info=pb.Info(digest=digest))),
        ]:
            assert refusal(call, request, namespace=namespace) is CODES.NOT_FOUND
    content.Delete(pb.DeleteContentRequest(digest=sha256(DATA)))
    assert refusal(content.Info, pb.InfoRequest(digest=sha256(DATA))) is CODES.NOT_FOUND


def test_a_namespace_is_needed(served) -> None:
    content = served.stub(pb, "Content", namespace=None)
    info = pb.InfoRequest(digest=sha256(DATA))
    assert refusal(content.Info, info) is CODES.FAILED_PRECONDITION
    assert refusal(content.Info, info, namespace="../x") is CODES.INVALID_ARGUMENT


def test_a_lease_holds_what_is_written(served, content) -> None:
    leases = served.stub(leases_pb2, "Leases")
    lease = leases.Create(leases_pb2.CreateRequest()).lease.id

    def held() -> set[tuple[str, str]]:
        answer = leases.ListResources(leases_pb2.ListResourcesRequest(id=lease))
        return {(each.type, each.id) for each in answer.resources}

    write(content, pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"0123"), lease=lease)
    assert held() == {("ingests", "r")}
    write(content, pb.WriteContentRequest(action=pb.COMMIT, ref="r", offset=4), lease=lease)
    assert held() == {("content", sha256(b"0123"))}
    write(content, whole(DATA))
    served.client.gc()
    assert [each.digest for each in served.client.content.walk()] == [sha256(b"0123")]
    leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=True))
    assert not list(served.client.content.walk())
    begun = pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"0123")
    assert refusal(content.Write, iter([begun]), lease="gone") is CODES.NOT_FOUND


def test_a_large_blob_in_messages_of_a_mebibyte_is_written_as_it_comes(served, content, monkeypatch) -> None:
    in_memory: list[int] = []
    write_here = Ingest.write
    monkeypatch.setattr(
        Ingest, "write", lambda ingest, data: in_memory.append(len(data)) or write_here(ingest, data)
    )
    blob = DATA * 3 + b"the end"
    requests = [pb.WriteContentRequest(action=pb.STAT, ref="r", total=len(blob), expected=sha256(blob))]
    for at in range(0, len(blob), len(DATA)):
        requests.append(pb.WriteContentRequest(action=pb.WRITE, offset=at, data=blob[at : at + len(DATA)]))
    requests.append(pb.WriteContentRequest(action=pb.COMMIT, offset=len(blob), total=len(blob)))
    answers = write(content, *requests)
    assert [each.offset for each in answers] == [
        0,
        *range(len(DATA), len(blob), len(DATA)),
        len(blob),
        len(blob),
    ]
    assert [each.digest for each in answers[1:4]] == [sha256(DATA * count) for count in (1, 2, 3)]
    assert served.client.content.read(sha256(blob)) == blob
    assert in_memory == [len(b"the end")]


def test_what_is_more_than_was_announced_is_refused(content) -> None:
    begun = pb.WriteContentRequest(action=pb.STAT, ref="r", total=len(DATA) - 1)
    more = pb.WriteContentRequest(action=pb.WRITE, data=DATA)
    assert refusal(content.Write, iter([begun, more])) is CODES.FAILED_PRECONDITION
    assert content.Status(pb.StatusRequest(ref="r")).status.offset == 0


def test_a_large_write_at_another_offset_is_refused_and_one_at_0_starts_over(content) -> None:
    first = pb.WriteContentRequest(action=pb.WRITE, ref="r", data=DATA)
    beyond = pb.WriteContentRequest(action=pb.WRITE, offset=len(DATA) + 1, data=DATA)
    assert refusal(content.Write, iter([first, beyond])) is CODES.OUT_OF_RANGE
    stat = pb.WriteContentRequest(action=pb.STAT, ref="r")
    over = pb.WriteContentRequest(action=pb.WRITE, data=DATA[1:])
    answers = write(content, stat, over)
    assert [each.offset for each in answers] == [len(DATA), len(DATA) - 1]
    assert answers[1].digest == sha256(DATA[1:])
