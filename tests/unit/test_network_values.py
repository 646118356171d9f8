"""What is written of networks on the command line, in the library and in files of CNI, read into values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.config import Config
from lamella.containers.networks import Settings, kind_of
from lamella.containers.networks.attachment import Attachment, Record, Release, attached, read
from lamella.containers.networks.cni import execution_document
from lamella.containers.networks.collection import Networks, create
from lamella.containers.networks.configuration import configurations, find, parse, plugin_path
from lamella.containers.networks.files import (
    Names,
    Resolvers,
    connected_files,
    host_resolvers,
    isolated_files,
    kept_lines,
    own_lines,
    parse_resolv_conf,
    reachable,
    resolv_conf,
)
from lamella.containers.networks.joining import join
from lamella.containers.networks.pasta import arguments
from lamella.containers.networks.ports import Port, bindings, parse_ports
from lamella.containers.networks.settings import parse_settings
from lamella.containers.options import Options
from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LamellaError,
    NotFound,
    Unsupported,
)
from lamella.structs import decode, encode


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    (tmp_path / "net.d").mkdir()
    return Config.load(root=tmp_path / "root", state=tmp_path / "state")


# Ports


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        (["80"], [Port(80)]),
        ([80], [Port(80)]),
        ("8080:80", [Port(80, 8080)]),
        (["8080:80/udp"], [Port(80, 8080, "udp")]),
        (["127.0.0.1:8080:80"], [Port(80, 8080, "tcp", "127.0.0.1")]),
        (["127.0.0.1::80/SCTP"], [Port(80, 0, "sctp", "127.0.0.1")]),
        (["[::1]:8080:80"], [Port(80, 8080, "tcp", "::1")]),
        (["[::1]::80"], [Port(80, 0, "tcp", "::1")]),
        (["8000-8002:80-82"], [Port(80, 8000), Port(81, 8001), Port(82, 8002)]),
        (["80-81"], [Port(80), Port(81)]),
        ({"80/tcp": 8080}, [Port(80, 8080)]),
        ({80: None}, [Port(80)]),
        ({"53/udp": ("127.0.0.1", 5353)}, [Port(53, 5353, "udp", "127.0.0.1")]),
        ({"80": [8080, "8081", ("::1", None)]}, [Port(80, 8080), Port(80, 8081), Port(80, 0, "tcp", "::1")]),
        (["80:80", "80:80"], [Port(80, 80)]),
        (["127.0.0.1:80:80", "127.0.0.2:80:80"], [Port(80, 80, "tcp", "127.0.0.1"), Port(80, 80, "tcp", "127.0.0.2")]),
        (None, []),
        ({}, []),
    ],
)  # fmt: skip
def test_ports_are_read_in_dockers_and_in_docker_pys_form(value, ports):
    assert parse_ports(value) == tuple(ports)


@pytest.mark.parametrize(
    "value",
    [
        ["0"], ["65536"], ["-1"], [""], ["80/icmp"], ["1:2:3:4"], ["a:80"], ["8080:"], ["80-79"], ["1-3:1-2"], ["1-2:80"],
        ["nowhere:1:2"], ["[::1]80"], ["[::1:80"], ["80/tcp/udp"], ["٣"], ["1:80", "1:81"], ["0.0.0.0:1:80", "127.0.0.1:1:81"],
        {"80": True}, {"80": 1.5}, {"80": "x"}, {"80": ("nowhere", 1)}, {"x": 1}, {"80": {}}, ["1-65535:1-65535"],
    ],
)  # fmt: skip
def test_malformed_and_doubled_ports_are_refused(value):
    with pytest.raises(InvalidArgument):
        parse_ports(value)


@given(st.text(alphabet="0123456789:-/.[]tcpudp", max_size=30))
def test_any_text_is_ports_or_refused(text):
    try:
        ports = parse_ports([text])
    except InvalidArgument:
        return
    assert all(1 <= port.container_port <= 65535 and 0 <= port.host_port <= 65535 for port in ports)


def test_ports_are_told_as_docker_py_tells_them():
    assert bindings([Port(80, 8080), Port(80, 8081, "tcp", "127.0.0.1"), Port(53, 53, "udp")]) == {
        "80/tcp": [
            {"HostIp": "0.0.0.0", "HostPort": "8080"},
            {"HostIp": "127.0.0.1", "HostPort": "8081"},
        ],
        "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "53"}],
    }


# Options


def test_kinds_of_networks():
    names = ["none", "host", "container:x", "pasta", "pasta:-4,--mtu=1400", "bridge", "web.1"]
    assert [kind_of(name) for name in names] == ["none", "host", "container", "pasta", "pasta", "cni", "cni"]
    for name in ("", "container:"):
        with pytest.raises(InvalidArgument):
            kind_of(name)


def test_options_are_read_as_docker_and_docker_py_write_them():
    settings = parse_settings(
        Options(
            dns="192.0.2.1", dns_search=["a.test", "."], dns_options=["ndots:2"], ip="10.0.0.2",
            extra_hosts=["db:10.0.0.5", "up=host-gateway", "six:[::1]", "seven=::7"], mac_address="02-42-AC-11-00-02",
            network_aliases=["web"],
        )
    )  # fmt: skip
    assert settings == Settings(
        dns=("192.0.2.1",),
        dns_search=("a.test", "."),
        dns_options=("ndots:2",),
        extra_hosts=(("db", "10.0.0.5"), ("up", "host-gateway"), ("six", "::1"), ("seven", "::7")),
        ip="10.0.0.2",
        mac_address="02:42:ac:11:00:02",
        aliases=("web",),
    )
    assert parse_settings(Options(extra_hosts={"db": "10.0.0.5"})).extra_hosts == (("db", "10.0.0.5"),)
    assert decode(encode(settings), Settings) == settings


@pytest.mark.parametrize(
    "options",
    [
        {"dns": ["dns.test"]}, {"dns_search": ["a b"]}, {"dns_options": ["a\nnameserver 1.2.3.4"]}, {"ip": "10.0.0"},
        {"extra_hosts": ["db"]}, {"extra_hosts": {"a b": "10.0.0.1"}}, {"extra_hosts": {"a": "10.0.0.1\n1.2.3.4 b"}},
        {"extra_hosts": {"a\n": "10.0.0.1"}}, {"mac_address": "01:00:00:00:00:00"}, {"mac_address": "x"},
        {"network_aliases": ["a b"]}, {"network_aliases": ["-a"]},
    ],
)  # fmt: skip
def test_malformed_options_are_refused(options):
    with pytest.raises(InvalidArgument):
        parse_settings(Options(**options))


def test_the_path_of_a_namespace_is_put_into_a_spec_that_has_one():
    spec = '{"linux":{"namespaces":[{"type":"pid"},{"type":"network"}]}}'
    assert json.loads(join(spec, "/ns"))["linux"]["namespaces"][1] == {"type": "network", "path": "/ns"}
    for other in (
        '{"linux":{"namespaces":[]}}',
        spec.replace('"network"', '"network","path":"/other"'),
        "{}",
    ):
        with pytest.raises(FailedPrecondition):
            join(other, "/ns")


# Files


def test_a_resolv_conf_is_read_as_resolvers_read_it():
    text = "# x\nnameserver 192.0.2.1 # y\nnameserver\ndomain a.test\nsearch b.test c.test ; z\noptions ndots:2\noptions rotate\n"
    assert parse_resolv_conf(text) == Resolvers(
        nameservers=("192.0.2.1",), search=("b.test", "c.test"), options=("ndots:2", "rotate")
    )
    assert parse_resolv_conf("") == Resolvers()


def test_resolvers_of_the_hosts_loopback_and_links_are_left_out():
    given = [
        "127.0.0.1",
        "127.0.0.53",
        "::1",
        "fe80::1%eth0",
        "169.254.1.1",
        "0.0.0.0",
        "x",
        "192.0.2.1",
        "2001:db8::1",
    ]
    assert reachable(given) == ("192.0.2.1", "2001:db8::1")
    assert reachable(given, ipv6=False) == ("192.0.2.1",)


def test_behind_systemd_resolved_its_own_servers_are_taken(tmp_path):
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\noptions edns0\nsearch a.test\n")
    (tmp_path / "upstream").write_text("nameserver 192.0.2.1\nsearch a.test\n")
    found = host_resolvers(path=str(tmp_path / "stub"), upstream=str(tmp_path / "upstream"))
    assert found == Resolvers(nameservers=("192.0.2.1",), search=("a.test",))
    (tmp_path / "stub").write_text("nameserver 127.0.0.1\n")
    assert host_resolvers(path=str(tmp_path / "stub"), upstream=str(tmp_path / "upstream")) == Resolvers()
    assert host_resolvers(path=str(tmp_path / "none")) == Resolvers()


def test_each_kind_of_line_is_what_was_asked_for_else_the_networks_else_the_hosts():
    host = Resolvers(nameservers=("192.0.2.1",), search=("h.test",), options=("rotate",))
    network = Resolvers(nameservers=("192.0.2.2",))
    assert resolv_conf(Names(), Resolvers(), host) == b"nameserver 192.0.2.1\nsearch h.test\noptions rotate\n"
    assert resolv_conf(Names(dns_options=("ndots:1",)), network, host) == (
        b"nameserver 192.0.2.2\nsearch h.test\noptions ndots:1\n"
    )
    assert resolv_conf(Names(dns=("192.0.2.3",), dns_search=(".",)), network, host) == (
        b"nameserver 192.0.2.3\noptions rotate\n"
    )
    assert resolv_conf(Names(), Resolvers(), Resolvers()).startswith(b"# No resolver")


def test_hosts_has_the_containers_own_addresses_and_what_was_asked_for():
    names = Names(extra_hosts=(("db", "10.0.0.5"), ("up", "host-gateway")))
    own = kept_lines(own_lines(["10.0.0.2", "fd00::2"], "box", "example.com", ["web"]))
    files = connected_files("box", names, own, gateway="10.0.0.1")
    lines = files["hosts"].decode().splitlines()
    assert [line for line in lines if not line.startswith("#")][-4:] == [
        "10.0.0.5\tdb",
        "10.0.0.1\tup",
        "10.0.0.2\tbox.example.com box web",
        "fd00::2\tbox.example.com box web",
    ]
    assert (lines[-4][0], lines[-1][0]) == ("#", "#")
    assert files["hostname"] == b"box\n"
    with pytest.raises(InvalidArgument, match="host-gateway"):
        connected_files("box", names, "")
    assert b"127.0.1.1\tbox" in isolated_files("box", "", Names())["hosts"]
    assert isolated_files("box", "", Names(dns=("192.0.2.3",)))["resolv.conf"] == b"nameserver 192.0.2.3\n"


# CNI's files


def conflist(name="web", version="1.0.0", plugins=({"type": "bridge"},), **more):
    return json.dumps({"cniVersion": version, "name": name, "plugins": list(plugins), **more}).encode()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", InvalidArgument),
        (b"[]", InvalidArgument),
        (conflist(name=""), InvalidArgument),
        (conflist(name="../x"), InvalidArgument),
        (conflist(name=1), InvalidArgument),
        (conflist(plugins=()), InvalidArgument),
        (conflist(plugins=({"type": "../../bin/sh"},)), InvalidArgument),
        (conflist(plugins=({"type": ".."},)), InvalidArgument),
        (conflist(plugins=({},)), InvalidArgument),
        (conflist(plugins=("bridge",)), InvalidArgument),
        (conflist(version="9.0.0"), Unsupported),
    ],
)
def test_malformed_configurations_are_refused(text, error):
    with pytest.raises(error, match=r"x\.conflist"):
        parse(Path("/x.conflist"), text, own=False)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "plugins", "type", "cniVersion", "cniVersions", "capabilities"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_a_configuration_or_refused(text):
    for name in ("x.conflist", "x.conf"):
        try:
            network = parse(Path(name), text, own=False)
        except LamellaError:
            continue
        assert isinstance(network.capabilities, set)


def test_the_newest_version_that_is_known_is_spoken():
    text = conflist(version="0.4.0", cniVersions=["0.4.0", "1.1.0", "2.0.0"])
    network = parse(Path("x.conflist"), text, own=False)
    assert network.version == "1.1.0"
    assert network.at_least("1.1.0")
    single = parse(Path("x.conf"), b'{"name":"a","type":"bridge"}', own=False)
    assert (single.version, single.at_least("0.3.0")) == ("0.1.0", False)


def test_a_plugin_reads_its_own_part_and_what_it_asked_for():
    plugins = [{"type": "a", "x": 1, "cni.dev/y": 2, "capabilities": {"ips": True, "mac": False}}]
    network = parse(Path("x.conflist"), conflist(plugins=plugins), own=False)
    document = execution_document(network, network.plugins[0], {"ips": ["10.0.0.2"], "mac": "x"}, {"ips": []})
    assert json.loads(document) == {
        "type": "a",
        "x": 1,
        "runtimeConfig": {"ips": ["10.0.0.2"]},
        "prevResult": {"ips": []},
        "name": "web",
        "cniVersion": "1.0.0",
    }


def test_networks_are_found_by_name_in_the_order_of_files_and_the_stores_own_first(config, tmp_path):
    (tmp_path / "net.d/20.conflist").write_bytes(conflist(plugins=({"type": "second"},)))
    (tmp_path / "net.d/10.conflist").write_bytes(conflist(plugins=({"type": "first"},)))
    (tmp_path / "net.d/05.conflist").write_bytes(b"broken")
    (tmp_path / "net.d/00.txt").write_bytes(conflist(plugins=({"type": "no"},)))
    assert find(config, "web").plugins[0].type == "first"
    (config.root / "networks").mkdir(parents=True)
    (config.root / "networks/web.conflist").write_bytes(conflist(plugins=({"type": "own"},)))
    assert find(config, "web").plugins[0].type == "own"
    assert [network.name for network in configurations(config)] == ["web"]
    with pytest.raises(NotFound, match="'other'") as caught:
        find(config, "other")
    assert "web" in (caught.value.hint or "")


def test_a_network_that_is_alone_with_its_name_and_malformed_says_how(config, tmp_path):
    (tmp_path / "net.d/web.conflist").write_bytes(conflist(plugins=()))
    with pytest.raises(InvalidArgument, match="no plugins"):
        find(config, "web")


def test_plugins_are_found_in_cni_path_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CNI_PATH", f"relative:{tmp_path}")
    (tmp_path / "mine").touch(0o755)
    (tmp_path / "folder").mkdir()
    assert plugin_path("mine") == str(tmp_path / "mine")
    for name in ("folder", "nothing"):
        with pytest.raises(NotFound, match=name):
            plugin_path(name)


# Making networks


def test_a_network_gets_a_subnet_and_a_bridge_that_nobody_has(config, tmp_path):
    one, two = create(config, "one"), create(config, "two")
    documents = [network.plugins[0].document for network in (one, two)]
    subnets = [document["ipam"]["ranges"][0][0]["subnet"] for document in documents]
    assert len(set(subnets)) == 2
    assert len({document["bridge"] for document in documents}) == 2
    assert one.own
    assert find(config, "one") == one
    with pytest.raises(AlreadyExists):
        create(config, "one")
    assert create(config, "one", exist_ok=True) == one
    with pytest.raises(FailedPrecondition, match="in use"):
        create(config, "three", subnets=[subnets[0]])


def test_a_subnet_gateway_and_range_can_be_chosen(config):
    network = create(
        config, "web", subnets=["10.77.0.0/24", "fd77::/64"], gateway="10.77.0.254", ip_range="10.77.0.0/25"
    )
    management = network.plugins[0].document["ipam"]
    assert management["ranges"] == [
        [
            {
                "subnet": "10.77.0.0/24",
                "gateway": "10.77.0.254",
                "rangeStart": "10.77.0.1",
                "rangeEnd": "10.77.0.127",
            }
        ],
        [{"subnet": "fd77::/64", "gateway": "fd77::1"}],
    ]
    assert management["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert management["dataDir"].startswith(str(config.state))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "none"}, {"name": "a/b"}, {"name": ""}, {"subnets": ["10.0.0.1/33"]}, {"subnets": ["10.78.0.0/31"]},
        {"subnets": ["10.78.0.0/24", "10.79.0.0/24"]}, {"subnets": ["10.78.0.0/24"], "gateway": "10.79.0.1"},
        {"subnets": ["10.78.0.0/24"], "gateway": "x"}, {"subnets": ["10.78.0.0/24"], "ip_range": "10.79.0.0/25"},
        {"mtu": 1},
    ],
)  # fmt: skip
def test_networks_that_cannot_be_are_refused(config, options):
    with pytest.raises(InvalidArgument):
        create(config, **{"name": "web", **options})
    assert configurations(config) == []


def test_bridge_is_made_when_it_is_first_asked_for(config, tmp_path):
    assert find(config, "bridge").plugins[0].type == "bridge"
    assert [network.name for network in configurations(config)] == ["bridge"]


# pasta


def test_pasta_forwards_nothing_but_what_was_published_or_said():
    words = arguments("/ns", [Port(80, 8080, "tcp", "127.0.0.1"), Port(81, 8081)], [], forwards=False)
    assert " ".join(words).endswith(
        "-t 127.0.0.1/8080:80 -t 8081:81 -u none -T none -U none --no-map-gw --quiet --netns /ns"
    )
    words = arguments("/ns", [], ["-T=5432", "--map-gw", "--mtu=1400"], forwards=True)
    assert " ".join(words).endswith(
        "-t none -u none -U none --dns-forward 169.254.1.1 -T=5432 --mtu=1400 --quiet --netns /ns"
    )
    with pytest.raises(Unsupported, match="sctp"):
        arguments("/ns", [Port(80, 80, "sctp")], [], forwards=False)
    with pytest.raises(FailedPrecondition, match="--netns"):
        arguments("/ns", [], ["--netns=/x"], forwards=False)


# Records


def test_a_record_is_read_as_it_was_written_and_a_damaged_one_is_none(config):
    plugged = Record(
        container="c" * 64,
        attachments=[Attachment(network="web", interface="eth0")],
        release=Release(namespace="/ns"),
        ports=[Port(80, 8080)],
    )
    path = plugged.write(config)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path) == plugged
    assert list(attached(config)) == [("default", "c" * 64, path)]
    path.write_bytes(b"{")
    assert read(path) is None
    assert read(path.with_name("none")) is None


def test_a_record_of_one_network_alone_is_read_as_before(config):
    path = Record(container="c" * 64, release=Release(namespace="/ns")).write(config)
    path.write_text(
        '{"container":"c","network":"web","interface":"eth0","addresses":["10.0.0.2/24"],"ports":'
        '[{"container_port":80,"host_port":8080}],"release":{"namespace":"/ns","programs":[],"process":null}}'
    )
    plugged = read(path)
    assert plugged.find("web") == Attachment(
        network="web", interface="eth0", addresses=["10.0.0.2/24"], publishes=True
    )
    assert (plugged.container, plugged.release, plugged.ports) == (
        "c",
        Release(namespace="/ns"),
        [Port(80, 8080)],
    )


def test_networks_of_a_client_show_themselves(config):
    from lamella.client import Client

    with Client(config.root, config.state) as client:
        assert isinstance(client.networks, Networks)
        made = client.networks.create("web", subnet="10.77.0.0/24")
        assert (made.subnets, made.plugins) == (["10.77.0.0/24"], ["bridge", "portmap", "firewall"])
        assert [network.name for network in client.networks.list()] == ["web"]
        assert client.networks.get("web").inspect()["containers"] == []
        assert repr(made) == "<lamella.Network web>"
