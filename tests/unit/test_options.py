import pytest

from lamella.containers.defaults import CAPABILITIES
from lamella.containers.limits import memory_limits, parse_cpus, parse_size
from lamella.containers.options import (
    CreateOptions,
    Options,
    parse_capabilities,
    parse_command,
    parse_environment,
    parse_ulimit,
)
from lamella.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5),
        ("5", 5),
        ("1k", 1024),
        ("1K", 1024),
        ("2kb", 2048),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("64KiB", 65536),
    ],
)
def test_sizes_read_as_docker_reads_them(text, size):
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize("text", ["", "m", "five", "1x", "-1", -1, "1e400", "nan"])
def test_a_malformed_size_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_size(text, "memory")


def test_a_string_command_is_split_as_a_shell_would():
    assert parse_command("sh -c 'echo hi'") == ["sh", "-c", "echo hi"]
    assert parse_command(["a b"]) == ["a b"]
    with pytest.raises(InvalidArgument):
        parse_command("'open")
    with pytest.raises(InvalidArgument):
        parse_command(["a\0b"])


def test_an_environment_name_alone_takes_the_callers_value(monkeypatch):
    monkeypatch.setenv("TAKEN", "here")
    monkeypatch.delenv("ABSENT", raising=False)
    assert parse_environment(["A=1", "B=", "TAKEN", "ABSENT"]) == {"A": "1", "B": "", "TAKEN": "here"}
    assert parse_environment({"A": "1", "TAKEN": None}) == {"A": "1", "TAKEN": "here"}


@pytest.mark.parametrize("value", [["=x"], {"a=b": "c"}, ["A=\0"], {"": "x"}])
def test_a_malformed_environment_is_refused(value):
    with pytest.raises(InvalidArgument):
        parse_environment(value)


def test_numbers_are_values_of_variables_too():
    assert parse_environment({"A": 1, "B": 0.5}) == {"A": "1", "B": "0.5"}


def test_a_fraction_of_a_byte_is_refused():
    with pytest.raises(InvalidArgument, match=r"memory 1\.5 is not a size"):
        parse_size(1.5, "memory")


def test_one_string_is_one_item_of_an_option_that_takes_several():
    assert parse_capabilities("NET_ADMIN", "ALL", privileged=False) == ["CAP_NET_ADMIN"]


def test_capabilities_are_dockers_by_default():
    assert parse_capabilities(None, None, privileged=False) == sorted(CAPABILITIES)


@pytest.mark.parametrize("name", ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN"])
def test_a_capability_is_added_under_any_of_its_names(name):
    assert "CAP_NET_ADMIN" in parse_capabilities([name], None, privileged=False)


def test_dropping_all_keeps_only_what_is_added():
    assert parse_capabilities(["CHOWN"], ["ALL"], privileged=False) == ["CAP_CHOWN"]
    assert parse_capabilities(None, ["ALL"], privileged=False) == []
    assert "CAP_CHOWN" not in parse_capabilities(["ALL"], ["CHOWN"], privileged=False)


def test_an_unknown_capability_is_refused():
    with pytest.raises(InvalidArgument, match="FLY"):
        parse_capabilities(["FLY"], None, privileged=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=1024", ("RLIMIT_NOFILE", 1024, 1024)),
        ("nofile=1:2", ("RLIMIT_NOFILE", 1, 2)),
        ("core=unlimited", ("RLIMIT_CORE", 2**64 - 1, 2**64 - 1)),
    ],
)
def test_ulimits_read_as_docker_writes_them(text, expected):
    limit = parse_ulimit(text)
    assert (limit.type, limit.soft, limit.hard) == expected


@pytest.mark.parametrize("text", ["nofile", "nofile=", "nofile=a", "nofile=2:1", "nofile=-2"])
def test_a_malformed_ulimit_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_ulimit(text)


def test_cpus_become_a_quota():
    limits = parse_cpus("1.5")
    assert (limits.quota, limits.period) == (150_000, 100_000)
    for bad in ("0", "-1", "many", "nan"):
        with pytest.raises(InvalidArgument):
            parse_cpus(bad)


def test_an_unknown_ulimit_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidArgument, match="nofiles") as caught:
        parse_ulimit("nofiles=5")
    assert "nofile" in caught.value.hint


def test_memory_alone_allows_no_swap_beyond_it():
    limits = memory_limits(Options(memory="64m"))
    assert (limits.limit, limits.swap) == (64 << 20, 64 << 20)
    for bad in (Options(memory="1m"), Options(memory_swap="1g"), Options(memory="64m", memory_swap="32m")):
        with pytest.raises(InvalidArgument):
            memory_limits(bad)


def test_the_typed_keywords_are_the_fields_of_options():
    typed = {name for each in CreateOptions.__mro__ for name in getattr(each, "__annotations__", ())}
    assert typed == set(Options.__struct_fields__) - {"command"}
