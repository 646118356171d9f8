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
    assert hosts.endswith("nameserver 192.0.2.53\nsearch a.test\noptions ndots:2\n")
    web = lamella("networks", "inspect", "web").ok().document
    assert web["containers"] == [
        {"id": box, "addresses": ["10.77.0.9/24"], "mac_address": "02:42:0a:4d:00:09"}
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
        (["--network-alias", "x", "--network", "bridge"], "there are no aliases in network bridge"),
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
