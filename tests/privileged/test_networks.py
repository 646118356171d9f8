"""Networks of containers, with the real plugins of Debian's containernetworking-plugins and passt."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from lamella import _core
from lamella.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NetworkFailed,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from networking import BUSYBOX, SERVE, ask, heard, inside, leases, pins
from probes import NET_RAW, reached
from waiting import until

pytestmark = [pytest.mark.privileged, pytest.mark.needs_program("iptables", "ip", "busybox")]


def nothing_left(client, machine, before, network="bridge"):
    links, rules = before
    assert (pins(client.config), leases(client.config, network)) == ([], [])
    assert machine.links() - links == set()
    assert machine.rules() == rules


@pytest.fixture
def settled(cni, client, image):
    """The machine after a first container with a port: bridge and common chains are there, which stay."""
    client.containers.run(image, ["/bin/true"], network="bridge", ports=["80"], remove=True)
    return cni.links(), cni.rules()


# Bridges


def test_two_containers_of_a_bridge_reach_each_other_and_the_host(client, cni, start):
    server = start(*SERVE, network="bridge")
    address = server.inspect()["network"]["addresses"][0].partition("/")[0]
    other = start("/bin/busybox", "sleep", "1000", network="bridge")
    assert ask(address, 80) == b"hello\n"
    assert heard(other, address) == "hello\n"
    assert f"default via {server.inspect()['network']['gateways'][0]}" in inside(other, "ip", "route")
    assert server.inspect()["network"]["mac_address"] in inside(server, "ip", "link", "show", "eth0")


def test_a_container_of_a_bridge_reaches_nothing_of_the_host_but_its_network(
    client, settled, cni, image, compiled, bait
):
    """reach.c has what is tried, and tests/security/test_reach.py the same for other networks."""
    volumes = [f"{compiled('reach')}:/probe:ro"]
    command = ["/probe/reach", *bait]
    result = client.containers.run(image, command, remove=True, volumes=volumes, network="bridge")
    assert reached(result.stdout) == NET_RAW


def test_a_published_port_is_reached_over_loopback_and_the_machines_address(client, cni, start):
    server = start(*SERVE, network="bridge", ports={"80/tcp": 8080})
    assert server.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}
    assert (ask("127.0.0.1", 8080), ask("192.0.2.2", 8080)) == (b"hello\n", b"hello\n")
    other = start("/bin/busybox", "sleep", "1000", network="bridge")
    assert heard(other, "192.0.2.2", 8080) == "hello\n"


def test_a_port_that_is_left_open_is_chosen_and_told(client, cni, start):
    servers = [start(*SERVE, network="bridge", ports=["127.0.0.1::80"]) for _ in range(2)]
    ports = [int(server.ports["80/tcp"][0]["HostPort"]) for server in servers]
    assert len(set(ports)) == 2
    assert [ask("127.0.0.1", port) for port in ports] == [b"hello\n"] * 2
    assert servers[0].inspect()["network"]["ports"][0] == {
        "container_port": 80,
        "protocol": "tcp",
        "host_ip": "127.0.0.1",
        "host_port": ports[0],
    }
    with pytest.raises(OSError):  # published at loopback alone
        socket.create_connection(("192.0.2.2", ports[0]), 5)


def test_a_port_that_another_container_or_program_has_is_refused_by_name(client, settled, cni, start):
    server = start(*SERVE, network="bridge", ports=["8080:80"])
    with pytest.raises(AlreadyExists, match=server.short_id):
        start(*SERVE, network="bridge", ports=["8080:80"])
    with (
        socket.create_server(("127.0.0.1", 8081)),
        pytest.raises(FailedPrecondition, match="8081/tcp is in use"),
    ):
        start(*SERVE, network="bridge", ports=["8081:80"])
    server.remove(force=True)
    nothing_left(client, cni, settled)


def test_ports_are_free_when_the_end_is_told(client, settled, cni, start):
    for _ in range(3):
        start("/bin/busybox", "true", network="bridge", ports=["8080:80"]).wait(60)
        nothing_left(client, cni, settled)


def test_a_container_that_is_started_again_is_plugged_in_again(client, settled, cni, start):
    server = start(*SERVE, network="bridge", ports=["8080:80"])
    for _ in range(2):
        assert ask("127.0.0.1", 8080) == b"hello\n"
        server.stop(0)
        nothing_left(client, cni, settled)
        assert server.inspect()["network"] == {"name": "bridge", "networks": {"bridge": {}}}
        server.start()
    server.remove(force=True)
    nothing_left(client, cni, settled)


def test_a_network_is_let_go_of_when_the_caller_is_gone(client, settled, cni, start):
    box = start("/bin/busybox", "sleep", "1000", network="bridge", ports=["8080:80"])
    box.kill()  # by the monitor alone: nobody waits or removes
    deadline = time.monotonic() + 60
    while pins(client.config) and time.monotonic() < deadline:
        time.sleep(0.02)
    nothing_left(client, cni, settled)


def test_many_are_plugged_in_and_out_at_once(client, settled, cni, image):
    """Addresses, ports and rules of each its own, and nothing of any is left."""

    def one(number: int) -> None:
        name = f"box{number}"
        options = {"network": "bridge", "ports": ["80"], "volumes": BUSYBOX, "name": name}
        box = client.containers.run(image, ["/bin/busybox", "sleep", "1000"], detach=True, **options)
        if number % 2:
            box.stop(0)
        box.remove(force=True)

    # Each thread has the network namespace of the one that made it.
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(24)))
    with ThreadPoolExecutor(8) as threads:
        start = partial(client.containers.run, image, ["/bin/busybox", "sleep", "1000"], detach=True)
        options = {"network": "bridge", "ports": ["80"], "volumes": BUSYBOX}
        boxes = list(threads.map(lambda _: start(**options), range(12)))
    try:
        assert len({box.inspect()["network"]["addresses"][0] for box in boxes}) == 12
        assert len({box.ports["80/tcp"][0]["HostPort"] for box in boxes}) == 12
    finally:
        for box in boxes:
            box.remove(force=True)
    nothing_left(client, cni, settled)


@pytest.mark.parametrize(
    "network", ["bridge", pytest.param("pasta", marks=pytest.mark.needs_program("pasta"))]
)
def test_a_network_is_kept_over_runs_by_a_policy_and_let_go_of_after_the_last(
    client, settled, cni, start, network
):
    box = start(
        "/bin/busybox", "sh", "-c", "/bin/busybox ip -o addr; exit 3", network=network, ports=["8080:80"],
        restart_policy="on-failure:2",
    )  # fmt: skip
    assert box.wait(60) == 3
    text = b"".join(data for _, data in box.logs()).decode()
    addresses = [line.split()[3] for line in text.splitlines() if " inet " in line and " lo " not in line]
    assert len(addresses) == 3
    assert len(set(addresses)) == 1
    nothing_left(client, cni, settled)
    assert not pastas(client)


def test_address_mac_and_names_are_what_was_asked_for(client, cni, start):
    client.networks.create("web", subnet="10.77.0.0/24")
    box = start(
        "/bin/busybox", "sleep", "1000", network="web", ip="10.77.0.9", mac_address="02:42:0a:4d:00:09",
        hostname="box", name="boxed", extra_hosts={"db": "10.77.0.5", "up": "host-gateway"},
        dns=["192.0.2.53"], dns_search=["test"], dns_options=["ndots:2"],
    )  # fmt: skip
    network = box.inspect()["network"]
    assert (network["addresses"], network["mac_address"]) == (["10.77.0.9/24"], "02:42:0a:4d:00:09")
    hosts = inside(box, "cat", "/etc/hosts").splitlines()
    assert [line for line in hosts if not line.startswith("#")][-3:] == [
        "10.77.0.5\tdb",
        "10.77.0.1\tup",
        "10.77.0.9\tbox boxed",
    ]
    assert inside(box, "cat", "/etc/resolv.conf") == "nameserver 192.0.2.53\nsearch test\noptions ndots:2\n"
    with pytest.raises((NetworkFailed, InvalidArgument), match=r"10\.77\.0\.9|requested IP"):
        start("/bin/busybox", "true", network="web", ip="10.77.0.9")
    box.remove(force=True)
    assert pins(client.config) == []


def test_a_network_can_be_removed_when_nobody_uses_it(client, cni, start):
    network = client.networks.create("web", mtu=1400)
    bridge = network.configuration.plugins[0].document["bridge"]
    box = start("/bin/busybox", "sleep", "1000", network="web")
    assert bridge in cni.links()
    assert "mtu 1400" in inside(box, "ip", "link", "show", "eth0")
    assert network.inspect()["containers"][0]["id"] == box.id
    with pytest.raises(FailedPrecondition, match=box.short_id):
        network.remove()
    box.remove(force=True)
    network.remove()
    assert bridge not in cni.links()
    assert not network.path.exists()
    with pytest.raises(NotFound, match="'web'"):
        client.networks.get("web")


def test_nothing_leads_out_of_an_internal_network(client, cni, start):
    client.networks.create("lab", internal=True)
    box = start("/bin/busybox", "sleep", "1000", network="lab")
    assert "default" not in inside(box, "ip", "route")
    with pytest.raises(Unsupported, match="portMappings"):
        start("/bin/busybox", "true", network="lab", ports=["8080:80"])


def test_a_network_of_the_machine_is_used_as_it_is(client, cni, start, tmp_path, monkeypatch):
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/10-theirs.conf").write_text(
        '{"cniVersion": "0.3.1", "name": "theirs", "type": "bridge", "bridge": "theirs0", "ipam": {"type": "host-local",'
        f' "subnet": "10.78.0.0/24", "dataDir": "{tmp_path}/leases"}}}}'
    )
    box = start("/bin/busybox", "sleep", "1000", network="theirs")
    assert box.inspect()["network"]["addresses"] == ["10.78.0.2/24"]
    network = client.networks.get("theirs")
    with pytest.raises(FailedPrecondition, match="belongs to the machine"):
        network.remove()
    box.remove(force=True)
    assert not list((tmp_path / "leases").glob("*/10.78.*"))


# none, host, container


def test_a_container_without_a_network_reaches_nothing(client, machine, start):
    box = start("/bin/busybox", "sleep", "1000")
    assert inside(box, "ip", "-o", "link").count("\n") == 1
    assert box.exec(["/bin/busybox", "nc", "-w", "1", "192.0.2.2", "80"]).exit_code == 1
    assert box.inspect()["network"] == {"name": "none"}
    assert pins(client.config) == []


def test_a_container_shares_anothers_network_and_files(client, machine, start):
    first = start(*SERVE, name="first", hostname="one", dns=["192.0.2.53"])
    for word in ("first", first.id, first.id[:10]):
        second = start("/bin/busybox", "sleep", "1000", network=f"container:{word}")
        assert heard(second) == "hello\n"
        assert inside(second, "cat", "/etc/resolv.conf") == "nameserver 192.0.2.53\n"
        assert "one" in inside(second, "cat", "/etc/hosts")
        assert inside(second, "hostname") == "one\n"
        second.remove(force=True)
    assert pins(client.config) == []
    third = start("/bin/busybox", "sleep", "1000", network="container:first")
    first.stop(0)
    assert inside(third, "ip", "-o", "link").count("\n") == 1  # it goes on, in the same namespace
    third.stop(0)
    with pytest.raises(FailedPrecondition, match="first is not running"):
        third.start()
    first.remove()
    with pytest.raises(FailedPrecondition, match="was removed"):
        third.start()
    with pytest.raises(NotFound, match="nobody"):
        start("/bin/true", network="container:nobody")
    assert pins(client.config) == []


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("none", {"ports": ["80:80"]}),
        ("none", {"ip": "10.0.0.2"}),
        ("host", {"ports": ["80:80"]}),
        ("host", {"mac_address": "02:42:0a:4d:00:09"}),
        ("container:box", {"dns": ["192.0.2.53"]}),
        ("container:box", {"hostname": "x"}),
        ("container:box", {"extra_hosts": {"a": "10.0.0.1"}}),
        ("container:box", {"ports": ["80:80"]}),
        ("container:box", {"sysctls": {"net.ipv4.ip_forward": "1"}}),
        ("pasta", {"ip": "10.0.0.2"}),
        ("pasta", {"network_aliases": ["x"]}),
    ],
)
def test_what_a_network_cannot_do_is_refused_before_anything_is_made(client, image, network, options):
    with pytest.raises(InvalidArgument, match="cannot be set"):
        client.containers.create(image, ["/bin/true"], network=network, **options)
    assert client.containers.list(all=True) == []


def test_a_network_that_is_not_there_is_named_at_creation(client, image):
    with pytest.raises(NotFound, match="nowhere"):
        client.containers.create(image, ["/bin/true"], network="nowhere")


# pasta


@pytest.mark.needs_program("pasta")
def test_pasta_connects_a_container_and_ends_with_it(client, machine, start):
    for _ in range(2):
        server = start(*SERVE, network="pasta", ports=["8080:80", "5353:53/udp"])
        assert ask("127.0.0.1", 8080) == b"hello\n"
        assert "192.0.2.2" in inside(server, "ip", "addr")
        assert "192.0.2.2" in inside(server, "cat", "/etc/hosts")
        assert server.ports["80/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
        server.stop(0)
        assert pins(client.config) == []
        assert not pastas(client)


@pytest.fixture
def neighbour(machine, tmp_path):
    neighbour = machine.neighbour(tmp_path)
    yield neighbour
    neighbour.leave()


ASK = """
import socket, sys, time
family, host, port, kind = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), getattr(socket, sys.argv[4])
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        try:
            sock.connect((host, port))
            sock.send(b"hello")
            answer = sock.recv(100)
        except OSError:
            answer = b""
    if answer:
        sys.stdout.write(answer.decode())
        break
    time.sleep(0.05)
