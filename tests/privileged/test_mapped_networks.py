"""Networks of containers with ids of their own: each belongs to the user namespace, whose root has a say in it alone."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from lamella.errors import InvalidArgument, Unsupported
from monitors import kill_monitor
from networking import SERVE, ask, heard, inside, leases, pins
from waiting import until

pytestmark = [pytest.mark.privileged, pytest.mark.needs_program("iptables", "ip", "busybox")]

SLEEP = ("/bin/busybox", "sleep", "1000")
MAPS = ["0:655360:65536"]
NS_GET_USERNS = 0xB701  # ioctl_nsfs(2)


@pytest.fixture
def two(cni, client):
    return [
        client.networks.create(name, subnet=f"10.{number}.0.0/24")
        for name, number in (("one", 77), ("two", 78))
    ]


def namespace(box, kind):
    return Path(f"/proc/{box.pid}/ns/{kind}").readlink()


def owner(box):
    """Give the user namespace that a container's network namespace belongs to."""
    with Path(f"/proc/{box.pid}/ns/net").open() as network:
        found = fcntl.ioctl(network, NS_GET_USERNS)
    try:
        return str(Path(f"/proc/self/fd/{found}").readlink())
    finally:
        os.close(found)


def addresses(box):
    return [network["addresses"][0] for network in box.inspect()["network"]["networks"].values()]


@pytest.mark.parametrize(
    "network", ["none", "bridge", pytest.param("pasta", marks=pytest.mark.needs_program("pasta"))]
)
def test_root_inside_has_a_say_in_its_network_alone(cni, start, network):
    box = start(
        *SLEEP,
        network=network,
        uid_maps=MAPS,
        cap_add=["NET_ADMIN"],
        sysctls={"net.ipv4.ip_default_ttl": "42"},
    )
    assert Path(f"/proc/{box.pid}/uid_map").read_text().split() == ["0", "655360", "65536"]
    assert owner(box) == str(namespace(box, "user")) != str(Path("/proc/self/ns/user").readlink())
    assert inside(box, "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "42\n"
    assert "1 packets received" in inside(box, "ping", "-c", "1", "-w", "20", "127.0.0.1")
    inside(box, "ip", "address", "add", "10.99.0.1/32", "dev", "lo")
    assert "lo" in inside(box, "ls", "/sys/class/net").split()
    assert box.exec(["/bin/busybox", "touch", "/sys/x"]).exit_code != 0
    assert box.exec(["/bin/busybox", "umount", "/sys"]).exit_code != 0


def test_a_server_on_a_low_port_is_reached_and_all_is_taken_away(client, cni, start):
    client.containers.run(start(*SLEEP).image, ["/bin/true"], network="bridge", ports=["80"], remove=True)
    before = cni.links(), cni.rules()
    box = start(*SERVE, network="bridge", ports=["8080:80"], userns="auto", name="web")
    address = box.inspect()["network"]["addresses"][0].partition("/")[0]
    assert (ask(address, 80), ask("127.0.0.1", 8080)) == (b"hello\n", b"hello\n")
    for userns in ("auto", "host"):
        assert heard(start(*SLEEP, network="bridge", userns=userns, name=userns), "web") == "hello\n"
    for name in ("web", "auto", "host"):
        client.containers.get(name).remove(force=True)
    assert (pins(client.config), leases(client.config, "bridge")) == ([], [])
    assert (cni.links(), cni.rules()) == before


@pytest.mark.needs_program("pasta")
def test_pasta_carries_its_connections(client, cni, start):
    box = start(*SERVE, network="pasta", ports=["8081:80"], userns="auto")
    assert ask("127.0.0.1", 8081) == b"hello\n"
    box.remove(force=True)
    assert pins(client.config) == []


def test_further_runs_have_the_same_network_also_one_that_was_connected_meanwhile(client, two, start):
    box = start(*SLEEP, userns="auto", restart_policy="always", networks=["one", "two"])
    late = start(*SLEEP, userns="auto", restart_policy="always")
    two[0].connect(late)
    two[0].disconnect(box)
    assert inside(late, "ping", "-c", "1", "-w", "20", addresses(late)[0].partition("/")[0])
    for each, given in ((box, ["10.78.0.2/24"]), (late, ["10.77.0.3/24"])):
        before, pid = {kind: namespace(each, kind) for kind in ("net", "user")}, each.pid
        assert addresses(each) == given
        os.kill(pid, signal.SIGKILL)
        until(lambda: each.pid not in (None, pid))  # noqa: B023
        assert {kind: namespace(each, kind) for kind in ("net", "user")} == before
        assert owner(each) == str(before["user"])
        assert given[0] in inside(each, "ip", "address")
        each.remove(force=True)
    assert pins(client.config) == []


def test_one_that_does_not_run_is_connected_from_its_next_start_on(client, two, image, start):
    box = client.containers.create(
        image, list(SLEEP), volumes=["/bin/busybox:/bin/busybox:ro"], userns="auto"
    )
    two[0].connect(box)
    for _ in range(2):
        box.start()
        assert "10.77.0." in inside(box, "ip", "address", "show", "eth0")
        box.stop(0)
    box.remove()


def test_a_container_in_the_network_of_another_is_in_its_user_namespace(client, cni, start):
    first = start(*SERVE, network="bridge", userns="auto", name="first")
    shared = {"network": "container:first", "userns": "container:first"}
    box = start(*SLEEP, **shared, more_volumes=["kept:/kept"], cap_add=["NET_ADMIN"])
    assert {namespace(box, kind) for kind in ("net", "user")} == {
        namespace(first, kind) for kind in ("net", "user")
    }
    assert namespace(box, "pid") != namespace(first, "pid")
    assert heard(box) == "hello\n"
    inside(box, "ip", "link", "set", "eth0", "mtu", "1300")
    assert inside(box, "sh", "-c", "echo x >/kept/file; stat -c %u /kept/file /etc/hosts").split() == [
        "0",
        "0",
    ]
    box.restart(0)
    assert namespace(box, "user") == namespace(first, "user")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"network": "container:first"}, "another user namespace"),
        ({"network": "container:first", "userns": "auto"}, "another user namespace"),
        ({"network": "container:plain", "userns": "auto"}, "another user namespace"),
        ({"network": "container:first", "uid_maps": MAPS}, "another user namespace"),
        ({"userns": "container:first"}, "without the same container's network"),
        ({"network": "bridge", "userns": "container:first"}, "without the same container's network"),
    ],
)
def test_other_ids_in_the_network_of_another_are_refused(client, cni, image, start, options, error):
    start(*SLEEP, network="bridge", userns="auto", name="first")
    start(*SLEEP, network="bridge", name="plain")
    with pytest.raises(Unsupported, match=error) as caught:
        client.containers.create(image, ["/bin/true"], **options)
    assert "userns" in (caught.value.hint or "") or "network" in (caught.value.hint or "")
    assert len(client.containers.list(all=True)) == 2


