"""Which hosts serve a repository, by what hosts.toml and registries.conf say; and which proxy a request goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InvalidArgument, LamellaError, PermissionDenied
from lamella.registry.config import RegistryConfig
from lamella.registry.hosts import ALL, DIAL_TIMEOUT, Host, Hosts
from lamella.registry.hosts_toml import parse_duration, parse_hosts_file
from lamella.registry.proxies import describe, proxy_for
from lamella.registry.registries_conf import parse_registries
from lamella.registry.targets import Origin, Tls


class Machine:
    """The files of a machine, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts_dir = folder / "certs.d"
        self.hosts_dir.mkdir()
        self.conf = folder / "registries.conf"
        self.conf.write_text("")

    def hosts_toml(self, domain: str, text: str) -> Path:
        return self.write(f"{domain}/hosts.toml", text)

    def write(self, name: str, text: str = "x") -> Path:
        file = self.hosts_dir / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    def registries(self, text: str) -> None:
        self.conf.write_text(text)

    def serving(
        self, domain: str, path: str = "team/app", *, by_digest: bool = False, **settings: Any
    ) -> tuple[Host, ...]:
        config = RegistryConfig(hosts_dir=self.hosts_dir, registries_conf=self.conf, **settings)
        return Hosts(config, {}).serving(domain, path, by_digest=by_digest)

    def urls(self, domain: str, path: str = "team/app", *, by_digest: bool = False) -> list[str]:
        return [host.url("manifests/v1") for host in self.serving(domain, path, by_digest=by_digest)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# Without files


def test_a_domain_serves_itself(machine: Machine) -> None:
    assert machine.urls("example.com") == ["https://example.com/v2/team/app/manifests/v1"]
    (host,) = machine.serving("example.com")
    assert (host.capabilities, host.source, host.domain) == (ALL, "", "example.com")


def test_docker_io_is_served_by_another_host_with_its_own_credentials(machine: Machine) -> None:
    (host,) = machine.serving("docker.io", "library/nginx")
    assert host.url("tags/list") == "https://registry-1.docker.io/v2/library/nginx/tags/list"
    assert host.domain == "docker.io"


@pytest.mark.parametrize("domain", ["localhost:5000", "127.0.0.1:5000", "[::1]:5000"])
def test_this_machine_is_asked_without_tls_unless_files_for_tls_are_named(
    machine: Machine, domain: str
) -> None:
    (host,) = machine.serving(domain)
    assert (host.home.origin.scheme, host.guessed) == ("http", True)
    (host,) = machine.serving(domain, ca="/ca.pem")
    assert (host.home.origin.scheme, host.guessed) == ("http", True)
    machine.write(f"{domain}/ca.crt")
    (host,) = machine.serving(domain)
    assert (host.home.origin.scheme, host.guessed) == ("https", True)


def test_the_clients_settings_hold_for_all_but_its_certificate_for_registries_alone(
    machine: Machine,
) -> None:
    machine.hosts_toml("example.com", '[host."https://mirror.example"]\nca = "own.pem"\n')
    mirror, registry = machine.serving(
        "example.com", ca="/ca.pem", client_cert=("/me.pem", "/me.key"), skip_verify=True
    )
    own = str(machine.hosts_dir / "example.com/own.pem")
    assert mirror.home.tls == Tls(ca=("/ca.pem", own), skip_verify=True)
    assert registry.home.tls == Tls(ca=("/ca.pem",), client=(("/me.pem", "/me.key"),), skip_verify=True)


# hosts.toml

FULL = """
server = "https://registry-1.docker.io"
ca = "/etc/top.pem"
dial_timeout = "1m30s"

[host."https://z.example/us"]
  capabilities = ["pull"]
  skip_verify = true
  dial_timeout = "500ms"
  proxy = "http://user:secret@proxy:3128"
  [host."https://z.example/us".header]
    x-one = "1"
    x-two = ["2", "3"]

[host."http://a.example:5000"]
  capabilities = ["Pull", "resolve", "referrers"]
  ca = ["one.pem", "/two.pem"]
  client = [["c.cert", "c.key"], ["/d.pem", ""]]

[host."https://odd.example/v2/upstream"]
  override_path = true
  client = "e.pem"

[host."plain.example"]
"""


def test_a_hosts_file_gives_its_hosts_in_its_order_and_last_the_server(machine: Machine) -> None:
    file = machine.hosts_toml("docker.io", FULL)
    z, a, odd, plain, server = machine.serving("docker.io", "library/nginx")
    assert [host.url("manifests/v1") for host in (z, a, odd, plain, server)] == [
        "https://z.example/us/v2/library/nginx/manifests/v1?ns=docker.io",
        "http://a.example:5000/v2/library/nginx/manifests/v1?ns=docker.io",
        "https://odd.example/v2/upstream/library/nginx/manifests/v1?ns=docker.io",
        "https://plain.example/v2/library/nginx/manifests/v1?ns=docker.io",
        "https://registry-1.docker.io/v2/library/nginx/manifests/v1",
    ]
    assert {host.source for host in (z, a, odd, plain, server)} == {str(file)}
    assert z.capabilities == {"pull"}
    assert z.home.tls == Tls(skip_verify=True)
    assert (z.home.connect_timeout, z.home.attempts) == (0.5, 1)
    assert z.home.headers == (("x-one", "1"), ("x-two", "2, 3"))
    assert z.home.proxy == "http://user:secret@proxy:3128"
    assert a.capabilities == {"pull", "resolve", "referrers"}
    folder = file.parent
    assert a.home.tls.ca == (f"{folder}/one.pem", "/two.pem")
    assert a.home.tls.client == ((f"{folder}/c.cert", f"{folder}/c.key"), ("/d.pem", ""))
    assert a.home.connect_timeout == DIAL_TIMEOUT
    assert odd.home.tls.client == ((f"{folder}/e.pem", ""),)
    assert (plain.capabilities, plain.domain) == (ALL, "plain.example")
    assert (server.home.tls.ca, server.home.connect_timeout) == (("/etc/top.pem",), 90)
    assert (server.home.attempts, server.domain) == (None, "docker.io")


def test_headers_and_proxies_are_in_no_repr(machine: Machine) -> None:
    machine.hosts_toml("docker.io", FULL)
    shown = repr(machine.serving("docker.io"))
    assert "x-one" not in shown
    assert "secret" not in shown


def test_without_a_server_the_domain_itself_comes_last_with_the_fields_at_the_top(machine: Machine) -> None:
    machine.hosts_toml("example.com", 'skip_verify = true\n[host."https://mirror.example"]\n')
    mirror, own = machine.serving("example.com")
    assert own.url("x") == "https://example.com/v2/team/app/x"
    assert own.home.tls == Tls(skip_verify=True)
    assert mirror.home.tls == Tls()


def test_a_server_alone_takes_the_place_of_the_domain(machine: Machine) -> None:
    machine.hosts_toml("_default", 'server = "https://mirror.example"\n')
    assert machine.urls("example.com") == ["https://mirror.example/v2/team/app/manifests/v1?ns=example.com"]
    assert machine.serving("example.com")[0].domain == "mirror.example"


def test_docker_io_as_a_server_means_docker_hub(machine: Machine) -> None:
    machine.hosts_toml("docker.io", 'server = "https://docker.io"\n')
    assert machine.urls("docker.io") == ["https://registry-1.docker.io/v2/team/app/manifests/v1"]


def test_the_folder_of_a_port_may_be_written_without_a_colon(machine: Machine) -> None:
    machine.hosts_toml("example.com_5000_", 'server = "https://first.example"\n')
    machine.hosts_toml("example.com:5000", 'server = "https://second.example"\n')
    machine.hosts_toml("_default", 'server = "https://third.example"\n')
    hosts = [
        machine.serving(domain)[0].home.origin.host
        for domain in ("example.com:5000", "example.com", "example.com:5001")
    ]
    assert hosts == ["first.example", "third.example", "third.example"]


def test_namespace_is_added_to_a_query_that_is_there(machine: Machine) -> None:
    machine.hosts_toml("example.com", '[host."https://mirror.example"]\n')
    assert machine.serving("example.com")[0].url("tags/list?n=5").endswith("/tags/list?n=5&ns=example.com")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("server = 5", 1, "server"),
        ('\n\n[host."https://m"]\ncapabilities = ["pul"]', 4, "capabilities"),
        ('[host."https://m"]\n\nca = [1]', 3, "ca"),
        ('[host."https://m"]\nclient = [["a"]]', 2, "client"),
        ('[host."https://m"]\nskip_verify = "yes"', 2, "skip_verify"),
        ('[host."https://m"]\noverride_path = 1', 2, "override_path"),
        ('[host."https://m"]\ndial_timeout = "soon"', 2, "dial_timeout"),
        ('[host."https://m"]\n[host."https://m".header]\nx = "a\\nb"', 3, "x"),
        ('[host."https://m"]\n[host."https://m".header]\n"x y" = "ab"', 3, "x y"),
        ('[host."https://m"]\nproxy = "ftp://user:secret@p"', 2, "proxy"),
        ('[host."ftp://m"]\n', 1, "host"),
        ('[host."https://user:secret@m"]\n', 1, "host"),
        ('[host."https://m/?q=1"]\n', 1, "host"),
        ("host = 3", 1, "host"),
        ('ca = "a"\n[host."https://m"]\nca = "b"\n[host."https://n"]\nca = 7', 5, "ca"),
    ],
)
def test_what_is_wrong_in_a_hosts_file_is_named_with_file_line_and_key(
    machine: Machine, text: str, line: int, key: str
) -> None:
    file = machine.hosts_toml("example.com", text)
    with pytest.raises(InvalidArgument) as caught:
        machine.serving("example.com")
    assert f"{file}, line {line}: " in str(caught.value)
    assert key in str(caught.value).partition("line")[2]
    assert "secret" not in str(caught.value).replace("user:secret@m", "")


