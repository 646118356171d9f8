"""From words to a call."""

from __future__ import annotations

from functools import partial

import hypothesis
import pytest
from hypothesis import strategies as st
from shell_lines import commands

from lamella import snapshots
from lamella.cli import options, parser
from lamella.cli.commands import entries, find
from lamella.cli.parser import Group, HelpRequested, UsageError, parse


def test_a_noun_and_its_singular_are_the_same_command() -> None:
    for plural, singular in (
        ("images", "image"),
        ("containers", "container"),
        ("snapshots", "snapshot"),
        ("leases", "lease"),
        ("namespaces", "namespace"),
    ):
        assert parse([plural, "ls"]).command is parse([singular, "ls"]).command
        assert parse([plural, "list"]).command is parse([plural, "ls"]).command


def test_ps_lists_containers() -> None:
    assert parse(["ps", "-a"]).command.run is parse(["containers", "ls", "-a"]).command.run


def test_global_options_come_before_the_command() -> None:
    words = ["--root", "/r", "--state", "/s", "-n", "tests", "--snapshotter", "native", "-q", "images", "ls"]
    settings = parse(words).settings
    assert (settings.root, settings.state, settings.namespace) == ("/r", "/s", "tests")
    assert (settings.snapshotter, settings.quiet, settings.verbose, settings.json) == (
        "native",
        True,
        False,
        False,
    )


def test_the_snapshotters_are_those_that_there_are() -> None:
    assert tuple(snapshots.SNAPSHOTTERS) == parser.SNAPSHOTTERS
    with pytest.raises(UsageError, match="zfs"):
        parse(["--snapshotter", "zfs", "images", "ls"])


@pytest.mark.parametrize(
    "words", [["--json", "images", "ls"], ["images", "--json", "ls"], ["images", "ls", "--json"]]
)
def test_json_is_taken_before_and_behind_the_command(words: list[str]) -> None:
    assert parse(words).settings.json is True


@pytest.mark.parametrize("words", [["-q", "pull", "a"], ["pull", "-q", "a"], ["pull", "a", "--quiet"]])
def test_quiet_is_taken_before_and_behind_a_transfer(words: list[str]) -> None:
    assert parse(words).settings.quiet is True


def test_options_stand_anywhere_among_the_arguments() -> None:
    arguments = parse(["push", "a", "--progress", "plain", "b"]).arguments
    assert (arguments.reference, arguments.target, arguments.progress) == ("a", "b", "plain")
    arguments = parse(["export", "-o", "f", "a", "-q", "b"]).arguments
    assert (arguments.output, arguments.references) == ("f", ["a", "b"])
    assert parse(["tag", "--", "-a", "b"]).arguments.source == "-a"
    with pytest.raises(UsageError, match="--nonsense"):
        parse(["push", "a", "--nonsense", "b"])


def test_everything_behind_the_reference_belongs_to_the_command() -> None:
    words = ["run", "--rm", "-e", "A=1", "debian:12", "--rm", "-e", "B=2", "--help", "--", "x"]
    arguments = parse(words).arguments
    assert arguments.rm is True
    assert arguments.env == ["A=1"]
    assert options.reference(arguments) == "debian:12"
    assert options.command(arguments) == ["--rm", "-e", "B=2", "--help", "--", "x"]


def test_two_dashes_before_the_reference_end_the_options() -> None:
    arguments = parse(["run", "--rm", "--", "debian:12", "--", "ls"]).arguments
    assert (options.reference(arguments), options.command(arguments)) == ("debian:12", ["--", "ls"])


def test_two_dashes_before_the_command_end_the_global_options() -> None:
    assert parse(["--json", "--", "images", "ls"]).command is parse(["images", "ls"]).command


def test_every_container_option_reaches_the_library_under_its_name() -> None:
    line = (
        "run --name box --rm -i -t --init -e A=1 -e B --env-file /dev/null -w /src -u 1000:1000 --hostname h "
        "--entrypoint /bin/sh --network host --label a=b --annotation c=d --stop-signal INT -v /a:/b:ro "
        "--mount type=tmpfs,target=/x --tmpfs /run --read-only --device /dev/fuse --memory 512m --memory-swap 1g "
        "--shm-size 1m --cpus 1.5 --cpuset-cpus 0 --pids-limit 100 --ulimit nofile=10:20 --oom-score-adj 500 --sysctl net.x=1 "
        "--cap-add NET_ADMIN --cap-drop ALL --privileged --security-opt no-new-privileges "
        "--security-opt seccomp=unconfined debian:12"
    )
    words = line.split()
    assert options.container_options(parse(words).arguments) == {
        "name": "box",
        "stdin": True,
        "tty": True,
        "init": True,
        "auto_remove": True,
        "oom_kill_disable": False,
        "environment": ["A=1", "B"],
        "env_file": ["/dev/null"],
        "working_dir": "/src",
        "user": "1000:1000",
        "hostname": "h",
        "entrypoint": ["/bin/sh"],
        "networks": ["host"],
        "labels": {"a": "b"},
        "annotations": {"c": "d"},
        "stop_signal": "SIGINT",
        "volumes": ["/a:/b:ro"],
        "mounts": ["type=tmpfs,target=/x"],
        "tmpfs": ["/run"],
        "read_only": True,
        "devices": ["/dev/fuse"],
        "memory": 512 * 1024**2,
        "memory_swap": 1024**3,
        "shm_size": 1024**2,
        "cpus": "1.5",
        "cpuset": "0",
        "pids_limit": 100,
        "ulimits": ["nofile=10:20"],
        "oom_score_adj": 500,
        "sysctls": {"net.x": "1"},
        "cap_add": ["NET_ADMIN"],
        "cap_drop": ["ALL"],
        "privileged": True,
        "no_new_privileges": True,
        "seccomp": "unconfined",
    }