"""
ECHO = """
import socket, sys, threading
def serve(kind):
    with socket.socket(socket.AF_INET6, kind) as sock:
        sock.bind(("::", 80))
        if kind == socket.SOCK_DGRAM:
            while True:
                data, sender = sock.recvfrom(100)
                sock.sendto(data, sender)
        sock.listen()
        while True:
            with sock.accept()[0] as client:
                client.sendall(client.recv(100))
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    threading.Thread(target=serve, args=(kind,)).start()
"""


@pytest.mark.needs_program("nsenter")
@pytest.mark.parametrize(
    "network", ["bridge", pytest.param("pasta", marks=pytest.mark.needs_program("pasta"))]
)
def test_published_ports_are_reached_from_another_machine(client, cni, neighbour, network, start):
    """tcp and udp, IPv4, and with pasta IPv6, too; one that is published at an address is reached there alone."""
    served = serving(start, network, ["8080:80", "8080:80/udp", "127.0.0.1:8081:80"])
    families = [(socket.AF_INET, "192.0.2.2")] + (
        [(socket.AF_INET6, "2001:db8::2")] if network == "pasta" else []
    )
    for family, address in families:
        for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
            words = (sys.executable, "-c", ASK, str(int(family)), address, "8080", kind)
            assert neighbour.run(*words) == b"hello", (address, kind)
    refused = "import socket; print(socket.socket().connect_ex(('192.0.2.2', 8081)))"
    assert neighbour.run(sys.executable, "-c", refused).decode().strip() == str(errno.ECONNREFUSED)
    assert served.shown_ports[0] == "0.0.0.0:8080->80/tcp"


@pytest.mark.needs_program("nsenter")
def test_a_port_is_published_at_an_address_of_ipv6_where_the_network_has_such(client, cni, neighbour, start):
    client.networks.create("both", subnet=["10.72.0.0/24", "fd72::/64"])
    served = serving(
        start, "both", ["[2001:db8::2]:8080:80", "[2001:db8::2]:8080:80/udp", "127.0.0.1:8081:80"]
    )
    for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
        words = (sys.executable, "-c", ASK, str(int(socket.AF_INET6)), "2001:db8::2", "8080", kind)
        assert neighbour.run(*words) == b"hello"
    assert served.shown_ports == [
        "127.0.0.1:8081->80/tcp",
        "[2001:db8::2]:8080->80/tcp",
        "[2001:db8::2]:8080->80/udp",
    ]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("192.0.2.2", 8080), 5)


def test_a_port_at_an_address_that_leads_nowhere_is_refused(client, settled, cni, image):
    create = partial(client.containers.create, image, ["/bin/true"], network="bridge")
    with pytest.raises(InvalidArgument, match="at ::1"):
        create(ports=["[::1]:8080:80"])
    for address in ("2001:db8::2", "::"):
        box = create(ports=[f"[{address}]:8080:80"])
        if address != "::":
            cni.ip("address", "add", f"{address}/64", "dev", "up0", "nodad")
        with pytest.raises(Unsupported, match="no address of IPv6 in network bridge"):
            box.start()
        box.remove()
    nothing_left(client, cni, settled)


def test_a_port_of_sctp_is_published_beside_one_of_tcp(client, cni, start):
    """The kernel need not have SCTP: what is seen is the rule."""
    with socket.create_server(("127.0.0.1", 8080)):
        box = start(*SERVE, network="bridge", ports=["127.0.0.1:8080:80/sctp", "80/sctp"])
    address = box.inspect()["network"]["addresses"][0].partition("/")[0]
    found = [
        rule
        for rule in cni.rules()
        if "-p sctp" in rule and rule.endswith(f"-j DNAT --to-destination {address}:80")
    ]
    assert len(found) == 2
    assert any("-d 127.0.0.1/32" in rule and "--dport 8080" in rule for rule in found)
    start(*SERVE, network="bridge", ports=["127.0.0.1:8080:80/tcp"])
    with pytest.raises(AlreadyExists, match="8080/sctp"):
        start(*SERVE, network="bridge", ports=["8080:80/sctp"])


def serving(start, network, ports):
    """Start an echo server of this machine's Python in a container."""
    folders = [f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64", "/bin") if Path(path).exists()]
    return start(
        sys.executable if sys.executable.startswith("/usr") else "/usr/bin/python3", "-c", ECHO,
        network=network, ports=ports, more_volumes=folders,
    )  # fmt: skip


@pytest.mark.needs_program("pasta")
def test_a_pasta_that_dies_is_told_and_harms_nobody(client, machine, start):
    box = start(*SERVE, network="pasta", ports=["8080:80"])
    assert box.inspect()["network"]["connected"] is True
    assert client.networks.check() == []
    pid = json.loads(next((client.config.root / "networks/attached").glob("*.json")).read_text())["release"][
        "process"
    ]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not box.inspect()["network"]["connected"])
    assert box.status == "running"
    (problem,) = client.networks.check()
    assert (problem.container, problem.network, "pasta has ended" in problem.reason) == (
        box.id,
        "pasta",
        True,
    )
    box.restart(0)
    box.stop(0)
    box.start()
    assert ask("127.0.0.1", 8080) == b"hello\n"
    box.remove(force=True)
    assert (pins(client.config), pastas(client)) == ([], [])


