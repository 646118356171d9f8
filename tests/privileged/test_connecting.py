"""Containers with several networks; plugging in and out while they run; the names by which they find each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import lamella
from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NetworkFailed,
    NotFound,
)
from networking import BUSYBOX, SERVE, ask, heard, inside, leases, pins
from waiting import until

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.needs_program("iptables", "ip", "busybox"),
]
SLEEP = ("/bin/busybox", "sleep", "1000")


@pytest.fixture
def two(client, cni):
    """Two networks that are there."""
    return (
        client.networks.create("one", subnet="10.77.0.0/24"),
        client.networks.create("two", subnet="10.78.0.0/24"),
    )


def hosts(container) -> dict[str, str]:
    """Give the addresses of a container's hosts file by name, the first of each."""
    found: dict[str, str] = {}
    for line in inside(container, "cat", "/etc/hosts").splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            found.setdefault(name, address)
    return found


def addresses(container) -> list[str]:
    lines = inside(container, "ip", "-4", "-o", "addr").splitlines()
    return [line.split()[3] for line in lines if " lo " not in line]


# Several


def test_a_container_is_in_several_networks(client, two, start):
    box = start(
        *SERVE, networks=["one", {"name": "two", "ip": "10.78.0.9", "aliases": ["second"]}], name="box"
    )
    assert addresses(box) == ["10.77.0.2/24", "10.78.0.9/24"]
    told = box.inspect()["network"]
    assert (told["name"], told["interface"], told["addresses"]) == ("one", "eth0", ["10.77.0.2/24"])
    assert told["networks"]["two"]["interface"] == "eth1"
    assert told["networks"]["two"]["aliases"] == ["second"]
    assert (ask("10.77.0.2", 80), ask("10.78.0.9", 80)) == (b"hello\n", b"hello\n")
    assert [made.inspect()["containers"][0]["interface"] for made in two] == ["eth0", "eth1"]
    box.stop(0)
    assert (pins(client.config), leases(client.config, "one"), leases(client.config, "two")) == ([], [], [])
    box.start()
    assert addresses(box)[1] == "10.78.0.9/24"


def test_the_way_out_is_that_of_the_first_network(client, two, start):
    box = start(*SLEEP, networks=["two", "one"])
    assert ways_out(box) == ["10.78.0.1", "10.77.0.1"]
    client.networks.create("lab", internal=True).connect(box)
    client.networks.create("third", subnet="10.79.0.0/24").connect(box)
    assert ways_out(box) == ["10.78.0.1", "10.77.0.1", "10.79.0.1"]
    two[1].disconnect(box)
    two[1].connect(box)
    assert ways_out(box) == ["10.77.0.1", "10.79.0.1", "10.78.0.1"]
    assert client.networks.check() == []


def ways_out(container) -> list[str]:
    """Give the gateways of the default routes, that of the lowest metric first."""
    lines = [line.split() for line in inside(container, "ip", "route").splitlines()]
    routes = [line for line in lines if line[0] == "default"]
    return [line[2] for line in sorted(routes, key=lambda line: int(line[-1]) if "metric" in line else 0)]


def test_ports_are_published_in_the_first_network_that_can(client, cni, start):
    client.networks.create("lab", internal=True)
    client.networks.create("web")
    box = start(*SERVE, networks=["lab", "web"], ports=["8080:80"])
    assert ask("127.0.0.1", 8080) == b"hello\n"
    assert box.shown_ports == ["0.0.0.0:8080->80/tcp"]


@pytest.mark.parametrize(
    ("networks", "error", "message"),
    [
        (["host", "one"], InvalidArgument, "'host' cannot be had together"),
        (["one", "one"], InvalidArgument, "named twice"),
        (["one", "nowhere"], NotFound, "'nowhere'"),
        (["name=one,colour=red"], InvalidArgument, "colour is not known"),
        ([{"ip": "10.0.0.1"}], InvalidArgument, "no name"),
        (["name=one,ip=x"], InvalidArgument, "no IP|not an IP"),
    ],
)
def test_networks_that_cannot_be_are_refused(client, two, image, networks, error, message):
    with pytest.raises(error, match=message):
        client.containers.create(image, ["/bin/true"], networks=networks)
    assert client.containers.list(all=True) == []


# Names


def test_containers_of_a_network_find_each_other_by_name_and_alias(client, two, start):
    db = start(*SERVE, network="one", name="db", network_aliases=["sql", "store"])
    app = start(*SLEEP, networks=["one", "two"], name="app")
    alone = start(*SLEEP, network="two", name="alone")
    for name in ("db", "sql", "store", db.short_id):
        assert heard(app, name) == "hello\n"
    assert hosts(db)["app"] == "10.77.0.3"
    assert hosts(alone)["app"] == "10.78.0.2"
    assert "db" not in hosts(alone)
    app.rename("web")
    assert hosts(db)["web"] == "10.77.0.3"
    assert "app" not in hosts(db)
    db.stop(0)
    assert {"db", "sql"}.isdisjoint(hosts(app))
    db.start()
    assert heard(app, "db") == "hello\n"
    app.remove(force=True)
    assert "web" not in hosts(db)
    assert "web" not in hosts(alone)


