"""The binding of the pipeline: typed errors, signals, resume, abort, buffers. What it unpacks is tested in Rust."""

from __future__ import annotations

import array
import gzip
import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import zstandard

from inventory import descriptors, thread_names
from lamella import _core, errors


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def make_tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


TAR = make_tar({"./etc/hostname": b"box\n", "usr/bin/tool": bytes(range(256)) * 5000})
BLOB = gzip.compress(TAR, compresslevel=1)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    folder = tmp_path / "layer"
    folder.mkdir()
    return folder


def test_one_pass_writes_checks_and_unpacks(tmp_path: Path, layer: Path) -> None:
    blob = tmp_path / "blob"
    pipeline = _core.Pipeline(
        digest=digest(BLOB),
        size=len(BLOB),
        blob=str(blob),
        compression="gzip",
        layer=str(layer),
        diff_id=digest(TAR),
    )
    pipeline.write(BLOB)
    assert pipeline.received == len(BLOB)
    found = pipeline.finish()
    assert (found.digest, found.size) == (digest(BLOB), len(BLOB))
    assert (found.diff_id, found.tar_size) == (digest(TAR), len(TAR))
    assert (layer / "etc/hostname").read_text() == "box\n"
    assert blob.read_bytes() == BLOB
    assert pipeline.unpacked == len(TAR)
    assert (found.disk_bytes, found.inodes) == _core.disk_usage(str(layer))
    assert found.deferred
    assert "folders=3" in repr(found.deferred)
    assert not found.opaque_root
    assert found.notes == []


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("B", data)])
def test_any_contiguous_buffer_of_bytes_is_taken(kind, layer: Path) -> None:
    pipeline = _core.Pipeline(digest=digest(BLOB), size=len(BLOB), layer=str(layer))
    for start in range(0, len(BLOB), 100_000):
        pipeline.write(kind(BLOB[start : start + 100_000]))
    assert pipeline.finish().diff_id == digest(TAR)


def test_other_buffers_are_refused(layer: Path) -> None:
    pipeline = _core.Pipeline(digest=digest(BLOB), size=len(BLOB), layer=str(layer))
    with pytest.raises(BufferError):
        pipeline.write(memoryview(bytes(10))[::2])
    with pytest.raises(BufferError):
        pipeline.write(array.array("I", [1]))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pipeline.write("text")  # type: ignore[arg-type]
    pipeline.abort()


def test_the_bytes_decide_on_the_compression(layer: Path) -> None:
    packed = zstandard.compress(TAR)
    pipeline = _core.Pipeline(digest=digest(packed), size=len(packed), compression="gzip", layer=str(layer))
    pipeline.write(packed)
    assert pipeline.finish().diff_id == digest(TAR)


def test_a_blob_that_is_here_is_unpacked_from_its_file(tmp_path: Path, layer: Path) -> None:
    (tmp_path / "blob").write_bytes(BLOB)
    pipeline = _core.Pipeline(digest=digest(BLOB), size=len(BLOB), compression="gzip", layer=str(layer))
    pipeline.read_from(str(tmp_path / "blob"))
    assert pipeline.finish().diff_id == digest(TAR)


def test_a_download_goes_on_where_it_stopped(tmp_path: Path, layer: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(BLOB[:1000] + b"what came after the last sync")
    pipeline = _core.Pipeline(
        digest=digest(BLOB), size=len(BLOB), blob=str(blob), offset=1000, compression="gzip", layer=str(layer)
    )
    assert pipeline.received == 1000
    pipeline.write(BLOB[1000:])
    assert pipeline.finish().diff_id == digest(TAR)
    assert blob.read_bytes() == BLOB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": len(BLOB) + 1}, "bytes expected"),
        ({"size": len(BLOB) - 1}, "more came"),
        ({"digest": digest(b"other")}, "has the digest"),
        ({"diff_id": digest(b"other")}, "image config says"),
    ],
)
def test_what_differs_from_the_manifest_is_a_failed_precondition_with_a_hint(
    change, words, layer: Path
) -> None:
    options = {"digest": digest(BLOB), "size": len(BLOB), "compression": "gzip", "layer": str(layer)} | change
    pipeline = _core.Pipeline(**options)
    with pytest.raises(errors.FailedPrecondition, match=words) as caught:
        pipeline.write(BLOB)
        pipeline.finish()
    assert caught.value.hint
    assert caught.value.kind == "FailedPrecondition"


@pytest.mark.parametrize(
    ("tar", "error", "words"),
    [
        (make_tar({"../escape": b"x"}), errors.InvalidArgument, r"tar|\.\."),
        (TAR[:5000], errors.DataLoss, "too early"),
        (b"no tar at all" * 100, errors.DataLoss, "checksum"),
    ],
)
def test_what_a_stage_fails_with_is_raised_by_class(tar, error, words, tmp_path: Path, layer: Path) -> None:
    pipeline = _core.Pipeline(digest=digest(tar), size=len(tar), layer=str(layer))
    with pytest.raises(error, match=words):
        pipeline.write(tar)
        pipeline.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer"]