def test_the_hosts_network_is_shown_and_nobody_inside_has_a_say_in_it(cni, start):
    box = start(*SLEEP, network="host", userns="auto", cap_add=["NET_ADMIN"])
    assert namespace(box, "net") == Path("/proc/thread-self/ns/net").readlink()
    assert "up0" in inside(box, "ip", "link")
    assert set(inside(box, "ls", "/sys/class/net").split()) == set(os.listdir("/sys/class/net"))
    for command in (
        ("ip", "link", "add", "x0", "type", "dummy"),
        ("ping", "-c", "1", "127.0.0.1"),
        ("nc", "-l", "-p", "81", "-w", "1"),
        ("sh", "-c", "echo 1 >/sys/class/net/lo/mtu"),
        ("touch", "/sys/fs/cgroup/x"),
    ):
        assert box.exec(["/bin/busybox", *command]).exit_code != 0, command


def test_a_killed_monitor_leaves_what_the_next_look_takes_away(client, cni, start):
    box = start(*SLEEP, network="bridge", userns="auto", ports=["8082:80"])
    assert any(name.endswith(".user") for name in pins(client.config))
    kill_monitor(box)
    assert pins(client.config)
    assert client.containers.list() == []
    assert pins(client.config) == []
    box.start()
    assert owner(box) == str(namespace(box, "user"))


def test_a_sysctl_of_a_network_that_is_joined_is_set_and_none_of_the_hosts(client, cni, image, start):
    sysctls = {"net.ipv4.ip_default_ttl": "43"}
    box = start(*SLEEP, network="bridge", sysctls=sysctls)
    assert inside(box, "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "43\n"

    def host(spec):
        for each in spec["linux"]["namespaces"]:
            if each["type"] == "network":
                each["path"] = f"/proc/{os.getpid()}/ns/net"

    other = client.containers.create(image, ["/bin/true"], sysctls=sysctls, spec=host)
    with pytest.raises(InvalidArgument, match="would change the host's"):
        other.start()
    other.remove()