@pytest.mark.needs_program("pasta")
def test_a_pasta_that_cannot_work_leaves_nothing(client, machine, start):
    machine.ip("route", "del", "default")
    with pytest.raises(NetworkFailed, match="pasta"):
        start("/bin/true", network="pasta")
    with pytest.raises(FailedPrecondition, match="--netns"):
        start("/bin/true", network="pasta:--netns=/proc/1/ns/net")
    assert pins(client.config) == []
    assert not pastas(client)


def pastas(client) -> list[str]:
    done = subprocess.run(
        ["pgrep", "-af", str(client.config.state / "networks")], check=False, capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if "pasta" in line]


# Faults


def running(command: str) -> bytes:
    """Give the processes of a command; one that is killed is among them until it has died."""
    return subprocess.run(["pgrep", "-f", command], check=False, capture_output=True).stdout


def test_plugins_get_what_the_spec_says_and_del_is_given_the_result(client, fake, start):
    fake.network(
        "fake",
        {"type": "first", "capabilities": {"ips": True, "dns": True, "aliases": True, "mac": True}, "own": 1},
        {"type": "second", "capabilities": {"portMappings": True, "other": True}},
    )
    box = start(
        "/bin/busybox", "sleep", "1000", network="fake", ports=["127.0.0.1:8080:80/udp"], network_aliases=["web"],
        ip="10.66.0.2", dns_search=["asked.test"],
    )  # fmt: skip
    resolv = inside(box, "cat", "/etc/resolv.conf")
    assert resolv == "nameserver 10.66.0.53\nsearch asked.test\n"
    assert "10.66.0.2\t" in inside(box, "cat", "/etc/hosts")
    box.stop(0)
    assert fake.commands() == [("first", "ADD"), ("second", "ADD"), ("second", "DEL"), ("first", "DEL")]
    first, second, undone, _ = fake.calls()
    assert first["document"] == {
        "type": "first",
        "own": 1,
        "name": "fake",
        "cniVersion": "1.0.0",
        "runtimeConfig": {
            "aliases": ["web"],
            "dns": {"servers": [], "searches": ["asked.test"], "options": []},
            "ips": ["10.66.0.2"],
        },
    }
    assert second["document"]["prevResult"] == undone["document"]["prevResult"]
    assert second["document"]["runtimeConfig"]["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}
    ]
    assert undone["env"] | {"CNI_COMMAND": "ADD"} == first["env"]
    assert first["env"]["CNI_CONTAINERID"] == box.id
    assert pins(client.config) == []


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("print(json.dumps({'code': 11, 'msg': 'no room', 'details': 'a\\x1b[31m'})); sys.exit(1)", NetworkFailed, "no room"),
        ("print('garbage')", None, ""),
        ("sys.stderr.write('it broke\\n'); sys.exit(3)", NetworkFailed, "second: it broke"),
        ("os.kill(os.getpid(), 9)", NetworkFailed, "second"),
    ],
)  # fmt: skip
def test_after_a_failing_plugin_all_of_the_chain_is_undone(client, image, fake, script, error, message):
    fake.network("fake", {"type": "first"}, {"type": "second"}, {"type": "third"})
    fake.behave("second", "ADD", script + "\nsys.exit(0)" if error is None else script)
    box = client.containers.create(image, ["/bin/true"], network="fake")
    with pytest.raises(error or NetworkFailed, match=message or "no result") as caught:
        box.start()
    if message == "no room":
        assert (caught.value.plugin, caught.value.code, caught.value.details) == ("second", 11, "a [31m")
    undone = [("third", "DEL"), ("second", "DEL"), ("first", "DEL")]
    assert fake.commands() == [("first", "ADD"), ("second", "ADD"), *undone]
    assert pins(client.config) == []
    assert box.status == "created"