def test_a_file_that_is_no_toml_is_named_with_the_line(machine: Machine) -> None:
    file = machine.hosts_toml("example.com", 'server = "https://a"\n[host\n')
    with pytest.raises(InvalidArgument, match=rf"{file} is malformed: .*line 2"):
        machine.serving("example.com")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        machine.serving("example.com")


def test_unknown_keys_are_remarked_on_and_ignored(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.hosts_toml("example.com", 'capabilites = ["pull"]\n[host."https://m"]\nskip-verify = true\n')
    mirror, _ = machine.serving("example.com")
    assert mirror.home.tls == Tls()
    assert "capabilites" in caplog.text
    assert 'host."https://m".skip-verify' in caplog.text


@given(st.text(alphabet='abc[]"=.\n #', max_size=80))
def test_any_text_is_a_hosts_file_and_a_registries_conf_or_one_typed_error(text: str) -> None:
    for parse in (parse_hosts_file, parse_registries):
        try:
            parse(text, Path("/some/file"))
        except LamellaError as error:
            assert "/some/file" in str(error)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("10", None), ("", None), ("s", None)],
)
def test_durations_are_gos(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (pytest.approx(seconds) if seconds else None)


# Certificates in docker's form


def test_a_folder_without_a_hosts_file_holds_certificates(machine: Machine) -> None:
    for name in ("ca.crt", "more.crt", "client.cert", "client.key", "alone.cert", "readme"):
        machine.write(f"example.com:5000/{name}")
    (host,) = machine.serving("example.com:5000")
    folder = machine.hosts_dir / "example.com:5000"
    assert host.home.tls == Tls(
        ca=(f"{folder}/ca.crt", f"{folder}/more.crt"),
        client=((f"{folder}/alone.cert", ""), (f"{folder}/client.cert", f"{folder}/client.key")),
    )
    assert host.source == str(folder)


def test_a_hosts_file_beside_certificates_is_all_that_counts(machine: Machine) -> None:
    machine.write("example.com/ca.crt")
    machine.hosts_toml("example.com", 'server = "https://example.com"')
    assert machine.serving("example.com")[0].home.tls == Tls()


def test_the_certificates_of_a_mirror_in_registries_conf_are_in_its_own_folder(machine: Machine) -> None:
    file = machine.write("mirror.example/ca.crt")
    machine.registries(
        '[[registry]]\nlocation = "example.com"\n[[registry.mirror]]\nlocation = "mirror.example"'
    )
    mirror, registry = machine.serving("example.com")
    assert (mirror.home.tls, registry.home.tls) == (Tls(ca=(str(file),)), Tls())


# registries.conf

REGISTRIES = """
unqualified-search-registries = ["docker.io"]
short-name-mode = "permissive"

[[registry]]
prefix = "example.com/foo"
location = "internal.example/bar"
[[registry.mirror]]
location = "one.example/mirror-for-foo"
[[registry.mirror]]
location = "two.example:5000/mirrors/foo"
insecure = true

[[registry]]
location = "example.com"

[[registry]]
prefix = "example.com/foo/secret"
location = "example.com/foo/secret"
blocked = true

[[registry]]
prefix = "*.wild.example"
insecure = true
[[registry.mirror]]
location = "three.example/wild"

[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"

[aliases]
"nginx" = "docker.io/library/nginx"
"""


def test_mirrors_of_registries_conf_come_in_order_and_the_location_last(machine: Machine) -> None:
    machine.registries(REGISTRIES)
    one, two, pushed, location = machine.serving("example.com", "foo/app")
    assert [host.url("manifests/v1") for host in (one, two, location)] == [
        "https://one.example/v2/mirror-for-foo/app/manifests/v1",
        "https://two.example:5000/v2/mirrors/foo/app/manifests/v1",
        "https://internal.example/v2/bar/app/manifests/v1",
    ]
    assert [host.domain for host in (one, two, location)] == [
        "one.example",
        "two.example:5000",
        "internal.example",
    ]
    assert (two.home.tls.skip_verify, two.guessed) == (True, True)
    assert (one.home.tls.skip_verify, one.guessed) == (False, False)
    assert {host.source for host in (one, two, location)} == {str(machine.conf)}
    assert "push" not in one.capabilities | two.capabilities | location.capabilities
    assert (pushed.capabilities, pushed.url("x")) == ({"push"}, "https://example.com/v2/foo/app/x")


def test_the_longest_prefix_counts_and_ends_at_a_slash(machine: Machine) -> None:
    machine.registries(REGISTRIES)
    assert machine.urls("example.com", "food/app") == ["https://example.com/v2/food/app/manifests/v1"]
    assert machine.urls("example.com", "foo")[0] == "https://one.example/v2/mirror-for-foo/manifests/v1"
    assert machine.urls("example.com:5000", "foo/app") == ["https://example.com:5000/v2/foo/app/manifests/v1"]


def test_a_blocked_registry_is_refused_with_the_name_of_the_file(machine: Machine) -> None:
    machine.registries(REGISTRIES)
    with pytest.raises(PermissionDenied, match=rf"foo/secret/x is blocked by {machine.conf}"):
        machine.serving("example.com", "foo/secret/x")


def test_a_wildcard_names_all_subdomains(machine: Machine) -> None:
    machine.registries(REGISTRIES)
    mirror, own = machine.serving("a.b.wild.example", "x/y")
    assert mirror.url("t") == "https://three.example/v2/wild/x/y/t"
    assert own.url("t") == "https://a.b.wild.example/v2/x/y/t"
    assert own.home.tls.skip_verify
    assert len(machine.serving("wild.example")) == 1


def test_a_mirror_may_be_for_digests_or_for_tags(machine: Machine) -> None:
    machine.registries(REGISTRIES)
    digests, tags, hub = machine.serving("docker.io", "library/nginx")
    assert digests.home.origin.host == "digests.example"
    assert "resolve" not in digests.capabilities
    assert {"pull", "resolve"} <= tags.capabilities
    assert hub.home.origin.host == "registry-1.docker.io"
    assert len(machine.serving("docker.io", "library/nginx", by_digest=True)) == 2


def test_the_first_form_of_registries_conf_is_read(machine: Machine) -> None:
    machine.registries(
        "[registries.insecure]\nregistries = ['a.example']\n[registries.block]\nregistries = ['b.example']"
    )
    assert machine.serving("a.example")[0].home.tls.skip_verify
    with pytest.raises(PermissionDenied):
        machine.serving("b.example")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("registry = 3", 1, "registry"),
        ('[[registry]]\nprefix = "a.example"', 2, "a.example"),
        ("[[registry]]\ninsecure = true", 1, "registry"),
        ('[[registry]]\nlocation = "https://a.example"', 2, "location"),
        ('[[registry]]\nlocation = "a.example"\nblocked = "yes"', 3, "blocked"),
        ('[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\ninsecure = true', 3, "mirror"),
        (
            '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "x"',
            5,
            "pull-from-mirror",
        ),
        (
            '[[registry]]\nlocation = "a"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "m"\n'
            'pull-from-mirror = "all"',
            6,
            "pull-from-mirror",
        ),
        ('[[registry]]\nprefix = "*.a.example/b"\nlocation = "b"', 2, "*.a.example/b"),
    ],
)
def test_what_is_wrong_in_registries_conf_is_named_with_file_line_and_key(
    machine: Machine, text: str, line: int, key: str
) -> None:
    machine.registries(text)
    with pytest.raises(InvalidArgument) as caught:
        machine.serving("example.com")
    assert f"{machine.conf}, line {line}: " in str(caught.value)
    assert key in str(caught.value)


