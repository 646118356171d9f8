"""What the ready policies let in and refuse, and what is wrong in a policy file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamella import oci, policy
from lamella.digest import digest_of
from lamella.errors import InvalidArgument, NotFound, PermissionDenied, PolicyRefused, Unsupported
from lamella.policy import AllowedRegistries, Candidate, PinnedDigests, RequireDigest, all_of, enforce
from lamella.reference import Reference

ONE, TWO = digest_of(b"one"), digest_of(b"two")


def candidate(name: str | None, digest: Any = ONE, *, archive: bool = False) -> Candidate:
    reference = Reference.parse(name) if name else None
    registry = None if archive or reference is None else reference.domain
    descriptor = oci.Descriptor(oci.OCI_MANIFEST, digest, 3)
    source: Any = None
    return Candidate(source, reference, lambda: (descriptor, None), registry=registry)


def refused(rule: policy.AnyPolicy | None, *args: Any, **options: Any) -> str | None:
    try:
        enforce(rule, candidate(*args, **options))
    except PolicyRefused as error:
        assert isinstance(error, PermissionDenied)
        return error.message
    return None


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("docker.io", "nginx", True),
        ("docker.io/library", "nginx", True),
        ("docker.io/library", "acme/nginx", False),
        ("docker.io/library/nginx", "nginx:1", True),
        ("docker.io/library/nginx", "nginx-evil", False),
        ("ghcr.io/acme", "ghcr.io/acme/app", True),
        ("ghcr.io/acme", "ghcr.io/acme/deep/app", True),
        ("ghcr.io/acme", "ghcr.io/acme-too/app", False),
        ("ghcr.io/acme", "ghcr.io.evil.com/acme/app", False),
        ("ghcr.io/acme/*", "ghcr.io/acme/app", True),
        ("ghcr.io/acme/team-*/", "ghcr.io/acme/team-a/app", True),
        ("ghcr.io/*/app", "ghcr.io/a/b/app", False),
        ("*.example.com", "eu.example.com/a", True),
        ("*.example.com", "example.com/a", False),
        ("*.example.com", "evil.com/a.example.com", False),
        ("Example.COM/a", "example.com/a", True),
        ("example.com", "Example.COM/a", True),
        ("localhost:5000/a", "localhost:5000/a", True),
        ("localhost:5000/a", "localhost:5001/a", False),
        ("localhost", "localhost/a", True),
        ("*", "anything.at/all", True),
    ],
)
def test_registries_are_allowed_by_patterns_part_by_part(pattern: str, name: str, allowed: bool) -> None:
    assert (refused(AllowedRegistries([pattern]), name) is None) == allowed


def test_no_pattern_allows_nothing_and_archives_come_from_no_registry() -> None:
    assert "not among" in str(refused(AllowedRegistries([]), "nginx"))
    assert "no registry" in str(refused(AllowedRegistries(["*"]), "nginx", archive=True))
    assert "no registry" in str(refused(AllowedRegistries(["*"]), None))


@pytest.mark.parametrize("pattern", ["", "/", "library/nginx", "docker.io//nginx", "nginx"])
def test_a_pattern_without_a_domain_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match="domain"):
        AllowedRegistries([pattern])


@pytest.mark.parametrize(
    ("name", "digest", "allowed"),
    [
        ("nginx:1", ONE, True),
        ("docker.io/library/nginx:1", TWO, False),
        (f"nginx:1@{TWO}", TWO, False),
        ("nginx:2", TWO, True),
        ("nginx", ONE, True),
        ("debian", TWO, True),
        ("debian:12", ONE, True),
        ("debian:12", digest_of(b"three"), False),
        (f"debian@{ONE}", ONE, True),
        ("debian:old", ONE, False),
        ("other", TWO, True),
        ("LOCALHOST:5000/a", TWO, False),
        (None, TWO, True),
    ],
)
def test_a_pinned_name_stands_for_its_digests_alone(name: str | None, digest: str, allowed: bool) -> None:
    pins = PinnedDigests(
        {"nginx:1": ONE, "debian": [ONE, TWO], "docker.io/library/debian:old": [], "localhost:5000/a": ONE}
    )
    assert (refused(pins, name, digest) is None) == allowed


def test_a_malformed_pin_is_refused() -> None:
    for name, value, error in (
        ("UPPER", ONE, InvalidArgument),
        (f"a@{ONE}", ONE, InvalidArgument),
        ("a", "12", InvalidArgument),
        ("a", "md5:d41d8cd98f00b204e9800998ecf8427e", Unsupported),
    ):
        with pytest.raises(error):
            PinnedDigests({name: value})


def test_a_digest_can_be_required_and_a_pin_counts_as_one() -> None:
    assert refused(RequireDigest(), f"nginx@{ONE}") is None
    assert "by digest" in str(refused(RequireDigest(), "nginx"))
    assert "by digest" in str(refused(RequireDigest(), None))
    pinned = RequireDigest(PinnedDigests({"nginx:1": ONE}))
    assert refused(pinned, "nginx:1") is None
    assert refused(pinned, "nginx:2")


def test_all_policies_must_agree() -> None:
    both = all_of(
        AllowedRegistries(["docker.io"]), None, lambda _: "never" if _.descriptor.digest == TWO else None
    )
    assert refused(both, "nginx") is None
    assert "not among" in str(refused(both, "quay.io/a"))
    assert refused(both, "nginx", TWO) == f"docker.io/library/nginx:latest ({TWO}) is refused: never"
    assert all_of(None, None) is None
    only = RequireDigest()
    assert all_of(None, only) is only


@pytest.mark.parametrize("answer", [True, False, 0, ["reason"]])
def test_an_answer_that_is_no_reason_lets_nothing_in(answer: Any) -> None:
    with pytest.raises(InvalidArgument, match="neither a reason"):
        enforce(lambda _: answer, candidate("nginx"))


def test_a_policy_that_fails_lets_nothing_in() -> None:
    def broken(_: Candidate) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        enforce(broken, candidate("nginx"))


def test_a_file_has_the_ready_policies(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        f"""
        require_digest = true
        [allow]
        registries = ["docker.io/library", "*.example.com"]
        [pins]
        "nginx:1" = "{ONE}"
        "debian" = ["{ONE}", "{TWO}"]
        """
    )
    rule = policy.load(file)
    assert refused(rule, "nginx:1") is None
    assert "pinned" in str(refused(rule, "nginx:1", TWO))
    assert "by digest" in str(refused(rule, "nginx:2"))
    assert refused(rule, f"nginx@{TWO}", TWO) is None
    assert refused(rule, "debian:12", TWO) is None
    assert "not among" in str(refused(rule, f"quay.io/a@{ONE}"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("allow = 1", "`allow`"),
        ("[allow]\nregistry = []", "registry"),
        ("[allow]\nregistries = [1]", r"`allow.registries\[0\]`"),
        ("[allow]\nregistries = ['library']", "allow.registries: 'library'"),
        ("[pins]\nnginx = 1", "pins.'nginx'"),
        ("[pins]\nnginx = 'sha256:12'", "pins.'nginx'"),
        ("[pins]\n'UPPER' = 'sha256:12'", "pins.'UPPER'"),
        ("require_digest = 'yes'", "`require_digest`"),
        ("required_digest = true", "required_digest"),
        ("= 1", "line 1"),
        ("", "no rule"),
        ("require_digest = false", "no rule"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_key(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=says) as caught:
        policy.load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        policy.load(tmp_path / "nowhere")
    with pytest.raises(InvalidArgument, match="directory"):
        policy.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="binary"):
        policy.load(tmp_path / "binary")