def test_a_hanging_plugin_is_killed_with_what_it_started(client, fake, start, monkeypatch):
    monkeypatch.setattr("lamella.containers.networks.execution.PATIENCE", 0.5)
    fake.network("fake", {"type": "first"})
    fake.behave("first", "ADD", "import subprocess; subprocess.run(['sleep', '1234'])")
    with pytest.raises(DeadlineExceeded, match="first did not end"):
        start("/bin/true", network="fake")
    until(lambda: not running("sleep 1234"))
    assert pins(client.config) == []


def test_a_plugin_that_is_not_there_is_named_before_anything_is_made(client, fake, start):
    fake.network("fake", {"type": "first"}, {"type": "missing"})
    (fake.folder / "missing").unlink()
    with pytest.raises(NotFound, match="'missing'"):
        start("/bin/true", network="fake")
    assert fake.commands() == []
    assert pins(client.config) == []


def test_a_network_that_is_not_ready_says_so(client, fake, start):
    fake.network("fake", {"type": "first"}, version="1.1.0")
    fake.behave("first", "STATUS", "print(json.dumps({'code': 50, 'msg': 'no daemon'})); sys.exit(1)")
    with pytest.raises(Unavailable, match="no daemon"):
        start("/bin/true", network="fake")
    assert ("first", "ADD") not in fake.commands()
    assert pins(client.config) == []