def test_a_name_is_gone_when_the_end_is_told_and_back_after_a_restart(client, two, start):
    seen = start(*SLEEP, network="one", name="seen")
    short = start("/bin/busybox", "true", network="one", name="short")
    short.wait(60)
    assert "short" not in hosts(seen)
    again = start("/bin/busybox", "false", network="one", name="again", restart_policy="on-failure:1")
    again.wait(60)
    assert "again" not in hosts(seen)


def test_what_a_container_writes_into_its_hosts_file_stays(client, two, start):
    box = start(*SLEEP, network="one", name="box", extra_hosts={"far": "192.0.2.9"})
    inside(box, "sh", "-c", "echo 192.0.2.7 mine >> /etc/hosts")
    other = start(*SLEEP, network="one", name="other")
    assert (hosts(box)["mine"], hosts(box)["far"]) == ("192.0.2.7", "192.0.2.9")
    assert hosts(box)["other"] == "10.77.0.3"
    inside(box, "sh", "-c", "echo 192.0.2.8 all > /etc/hosts")
    other.remove(force=True)
    start(*SLEEP, network="one", name="third")
    assert inside(box, "cat", "/etc/hosts") == "192.0.2.8 all\n"


def test_containers_of_other_namespaces_have_names_of_their_own(client, two, start, image, tmp_path):
    client.images.export([image.name], tmp_path / "image.tar")
    box = start(*SLEEP, network="one", name="box")
    with lamella.Client(client.config.root, client.config.state, namespace="other") as other:
        other.images.import_(tmp_path / "image.tar")
        options = {"detach": True, "volumes": BUSYBOX, "network": "one"}
        mate = other.containers.run(image.name, list(SLEEP), name="mate", **options)
        assert ("mate" in hosts(box), "box" in hosts(mate)) == (False, False)
        mate.remove(force=True)


def test_many_that_come_and_go_at_once_leave_every_file_right(client, two, start, image):
    stays = [start(*SLEEP, network="one", name=f"stays{number}") for number in range(2)]

    def one(number: int) -> None:
        box = client.containers.run(
            image, list(SLEEP), detach=True, volumes=BUSYBOX, network="one", name=f"box{number}"
        )
        box.remove(force=True)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(one, range(18)))
    assert not [name for box in stays for name in hosts(box) if name.startswith("box")]
    assert "stays1" in hosts(stays[0])


# Plugging in and out


def test_a_running_container_is_plugged_in_and_out(client, two, start):
    one, two_ = two
    db = start(*SERVE, network="two", name="db")
    box = start(*SLEEP, network="one", name="box")
    two_.connect(box, aliases=["guest"], ip="10.78.0.9", mac_address="02:42:0a:4e:00:09")
    assert addresses(box) == ["10.77.0.2/24", "10.78.0.9/24"]
    assert "02:42:0a:4e:00:09" in inside(box, "ip", "link", "show", "eth1")
    assert heard(box, "db") == "hello\n"
    assert hosts(db)["guest"] == "10.78.0.9"
    with pytest.raises(AlreadyExists):
        two_.connect("box")
    box.restart(0)
    assert "10.78.0.9/24" in addresses(box)
    one.disconnect(box)
    assert addresses(box) == ["10.78.0.9/24"]
    assert box.inspect()["network"]["name"] == "two"
    box.stop(0)
    box.start()
    assert addresses(box) == ["10.78.0.9/24"]
    two_.disconnect("box")
    assert addresses(box) == []
    assert {"box", "guest"}.isdisjoint(hosts(db))
    with pytest.raises(NotFound, match="not connected"):
        two_.disconnect(box)
    one.connect(box)
    assert addresses(box)[0].startswith("10.77.0.")
    box.remove(force=True)
    db.remove(force=True)
    assert (pins(client.config), leases(client.config, "one"), leases(client.config, "two")) == ([], [], [])
    one.remove()
    two_.remove()


def test_one_without_a_network_is_plugged_in_while_it_runs(client, two, start):
    one, _ = two
    start(*SERVE, network="one", name="db")
    box = start(*SLEEP, name="box", restart_policy="always")
    one.connect(box)
    assert addresses(box) == ["10.77.0.3/24"]
    assert heard(box, "db") == "hello\n"
    assert "beyond loopback" not in inside(box, "cat", "/etc/resolv.conf")
    box.restart(0)
    assert addresses(box) == ["10.77.0.3/24"]
    box.stop(0)
    assert leases(client.config, "one") == ["10.77.0.2"]
    box.start()
    assert heard(box, "db") == "hello\n"


