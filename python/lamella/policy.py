"""Policies: which images may come here, decided once it is known what a name stands for, and before anything is fetched.

A policy is asked with a :class:`Candidate`: the reference, and the digest that it stands for by now. It refuses by raising
:class:`lamella.errors.PolicyRefused`, or by returning the reason; so a function is a policy, too. What is fetched afterwards is
fetched by that digest, whatever the tag says by then, and an index vouches for what is in it. Of an image that is refused
nothing is kept, and a registry that is refused by name is not even asked.

The client's policy is asked by pulls, also of what is here already, by copies about their source, and by imports. What is here is
not asked about again: not by a container that is made of it, nor by fsck, which fetches by digest what was let in before.

::

    pins = PinnedDigests({"nginx:1": "sha256:..."})
    with Client(policy=all_of(AllowedRegistries(["docker.io/library"]), pins)) as client: ...

The same from a file, which is named by ``--policy`` or LAMELLA_POLICY::

    require_digest = true                          # references name a digest, or have a pin

    [allow]
    registries = ["docker.io/library", "*.example.com/team-*"]

    [pins]
    "docker.io/library/nginx:1" = "sha256:..."     # or a list of them
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lamella.digest import Digest, parse_digest
from lamella.errors import InvalidArgument, LamellaError, NotFound, PolicyRefused
from lamella.lazy import cached_property
from lamella.oci import Descriptor, Platform
from lamella.reference import Reference

if TYPE_CHECKING:
    from lamella.transfer.endpoints import Known, Source


class Candidate:
    """An image that may come here.

    ``reference``: what was asked for; None where an archive gives no name. ``registry``: the domain that it belongs to; None for
    what comes from an archive, whose names anybody may have chosen. ``platform``: what was asked for; None for all. ``source``:
    where it comes from, which a policy may ask for more. The source is asked once somebody wants to know the ``descriptor``.
    """

    def __init__(
        self,
        source: Source,
        reference: Reference | None,
        resolve: Callable[[], tuple[Descriptor, bytes | None]],
        *,
        registry: str | None,
        platform: Platform | None = None,
    ) -> None:
        self.source = source
        self.reference = reference
        self.registry = registry
        self.platform = platform
        self._resolve = resolve

    def __repr__(self) -> str:
        return f"Candidate({self})"

    def __str__(self) -> str:
        known = vars(self).get("resolved")
        return f"{self.reference or 'the image'}" + (f" ({known[0].digest})" if known else "")

    @cached_property
    def resolved(self) -> tuple[Descriptor, bytes | None]:
        """The descriptor, and the document where it took that to know the digest."""
        return self._resolve()

    @property
    def descriptor(self) -> Descriptor:
        """The digest, size (bytes) and media type, as the source says them; the document is held against them when it comes.

        Errors: those of :meth:`lamella.transfer.endpoints.Source.resolve`.
        """
        return self.resolved[0]

    def referrers(self, artifact_type: str | None = None) -> list[Descriptor]:
        """Describe what the source says to refer to the image, such as signatures: not checked until they are fetched."""
        return self.source.referrers(self._place, self.descriptor.digest, artifact_type=artifact_type)

    def fetch(self, descriptor: Descriptor) -> bytes:
        """Fetch a document or small blob from the image's repository, checked by size and digest; it is not kept."""
        return self.source.fetch_document(self._place, descriptor)

    def find(self, tag: str) -> tuple[Descriptor, bytes] | None:
        """Give what another tag of the image's repository points at, and that document; None where there is no such tag.

        It is checked by the digest that the source says, and not kept. Errors: those of the source; InvalidArgument (no tag).
        Signatures that are no referrers stand there: cosign's under ``sha256-HEX.sig``, after the digest of what is signed.
        """
        if self.reference is None:  # there is but this image
            return None
        place = Reference.parse(f"{self.reference.domain}/{self.reference.path}:{tag}")
        if place.tag != tag or place.digest is not None:
            raise InvalidArgument(f"{tag[:200]!r} is no tag")
        try:
            found, data = self.source.resolve(place)
        except NotFound:
            return None
        return found, self.source.fetch_document(place, found) if data is None else data

    @property
    def _place(self) -> Reference:
        return self.reference or Reference(domain="", path="")


