"""A user who is not root: pulls, snapshots, removals, collection, in a store of that user's own."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import layers
from users import REPOSITORY, OrdinaryUser, ordinary_user

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("useradd", "userdel", "newuidmap", "newgidmap", "setpriv", "unshare"),
]


@pytest.fixture(scope="module")
def user_without_ranges() -> Iterator[OrdinaryUser]:
    with ordinary_user(ranges=False) as made:
        yield made


MAKER = """
import os, signal
from users import ordinary_user
with ordinary_user() as made:
    print(made.name, made.home, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_user_of_a_run_that_was_killed_is_removed_by_the_next(user: OrdinaryUser) -> None:
    maker = [sys.executable, "-c", MAKER]
    places = {"PYTHONPATH": str(REPOSITORY / "tests")}
    said = subprocess.run(maker, env=os.environ | places, capture_output=True, text=True, check=False)
    name, home = said.stdout.split()
    assert pwd.getpwnam(name).pw_dir == home and Path(home).is_dir()
    with ordinary_user():
        pass
    assert name not in {entry.pw_name for entry in pwd.getpwall()}
    assert not Path(home).exists()
    assert pwd.getpwnam(user.name).pw_dir == str(user.home) and user.home.is_dir()


BOTH_SNAPSHOTTERS = pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])


def store(user: OrdinaryUser) -> Path:
    return user.home / ".local/share/lamella"


def maps(user: OrdinaryUser) -> Any:
    """Give what the user's helper says that it maps: users, groups, notes."""
    return json.loads(
        user.python("import json; from lamella import _core; print(json.dumps(_core.helper_maps()))")
    )


def answer(user: OrdinaryUser, *arguments: str) -> Any:
    return json.loads(user.lamella("--json", *arguments).stdout)


def test_the_helper_maps_ones_own_id_and_the_ranges(user: OrdinaryUser) -> None:
    users, groups, notes = maps(user)
    assert users[0] == [0, user.uid, 1]
    assert groups[0] == [0, user.gid, 1]
    assert users[1][0] == groups[1][0] == 1
    assert users[1][2] == groups[1][2] == 65536
    assert notes == []


def test_without_ranges_one_id_is_mapped_and_a_note_says_why(user_without_ranges: OrdinaryUser) -> None:
    users, groups, notes = maps(user_without_ranges)
    assert users == [[0, user_without_ranges.uid, 1]]
    assert groups == [[0, user_without_ranges.gid, 1]]
    assert any("/etc/subuid" in note for note in notes) and any("/etc/subgid" in note for note in notes)


def test_what_takes_a_second_id_is_told_which_range_is_missing(
    user: OrdinaryUser, user_without_ranges: OrdinaryUser, small_image: str
) -> None:
    """The program itself can only say "Invalid argument"."""
    script = """
    lamella() { "$python" -m lamella --root "$PWD/second-id" "$@"; }
    python=$0 image=$1
    chown() { lamella run --rm -v /usr:/usr:ro "$image" /usr/bin/chown "$1" /etc; }
    lamella pull --plain-http "$image" >&2
    lamella images rm --sync "$image" >&2
    lamella pull --plain-http "$image" >&2
    chown 33 || echo "status $?"
    lamella run --rm "$image" /bin/sh -c "exit 3" || echo "status $?"
    lamella run -d --name box "$image" /bin/sh -c "while :; do sleep 1; done" >&2
    lamella exec box /bin/sh -c "echo Operation not permitted; exit 4" || echo "status $?"
    lamella rm -f box >&2
    lamella run -d --name failed "$image" /bin/sh -c "echo Invalid argument; exit 5" >&2
    lamella wait failed
    lamella logs failed
    """
    found = user_without_ranges.run(["sh", "-c", script, sys.executable, small_image])
    assert found.stdout == ("status 1\nstatus 3\nOperation not permitted\nstatus 4\n5\nInvalid argument\n")
    (told, *hints) = [line for line in found.stderr.splitlines() if "/etc/subuid" in line]
    assert told.startswith("lamella: warning: this user has one id") and "usermod" in told
    assert [hint.partition(":")[0] for hint in hints] == ["hint", "hint", "hint"]
    assert all("chown, su" in hint and "usermod --add-subuids" in hint for hint in hints)

    user.lamella("pull", "--plain-http", small_image)
    chown = ("run", "--rm", "-v", "/usr:/usr:ro", small_image, "/usr/bin/chown", "33", "/etc")
    assert user.lamella(*chown).stderr == ""