def test_the_files_are_those_that_podman_would_read(tmp_path: Path) -> None:
    def written(name: str, mirror: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'[[registry]]\nlocation = "example.com"\n[[registry.mirror]]\nlocation = "{mirror}"')
        return file

    def first(**environ: str) -> str:
        config = RegistryConfig(hosts_dir=tmp_path)
        return Hosts(config, environ).serving("example.com", "a")[0].home.origin.host

    user = tmp_path / "home/.config/containers"
    written("home/.config/containers/registries.conf", "user")
    named = written("named.conf", "named")
    assert first(HOME=f"{tmp_path}/home") == "user"
    assert first(HOME=f"{tmp_path}/home", CONTAINERS_REGISTRIES_CONF=str(named)) == "named"
    written("home/.config/containers/registries.conf.d/10.conf", "ten")
    written("home/.config/containers/registries.conf.d/20.conf", "twenty")
    written("home/.config/containers/registries.conf.d/30.txt", "text")
    assert first(HOME=f"{tmp_path}/home") == "twenty"
    assert first(XDG_CONFIG_HOME=str(user.parent), HOME="/nowhere") == "twenty"


# Both


def test_a_domains_own_hosts_file_comes_before_registries_conf_and_that_before_the_default_one(
    machine: Machine,
) -> None:
    machine.registries(
        '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "conf.example"\n'
        '[[registry]]\nlocation = "b.example"\n[[registry.mirror]]\nlocation = "conf.example"'
    )
    machine.hosts_toml("a.example", '[host."https://toml.example"]')
    machine.hosts_toml("_default", '[host."https://default.example"]')
    first = [
        machine.serving(domain)[0].home.origin.host for domain in ("a.example", "b.example", "c.example")
    ]
    assert first == ["toml.example", "conf.example", "default.example"]


