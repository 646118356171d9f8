"""What a user who is not root has around: the session, the umask, the home. From wherever it is, a store is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from users import OrdinaryUser

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("useradd", "userdel", "newuidmap", "newgidmap", "setpriv", "unshare"),
]


def shell(
    user: OrdinaryUser, script: str, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script as the user, in which ``lamella`` is the command."""
    functions = f'lamella() {{ "{sys.executable}" -m lamella "$@"; }}\n'
    return user.run(["sh", "-ec", functions + script, "sh", *arguments], check=check)


def test_a_container_is_found_from_within_a_session_and_from_without(
    user: OrdinaryUser, small_image: str
) -> None:
    """After su, in a job of cron, there is no XDG_RUNTIME_DIR: a second start would write to the same layer beside the first."""
    session = user.home / "session"
    found = shell(
        user,
        """
        mkdir -m 700 session
        lamella pull -q --plain-http "$1"
        XDG_RUNTIME_DIR=$PWD/session lamella run -d --name box "$1" /bin/sh -c 'while :; do sleep 1; done' >&2
        lamella exec box /bin/echo inside
        lamella start box 2>&1 || :
        lamella rm -f box
        XDG_RUNTIME_DIR=$PWD/session lamella ps -a -q
        """,
        small_image,
    )
    assert found.stdout.splitlines()[1:] == ["inside", "lamella: the container is running already", "box"]
    assert (session / "lamella").is_dir()


def test_what_is_no_folder_of_the_users_session_is_not_used(
    user: OrdinaryUser, small_image: str, tmp_path: Path
) -> None:
    """Batch systems pass XDG_RUNTIME_DIR on to machines where it is not there; su passes that of another user."""
    found = shell(
        user,
        """
        lamella pull -q --plain-http "$1" >&2
        XDG_RUNTIME_DIR=/nonexistent lamella run --rm "$1" /bin/echo not there
        XDG_RUNTIME_DIR=$2 lamella run --rm "$1" /bin/echo of another
        """,
        small_image,
        str(tmp_path),
    )
    assert found.stdout == "not there\nof another\n"


@pytest.mark.parametrize("umask", ["000", "077"])
def test_containers_are_made_with_any_umask(user: OrdinaryUser, small_image: str, umask: str) -> None:
    """A group of many, as on shared machines, is with umask 002 what all are with 000."""
    script = """
    umask "$2"
    lamella --root "made-$2" pull -q --plain-http "$1" >&2
    lamella --root "made-$2" run --rm "$1" /bin/echo made
    """
    assert shell(user, script, small_image, umask).stdout == "made\n"


def test_a_state_that_cannot_be_reached_is_an_error_that_names_it(user: OrdinaryUser, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    state = tmp_path / "state"
    found = user.lamella("--state", str(state), "--json", "doctor", check=False)
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert checks["state"]["status"] == "fail"
    assert "is not a writable folder" in checks["state"]["detail"]


def test_a_user_without_a_home_is_told_to_choose_a_store(user: OrdinaryUser, small_image: str) -> None:
    """As in a container that is run with a number (docker run --user 12345)."""
    subprocess.run(["chown", "4242424:4242424", user.home], check=True)
    nobody = OrdinaryUser("nameless", 4242424, 4242424, user.home)
    try:
        found = shell(nobody, "unset HOME; lamella ps", check=False)
        assert found.returncode == 1
        assert "has no home" in found.stderr and "--root" in found.stderr
        script = """
        unset HOME
        lamella --root "$2" pull -q --plain-http "$1" >&2
        lamella --root "$2" run --rm "$1" /bin/echo made
        """
        assert shell(nobody, script, small_image, str(user.home / "store")).stdout == "made\n"
    finally:
        subprocess.run(["chown", f"{user.uid}:{user.gid}", user.home], check=True)


@pytest.mark.needs_program("ctr")
def test_ctr_runs_a_container_of_a_user_in_a_namespace_of_its_own(
    user: OrdinaryUser, small_image: str
) -> None:
    """As docs/rootless.md has it."""
    found = shell(
        user,
        """
        export XDG_RUNTIME_DIR=$PWD/for-ctr
        mkdir -m 700 for-ctr
        lamella pull -q --plain-http "$1" >&2
        socket=$XDG_RUNTIME_DIR/lamella/containerd.sock
        "$2" -m lamella serve >&2 &
        trap 'kill $!; wait' EXIT
        while ! [ -S "$socket" ]; do sleep 0.1; done
        ls -l "$socket" | cut -c 1-10
        unshare --user --map-root-user --map-auto --mount ctr -a "$socket" -n default \\
            run --rm --fifo-dir "$XDG_RUNTIME_DIR/fifo" --cpu-shares 0 "$1" box /bin/echo made
        """,
        small_image,
        sys.executable,
    )
    assert found.stdout == "srw-------\nmade\n"


def test_the_ranges_are_found_without_a_path(user: OrdinaryUser) -> None:
    """A service, or ``env -i``, has no PATH; newuidmap is where it always is."""
    code = "import os; os.environ.pop('PATH'); from lamella import _core; print(len(_core.helper_maps()[0]))"
    assert user.python(code) == "2\n"


@pytest.mark.skipif(not Path("/proc/sys/vm/memfd_noexec").exists(), reason="since Linux 6.3")
def test_programs_in_memory_that_are_forbidden_are_named(user: OrdinaryUser) -> None:
    """The sysctl holds for a PID namespace, and those beneath."""
    forbid = 'echo 2 > /proc/sys/vm/memfd_noexec; exec "$@"'
    code = """
import sys, lamella
from lamella import _core
try:
    _core.helper_maps()
except lamella.errors.PermissionDenied as error:
    print(error.hint)
"""
    found = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--mount-proc", "--", "sh", "-c", forbid, "sh"),
            *user.command(sys.executable, "-c", code),
        ],
        env=user.environment(),
        cwd=user.home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "vm.memfd_noexec=2" in found.stdout