def test_errors_are_builtins_too(tmp_path: Path, layer: Path) -> None:
    with pytest.raises(ValueError, match="is not a digest"):
        _core.Pipeline(digest="sha256:xyz", size=1)
    with pytest.raises(NotImplementedError, match="md5"):
        _core.Pipeline(digest="md5:" + "0" * 32, size=1)
    with pytest.raises(errors.Unsupported, match="lzma"):
        _core.Pipeline(digest=digest(b""), size=0, compression="lzma")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument, match="whiteout"):
        _core.Pipeline(digest=digest(b""), size=0, whiteouts="aufs")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="missing"):
        _core.Pipeline(digest=digest(b""), size=0, blob=str(tmp_path / "missing" / "blob"))
    with pytest.raises(OverflowError):
        _core.Pipeline(digest=digest(b""), size=-1)


def test_caps_are_parameters(layer: Path) -> None:
    for caps in ({"max_tar_size": 5000}, {"max_entries": 1}):
        pipeline = _core.Pipeline(digest=digest(TAR), size=len(TAR), layer=str(layer), **caps)
        with pytest.raises(errors.ResourceExhausted):
            pipeline.write(TAR)
            pipeline.finish()
        _core.remove_tree(str(layer))
        layer.mkdir()


def stages() -> list[str]:
    return [name for name in thread_names() if name.startswith("lamella-")]


def stages_become(count: int) -> None:
    """A thread names itself after it began, and is listed for a moment after it was joined."""
    deadline = time.monotonic() + 60
    while len(stages()) != count:
        assert time.monotonic() < deadline, stages()
        time.sleep(0.001)


def test_abort_ends_every_thread_and_may_be_repeated(layer: Path) -> None:
    pipeline = _core.Pipeline(digest=digest(BLOB), size=len(BLOB), layer=str(layer))
    pipeline.write(BLOB[:1000])
    stages_become(4 if _core.helper_maps() is None else 5)  # one hears what a helper says
    pipeline.abort()
    stages_become(0)
    pipeline.abort()
    with pytest.raises(errors.Cancelled):
        pipeline.write(b"x")
    with pytest.raises(errors.Cancelled):
        pipeline.finish()


def test_a_pipeline_that_is_dropped_ends_its_threads(layer: Path) -> None:
    pipeline = _core.Pipeline(digest=digest(BLOB), size=len(BLOB), layer=str(layer))
    pipeline.write(BLOB[:1000])
    del pipeline
    stages_become(0)


def test_abort_works_while_another_thread_writes(layer: Path) -> None:
    size = 1 << 40
    pipeline = _core.Pipeline(digest=digest(b""), size=size)
    caught = []

    def write() -> None:
        try:
            while True:
                pipeline.write(bytes(1 << 20))
        except errors.LamellaError as error:
            caught.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    while pipeline.received < 10 << 20:
        pass
    pipeline.abort()
    thread.join()
    assert isinstance(caught[0], errors.Cancelled)
    stages_become(0)


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_stops_a_call_that_would_run_for_minutes() -> None:
    code = """
import mmap, sys
from lamella import _core
size = 1 << 42
zeros = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
pipeline = _core.Pipeline(digest="sha256:" + "0" * 64, size=size)
try:
    print("started", flush=True)
    pipeline.write(zeros)
except KeyboardInterrupt:
    print("interrupted", pipeline.received < size, flush=True)
pipeline.abort()
"""
    process = run_python(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    output, complaints = process.communicate(timeout=60)
    assert output == "interrupted True\n", complaints
    assert process.returncode == 0


def test_a_child_after_a_fork_gets_an_error_and_does_not_hang(layer: Path) -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")
from lamella import _core, errors
pipeline = _core.Pipeline(digest="sha256:" + "0" * 64, size=1 << 30, layer=sys.argv[1])
pipeline.write(b"x")
child = os.fork()
if child == 0:
    try:
        pipeline.write(b"x")
    except errors.FailedPrecondition as error:
        assert "fork" in error.hint
        pipeline.abort()
        del pipeline
        sys.exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
pipeline.abort()
"""
    process = run_python(code, str(layer))
    output, complaints = process.communicate(timeout=60)
    assert output == "7\n", complaints


def test_other_threads_run_while_a_call_waits() -> None:
    data = bytes(64 << 20)
    pipeline = _core.Pipeline(digest=digest(b""), size=1 << 40)
    seen, stop = threading.Event(), threading.Event()

    def look() -> None:
        while not seen.is_set() and not stop.is_set():
            if pipeline.received % len(data):  # in the middle of a call
                seen.set()

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(100):  # a busy machine may let it look before and after one of them alone
        pipeline.write(data)
        if seen.is_set():
            break
    stop.set()
    thread.join()
    pipeline.abort()
    assert seen.is_set()


def test_nothing_is_left_open(layer: Path) -> None:
    before = descriptors()
    pipeline = _core.Pipeline(digest=digest(BLOB), size=len(BLOB), layer=str(layer))
    pipeline.write(BLOB)
    pipeline.finish()
    assert descriptors() - before == set()
