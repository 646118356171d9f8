"""What every test leans on: requirements that skip or fail, a check for leftovers, registries, images.

With LAMELLA_REQUIRE_ALL=1 nothing may be skipped: a skip is a failure, and everything new on the machine
(mounts, loop devices, cgroups, network interfaces, processes) counts as left behind. Without it only what can
be traced to this run counts, because other things may happen on the machine at the same time.

tools/run_tests.py runs two halves at once: tests that need root and are not marked ``beside``, and all others. The others have a
mount namespace of their own, by which the cgroups of their containers are known, and make no network interfaces.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / name) for name in ("examples", "tools", "benches")]
pytest.register_assert_rewrite("crashes", "monitors", "networking", "probes", "stores", "waiting")

# None asserts a time: the machine may be loaded.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

HALF = os.environ.pop("LAMELLA_TEST_HALF", "")  # not for what tests run
REQUIRE_ALL = os.environ.get("LAMELLA_REQUIRE_ALL") == "1"
SESSION_TAG = f"LAMELLA_TEST_SESSION={uuid.uuid4().hex}"
GRACE_SECONDS = 30.0  # a monitor removes its cgroups after it has told its clients; that takes a moment


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_program(*names): skip unless these programs are on PATH")
    config.addinivalue_line("markers", "needs_root: skip unless run by root")
    config.addinivalue_line("markers", "needs_ids: skip unless run by root, or by who has ranges of ids")
    if os.geteuid() != 0 and not os.environ.get("XDG_RUNTIME_DIR"):
        # `su` and cron set none. skopeo and its kin would look into /run/containers then, which may be root's alone.
        os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="lamella-run-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop("XDG_RUNTIME_DIR"), ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of the other half out."""
    if HALF:
        chosen = {
            privileged: [item for item in items if _is_privileged(item) == privileged]
            for privileged in (True, False)
        }
        items[:] = chosen[HALF == "privileged"]
        config.hook.pytest_deselected(items=chosen[HALF != "privileged"])


def _is_privileged(item: pytest.Item) -> bool:
    if item.get_closest_marker("beside"):
        return False
    return any(
        item.get_closest_marker(name) for name in ("privileged", "needs_root")
    ) or "require_root" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_root"):
        _require_root()
    elif item.get_closest_marker("privileged"):
        if item.get_closest_marker("rootless"):
            _require_user_namespaces()
        else:
            _require_root()
    if item.get_closest_marker("needs_ids"):
        _require_ids()
    for marker in item.iter_markers("needs_program"):
        for name in marker.args:
            _require_program(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        _turn_into_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRE_ALL and report.skipped:
        _turn_into_failure(report)
    return report


def _turn_into_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\n(LAMELLA_REQUIRE_ALL=1: a skipped test is a failure)"


def _require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@functools.cache
def _user_namespace() -> tuple[int, str]:
    """Give how many ranges of ids lamella's user namespace has, one's own id included, and what keeps one from having it."""
    from lamella import _core
    from lamella.errors import LamellaError

    try:
        maps = _core.helper_maps()
    except LamellaError as error:
        return 0, str(error)
    return len(maps[0]) if maps else 2, ""  # who needs no helper has them all


def _require_user_namespaces() -> None:
    ranges, why = _user_namespace()
    if not ranges:
        pytest.skip(f"needs root, or user namespaces: {why}")


def _require_ids() -> None:
    if os.geteuid() != 0 and _user_namespace()[0] < 2:
        pytest.skip("needs ranges of ids (/etc/subuid, /etc/subgid)")


def _require_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name} on PATH")
    return path


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """``require_program("skopeo")`` gives its path, or skips the test with the reason."""
    return _require_program


@pytest.fixture(scope="session")
def require_root() -> Callable[[], None]:
    """``require_root()`` skips the test unless root runs it."""
    return _require_root