def test_the_library_has_every_option_that_the_command_line_passes() -> None:
    from lamella.containers.options import Options

    words = ["run", "--entrypoint", "", "--memory", "1g", "-v", "/a:/b", "debian"]
    passed = options.container_options(parse(words).arguments)
    assert set(passed) <= set(Options.__struct_fields__)
    assert passed["entrypoint"] == []


def test_a_relative_volume_starts_at_the_working_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("work")
    monkeypatch.chdir(folder)
    passed = options.container_options(parse(["run", "-v", "./a:/b", "-v", ".:/c:ro", "x"]).arguments)
    assert passed["volumes"] == [f"{folder}/a:/b", f"{folder}:/c:ro"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "lamella: a command is missing"),
        (["imges"], "lamella: 'imges' is not a command"),
        (["images"], "lamella images: a command is missing"),
        (["images", "sl"], "lamella images: 'sl' is not a command"),
        (["images", "ls", "--bogus"], "lamella images ls: unrecognized arguments: --bogus"),
        (["--bogus", "images", "ls"], "lamella: unrecognized arguments: --bogus"),
        (["run"], "lamella run: the following arguments are required: REF"),
        (
            ["run", "--memory", "lots", "x"],
            "lamella run: argument -m/--memory: the size 'lots' is not a size",
        ),
        (["run", "--timeout", "soon", "x"], "lamella run: argument --timeout: 'soon' is not a duration"),
        (["run", "--label", "=x", "x"], "lamella run: argument --label: '=x' is not KEY=VALUE"),
        (["run", "--ulimit", "x", "x"], "lamella run: argument --ulimit: ulimit 'x' is malformed"),
        (["run", "--netw", "none", "x"], "lamella run: unrecognized arguments: --netw"),
        (
            ["containers", "kill", "-s", "NOPE", "x"],
            "lamella containers kill: argument -s/--signal: 'NOPE' is not",
        ),
        (
            ["containers", "kill", "-s", "99", "x"],
            "lamella containers kill: argument -s/--signal: '99' is not",
        ),
        (
            ["-q", "-v", "images", "ls"],
            "lamella: argument -v/--verbose: not allowed with argument -q/--quiet",
        ),
        (["completion", "tcsh"], "lamella completion: argument SHELL: invalid choice: 'tcsh'"),
        (["--json", "completion", "bash"], "lamella completion: --json has no meaning here"),
        (
            ["registry", "serve", "--listen", "5000"],
            "lamella registry serve: argument --listen: '5000' is not HOST:PORT",
        ),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong_and_where_to_read(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


def test_a_misspelt_command_gets_the_nearest_as_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["snapshots", "comit"])
    assert caught.value.hint == "Did you mean 'lamella snapshots commit'?"


def test_the_table_agrees_with_the_commands_it_names() -> None:
    for entry in entries():
        command = entry.load()
        assert (command.name, command.summary) == (entry.name, entry.summary)


def test_every_command_has_examples_that_parse() -> None:
    for entry in entries():
        noun = entry.load()
        for command in noun.commands if isinstance(noun, Group) else [noun]:
            assert command.examples, command.name
            for text, line in command.examples:
                calls = commands(line)
                assert text and calls, line
                for words in calls:
                    parse(words)


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["run", "--help"], ["images", "-h"], ["images", "ls", "-h"]]
)
def test_help_is_given_everywhere(words: list[str]) -> None:
    with pytest.raises(HelpRequested):
        parse(words)


WORDS = """
    --rm -d -e -i -it -m -n -t -v -vv -eA=B -e=A -h - -- -1 -1.5 --json --quiet --verbose --version --help --nam --name --root
    --env --env=A=B --env= --memory 64m --memory=64m --memory=x --cpus 0.5 --network none --network=host --snapshotter native
    --snapshotter=zfs --label a=b --label= --timeout 5s --pull never --pull=never --pid host --pid=other --gpus all
    --read-only=yes --detach-keys --userns auto --stop-signal TERM --stop-timeout --sysctl x=y --ulimit nofile=1 image sh
"""
PARSERS = {"lamella": parser.top_parser} | {
    name: partial(find(name).parser, f"lamella {name}")
    for name in ("run", "exec", "create", "images", "update")
}


@pytest.mark.parametrize("name", PARSERS)
@hypothesis.settings(max_examples=150, derandomize=True)
@hypothesis.given(st.lists(st.sampled_from([*WORDS.split(), "", "a b"]), max_size=7))
def test_a_line_that_is_read_without_argparse_is_read_as_by_argparse(name: str, words: list[str]) -> None:
    found = PARSERS[name]()._read_usual(words)
    if found is not None:
        assert found == PARSERS[name]().full().read(words, mixed=True)


def test_a_usual_line_is_read_without_argparse() -> None:
    words = "--rm -d -e A=1 --env=B=2 --memory 64m --network none --network=host debian:12 sh -c"
    found = PARSERS["run"]()._read_usual(words.split())
    assert found is not None
    assert (found.rm, found.env, found.memory) == (True, ["A=1", "B=2"], 64 * 1024 * 1024)
    assert (found.network, found.words) == (["none", "host"], ["debian:12", "sh", "-c"])