def test_a_failing_del_is_tried_again_and_keeps_no_container(client, fake, start):
    fake.network("fake", {"type": "first"})
    fake.behave("first", "DEL", "sys.exit(1)")
    box = start("/bin/true", network="fake")
    box.wait(60)
    assert len(pins(client.config)) == 3  # the pin, the record, the mount
    with pytest.raises(NetworkFailed):
        box.start()
    box.remove()
    client.gc()
    assert len(pins(client.config)) == 3
    (fake.folder / "first.DEL").unlink()
    _core.unpin_network(str(client.config.state / "networks" / box.id))
    assert client.gc(dry_run=True).orphans == 1
    client.gc()
    assert fake.calls()[-1]["env"]["CNI_NETNS"] == ""
    assert pins(client.config) == []
    assert client.gc().orphans == 0


def test_an_address_in_a_result_cannot_write_lines_of_a_file(client, fake, start):
    fake.network("fake", {"type": "first"})
    fake.behave(
        "first",
        "ADD",
        "print(json.dumps({'ips': [{'address': '10.0.0.1\\n1.2.3.4 bank.test/24'}]})); sys.exit(0)",
    )
    with pytest.raises(NetworkFailed, match="no address"):
        start("/bin/true", network="fake")
    assert pins(client.config) == []