def test_the_library_says_so_too(user_without_ranges: OrdinaryUser, small_image: str) -> None:
    code = """
import sys
import lamella
with lamella.Client(root="library-root", state="library-state") as client:
    image = client.images.pull(sys.argv[1])
    try:
        client.containers.run(image, ["/usr/bin/chown", "33", "/etc"], volumes=["/usr:/usr:ro"], remove=True).check()
    except lamella.errors.CommandFailed as error:
        print(error.hint)
"""
    assert "/etc/subgid gives this user no ids" in user_without_ranges.python(code, small_image)


def test_root_needs_no_helper() -> None:
    from lamella import _core

    assert _core.helper_maps() is None


def test_a_helper_ends_with_its_caller(user: OrdinaryUser) -> None:
    code = (
        "import os, signal, sys; from lamella import _core; _core.helper_maps(); print('ready', flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = user.run([sys.executable, "-c", code], check=False)
    assert found.stdout == "ready\n"
    assert not helpers(user)


def helpers(user: OrdinaryUser) -> list[int]:
    """Give the helpers of the user that are there after a moment in which they may end."""
    import time

    deadline = time.monotonic() + 60
    while True:
        found = [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and _is_helper(process, user.uid)
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def _is_helper(process: Path, uid: int) -> bool:
    try:
        return process.stat().st_uid == uid and (process / "comm").read_text() == "lamella-helper\n"
    except OSError:
        return False


def test_a_killed_helper_is_followed_by_another(user: OrdinaryUser) -> None:
    code = """
import os, signal, time
from pathlib import Path
from lamella import _core

def is_helper(process):
    try:
        return process.stat().st_uid == os.getuid() and (process / "comm").read_text() == "lamella-helper\\n"
    except OSError:  # it has just ended
        return False

def helper():
    return next(int(p.name) for p in Path("/proc").glob("[0-9]*") if is_helper(p))

_core.helper_maps()
first = helper()
os.kill(first, signal.SIGKILL)
while Path(f"/proc/{first}").exists():
    time.sleep(0.01)
_core.helper_maps()
print(first != helper())
"""
    assert user.python(code) == "True\n"


@BOTH_SNAPSHOTTERS
def test_an_image_is_pulled_unpacked_removed_and_collected(
    user: OrdinaryUser, small_image: str, snapshotter: str
) -> None:
    chosen = ("--snapshotter", snapshotter)
    user.lamella(*chosen, "pull", "--plain-http", small_image)
    image = answer(user, *chosen, "images", "inspect", small_image)
    user.lamella(*chosen, "fsck", "--verify-layers")
    user.lamella(*chosen, "snapshots", "prepare", "work", image["chain_id"])
    assert "work" in user.lamella(*chosen, "snapshots", "ls").stdout
    user.lamella(*chosen, "snapshots", "rm", "work")
    assert answer(user, *chosen, "du")
    user.lamella(*chosen, "images", "rm", small_image)
    user.lamella(*chosen, "gc")
    assert list((store(user) / "snapshots" / snapshotter).iterdir()) == []


PACK = """
import sys, lamella
from pathlib import Path
from lamella import _core
reference, snapshotter, target = sys.argv[1:]
root = target + "-store"
with lamella.Client(root=root, state=target + "-state", snapshotter=snapshotter) as client:
    image = client.images.pull(reference, plain_http=True)
    report = client.fsck(verify_layers=True)
    assert report.clean, report
    for number, layer in enumerate(sorted(Path(root, "snapshots", snapshotter).glob("*/fs"))):
        changes = (
            _core.diff_trees(str(layer))
            if snapshotter == "native"
            else _core.diff_upper(str(layer), [], whiteouts=client.snapshots.whiteouts)
        )
        print(changes.pack(f"{target}-{number}.tar", compression="none").diff_id)
    client.images.remove(reference)
    client.gc()
    assert not list(Path(root, "snapshots", snapshotter).iterdir())
"""


def image_beyond_the_user() -> layers.Built:
    """Give an image with devices, and with owners of symlinks and FIFOs that no user has ids for."""
    image = layers.history(
        7,
        layers.file("over", uid=70000, gid=3),
        layers.folder("dev"),
        layers.device("dev/null", 1, 3, mode=0o666),
        layers.hardlink("dev/also", "dev/null"),
        layers.device("dev/disk", 8, 1, block=True, uid=70000, gid=6),
        layers.symlink("dev/replaced", "null", uid=70000),
        layers.symlink("far", "over", uid=70000, gid=70001),
        layers.hardlink("further", "far"),
        layers.fifo("pipe", uid=70000, mode=0o622),
        layers.folder("gone"),
        layers.device("gone/tty", 5, 0),
        layers.device("covered", 5, 1),
    )
    above = layers.tar(
        layers.folder("dev"),
        layers.whiteout("dev/disk"),
        layers.file("dev/replaced"),
        layers.hardlink("dev/again", "dev/null"),
        layers.hardlink("far-again", "far"),
        layers.whiteout("gone"),
        layers.folder("covered"),
        layers.device("covered/zero", 1, 5),
    )
    return layers.Built(*image.tars, above)


@BOTH_SNAPSHOTTERS
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one id"])
def test_layers_that_are_packed_again_are_those_of_root(
    user: OrdinaryUser,
    user_without_ranges: OrdinaryUser,
    server: Any,
    snapshotter: str,
    tmp_path: Path,
    ranges: bool,
) -> None:
    """Owners and all: those that the machine has no ids for are kept beside, as are devices."""
    reference = image_beyond_the_user().push(server)
    who = user if ranges else user_without_ranges
    target = f"{who.home}/{snapshotter}"
    packed = who.python(PACK, reference, snapshotter, target)
    by_root = subprocess.run(
        [sys.executable, "-c", PACK, reference, snapshotter, str(tmp_path / "by-root")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert sorted(packed.split()) == sorted(by_root.split())
    assert len(packed.split()) == 3


def test_the_owners_of_a_layer_are_ids_of_the_users_ranges(user: OrdinaryUser, server: Any) -> None:
    reference = layers.history(7).push(server, "owners")
    user.lamella("pull", "--plain-http", reference)
    first = maps(user)[0][1][1]
    owned = {os.lstat(path).st_uid for path in (store(user) / "snapshots/overlayfs").rglob("*")}
    assert owned == {user.uid, first + 6}
    user.lamella("images", "rm", reference)
    user.lamella("gc")


LOOK = """
import os, sys, lamella
from pathlib import Path
reference, snapshotter = sys.argv[1:]
with lamella.Client(snapshotter=snapshotter) as client:
    image = client.images.pull(reference, plain_http=True)
    layers = Path(client.config.root, "snapshots", snapshotter)
    before = sorted(layers.iterdir())
    client.snapshots.view("view", image.chain_id)
    for key in ("view", image.chain_id):
        with client.snapshots.mounted(key) as folder:
            print(*sorted(entry.name for entry in folder.iterdir()))
            print((folder / "hidden/new").read_text(), oct((folder / "su").stat().st_mode))
    client.snapshots.remove("view")
    assert sorted(layers.iterdir()) == before
    assert not list(Path(client.config.state, "mounts").iterdir())
    client.snapshots.prepare("work", image.chain_id)
    try:
        with client.snapshots.mounted("work") as folder:
            (folder / "added").write_text("x")
            print(folder.name)
    except lamella.errors.PermissionDenied as error:
        print("snapshots mounts" in error.hint)
    print([str(change) for change in client.snapshots.changes("work")])
    client.snapshots.remove("work")
    client.images.remove(reference)
    client.gc()
"""


@BOTH_SNAPSHOTTERS
def test_a_snapshot_is_shown_as_a_copy_which_goes(user: OrdinaryUser, server: Any, snapshotter: str) -> None:
    reference = layers.history(7).push(server, "look")
    said = user.python(LOOK, reference, snapshotter).splitlines()
    assert said[0] == said[2] == "etc hard hidden link replaced su"
    assert said[1] == said[3] == "data 0o104755"
    if snapshotter == "native":  # its folder holds all that it shows
        assert said[4] == "fs"
        assert "added" in said[5]
    else:
        assert said[4] == "True"
        assert "added" not in said[5]


@BOTH_SNAPSHOTTERS
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one id"])
def test_mounts_are_shown_with_the_way_into_them(
    user: OrdinaryUser, user_without_ranges: OrdinaryUser, server: Any, snapshotter: str, ranges: bool
) -> None:
    who = user if ranges else user_without_ranges
    reference = layers.history(7).push(server, "enter")
    chosen = ("--snapshotter", snapshotter)
    who.lamella(*chosen, "pull", "--plain-http", reference)
    chain = answer(who, *chosen, "images", "inspect", reference)["chain_id"]
    who.lamella(*chosen, "snapshots", "prepare", "work", chain)
    line = who.lamella(*chosen, "snapshots", "mounts", "work").stdout.splitlines()[-1]
    assert line.startswith("unshare ")
    inside = "echo 'cat hidden/new; rm link; echo x > added'"
    assert who.run(["sh", "-c", f"{inside} | SHELL=/bin/sh {line}"]).stdout == "data"
    changes = who.lamella(*chosen, "snapshots", "diff", "work").stdout
    assert "/added" in changes and "/link" in changes
    who.lamella(*chosen, "snapshots", "rm", "work")
    who.lamella(*chosen, "images", "rm", reference)
    who.lamella(*chosen, "gc")


STOPPED = """
import os, signal, sys, threading, time
from pathlib import Path
import lamella
from lamella import _core

def helpers():
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and process.stat().st_uid == os.getuid():
                if (process / "comm").read_text() == "lamella-helper\\n":
                    yield int(process.name)
        except OSError:
            pass

_core.helper_maps()
while len(found := list(helpers())) > 1:  # one ends, whose caller has just ended
    time.sleep(0.01)
[stopped] = found
# Its parent ends when all is told. In the last moments of that the kernel would wake it, or end it (setpgid(2), orphaned groups).
def group_of_its_parent():
    parent = Path(f"/proc/{stopped}/stat").read_text().rpartition(")")[2].split()[1]
    try:
        return os.getpgid(int(parent))
    except ProcessLookupError:  # it has just ended
        return os.getpgid(stopped)

while group_of_its_parent() == os.getpgid(stopped):
    time.sleep(0.01)
os.kill(stopped, signal.SIGSTOP)

def when_it_is_asked(action):
    def is_asked():
        for task in Path("/proc/self/task").iterdir():
            try:
                if (task / "comm").read_text() == "lamella-lent\\n":
                    return True
            except OSError:
                pass  # a thread that has just ended

    def wait():
        while not is_asked():
            time.sleep(0.01)
        action()
    threading.Thread(target=wait, daemon=True).start()

client = lamella.Client()
"""
KILLED = """
when_it_is_asked(lambda: os.kill(stopped, signal.SIGKILL))
try:
    client.images.pull(sys.argv[1], plain_http=True)
    print("no error")
except lamella.errors.Unavailable as error:
    print("helper" in str(error), bool(error.hint))
image = client.images.pull(sys.argv[1], plain_http=True)
print(client.fsck().clean)
client.images.remove(sys.argv[1])
client.gc()
"""
INTERRUPTED = """
when_it_is_asked(lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    client.images.pull(sys.argv[1], plain_http=True)
except KeyboardInterrupt:
    print("interrupted")
os.kill(stopped, signal.SIGKILL)
"""


def test_a_helper_that_is_killed_at_work_is_an_error_and_the_next_pull_repairs(
    user: OrdinaryUser, server: Any
) -> None:
    reference = layers.history(0).push(server, "killed")
    assert user.python(STOPPED + KILLED, reference).split() == ["True", "True", "True"]


GIVEN_UP = """
try:
    client.images.pull(sys.argv[1], plain_http=True)
    print("no error")
except lamella.errors.Unavailable as error:
    print(f"process {stopped}, is stopped" in str(error), f"kill -CONT {stopped}" in error.hint)
os.kill(stopped, signal.SIGCONT)
image = client.images.pull(sys.argv[1], plain_http=True)
print(client.fsck().clean)
client.images.remove(sys.argv[1])
client.gc()
"""


def test_a_helper_that_stays_stopped_is_an_error_that_names_it(user: OrdinaryUser, server: Any) -> None:
    reference = layers.history(0).push(server, "stopped")
    assert user.python(STOPPED + GIVEN_UP, reference).split() == ["True", "True", "True"]


STOPPED_AT_THE_START = """
import os, signal, sys
from pathlib import Path
import lamella
from lamella import _core

search = os.environ["PATH"]
os.environ["PATH"] = sys.argv[1] + ":" + search
try:
    _core.helper_maps()
    print("no error")
except lamella.errors.Unavailable as error:
    stopped = int(Path(sys.argv[1], "stopped").read_text())
    print(f"process {stopped}, is stopped" in str(error), f"kill -CONT {stopped}" in error.hint)
    os.kill(stopped, signal.SIGCONT)
os.environ["PATH"] = search
print(_core.helper_maps()[0][0][1] == os.getuid())
"""


def test_one_that_is_stopped_while_it_is_started_is_given_up_and_the_next_one_works(
    user: OrdinaryUser,
) -> None:
    folder = user.home / "stopping"
    folder.mkdir()
    os.chown(folder, user.uid, user.gid)
    program = folder / "newuidmap"
    stop = f"echo $PPID >{folder}/stopped; kill -STOP $PPID"
    program.write_text(f'#!/bin/sh\n{stop}\nexec {shutil.which("newuidmap")} "$@"\n')
    program.chmod(0o755)
    assert user.python(STOPPED_AT_THE_START, str(folder)).split() == ["True", "True", "True"]
    assert not helpers(user)


def test_ctrl_c_ends_a_pull_whose_helper_does_not_answer(user: OrdinaryUser, server: Any) -> None:
    reference = layers.history(0).push(server, "interrupted")
    assert user.python(STOPPED + INTERRUPTED, reference) == "interrupted\n"


def test_doctor_says_how_many_ids_there_are(user: OrdinaryUser, user_without_ranges: OrdinaryUser) -> None:
    checks = examined(user)
    assert checks["privileges"]["status"] == checks["overlayfs"]["status"] == "ok"
    assert "65537 ids" in checks["privileges"]["detail"]
    check = examined(user_without_ranges)["privileges"]
    assert check["status"] == "warn"
    assert "usermod" in check["remedy"]


def examined(user: OrdinaryUser) -> dict[str, Any]:
    found = json.loads(user.lamella("--json", "doctor", check=False).stdout)
    return {check["name"]: check for check in found["checks"]}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one id"])
def test_the_demo_runs_a_container_and_leaves_nothing(
    user: OrdinaryUser, user_without_ranges: OrdinaryUser, ranges: bool
) -> None:
    who = user if ranges else user_without_ranges
    told = who.run([sys.executable, str(REPOSITORY / "examples/demo.py")]).stdout
    assert "stdout: hello from" in told and "user 0" in told and "exit status 0" in told
    assert told.endswith("left: 0 blobs, 0 snapshots, 0 containers\n")
    assert list(who.home.glob("lamella-demo-*")) == []


SUITES = {
    "overlayfs": (["contract/test_overlayfs.py"], 70),
    "native": (["contract/test_native.py"], 70),
    "content": (["contract/test_content_store.py", "contract/test_processes.py"], 80),
    "unpacking": (["unit/test_core_layers.py", "unit/test_core_pipeline.py", "unit/test_layers.py"], 40),
    "crashes": (["contract/test_crashes.py"], 10),
    "damage": (["contract/test_fsck.py", "contract/test_fsck_layers.py", "contract/test_durability.py"], 44),
    "registries": (
        ["integration/test_pull.py", "integration/test_push.py", "integration/test_discarded_layers.py"],
        50,
    ),
    "archives": (
        ["integration/test_archives.py", "integration/test_convert.py", "integration/test_copying.py"],
        50,
    ),
}
"""Modules of tests that are run again without root, and how many of them at least have to run there: some make devices."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one id"])
@pytest.mark.parametrize("suite", SUITES)
def test_the_suites_hold_for_a_user_who_is_not_root(
    user: OrdinaryUser, user_without_ranges: OrdinaryUser, suite: str, ranges: bool
) -> None:
    who = user if ranges else user_without_ranges
    modules, least = SUITES[suite]
    report = who.home / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={who.home}/pytest", f"--junitxml={report}"]
    settings = ["LAMELLA_REQUIRE_ALL=0", f"HYPOTHESIS_STORAGE_DIRECTORY={who.home}/hypothesis"]
    paths = [str(REPOSITORY / "tests" / module) for module in modules]
    who.run(["env", *settings, sys.executable, "-m", "pytest", *options, *paths], timeout=1100)
    counts = ElementTree.parse(report).getroot()[0].attrib
    assert int(counts["tests"]) - int(counts["skipped"]) >= least