class Policy(Protocol):
    """What may refuse an image."""

    def check(self, candidate: Candidate) -> None:
        """Raise :class:`lamella.errors.PolicyRefused` for what is not to come here. Called from any thread."""


AnyPolicy = Policy | Callable[[Candidate], str | None]
"""A policy, or a function that gives the reason for a refusal, or None."""


def enforce(policy: AnyPolicy | None, candidate: Candidate) -> None:
    """Ask a policy. PolicyRefused, with the image's name and digest; what else it raises is no permission either."""
    if policy is None:
        return
    ask: Any = getattr(policy, "check", policy)
    reason = ask(candidate)
    if isinstance(reason, str):
        raise PolicyRefused(f"{candidate} is refused: {reason}")
    if reason is not None:  # such as False, which may have been meant as a refusal
        raise InvalidArgument(f"the policy {policy!r} gives {reason!r}, which is neither a reason nor None")


def resolve(
    source: Source,
    reference: Reference,
    policy: AnyPolicy | None,
    *,
    known: Known | None,
    registry: str | None,
    platform: Platform | None = None,
) -> tuple[Descriptor, bytes | None]:
    """Resolve a reference, with the policy's consent: before its document is fetched, if the source can tell the digest without.

    ``known`` as in :meth:`lamella.transfer.endpoints.Source.resolve`. Errors: those of the source and of :func:`enforce`.
    """
    if policy is None:
        return source.resolve(reference, known=known)
    # As if all were known: a digest is wanted, the document only where it takes that to know the digest.
    candidate = Candidate(
        source,
        reference,
        lambda: source.resolve(reference, known=lambda _: True),
        registry=registry,
        platform=platform,
    )
    enforce(policy, candidate)
    return candidate.resolved


class AllOf:
    """Lets in what all of its policies let in; the first that refuses says why."""

    def __init__(self, policies: Iterable[AnyPolicy]) -> None:
        self._policies = [*policies]

    def __repr__(self) -> str:
        return f"AllOf({self._policies!r})"

    def check(self, candidate: Candidate) -> None:
        """See :class:`Policy`."""
        for policy in self._policies:
            enforce(policy, candidate)


def all_of(*policies: AnyPolicy | None) -> AnyPolicy | None:
    """Combine policies; None are left out, and none at all make None."""
    given = [policy for policy in policies if policy is not None]
    return AllOf(given) if len(given) > 1 else (given[0] if given else None)