def test_gc_tells_plugins_of_the_stores_own_networks_who_is_there(client, fake, start):
    theirs = fake.network("theirs", {"type": "first"}, version="1.1.0")
    own = client.config.root / "networks"
    own.mkdir(exist_ok=True)
    (own / "fake.conflist").write_text(theirs.read_text().replace('"theirs"', '"fake"'))
    box = start("/bin/busybox", "sleep", "1000", network="fake")
    client.gc()
    collected = [call for call in fake.calls() if call["command"] == "GC"]
    assert [call["document"]["name"] for call in collected] == ["fake"]
    assert collected[0]["document"]["cni.dev/valid-attachments"] == [
        {"containerID": box.id, "ifname": "eth0"}
    ]


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS"])
def test_a_plugin_that_hangs_is_killed_with_all_that_left_its_group(
    client, fake, start, monkeypatch, command
):
    fake.network("first", {"type": "first"}, version="1.1.0")
    fake.network("slow", {"type": "slow"}, version="1.1.0")
    box = start("/bin/busybox", "sleep", "1000", network="first")
    if command == "DEL":
        client.networks.get("slow").connect(box)
    fake.behave(
        "slow",
        command,
        "import subprocess; subprocess.Popen(['sleep', '1235'], start_new_session=True); time.sleep(1235)",
    )
    monkeypatch.setattr("lamella.containers.networks.execution.PATIENCE", 3.0)
    with pytest.raises(DeadlineExceeded, match="slow did not end"):
        client.networks.get("slow").disconnect(box) if command == "DEL" else client.networks.get(
            "slow"
        ).connect(box)
    until(lambda: not running("sleep 1235"))
    (fake.folder / f"slow.{command}").unlink()
    client.containers.list()
    assert box.inspect()["network"]["networks"].keys() == {"first"}
    box.remove(force=True)
    assert pins(client.config) == []