def test_the_first_folder_with_something_for_the_domain_counts(tmp_path: Path) -> None:
    own = tmp_path / "config/lamella/certs.d/example.com/hosts.toml"
    own.parent.mkdir(parents=True)
    own.write_text('server = "https://own.example"')
    hosts = Hosts(RegistryConfig(), {"XDG_CONFIG_HOME": f"{tmp_path}/config"})
    assert [str(folder) for folder in hosts.folders] == [
        f"{tmp_path}/config/lamella/certs.d",
        "/etc/lamella/certs.d",
        "/etc/containerd/certs.d",
        "/etc/docker/certs.d",
        "/etc/containers/certs.d",
    ]
    assert hosts.serving("example.com", "a")[0].home.origin.host == "own.example"
    named = Hosts(RegistryConfig(), {"LAMELLA_HOSTS_DIR": str(tmp_path)})
    assert named.folders == [tmp_path]


def test_a_folder_that_was_named_must_be_there(tmp_path: Path) -> None:
    for config, environ in (
        (RegistryConfig(hosts_dir=tmp_path / "no"), {}),
        (RegistryConfig(), {"LAMELLA_HOSTS_DIR": f"{tmp_path}/no"}),
    ):
        with pytest.raises(InvalidArgument, match="is not there"):
            Hosts(config, environ)
    with pytest.raises(InvalidArgument, match="is not there"):
        Hosts(RegistryConfig(registries_conf=tmp_path / "no"), {}).serving("example.com", "a")


