"""Every RPC with bad input: the server says no as containerd 2.4 does, goes on, and leaves nothing behind.

``bad_input.txt`` has what containerd answers, recorded by ``LAMELLA_UPDATE_GOLDEN=1 pytest tests/serve/test_bad_input.py``. Where
lamella is to differ ``INTENDED`` says so with a reason, and docs/serve-peers.md tells its users.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bad_input
import daemons
import pytest
from bad_input import Case, Peer
from spoiling import ESCAPED

from chance import NIGHTLY
from waiting import until

RECORDED = Path(__file__).with_name("bad_input.txt")
UPDATES = os.environ.get("LAMELLA_UPDATE_GOLDEN") == "1"
RECORDS = UPDATES or NIGHTLY
"""Whether containerd is asked again."""
VERSION = "containerd.services.version.v1.Version.Version"
SERVICES = sorted({name.rpartition(".")[0] for name in bad_input.rpcs()})
NOTHING = "wire (empty|wrong-kind)"
"""A message that has none of its fields."""
INTENDED: tuple[tuple[str, str, str, str], ...] = (
    (
        rf"\S+(Containers|Images)\.(Create|Update) ({NOTHING}|(container|image) none)",
        "CRASHED",
        "INVALID_ARGUMENT",
        "containerd reads what is not there",
    ),
    (r"\S+Images\.Create image\.target none", "CRASHED", "INVALID_ARGUMENT", "the same"),
    (r"\S+Images\.Update image\.target none", "CRASHED", "OK", "the mask does not name it"),
    (rf"\S+(Content|Snapshots)\.Update ({NOTHING}|info none)", "CRASHED", "INVALID_ARGUMENT", "the same"),
    (rf"\S+Diff\.Apply ({NOTHING}|diff none)", "CRASHED", "INVALID_ARGUMENT", "the same"),
    (rf"\S+Events\.Forward ({NOTHING}|envelope none)", "CRASHED", "INVALID_ARGUMENT", "the same"),
    (rf"\S+Namespaces\.Create ({NOTHING}|namespace none)", "CRASHED", "INVALID_ARGUMENT", "the same"),
    (
        rf"\S+Namespaces\.Update ({NOTHING}|namespace none)",
        "CRASHED",
        "NOT_FOUND",
        "it names none that is there",
    ),
    (
        rf"\S+Leases\.(Add|Delete)Resource ({NOTHING}|resource none)",
        "CRASHED",
        "UNIMPLEMENTED",
        "a resource without a type is of no known type",
    ),
    (
        r"\S+(Containers|Images|Namespaces)\.(Create|Update) \w+\.labels no-key"
        r"|\S+(Content|Snapshots)\.Update info\.labels no-key"
        r"|\S+Snapshots\.(Commit|Prepare|View) labels no-key|\S+Leases\.Create labels (no|huge)-key"
        r"|\S+Transfer:(pull|tag) destination\.\.labels no-key",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "a label without a key, or with one that is too long",
    ),
    (
        r"\S+(Events\.Subscribe|Snapshots\.List|Tasks\.Metrics) filters (no-value|no-operator|no-end|nul|up)",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "a filter that is none",
    ),
    (
        r"\S+Namespaces\.(Delete name|Update namespace\.name) \S+",
        "UNKNOWN",
        "NOT_FOUND",
        "none has that name",
    ),
    (r"\S+Namespaces\.Update update_mask huge", "UNKNOWN", "INVALID_ARGUMENT", "it names no field"),
    (
        r"\S+Snapshots\.(Commit name empty|(Prepare|View) key (empty|huge))",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "a key has some bytes, not thousands",
    ),
    (
        r"\S+Diff\.Apply (- good|wire unknown-field|namespace two|sync_fs other|(lease|payloads|diff\.annotations) \S+"
        r"|mounts none|mounts\.(options|source) empty|mounts\.(target|type) \S+)",
        "UNKNOWN",
        "DATA_LOSS",
        "the blob is no archive",
    ),
    (r"\S+Diff\.Apply diff\.media_type \S+", "UNKNOWN", "UNIMPLEMENTED", "of no kind that can be applied"),
    (
        r"\S+Diff\.Apply diff\.size \S+",
        "UNKNOWN",
        "FAILED_PRECONDITION|INVALID_ARGUMENT",
        "the blob has another",
    ),
    (
        r"\S+Diff\.(Apply mounts|Diff (left|right)) (empty|many)",
        "UNKNOWN",
        "NOT_FOUND",
        "what is mounted is looked at where it lies",
    ),
    (
        r"\S+Diff\.(Apply mounts|Diff (left|right))\.(options|source) \S+",
        "UNKNOWN",
        "INVALID_ARGUMENT|NOT_FOUND|DATA_LOSS",
        "the same",
    ),
    (
        rf"\S+Transfer:\w+ ({NOTHING}|(source|destination) none|(source|destination)\. \S+|\S+ not-utf-8)",
        "UNKNOWN",
        "UNIMPLEMENTED|INVALID_ARGUMENT",
        "ends that are none, or that are not read",
    ),
    (
        r"\S+Transfer:(pull source|push destination)\.\.(reference|resolver\.(default_scheme|host_dir|headers)) \S+",
        "UNKNOWN",
        "INVALID_ARGUMENT|UNAVAILABLE",
        "a registry, a scheme, a folder or headers by which nothing is reached",
    ),
    (r"\S+Tasks\.Create (checkpoint|runtime_path) \S+", "UNKNOWN", "UNIMPLEMENTED", "neither is here"),
    (
        r"\S+Tasks\.Create (rootfs|rootfs\.(options|source|target|type)|options|terminal|std(in|out|err)) \S+",
        "UNKNOWN",
        "INVALID_ARGUMENT|NOT_FOUND|FAILED_PRECONDITION",
        "its shim has only words for what cannot be mounted or opened",
    ),
    (
        r"\S+Tasks\.(Delete|Start) (- good|wire unknown-field|namespace two|lease \S+|exec_id empty)",
        "UNKNOWN",
        "FAILED_PRECONDITION",
        "its shim has only words for the state of a task",
    ),
    (
        r"\S+Tasks\.DeleteProcess exec_id empty",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "and for a process without a name",
    ),
    (
        r"\S+Tasks\.Exec spec\S* \S+",
        "UNKNOWN",
        "INVALID_ARGUMENT|NOT_FOUND",
        "and for a process that cannot be one",
    ),
    (r"\S+Tasks\.Kill signal most", "UNKNOWN", "INVALID_ARGUMENT", "and for a signal that is none"),
    (r"\S+Tasks\.Update resources\.\S* \S+", "UNKNOWN", "INVALID_ARGUMENT", "and for limits that are none"),
    (r"\S+sandbox\S+ .*|\S+Tasks.Checkpoint .*", ".*", "UNIMPLEMENTED|NOT_FOUND", "not here"),
    (r"grpc.reflection.*|\S+Snapshots.Cleanup .*", "UNIMPLEMENTED", "(?!DEADLINE).*", "here"),
    (
        rf"\S+(Content\.(Abort|Status)|Tasks\.DeleteProcess) {NOTHING}",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "a name has some bytes, not thousands, and none that is zero",
    ),
    (
        r"\S+(Content\.(Abort|Status|Write)|Diff\.Diff) \S*ref (empty|huge|long|nul)",
        "OK|NOT_FOUND",
        "INVALID_ARGUMENT",
        "the same",
    ),
    (r"\S+Images\.Create image\.name (huge|long|nul)", "OK", "INVALID_ARGUMENT", "the same"),
    (r"\S+Images\.(Delete name|Update image\.name) (huge|long|nul)", "OK", "NOT_FOUND", "so none has it"),
    (r"\S+Leases\.Create id (huge|long|nul)", "OK", "INVALID_ARGUMENT", "the same"),
    (r"\S+Leases\.Delete id (huge|long|nul)", "OK", "NOT_FOUND", "so none has it"),
    (
        r"\S+Snapshots\.\w+ (key|name|parent|info\.name) (empty|huge|long|nul)",
        "OK|NOT_FOUND|ALREADY_EXISTS|FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "the same; containerd has some of them from the request before",
    ),
    (
        r"\S+Transfer:(push source|tag destination)\.\.name (huge|long|nul)",
        "OK",
        "INVALID_ARGUMENT",
        "the same",
    ),
    (r"\S+Tasks\.Exec std(in|out|err) (huge|long|nul)", "OK", "INVALID_ARGUMENT", "a path as well"),
    (r"\S+ namespace .*", "(?!INTERNAL).*", "INVALID_ARGUMENT|FAILED_PRECONDITION", "looked at first"),
    (
        r"\S+ filters (no-pattern|wide-pattern|huge)",
        "OK|OPEN",
        "INVALID_ARGUMENT",
        "patterns are read at once",
    ),
    (r"\S+ update_mask no-key", "OK", "INVALID_ARGUMENT", "labels without a key"),
    (r"\S+ update_mask huge", "INVALID_ARGUMENT", "OK", "a label that is not there cannot be too long"),
    (
        r"\S+Diff\.Diff labels no-key|\S+Leases\.Create labels (huge-value|long|gc-expire)",
        "OK",
        "INVALID_ARGUMENT",
        "labels are checked wherever they are given",
    ),
    (r"\S+ lease empty", "NOT_FOUND", "OK", "a header without a value is none"),
    (r"\S+Transfer:tag (lease|options.progress_stream) .*", "OK", "NOT_FOUND", "neither is passed over"),
    (
        r"\S+ \S*(digest|expected) \S+",
        "OK|NOT_FOUND|OUT_OF_RANGE",
        "INVALID_ARGUMENT",
        "digests are validated",
    ),
    (r"\S+Write \S+ \S+", "OK|OUT_OF_RANGE", "FAILED_PRECONDITION", "told at the first byte too many"),
    (r"\S+Write \S+ \S+", "OK|FAILED_PRECONDITION|UNKNOWN", "OUT_OF_RANGE", "an offset is not negative"),
    (
        r"\S+Write \S+ \S+",
        "OUT_OF_RANGE|UNKNOWN",
        "OK|INVALID_ARGUMENT",
        "a write that failed does not count",
    ),
    (r"\S+Write order negative-total", "FAILED_PRECONDITION", "OK", "a total is positive, or none"),
    (
        r"\S+ \S+ (cut|truncated|not-utf-8)",
        "OK|NOT_FOUND",
        "INVALID_ARGUMENT",
        "messages in an Any are read at once",
    ),
    (r"\S+ container.spec none", "OK", "INVALID_ARGUMENT", "a container has a spec"),
    (r"\S+ \S+ (far|past)", "OK", "INVALID_ARGUMENT", "a time is in the years 1 to 9999"),
    (r"\S+ \S*event. huge-type", "OK", "RESOURCE_EXHAUSTED", "an event has 64 KiB"),
    (
        r"\S+PluginInfo options\S* .*",
        "UNKNOWN|UNIMPLEMENTED",
        "OK|INVALID_ARGUMENT",
        "there is no shim to ask",
    ),
    (
        r"\S+Diff\.Diff (left|right)\.(type|target) \S+|\S+Diff\.Diff (left|right)\.options empty",
        "UNKNOWN",
        "OK",
        "a mount is looked at where it lies",
    ),
    (r"\S+Tasks\.Create rootfs\.(type|target|options) \S+", "UNKNOWN", "OK", "the same"),
    (r"\S+Tasks\.Create options empty", "UNKNOWN", "OK", "options of no type are none"),
    (
        r"\S+Containers\.Create container\.extensions huge-key|\S+Images\.Create image\.target\.annotations (no|huge)-key",
        "UNKNOWN",
        "OK",
        "no limit on keys",
    ),
    (
        r"\S+Tasks\.Update annotations \S+",
        "UNKNOWN",
        "OK",
        "its shim fails on no resources; here there is nothing to do",
    ),
    (
        r"\S+Streaming.Stream .*",
        "UNKNOWN|OPEN",
        "OPEN|INVALID_ARGUMENT|OK",
        "an id is free again at its stream's end",
    ),
    (
        r"\S+Transfer:(tag order|\w+ (source|destination)\.?) \S+",
        "NOT_FOUND",
        "UNIMPLEMENTED",
        "the pair is looked at first",
    ),
    (
        r"\S+Transfer:\S+ \S+unpacks\.platform\.os(_features)? .*",
        "INVALID_ARGUMENT",
        "OK",
        "a system that nothing runs on unpacks nothing",
    ),
    (
        r"\S+Transfer:\S+ \S+unpacks\.platform\.(architecture|variant) .*",
        "OK",
        "INVALID_ARGUMENT",
        "a platform is some words",
    ),
    (r"\S+ \S+host_dir .*", "OK", "INVALID_ARGUMENT", "the folder has to be there"),
    (r"\S+ \S+headers .*", "UNKNOWN", "OK", "any token is a header's name"),
    (
        r"\S+Transfer:push source..(name|platforms) .*",
        "OK",
        "INVALID_ARGUMENT|NOT_FOUND",
        "what is pushed has to be meant",
    ),
    (r"\S+Transfer:export destination..stream empty", "UNIMPLEMENTED", "NOT_FOUND", "no stream has that id"),
    (
        r"\S+Tasks.Create std\w+ \S+",
        "DEADLINE_EXCEEDED",
        "INVALID_ARGUMENT|NOT_FOUND",
        "containerd waits for a FIFO that is none",
    ),
    (r"\S+Tasks.Create (std\w+|terminal) \S+", "UNKNOWN", "OK", "output that nobody names is dropped"),
    (r"\S+Tasks.Create \w+ \S+", "OK", "UNIMPLEMENTED", "there is no other shim"),
    (r"\S+Tasks.Exec spec..value wrong-types", "UNKNOWN", "OK", "looked at when it is started"),
    (r"\S+Tasks.Update resources\S* \S+", "UNKNOWN", "OK", "what is unknown changes nothing"),
    (
        r"\S+Tasks.Wait exec_id foreign",
        "NOT_FOUND",
        "OPEN",
        "Exec has made it, and both wait; on its way here containerd's task has become another",
    ),
    (
        r"\S+Tasks.CloseIO exec_id foreign",
        "OK",
        "FAILED_PRECONDITION",
        "a process that was not started has no input yet",
    ),
    (r"\S+Transfer:push destination..resolver.logs_stream .*", "UNKNOWN", "OK", "there are no logs"),
)
"""Where lamella differs: a pattern of ``RPC FIELD WORD``, containerd's code, lamella's (patterns as well), and the reason."""

pytestmark = [pytest.mark.privileged, pytest.mark.beside, pytest.mark.needs_program("busybox")]
Answers = dict[str, str]
"""Codes by ``RPC FIELD WORD``."""


class Asked:
    """A server to ask, which is started again where it crashes."""

    def __init__(self, name: str, registry: str, rootfs: Path) -> None:
        self.name, self._registry, self._rootfs = name, registry, str(rootfs)
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name[:10]}-bad-")))
        self._running = contextlib.ExitStack()
        self._stopped = False
        self.start()
        for thing in bad_input.THINGS:
            self.peer.have(thing, bad_input.ELSEWHERE)

    def start(self) -> None:
        """Start it, once more."""
        if self.name == "lamella":
            address = self._running.enter_context(daemons.lamella_process(self.folder))
        else:
            import systems

            system = self._running.enter_context(systems.NewContainerd(self.folder, "", Path()))
            address = system.address
        self.peer = Peer(address, self._registry, self._rootfs)
        self._running.callback(self.peer.channel.close)

    def answers(self) -> bool:
        """Tell whether it still does."""
        return self.peer.call(bad_input.rpcs()[VERSION], Case("", "", [b""])) == "OK"

    def ask(self, service: str, is_open: Callable[[str], bool] = lambda key: True) -> Answers:
        """Send every bad request of a service's RPCs. What is not to stay open is waited for, on a slow machine, too."""
        self.peer.have("lease")
        found: Answers = {}
        for name, rpc in bad_input.rpcs().items():
            if name.rpartition(".")[0] != service:
                continue
            for variant, base in bad_input.bases(self.peer)[name].items():
                orders = bad_input.orders(name, self.peer) if variant in ("", "tag") else {}
                for case in bad_input.cases(base, orders):
                    for thing in base.undo:
                        self.peer.lack(thing)
                    for thing in base.needs:
                        self.peer.have(thing)
                    key = f"{name}{':' if variant else ''}{variant} {case.field} {case.word}"
                    found[key] = until(lambda: self._code(rpc, case))  # noqa: B023
                    if found[key] == "OPEN" and not is_open(key):
                        found[key] = self.peer.call(rpc, case, patient=True)
                    if self.name == "containerd":
                        self._mend(key, found)
                for thing in base.undo:
                    self.peer.lack(thing)
        return found

    def _code(self, rpc: Any, case: Case) -> str:
        """Send a request; give nothing while the stream of the one before has its id yet, whose client has just gone."""
        code = self.peer.call(rpc, case)
        return "" if (rpc.name, code) == ("Stream", "ALREADY_EXISTS") else code

    def _mend(self, key: str, found: Answers) -> None:
        """Start it again where it crashed; remove what it left of a task that it could not create, which bars the next."""
        if not self.answers():
            found[key] = "CRASHED"
            self._running.close()
            self.start()
        elif "Tasks.Create" in key and found[key] == "UNKNOWN":
            for parent in (self.folder / "s", self.folder / "root"):
                bundle = parent / "io.containerd.runtime.v2.task" / bad_input.NAMESPACE / "here"
                subprocess.run(["umount", "--lazy", bundle / "rootfs"], capture_output=True, check=False)
                if not (bundle / "rootfs").is_mount():
                    shutil.rmtree(bundle, ignore_errors=True)

    def stop(self) -> None:
        """End what runs in it, and it."""
        if not self._stopped:
            self._stopped = True
            self.peer.lack("task")
            self._running.close()

    def close(self) -> None:
        """Remove what it had."""
        self._stack.close()