def test_a_check_names_what_is_not_as_it_was(client, cni, start):
    box = start("/bin/busybox", "sleep", "1000", network="bridge")
    start("/bin/busybox", "sleep", "1000", network="bridge")  # the bridge has another MAC by now, as a rule
    assert client.networks.check() == []
    namespace = box.inspect()["network"]["namespace"]
    subprocess.run(["nsenter", f"--net={namespace}", "ip", "link", "set", "eth0", "down"], check=True)
    subprocess.run(["nsenter", f"--net={namespace}", "ip", "address", "flush", "dev", "eth0"], check=True)
    (problem,) = client.networks.check()
    assert (problem.container, problem.network, problem.interface) == (box.id, "bridge", "eth0")


def test_checks_are_given_what_the_spec_says_and_leave_out_who_cannot_be_asked(client, fake, start):
    fake.network("fake", {"type": "first"}, {"type": "second"})
    fake.network("old", {"type": "third"}, version="0.3.1")
    fake.network("mute", {"type": "fourth"}, disableCheck=True)
    start("/bin/busybox", "sleep", "1000", networks=["fake", "old", "mute"])
    fake.behave("second", "CHECK", "print(json.dumps({'code': 100, 'msg': 'it is gone'})); sys.exit(1)")
    (problem,) = client.networks.check()
    assert (problem.network, problem.interface, "it is gone" in problem.reason) == ("fake", "eth0", True)
    checks = [call for call in fake.calls() if call["command"] == "CHECK"]
    assert [call["plugin"] for call in checks] == ["first", "second"]
    undo = fake.calls()[0]["env"] | {"CNI_COMMAND": "CHECK"}
    assert checks[0]["env"] == undo
    assert checks[0]["document"]["prevResult"]["ips"][0]["address"] == "10.66.0.2/24"