class Leftovers:
    """What a run could leave on the machine: mounts, loop devices, cgroups, interfaces, processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def look(self) -> dict[str, str]:
        """Give what is there now: an identity, the same at every look, and what to tell about it."""
        return {
            **self._mounts(),
            **self._loop_devices(),
            **self._cgroups(),
            **self._interfaces(),
            **self._processes(),
        }

    def new_since(self, before: dict[str, str]) -> list[str]:
        """Give what is new and stays throughout the grace: what comes and goes meanwhile is of others who are at work."""
        deadline = time.monotonic() + GRACE_SECONDS
        left = self._new(before)
        while left and time.monotonic() <= deadline:
            time.sleep(0.05)
            left = {key: text for key, text in self._new(before).items() if key in left}
        return sorted(left.values())

    def _new(self, before: dict[str, str]) -> dict[str, str]:
        return {key: text for key, text in self.look().items() if key not in before}

    def _ours(self, text: str) -> bool:
        return REQUIRE_ALL or self.folder in text or ("lamella" in text and HALF != "others")

    def _mounts(self) -> dict[str, str]:
        found = {}
        for line in _lines("/proc/self/mountinfo"):
            number, _, _, _, point, *_ = line.split()
            if self._ours(line):
                found[f"mount {number} {point}"] = f"mount: {line}"
        return found

    def _loop_devices(self) -> dict[str, str]:
        found = {}
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            for file in _lines(backing):
                if self._ours(file) and (HALF != "others" or self.folder in file):
                    found[f"loop {backing}"] = f"loop device: {backing.parent.parent.name} of {file}"
        return found

    def _cgroups(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if os.geteuid() != 0:
            return found  # they are root's
        for top in [*Path("/sys/fs/cgroup").glob("lamella"), *Path("/sys/fs/cgroup").glob("*/lamella")]:
            others: set[Path] = set()
            for name, _, _ in os.walk(top, topdown=False):
                folder = Path(name)
                processes = _lines(folder / "cgroup.procs")
                if HALF and any(map(_is_of_the_other_half, processes)):
                    others.update((folder, *folder.parents))
                if HALF and len(folder.relative_to(top).parts) < 2:
                    continue  # a namespace's: what a client of the other half keeps for its next container
                # With processes it is a running container, perhaps another's; ours are found as processes.
                if (REQUIRE_ALL or not processes) and folder not in others:
                    found[f"cgroup {folder}"] = f"cgroup: {folder}"
        return found

    def _interfaces(self) -> dict[str, str]:
        names = [path.name for path in Path("/sys/class/net").glob("*") if HALF != "others"]
        return {f"interface {name}": f"network interface: {name}" for name in names}

    def _processes(self) -> dict[str, str]:
        # Thousands of tests ask twice: without pathlib, and asking first what kernel threads and zombies lack, it takes
        # 1.6 ms of 130 processes, not 8.
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                program = os.readlink(f"/proc/{name}/exe")  # noqa: PTH115
                with open(f"/proc/{name}/environ", "rb", buffering=0) as file:  # noqa: PTH123
                    environment = file.read()
                if SESSION_TAG.encode() in environment or self._has_open(name, program):
                    entry = Path("/proc", name)
                    started = (entry / "stat").read_text().rpartition(")")[2].split()
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if started[0] not in "ZX":
                        found[f"process {name} {started[19]}"] = f"process: {name} {program} {command}"
        return found

    def _has_open(self, process: str, program: str) -> bool:
        """Tell whether a launcher holds files of this run: it may have been started with no environment."""
        if "lamella-launcher" not in program and "memfd:" not in program:
            return False
        return any(self.folder in str(entry.readlink()) for entry in Path("/proc", process, "fd").iterdir())


def _is_of_the_other_half(process: str) -> bool:
    """Tell whether the monitor of a container's process is in another mount namespace than we are."""
    with contextlib.suppress(OSError):
        while int(process) > 1:
            if "lamella-launcher" in os.readlink(f"/proc/{process}/exe"):  # noqa: PTH115
                return not os.path.samefile(f"/proc/{process}/ns/mnt", "/proc/self/ns/mnt")  # noqa: PTH121
            process = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[1]
    return False


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


@pytest.fixture(scope="session", autouse=True)
def nothing_left_after_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leftovers]:
    """Fail the run when it leaves a mount, loop device, cgroup, network interface or process."""
    leftovers = Leftovers(tmp_path_factory.getbasetemp())
    before = leftovers.look()
    name, _, value = SESSION_TAG.partition("=")
    os.environ[name] = value
    yield leftovers
    left = leftovers.new_since(before)
    del os.environ[name]
    if left:
        pytest.fail("the tests left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_after_a_privileged_test(
    request: pytest.FixtureRequest, nothing_left_after_the_session: Leftovers
) -> Iterator[None]:
    """Fail a test marked privileged or integration that leaves something; others are not looked at."""
    marked = any(
        request.node.get_closest_marker(name) for name in ("privileged", "integration", "real_image")
    )
    if not marked:
        yield
        return
    request.getfixturevalue("_session_services")
    before = nothing_left_after_the_session.look()
    yield
    left = nothing_left_after_the_session.new_since(before)
    if left:
        pytest.fail("the test left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture
def _session_services(request: pytest.FixtureRequest) -> None:
    """Start the session's services that a test asks for before the first look: they are not its own."""
    for name in ("docker_registry", "real_image_ref", "small_image_registry"):
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run docker-registry on a free loopback port with a store of its own; give ``127.0.0.1:PORT``."""
    from docker_registry import docker_registry_process

    _require_program("docker-registry")
    deletes = {**os.environ, "REGISTRY_STORAGE_DELETE_ENABLED": "true"}
    with docker_registry_process(tmp_path_factory.mktemp("docker-registry"), "", env=deletes) as address:
        yield address


@pytest.fixture(scope="session")
def real_image_layout() -> Path:
    """Give the OCI layout (tag ``latest``) of the real Debian image; it is built once a machine."""
    import real_image

    layout = real_image.layout_path()
    if (layout / "index.json").exists():
        return layout
    _require_root()
    for tool in real_image.TOOLS:
        _require_program(tool)
    return real_image.ensure()


@pytest.fixture(scope="session")
def real_image_ref(docker_registry: str, real_image_layout: Path) -> str:
    """Push the real image into docker-registry with skopeo, once a session; give its reference."""
    reference = f"{docker_registry}/debian-real:latest"
    command = [_require_program("skopeo"), "copy", "--quiet", "--dest-tls-verify=false"]
    subprocess.run([*command, f"oci:{real_image_layout}:latest", f"docker://{reference}"], check=True)
    return reference


@pytest.fixture(scope="session")
def small_image_registry() -> Iterator[Any]:
    """Serve an image of this machine's own programs from the in-process registry; give the server."""
    import machine_image
    from lamella.registry.server import RegistryServer

    with RegistryServer() as server:
        machine_image.build().push(server.address, "machine", "latest")
        yield server


@pytest.fixture
def small_image(small_image_registry: Any) -> str:
    """Give the reference of the small image: three gzip layers with sh, some tools, a whiteout, links."""
    return f"{small_image_registry.address}/machine:latest"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    """Give a Client on a store of its own."""
    import lamella

    with lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def image(client: Any, small_image: str) -> Any:
    """Pull the small image into the client's store; give it."""
    return client.images.pull(small_image)