def test_one_that_does_not_run_has_the_network_from_its_next_start_on(client, two, image, start):
    one, two_ = two
    box = client.containers.create(image, list(SLEEP), volumes=BUSYBOX, name="box")
    one.connect(box)
    two_.connect(box)
    assert pins(client.config) == []
    box.start()
    assert len(addresses(box)) == 2
    box.stop(0)
    one.disconnect(box)
    assert box.record.extra.network == "two"
    box.remove()


def test_ports_that_were_published_in_a_network_are_free_without_it(client, two, start):
    one, two_ = two
    box = start(*SERVE, networks=["one", "two"], ports=["8080:80"])
    assert ask("127.0.0.1", 8080) == b"hello\n"
    two_.disconnect(box)
    assert ask("127.0.0.1", 8080) == b"hello\n"
    one.disconnect(box)
    assert (box.ports, box.shown_ports) == ({}, [])
    with pytest.raises(OSError, match="refused"):
        ask_once("127.0.0.1", 8080)


def ask_once(host: str, port: int) -> None:
    import socket

    socket.create_connection((host, port), 5).close()


@pytest.mark.parametrize(
    "network", ["host", "container:other", pytest.param("pasta", marks=pytest.mark.needs_program("pasta"))]
)
def test_one_with_the_hosts_or_anothers_network_is_refused(client, two, start, network):
    start(*SLEEP, name="other")
    box = start(*SLEEP, network=network)
    with pytest.raises(FailedPrecondition, match="nothing to do with network one"):
        two[0].connect(box)


def test_after_a_failing_plugin_nothing_has_changed(client, fake, start):
    fake.network("first", {"type": "first"})
    fake.network("second", {"type": "second"}, {"type": "third"})
    box = start(*SLEEP, network="first", name="box")
    before = inside(box, "cat", "/etc/hosts")
    fake.behave("third", "ADD", "sys.stderr.write('it broke\\n'); sys.exit(3)")
    with pytest.raises(NetworkFailed, match="third: it broke"):
        client.networks.get("second").connect(box)
    assert fake.commands()[-3:] == [("third", "ADD"), ("third", "DEL"), ("second", "DEL")]
    assert fake.calls()[-1]["env"]["CNI_IFNAME"] == "eth1"
    assert box.inspect()["network"]["networks"].keys() == {"first"}
    assert inside(box, "cat", "/etc/hosts") == before
    assert client.containers.get("box").record.extra.networks == []
    (fake.folder / "third.ADD").unlink()
    client.networks.get("second").connect(box)
    assert box.inspect()["network"]["networks"].keys() == {"first", "second"}


def test_a_failing_disconnection_is_tried_again_or_forced(client, fake, start):
    fake.network("first", {"type": "first"})
    fake.network("second", {"type": "second"})
    box = start(*SLEEP, networks=["first", "second"])
    fake.behave("second", "DEL", "sys.exit(1)")
    with pytest.raises(NetworkFailed):
        client.networks.get("second").disconnect(box)
    client.containers.list()
    assert len([call for call in fake.commands() if call == ("second", "DEL")]) >= 2
    (fake.folder / "second.DEL").unlink()
    client.containers.list()
    assert box.inspect()["network"]["networks"].keys() == {"first"}
    client.networks.get("second").connect(box)
    fake.behave("second", "DEL", "sys.exit(1)")
    client.networks.get("second").disconnect(box, force=True)
    assert box.inspect()["network"]["networks"].keys() == {"first"}


def test_an_end_meanwhile_lets_go_of_all(client, fake, start):
    """The container ends while a plugin works: the monitor waits for it, and takes away what it made."""
    fake.network("first", {"type": "first"})
    fake.network("slow", {"type": "slow"})
    fake.behave("slow", "ADD", "time.sleep(1)")
    box = start(*SLEEP, network="first")
    with ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(client.networks.get("slow").connect, box)
        until(lambda: ("slow", "ADD") in fake.commands())
        box.kill()
        connecting.result(60)
    box.wait(60)
    assert fake.commands()[-3:] == [("slow", "ADD"), ("slow", "DEL"), ("first", "DEL")]
    assert pins(client.config) == []


def test_one_whose_spec_has_the_machines_network_is_not_plugged_in(client, two, cni, start):
    """What would be plugged in is the machine."""

    def shared(spec):
        spec["linux"]["namespaces"] = [
            each for each in spec["linux"]["namespaces"] if each["type"] != "network"
        ]

    before = cni.links()
    box = start(*SLEEP, spec=shared)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="no network namespace of its own"):
            two[0].connect(box)
    assert cni.links() == before
    box.remove(force=True)
    assert pins(client.config) == []