def test_what_all_interfaces_carry_is_counted(client, cni, start):
    client.networks.create("one", subnet="10.77.0.0/24")
    client.networks.create("two", subnet="10.78.0.0/24")
    box = start("/bin/busybox", "sleep", "1000", networks=["one", "two"])
    for gateway in ("10.77.0.1", "10.78.0.1"):
        box.exec(["/bin/busybox", "ping", "-c", "1", "-W", "1", gateway])
    networks = box.stats().networks
    assert networks.keys() == {"eth0", "eth1"}
    assert all(counted.tx_packets > 0 for counted in networks.values())
    host = start("/bin/busybox", "sleep", "1000", network="host")
    assert host.stats().networks == {}


@pytest.mark.parametrize(
    ("network", "error"),
    [
        ("bridge", "make the mount point /etc/hosts"),
        ("container:plain", "another user namespace"),
        pytest.param("pasta", "make the mount point", marks=pytest.mark.needs_program("pasta")),
    ],
)
def test_a_user_namespace_of_the_spec_that_cannot_be_had_leaves_nothing(
    client, settled, cni, start, network, error
):
    """Its root has no right to the snapshot, which nobody has mapped for it; and a network belongs to one user namespace."""

    def mapped(spec):
        spec["linux"]["namespaces"].append({"type": "user"})
        ids = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
        spec["linux"] |= {"uidMappings": ids, "gidMappings": ids}

    plain = start("/bin/busybox", "sleep", "1000", name="plain")
    with pytest.raises((Unsupported, PermissionDenied), match=error):
        start("/bin/true", network=network, spec=mapped)
    plain.remove(force=True)
    nothing_left(client, cni, settled)
