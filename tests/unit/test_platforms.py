"""Platforms: containerd's names and order."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from lamella import platforms
from lamella.errors import InvalidArgument, NotFound
from lamella.oci import OCI_MANIFEST, Descriptor, Platform


def entry(text: str | None, number: int = 0, **fields: object) -> Descriptor:
    platform = None
    if text is not None:
        system, _, rest = text.partition("/")
        architecture, _, variant = rest.partition("/")
        platform = Platform(os=system, architecture=architecture, variant=variant or None)
    return Descriptor(OCI_MANIFEST, f"sha256:{number:064x}", 1, platform=platform, **fields)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("armv5tel", "linux/arm/v5"),
        ("i686", "linux/386"),
        ("riscv64", "linux/riscv64"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_this_machine_is_named_in_the_specs_words(
    machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr(platforms, "amd64_level", lambda: 1)
    assert str(platforms.default_platform()) == expected


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("", 1),
        ("fpu cx16 lahf_lm popcnt pni sse4_1 sse4_2", 1),
        ("fpu cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3", 2),
        ("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave", 3),
        ("abm avx avx2 bmi1 bmi2 f16c fma movbe xsave avx512f", 1),
        (
            "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
            " avx512bw avx512cd avx512dq avx512f avx512vl",
            4,
        ),
    ],
)
def test_the_level_of_this_processor_is_read_off_its_flags(
    flags: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\nflags\t\t: other\n"
    monkeypatch.setattr(Path, "open", lambda _: io.StringIO(text))
    assert platforms.amd64_level.__wrapped__() == level
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setattr(platforms, "amd64_level", lambda: level)
    suffix = f"/v{level}" if level > 1 else ""
    assert str(platforms.default_platform()) == f"linux/amd64{suffix}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
        ("386", "linux/386"),
        ("linux", "linux/amd64"),
        ("windows", "windows/amd64"),
        ("windows(10.0.17763)/amd64", "windows/amd64"),
    ],
)
def test_a_platform_is_read_and_normalised(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    parsed = platforms.parse_platform(text)
    assert str(parsed) == expected
    assert platforms.normalize(parsed) == parsed


def test_the_version_of_the_system_is_kept() -> None:
    assert platforms.parse_platform("windows(10.0.17763)/amd64").os_version == "10.0.17763"


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "linux//v8", "a/b/c/d", "linux/arm 64", "nonsense", "linux/a;b"]
)
def test_a_malformed_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        platforms.parse_platform(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux/amd64", "amd64 386"),
        ("linux/amd64/v3", "amd64/v3 amd64/v2 amd64 386"),
        ("linux/386", "386"),
        ("linux/arm/v7", "arm/v7 arm/v6 arm/v5"),
        ("linux/arm/v6", "arm/v6 arm/v5"),
        ("linux/arm/v8", "arm/v8 arm/v7 arm/v6 arm/v5"),
        ("linux/arm64", "arm64 arm/v8 arm/v7 arm/v6 arm/v5"),
        ("linux/arm64/v8.2", "arm64/v8.2 arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5"),
        (
            "linux/arm64/v9.1",
            "arm64/v9.1 arm64/v9 arm64/v8.6 arm64/v8.5 arm64/v8.4 arm64/v8.3 arm64/v8.2 arm64/v8.1 arm64"
            " arm/v8 arm/v7 arm/v6 arm/v5",
        ),
        ("linux/riscv64", "riscv64"),
    ],
)
def test_a_platform_accepts_what_it_can_run_nearest_first(platform: str, expected: str) -> None:
    found = platforms.acceptable(platforms.parse_platform(platform))
    assert [str(p) for p in found] == [f"linux/{name}" for name in expected.split()]


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386", "linux/arm64"], 0),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], 2),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v7", ["linux/arm64/v8", "linux/arm"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm64/v9", ["linux/arm64", "linux/arm64/v8.4"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", None], 1),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", ["linux/x86_64"], 0),
    ],
)
def test_the_nearest_manifest_is_chosen(wanted: str, offered: list[str | None], chosen: int) -> None:
    entries = [entry(text, number) for number, text in enumerate(offered)]
    assert platforms.choose(entries, platforms.parse_platform(wanted)) is entries[chosen]


def test_the_error_names_the_platforms_that_are_there_and_no_attestation() -> None:
    entries = [entry("linux/arm64/v8", 1), entry("linux/s390x", 2), entry("unknown/unknown", 3)]
    with pytest.raises(NotFound) as caught:
        platforms.choose(entries, Platform("linux", "amd64"))
    assert "linux/amd64; it has linux/arm64, linux/s390x" in str(caught.value)
    assert "unknown" not in str(caught.value)
    assert caught.value.hint == "Ask for one of them, such as --platform linux/arm64."


def test_the_error_says_which_versions_and_features_there_are() -> None:
    windows = Platform("windows", "amd64", os_version="10.0.17763.1")
    entries = [Descriptor(OCI_MANIFEST, f"sha256:{1:064x}", 1, platform=windows)]
    entries.append(
        Descriptor(
            OCI_MANIFEST, f"sha256:{2:064x}", 1, platform=Platform("linux", "arm", "v7", None, ["a", "b"])
        )
    )
    with pytest.raises(NotFound) as caught:
        platforms.choose(entries, platforms.parse_platform("windows(10.0.20348)/amd64"))
    assert "for windows(10.0.20348)/amd64; it has windows(10.0.17763.1)/amd64, linux(+a+b)/arm/v7" in str(
        caught.value
    )
    assert "--platform 'windows(10.0.17763.1)/amd64'" in str(caught.value.hint)
    for entry in entries:
        assert (
            entry.platform
            and platforms.choose(entries, platforms.parse_platform(platforms.describe(entry.platform)))
            is entry
        )


def test_an_empty_index_is_not_found() -> None:
    with pytest.raises(NotFound):
        platforms.choose([], Platform("linux", "amd64"))


def test_attestations_and_artifacts_are_never_chosen() -> None:
    attestation = entry("linux/amd64", 1, annotations={"vnd.docker.reference.type": "attestation-manifest"})
    signature = entry(None, 2, artifact_type="application/vnd.example.signature")
    with pytest.raises(NotFound):
        platforms.choose([attestation, signature], Platform("linux", "amd64"))


def test_only_windows_images_are_bound_to_a_build_of_the_system() -> None:
    def versioned(system: str, version: str, number: int) -> Descriptor:
        platform = Platform(system, "amd64", os_version=version)
        return Descriptor(OCI_MANIFEST, f"sha256:{number:064x}", 1, platform=platform)

    windows = [versioned("windows", "10.0.17763", 1), versioned("windows", "10.0.20348", 2)]
    wanted = Platform("windows", "amd64", os_version="10.0.20348")
    assert platforms.choose(windows, wanted) is windows[1]
    assert platforms.choose(windows, Platform("windows", "amd64")) is windows[1]
    linux = [versioned("linux", "6.1", 3)]
    assert platforms.choose(linux, Platform("linux", "amd64", os_version="6.18")) is linux[0]


@pytest.mark.parametrize(
    ("host", "image", "runs"),
    [
        ("10.0.17763.1", "10.0.17763.5000", True),
        ("10.0.17763.1", "10.0.17134.1", False),
        ("10.0.19042", "10.0.17763", False),
        ("10.0.20348.1", "10.0.20348.2", True),
        ("10.0.26100.1", "10.0.20348.2", True),
        ("10.0.20348.1", "10.0.26100.1", False),
        ("10.0.26100.1", "10.0.17763.1", False),
        ("11.0.26100.1", "10.0.20348.1", False),
        ("10.0.26100.1", None, True),
        ("10.0.26100.1", "what", False),
    ],
)
def test_windows_runs_its_own_build_and_from_2022_on_older_ones(
    host: str, image: str | None, runs: bool
) -> None:
    offered = Descriptor(
        OCI_MANIFEST, f"sha256:{1:064x}", 1, platform=Platform("windows", "amd64", None, image)
    )
    wanted = platforms.parse_platform(f"windows({host})/amd64")
    if runs:
        assert platforms.choose([offered], wanted) is offered
    else:
        with pytest.raises(NotFound):
            platforms.choose([offered], wanted)


def test_a_manifest_that_demands_features_is_for_those_that_have_them_all() -> None:
    def demanding(number: int, *features: str) -> Descriptor:
        platform = Platform("linux", "amd64", os_features=[*features] or None)
        return Descriptor(OCI_MANIFEST, f"sha256:{number:064x}", 1, platform=platform)

    entries = [demanding(1, "erofs", "dax"), demanding(2), demanding(3, "erofs")]
    assert platforms.choose(entries, platforms.parse_platform("linux/amd64")) is entries[1]
    assert platforms.choose(entries, platforms.parse_platform("linux(+erofs)/amd64")) is entries[2]
    assert platforms.choose(entries, platforms.parse_platform("linux(+dax+erofs)/amd64")) is entries[0]
    assert platforms.choose(entries, platforms.parse_platform("linux(6.1+erofs)/amd64")) is entries[2]
    with pytest.raises(NotFound):
        platforms.choose(entries[2:], platforms.parse_platform("linux/amd64"))