class AllowedRegistries:
    """Lets in what comes from some registries or repositories, and nothing from archives.

    A pattern is a domain, or a domain and the beginning of a path, part by part, in which ``*``, ``?`` and ``[...]`` stand for
    what they do in file names: ``ghcr.io/acme`` allows ``ghcr.io/acme/app`` and not ``ghcr.io/acme-too/app``. InvalidArgument for
    one that begins with no domain.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [_pattern(text) for text in patterns]

    def __repr__(self) -> str:
        return f"AllowedRegistries({['/'.join(pattern) for pattern in self._patterns]!r})"

    def check(self, candidate: Candidate) -> None:
        """See :class:`Policy`."""
        if candidate.registry is None or candidate.reference is None:
            raise PolicyRefused(f"{candidate} is refused: it comes from no registry")
        parts = [candidate.reference.domain.lower(), *candidate.reference.path.split("/")]
        for pattern in self._patterns:
            if len(pattern) <= len(parts) and all(map(fnmatchcase, parts, pattern)):
                return
        raise PolicyRefused(
            f"{candidate} is refused: {'/'.join(parts)} is not among the registries that are allowed",
            hint="The policy allows "
            + (", ".join("/".join(each) for each in self._patterns) or "none")
            + ".",
        )


class PinnedDigests:
    """Lets names stand for the digests alone that are given for them; other names for anything.

    A name is one of an image, as docker takes it (``nginx:1``), or of a repository (``nginx``), for all of its tags and digests
    that have no pin of their own. InvalidArgument for a malformed name or digest.
    """

    def __init__(self, pins: Mapping[str, str | Iterable[str]]) -> None:
        self._pins: dict[tuple[str, str, str | None], frozenset[Digest]] = {}
        for name, digests in pins.items():
            given = [digests] if isinstance(digests, str) else digests
            self._pins[_pin(name)] = frozenset(map(parse_digest, given))

    def __repr__(self) -> str:
        return f"PinnedDigests({len(self._pins)} names)"

    def find(self, reference: Reference | None) -> frozenset[Digest] | None:
        """Give the digests that a reference may stand for; None where nothing is said about it."""
        if reference is None:
            return None
        place = reference.domain.lower(), reference.path
        pinned = self._pins.get((*place, reference.tag)) if reference.tag else None
        return self._pins.get((*place, None)) if pinned is None else pinned

    def check(self, candidate: Candidate) -> None:
        """See :class:`Policy`."""
        pinned = self.find(candidate.reference)
        if pinned is not None and candidate.descriptor.digest not in pinned:
            raise PolicyRefused(
                f"{candidate} is refused: it is pinned to {', '.join(sorted(pinned)) or 'nothing'}",
                hint="What the name stands for was changed; look at what it is now before you change the pin.",
            )


class RequireDigest:
    """Lets in what is asked for by its digest; with ``pins`` also the names that have one there."""

    def __init__(self, pins: PinnedDigests | None = None) -> None:
        self._pins = pins

    def __repr__(self) -> str:
        return f"RequireDigest({self._pins or ''})"

    def check(self, candidate: Candidate) -> None:
        """See :class:`Policy`."""
        reference = candidate.reference
        if reference is not None and reference.digest is not None:
            return
        if self._pins is None or self._pins.find(reference) is None:
            name = reference.name if reference is not None else "NAME"
            raise PolicyRefused(
                f"{candidate} is refused: only what is asked for by digest may come here",
                hint=f"If that is the one you mean: {name}@{candidate.descriptor.digest}.",
            )


# The file


class _Allow(msgspec.Struct, forbid_unknown_fields=True):
    registries: list[str]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    allow: _Allow | None = None
    pins: dict[str, Any] | None = None
    require_digest: bool = False


def load(path: str | os.PathLike[str]) -> AllOf:
    """Read a policy file (see the module's head). NotFound; InvalidArgument names the file and the key."""
    named = f"the policy file {os.fspath(path)!r}"
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{named} is not there", hint="It was named by --policy or LAMELLA_POLICY.") from None
    except OSError as error:
        raise InvalidArgument(f"{named} cannot be read: {error.strerror}") from None
    try:
        policies = _policies(msgspec.toml.decode(data, type=_File))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{named}: {error}".replace("`$.", "`")) from None
    except LamellaError as error:
        raise InvalidArgument(f"{named}: {error.message}", hint=error.hint) from None
    if not policies:  # rather than a file that lets everything in by a slip
        raise InvalidArgument(
            f"{named} has no rule", hint="The rules are allow.registries, pins and require_digest."
        )
    return AllOf(policies)


def _policies(file: _File) -> list[AnyPolicy]:
    found: list[AnyPolicy] = []
    if file.allow is not None:
        with _named("allow.registries"):
            found.append(AllowedRegistries(file.allow.registries))
    pins: dict[str, str | list[str]] = {}
    for name, value in (file.pins or {}).items():
        with _named(f"pins.{name!r}"):
            pins[name] = msgspec.convert(value, str | list[str])
            PinnedDigests({name: pins[name]})
    pinned = PinnedDigests(pins)
    if pins:
        found.append(pinned)
    if file.require_digest:
        found.append(RequireDigest(pinned))
    return found


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Say of an error which key it is about."""
    try:
        yield
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{key}: {error}") from None
    except LamellaError as error:
        raise InvalidArgument(f"{key}: {error.message}", hint=error.hint) from None


def _pattern(text: str) -> list[str]:
    """Read a pattern as the parts of a name that it stands for."""
    parts = text.lower().strip("/").split("/")
    # As in a reference: what has neither dot nor colon is no domain; here it may also be written with signs for others.
    if not all(parts) or not (parts[0] == "localhost" or set(parts[0]) & set(".:*?[")):
        raise InvalidArgument(
            f"{text!r} does not begin with a registry's domain", hint="Write docker.io/library, for one."
        )
    return parts


def _pin(name: str) -> tuple[str, str, str | None]:
    """Read whom a pin is for: domain, path, and the tag, None for all."""
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidArgument(f"{name!r} has a digest itself", hint="Name a tag or a repository.")
    tagged = ":" in name.rpartition("/")[2]
    return reference.domain.lower(), reference.path, reference.tag if tagged else None
