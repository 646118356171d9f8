"""kill -9 at every step of plugging a container into a network and of its end: of the caller, plugins, the launcher, the monitor.

Whoever dies: the next look at the store lets go of the namespace, the addresses, the ports and the firewall's rules.
"""

from __future__ import annotations

import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

import lamella
from crashes import each_kill, image
from lamella import _core
from lamella.errors import LamellaError
from monitors import kill_monitor
from networking import Machine, leases, pins
from steps import patience

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.usefixtures("alone"),
    pytest.mark.needs_program("iptables", "ip"),
    patience,
]


@pytest.fixture
def reference(server):
    return image().push(server)


@pytest.fixture
def pulled(reference, tmp_path):
    """An archive of the image: the registry is not on the machine that the tests make."""
    archive = tmp_path / "image.tar"
    with lamella.Client(tmp_path / "root", tmp_path / "state") as client:
        client.images.pull(reference)
        client.images.export([reference], archive)
    return archive


@pytest.fixture
def machine(pulled):
    machine = Machine()
    machine.enter()
    yield machine
    machine.leave()


def make_web(client):
    """Make a network without masquerading: the bridge plugin forgets its rules if it is killed between interface and rules."""
    path = client.networks.create("web").path
    path.write_text(path.read_text().replace('"ipMasq": true', '"ipMasq": false'))


@pytest.mark.parametrize(
    ("everyone", "userns"),
    [(False, "host"), (True, "host"), (True, "auto")],
    ids=["one", "all", "all, with ids of its own"],
)
def test_a_run_with_a_published_port(tmp_path, pulled, reference, machine, everyone, userns):
    options = {"network": "web", "ports": ["8080:80"], "userns": userns}

    def run(client):
        with suppress(LamellaError):
            client.containers.run(reference, ["/bin/true"], name="box", **options)

    def before(client):
        client.images.import_(pulled)
        make_web(client)
        run(client)
        client.containers.get("box").remove()

    def rules():
        return [rule for rule in machine.rules() if "8080" in rule or "10.89." in rule]

    places = tmp_path / "places"
    places.mkdir()
    known: set[str] = set()
    for client, outcome in each_kill(places, before, run, points=12, everyone=everyone):
        assert outcome.status <= 0
        deadline = time.monotonic() + 60
        while (
            any(box.status == "running" for box in client.containers.list()) and time.monotonic() < deadline
        ):
            time.sleep(0.02)  # it goes on without its caller, to its end
        client.containers.list()
        client.gc()  # of an address that was half given
        while pins(client.config) and time.monotonic() < deadline:
            client.gc()
        assert (pins(client.config), leases(client.config, "web")) == ([], [])
        if (
            everyone or outcome.status
        ):  # else it may have been an iptables, of whose death the firewall plugin tells nobody
            assert set(rules()) <= known
        known = set(rules())
        for box in client.containers.list(all=True):
            box.start()
            assert box.wait(30) == 0
            box.remove()
        run(client)
        client.containers.get("box").remove()
        for made in client.networks.list():
            if made.own:
                made.remove()
    assert machine.links() == {"lo", "up0", "up1"}


@pytest.mark.parametrize("look", ["list", "gc", "fsck", "start", "remove"])
@pytest.mark.parametrize("network", ["web", pytest.param("pasta", marks=pytest.mark.needs_program("pasta"))])
def test_the_next_look_takes_away_what_a_killed_monitor_left(
    client, pulled, reference, machine, network, look
):
    client.images.import_(pulled)
    make_web(client)
    client.containers.run(reference, ["/bin/true"], network="web", ports=["8080:80"], remove=True)
    rules = machine.rules()
    box = client.containers.run(reference, ["/bin/forever"], network=network, ports=["8080:80"], detach=True)
    kill_monitor(box)
    assert pins(client.config)
    if look == "list":
        assert client.containers.list() == []
    elif look == "gc":
        assert client.gc(dry_run=True).orphans == 1
        client.gc()
    elif look == "fsck":
        assert [left.kind for left in client.fsck().leftovers] == ["stale-network"]
        client.fsck(repair=True)
    elif look == "start":
        box.start()
        box.stop(0)
    if look != "remove":
        assert pins(client.config) == []
    box.remove()
    assert (pins(client.config), leases(client.config, "web"), machine.rules()) == ([], [], rules)
    with socket.create_server(("127.0.0.1", 8080)):
        pass


def test_after_a_restart_of_the_machine_addresses_are_given_back(
    client, pulled, reference, machine, tmp_path
):
    """A restart takes the state folder, namespaces and rules; a network that others share keeps its list of addresses."""
    client.images.import_(pulled)
    make_web(client)
    path = client.networks.get("web").path
    path.write_text(path.read_text().replace(f"{client.config.state}/networks/leases", f"{tmp_path}/leases"))
    box = client.containers.run(reference, ["/bin/forever"], network="web", ports=["8080:80"], detach=True)
    kill_monitor(box)
    assert list((tmp_path / "leases/web").glob("10.*"))
    _core.unpin_network(str(client.config.state / "networks" / box.id))
    shutil.rmtree(client.config.state)
    assert client.containers.list() == []
    assert pins(client.config) == []
    assert not list((tmp_path / "leases/web").glob("10.*"))
    box.start()
    box.remove(force=True)