# Proxies

PROXIES = {"HTTPS_PROXY": "http://tls-proxy:1", "HTTP_PROXY": "http://plain-proxy:2"}


def chosen(url: str, **environ: str) -> str | None:
    return proxy_for(Origin.of(url), environ)


def test_the_scheme_chooses_the_proxy() -> None:
    assert chosen("https://example.com", **PROXIES) == "http://tls-proxy:1"
    assert chosen("http://example.com", **PROXIES) == "http://plain-proxy:2"
    assert chosen("https://example.com", https_proxy="low:3") == "http://low:3"
    assert chosen("https://example.com", ALL_PROXY="socks5://all:4") == "socks5://all:4"
    assert chosen("https://example.com", http_proxy="http://plain:2") is None
    assert chosen("https://example.com", HTTPS_PROXY="", ALL_PROXY="") is None


def test_upper_case_comes_first_and_a_scheme_before_all() -> None:
    environ = {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2", "ALL_PROXY": "http://c:3"}
    assert chosen("https://example.com", **environ) == "http://a:1"


@pytest.mark.parametrize("url", ["http://localhost:5000", "https://127.3.2.1", "http://[::1]:80"])
def test_this_machine_is_not_reached_through_a_proxy(url: str) -> None:
    assert chosen(url, **PROXIES, ALL_PROXY="http://all:1") is None


def test_a_header_of_a_web_servers_client_is_no_proxy() -> None:
    assert chosen("http://example.com", HTTP_PROXY="http://evil:1", REQUEST_METHOD="GET") is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", "https://example.com", True),
        ("example.com", "https://example.com", True),
        ("example.com", "https://a.example.com", True),
        ("example.com", "https://notexample.com", False),
        (".example.com", "https://a.example.com", True),
        (".example.com", "https://example.com", False),
        ("*.example.com", "https://a.example.com", True),
        ("example.com:443", "https://example.com", True),
        ("example.com:8443", "https://example.com", False),
        ("other, EXAMPLE.com ", "https://example.com", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3:5000", "http://10.1.2.3:5000", True),
        ("10.1.2.3:5001", "http://10.1.2.3:5000", False),
        ("fd00::/8", "https://[fd00::1]", True),
        ("10.0.0.0/8", "https://ten.example.com", False),
        ("", "https://example.com", False),
        (",,", "https://example.com", False),
        ("example.com:port", "https://example.com", False),
    ],
)
def test_no_proxy_is_read_as_go_reads_it(no_proxy: str, url: str, direct: bool) -> None:
    assert (chosen(url, NO_PROXY=no_proxy, **PROXIES) is None) is direct


@pytest.mark.parametrize(
    "text", ["ftp://proxy:1", "http://", "http://proxy:x", "http://p:1/path", "http://p:99999"]
)
def test_what_is_no_proxy_is_refused_with_the_variables_name_and_no_password(text: str) -> None:
    with pytest.raises(InvalidArgument, match="https_proxy") as caught:
        chosen("https://example.com", https_proxy=text.replace("://", "://user:secret@"))
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_proxy_is_described_without_its_password() -> None:
    assert describe("http://user:sec@ret@proxy:3128") == "http://proxy:3128"


@given(st.text(max_size=30))
def test_any_no_proxy_is_read(text: str) -> None:
    chosen("https://10.1.2.3:5000", NO_PROXY=text, **PROXIES)
