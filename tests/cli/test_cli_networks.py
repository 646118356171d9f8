"""``lamella networks``, and the options of ``run`` that concern the network."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from networking import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from program import Program

pytestmark = [pytest.mark.privileged, pytest.mark.needs_program("iptables", "ip")]


@pytest.fixture
def machine(pulled: tuple[Program, str]) -> Iterator[Machine]:
    machine = Machine()
    machine.enter()
    yield machine
    machine.leave()


def test_networks_are_made_listed_used_and_removed(machine: Machine, pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    assert (
        lamella("networks", "create", "--subnet", "10.77.0.0/24", "--mtu", "1400", "web").ok().out == "web\n"
    )
    made = lamella("--json", "networks", "create", "--internal", "lab").ok().document
    assert (made["name"], made["own"]) == ("lab", True)
    listed = lamella("networks", "ls").ok().out
    assert "10.77.0.0/24" in listed
    assert "bridge,portmap,firewall" in listed
    names = [row["name"] for row in lamella("--json", "network", "ls").ok().document]
    assert {"web", "lab"} <= set(names)
    box = lamella("run", "-d", "--network", "web", "--ip", "10.77.0.9", "-p", "127.0.0.1:8080:80", "--add-host", "db:10.0.0.5",
                  "--dns", "192.0.2.53", "--dns-search", "a.test", "--dns-option", "ndots:2", "--mac-address",
                  "02:42:0a:4d:00:09", reference, "sleep", "1000").ok().out.strip()  # fmt: skip
    inspected = lamella("containers", "inspect", box).ok().document
    assert inspected["network"]["addresses"] == ["10.77.0.9/24"]
    assert inspected["network"]["mac_address"] == "02:42:0a:4d:00:09"
    assert inspected["network"]["ports"][0]["host_port"] == 8080
    hosts = lamella("containers", "exec", box, "cat", "/etc/hosts", "/etc/resolv.conf").ok().out
    assert "10.0.0.5\tdb\n" in hosts
    assert "10.77.0.9\t" in hosts
    assert hosts.endswith("nameserver 192.0.2.53\nsearch a.test\noptions ndots:2\n")
    web = lamella("networks", "inspect", "web").ok().document
    assert web["containers"] == [
        {
            "id": box,
            "interface": "eth0",
            "addresses": ["10.77.0.9/24"],
            "mac_address": "02:42:0a:4d:00:09",
            "aliases": [],
        }
    ]
    refused = lamella("networks", "rm", "web")
    assert refused.status == 1
    assert "is used by 1 containers" in refused.err
    shared = lamella("run", "--rm", "--network", f"container:{box}", reference, "cat", "/etc/hosts").ok().out
    assert "10.77.0.9" in shared
    lamella("containers", "rm", "-f", box).ok()
    assert lamella("networks", "rm", "web", "lab").ok().err == ""
    assert {"web", "lab"}.isdisjoint(row["name"] for row in lamella("--json", "networks", "ls").ok().document)
    assert machine.links() == {"lo", "up0", "up1"}
    with socket.create_server(("127.0.0.1", 8080)):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "80"], "ports cannot be set with network 'none'"),
        (["-p", "x", "--network", "bridge"], "port 'x' is malformed"),
        (["--network", "nowhere"], "there is no network 'nowhere'"),
        (["--network", "container:nobody"], "there is no container 'nobody'"),
        (["--add-host", "x", "--network", "host"], "extra host 'x' is malformed"),
        (["--network-alias", "x", "--network", "pasta"], "aliases cannot be set with network 'pasta'"),
        (["--network", "bridge", "--network", "host"], "network 'host' cannot be had together"),
        (["--ip6", "10.0.0.1", "--network", "bridge"], "ip6: '10.0.0.1' is not an address of IPv6"),
        (["--expose", "8080:80"], "port '8080:80' names one of the host"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    machine: Machine, pulled: tuple[Program, str], words: list[str], message: str
) -> None:
    lamella, reference = pulled
    done = lamella("run", "--rm", *words, reference, "true")
    assert done.status == 125
    assert message in done.err
    assert lamella("--json", "ps", "-a").ok().document == []


def test_containers_are_connected_found_by_name_and_disconnected(
    machine: Machine, pulled: tuple[Program, str]
) -> None:
    lamella, reference = pulled
    lamella("network", "create", "--subnet", "10.77.0.0/24", "web").ok()
    lamella("network", "create", "--subnet", "10.78.0.0/24", "lab").ok()
    run = ("run", "-d", "--network")
    lamella(*run, "web", "--network", "name=lab,ip=10.78.0.9,alias=guest", "--name", "one", "--hostname", "one",
            "--domainname", "example.com", reference, "sleep", "1000").ok()  # fmt: skip
    lamella(*run, "lab", "--name", "two", reference, "sleep", "1000").ok()
    two = lamella("exec", "two", "cat", "/etc/hosts").ok().out
    assert "10.78.0.9\tone guest " in two
    assert "10.77.0.2\tone.example.com one\n" in lamella("exec", "one", "cat", "/etc/hosts").ok().out
    assert lamella("exec", "one", "cat", "/proc/sys/kernel/domainname").ok().out == "example.com\n"
    lamella("network", "connect", "--alias", "mate", "--ip", "10.77.0.7", "web", "two").ok()
    assert "10.77.0.7\ttwo mate " in lamella("exec", "one", "cat", "/etc/hosts").ok().out
    assert lamella("network", "check").ok().out == ""
    assert lamella("--json", "network", "check").ok().document == []
    lamella("network", "disconnect", "lab", "two").ok()
    assert "guest" not in lamella("exec", "two", "cat", "/etc/hosts").ok().out
    networks = lamella("containers", "inspect", "two").ok().document["network"]["networks"]
    assert list(networks) == ["web"]
    assert networks["web"]["addresses"] == ["10.77.0.7/24"]
    assert lamella("network", "prune").ok().out == ""
    lamella("rm", "-f", "one", "two").ok()
    assert lamella("network", "prune").ok().out.split() == ["lab", "web"]
    assert machine.links() == {"lo", "up0", "up1"}


def test_ports_are_shown_as_docker_shows_them(machine: Machine, pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    words = (
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:5353:53/udp",
        "-p",
        "9000-9002:9000-9002",
        "--expose",
        "443",
        "--expose",
        "7/sctp",
    )
    box = (
        lamella("run", "-d", "--name", "web", "--network", "bridge", *words, reference, "sleep", "1000")
        .ok()
        .out.strip()
    )
    shown = [
        "0.0.0.0:8080->80/tcp",
        "0.0.0.0:9000-9002->9000-9002/tcp",
        "127.0.0.1:5353->53/udp",
        "443/tcp",
        "7/sctp",
    ]
    assert f"  {', '.join(shown)}\n" in lamella("ps").ok().out
    assert lamella("--json", "ps").ok().document[0]["ports"] == shown
    assert lamella("port", "web", "80").ok().out == "0.0.0.0:8080\n"
    assert "53/udp -> 127.0.0.1:5353\n" in lamella("containers", "port", "web").ok().out
    assert lamella("--json", "port", "web", "53/udp").ok().document == {
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}]
    }
    missing = lamella("port", "web", "81")
    assert (missing.status, "port 81/tcp of the container web is not published" in missing.err) == (1, True)
    lamella("stop", "-t", "0s", box).ok()
    assert lamella("--json", "ps", "-a").ok().document[0]["ports"] == []
    lamella("rm", box).ok()
    lamella(
        "run",
        "-d",
        "--name",
        "all",
        "--network",
        "bridge",
        "-P",
        "--expose",
        "80-81",
        reference,
        "sleep",
        "1000",
    ).ok()
    published = lamella("--json", "port", "all").ok().document
    assert sorted(published) == ["80/tcp", "81/tcp"]
    assert all(int(bindings[0]["HostPort"]) > 1024 for bindings in published.values())
    lamella("rm", "-f", "all").ok()


def test_links_are_refused_with_what_there_is_instead(pulled: tuple[Program, str]) -> None:
    lamella, reference = pulled
    done = lamella("run", "--link", "db:db", reference, "true")
    assert (done.status, "find each other by name" in done.err) == (125, True)