def test_a_record_that_was_never_finished_goes_with_the_next_collection(client):
    unfinished = client.config.root / "networks" / "attached" / f"default.{'a' * 64}.new"
    unfinished.parent.mkdir(parents=True, mode=0o700)
    unfinished.write_bytes(b'{"container":')
    assert client.gc(dry_run=True).orphans == 1
    client.gc()
    assert pins(client.config) == []


@pytest.mark.parametrize("verb", ["connect", "disconnect"])
@pytest.mark.parametrize("everyone", [False, True], ids=["one", "all"])
def test_a_running_container_that_is_being_connected_or_disconnected(
    tmp_path, pulled, reference, machine, verb, everyone
):
    """Afterwards it is plugged into what its record says, and into nothing else, with the names that belong to that."""

    def before(client):
        client.images.import_(pulled)
        make_web(client)
        lab = client.networks.create("lab", internal=True)
        client.containers.run(reference, ["/bin/forever"], network="web", name="mate", detach=True)
        box = client.containers.run(reference, ["/bin/forever"], network="web", name="box", detach=True)
        lab.connect("mate")
        if verb == "disconnect":
            lab.connect(box)

    def change(client):
        with suppress(LamellaError):  # of a plugin that was killed
            getattr(client.networks.get("lab"), verb)("box")

    places = tmp_path / "places"
    places.mkdir()
    for client, outcome in each_kill(places, before, change, points=12, everyone=everyone):
        assert outcome.status <= 0
        client.containers.list()
        box, mate = (client.containers.get(name) for name in ("box", "mate"))
        wanted = ["web", *(endpoint.network for endpoint in box.record.extra.networks)]
        if not outcome.prevented:
            assert wanted == (["web", "lab"] if verb == "connect" else ["web"])
        assert list(box.inspect()["network"]["networks"]) == wanted
        client.gc()  # of an address that was half given
        assert len(leases(client.config, "lab")) == len(wanted)
        inside = Path(f"/proc/{box.pid}/net/dev").read_text()
        assert ("eth1" in inside) == (len(wanted) == 2)
        for reader, name in ((box, "mate"), (mate, "box")):
            assert hosts_of(client, reader, name) == len(wanted)
        assert client.networks.check() == []
        for each in (box, mate):
            each.remove(force=True)
        assert (pins(client.config), leases(client.config, "web"), leases(client.config, "lab")) == (
            [],
            [],
            [],
        )
        client.networks.prune()
    assert machine.links() == {"lo", "up0", "up1"}


def hosts_of(client, box, name: str) -> int:
    """Count the addresses of a name in a container's hosts file."""
    text = (client.config.root / "containers" / "default" / box.id / "hosts").read_text()
    return sum(name in line.split()[1:] for line in text.splitlines() if not line.startswith("#"))


def test_what_a_restart_of_the_machine_leaves_of_several_networks_is_given_back(
    client, pulled, reference, machine, tmp_path
):
    client.images.import_(pulled)
    make_web(client)
    lab = client.networks.create("lab", internal=True)
    for network in (client.networks.get("web"), lab):
        text = network.path.read_text()
        network.path.write_text(text.replace(f"{client.config.state}/networks/leases", f"{tmp_path}/leases"))
    box = client.containers.run(reference, ["/bin/forever"], networks=["web", "lab"], detach=True)
    kill_monitor(box)
    assert len(list((tmp_path / "leases").glob("*/10.*"))) == 2
    _core.unpin_network(str(client.config.state / "networks" / box.id))
    shutil.rmtree(client.config.state)
    lab.disconnect(box)
    assert {"web", "lab"} <= {network.name for network in client.networks.list()}
    assert pins(client.config) == []
    assert not list((tmp_path / "leases").glob("*/10.*"))
    box.start()
    assert list(box.inspect()["network"]["networks"]) == ["web"]
    box.remove(force=True)


def test_an_address_that_was_half_given_is_taken_back_by_gc(client, pulled, reference, machine):
    client.images.import_(pulled)
    make_web(client)
    box = client.containers.run(reference, ["/bin/forever"], network="web", detach=True)
    (given,) = leases(client.config, "web")
    folder = client.config.state / "networks" / "leases" / "web"
    half = folder / f"{given.rpartition('.')[0]}.77"
    half.touch()
    client.gc()
    assert leases(client.config, "web") == [given]
    assert (folder / "lock").exists()
    box.remove(force=True)