@contextlib.contextmanager
def _asked(name: str, registry: Any, folder: Path) -> Iterator[Asked]:
    rootfs = folder / "rootfs"
    for place in ("bin", "proc"):
        (rootfs / place).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin" / "sleep")
    server = Asked(name, registry.address, rootfs)
    try:
        yield server
    finally:
        server.stop()
        server.close()


@pytest.mark.parametrize("service", SERVICES)
def test_bad_input_is_refused_as_containerd_refuses_it(
    small_image_registry: Any, tmp_path: Path, service: str
) -> None:
    recorded = _read(RECORDED.read_text())
    with _asked("lamella", small_image_registry, tmp_path) as server:
        got = server.ask(
            service,
            lambda key: recorded.get(key, "OPEN") == "OPEN" or _is_intended(key, recorded[key], "OPEN"),
        )
        assert server.answers()
        server.stop()
        assert "internal error" not in (log := (server.folder / "serve.log").read_text()), log[-4000:]
        assert "Traceback" not in log, log[-4000:]
        _check_left(server.folder)
    assert not set(got) - set(recorded), "LAMELLA_UPDATE_GOLDEN=1 records what containerd answers"
    wrong = [
        f"{key}: {code}, containerd: {recorded[key]}"
        for key, code in got.items()
        if code == "DEADLINE_EXCEEDED"
        or (code != recorded[key] and not _is_intended(key, recorded[key], code))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def _check_left(folder: Path) -> None:
    """Check that a server that was stopped has left a whole store, and nothing else."""
    places = ["--root", f"{folder}/root", "--state", f"{folder}/state"]
    done = subprocess.run(
        [sys.executable, "-m", "lamella", *places, "fsck"], capture_output=True, text=True, check=False
    )
    # That an image has nothing to point at is what its client said.
    wrong = [
        line
        for line in done.stdout.splitlines()
        if line.startswith("wrong: ") and "dangling-image" not in line
    ]
    assert not wrong and not done.stderr, done.stdout + done.stderr
    assert not [path for path in folder.rglob("*") if path.name == ESCAPED]
    assert not [place for place in ("/", "/tmp", ".", folder.parent) if Path(place, ESCAPED).exists()]
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    until(lambda: not _processes(str(folder)))


if RECORDS:

    @pytest.mark.parametrize("service", SERVICES)
    def test_containerd_answers_as_recorded(
        small_image_registry: Any, tmp_path: Path, require_program: Any, service: str
    ) -> None:
        require_program("runc")
        recorded = _read(RECORDED.read_text()) if RECORDED.exists() else {}
        with _asked("containerd", small_image_registry, tmp_path) as server:
            got = server.ask(service, lambda key: UPDATES or recorded.get(key) == "OPEN")
        if UPDATES:
            others = {key: code for key, code in recorded.items() if not key.startswith(f"{service}.")}
            recorded = others | got
            RECORDED.write_text(_written(recorded))
        # What it answers by Unknown hangs on what went before.
        changed = {key: code for key, code in got.items() if "UNKNOWN" not in (code, recorded.get(key, code))}
        assert {key: code for key, code in changed.items() if recorded.get(key) != code} == {}


def _is_intended(key: str, theirs: str, ours: str) -> bool:
    return any(
        re.fullmatch(pattern, key) and re.fullmatch(their, theirs) and re.fullmatch(our, ours)
        for pattern, their, our, _ in INTENDED
    )


def _processes(folder: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and folder.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


def _written(answers: Mapping[str, str]) -> str:
    """Write answers, a line for each field: ``RPC FIELD: CODE WORD WORD; CODE WORD``."""
    fields: dict[str, dict[str, list[str]]] = {}
    for key, code in answers.items():
        place, _, word = key.rpartition(" ")
        fields.setdefault(place, {}).setdefault(code, []).append(word)
    return "".join(
        f"{place}: {'; '.join(' '.join([code, *words]) for code, words in codes.items())}\n"
        for place, codes in sorted(fields.items(), key=lambda field: field[0].partition(" ")[0])
    )


def _read(text: str) -> Answers:
    found: Answers = {}
    for line in text.splitlines():
        place, _, codes = line.partition(": ")
        for group in codes.split("; "):
            code, *words = group.split()
            found |= {f"{place} {word}": code for word in words}
    return found
