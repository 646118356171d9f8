"""What an archive says it holds, and which names its images get."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lamella import oci
from lamella.digest import Digest
from lamella.errors import InvalidArgument, NotFound
from lamella.logs import Log
from lamella.reference import Reference

_log = Log("lamella.transfer")
_NAME_IT = "Name it: import --tag NAME."


class Entry(msgspec.Struct, frozen=True):
    """An image, and what the archive calls it: whole names, or something that may be but a tag."""

    target: oci.Descriptor
    names: list[str] = []
    tag: str | None = None

    @property
    def called(self) -> list[str]:
        """All that it is called."""
        return [*self.names, *([self.tag] if self.tag else ())]


class Contents(msgspec.Struct):
    """What is in an archive, as its documents tell.

    ``made``: documents that are no file of their own. ``places``: files of blobs that are not named by their digest.
    ``referrers``: what refers to a manifest, by the latter's digest. ``index``: all entries as one index.
    """

    entries: list[Entry] = []
    made: dict[Digest, bytes] = {}
    places: dict[Digest, str] = {}
    referrers: dict[Digest, list[oci.Descriptor]] = {}
    index: oci.Descriptor | None = None


class Naming(msgspec.Struct, frozen=True, kw_only=True):
    """How the images of an archive are called, and which are meant.

    ``names``: instead of their own. ``base``: the repository of those that have but a tag. ``image``: the one of this
    name, tag or digest. ``digests``: each also by its digest.
    """

    names: Sequence[Reference] = ()
    base: Reference | None = None
    image: str | None = None
    digests: bool = False

    def choose(self, contents: Contents) -> dict[Reference, oci.Descriptor]:
        """Give names with what they point at, in the archive's order.

        Errors: InvalidArgument where the archive names nothing, one name twice, or several images for one name; NotFound for
        an ``image`` that is not there.
        """
        entries = [(entry, self._references(entry)) for entry in contents.entries]
        if self.image is not None:
            literal = [pair for pair in entries if self.image in (*pair[0].called, pair[0].target.digest)]
            entries = literal or [pair for pair in entries if self._is_meant(pair[1])]
            if not entries:
                raise NotFound(f"the archive has no image {self.image}; it has {_list(contents)}")
        if not entries:
            raise NotFound("the archive holds no image")
        if self.names:
            targets = {entry.target.digest: entry.target for entry, _ in entries}
            if len(targets) > 1:
                if contents.index is None or any(entry.called for entry, _ in entries):
                    raise InvalidArgument(
                        f"the archive holds several images, which cannot all be {self.names[0].familiar}: {_list(contents)}",
                        hint="Choose one: import --image NAME.",
                    )
                targets = {
                    contents.index.digest: contents.index
                }  # manifests of one image, for several platforms
            entries = [(Entry(target), list(self.names)) for target in targets.values()]
        return self._unique(contents, entries)

    def _unique(
        self, contents: Contents, entries: Sequence[tuple[Entry, list[Reference]]]
    ) -> dict[Reference, oci.Descriptor]:
        found: dict[Reference, oci.Descriptor] = {}
        nameless = []
        for entry, references in entries:
            named = [_fitting(reference, entry.target) for reference in references]
            if self.digests and (base := next(iter(references), self.base)):
                named.append(Reference(domain=base.domain, path=base.path, digest=entry.target.digest))
            for reference in named:
                if found.setdefault(reference, entry.target).digest != entry.target.digest:
                    raise InvalidArgument(f"the archive has two images of the name {reference.familiar}")
            if not named:
                nameless.append(entry.target.digest)
        if not found:
            tags = any(entry.tag for entry in contents.entries)
            raise InvalidArgument(
                f"the archive does not say what its image is called; it has {_list(contents)}",
                hint="Name it, or give the repository of its tags: import --tag NAME, or --base-name NAME."
                if tags
                else _NAME_IT,
            )
        for digest in nameless:
            _log.warning("an image of the archive has no name and is left out: %(digest)s", digest=digest)
        return found

    def _references(self, entry: Entry) -> list[Reference]:
        """Give the names that can be used: a tag needs the base."""
        names = list(entry.names)
        if entry.tag and any(mark in entry.tag for mark in "/:@"):
            names.append(entry.tag)
        elif entry.tag and self.base is not None:
            names.append(f"{self.base.name}:{entry.tag}")
        found = []
        for name in names:
            try:
                found.append(Reference.parse(name))
            except InvalidArgument:
                _log.warning("%(image)r in the archive is no name of an image", image=name[:200])
        return found

    def _is_meant(self, references: Sequence[Reference]) -> bool:
        try:
            return Reference.parse(self.image or "") in references
        except InvalidArgument:
            return False


def _fitting(reference: Reference, target: oci.Descriptor) -> Reference:
    """Refuse a name with the digest of something else."""
    if reference.digest not in (None, target.digest):
        raise InvalidArgument(f"the archive has {target.digest} under the name {reference.familiar}")
    return reference


def _list(contents: Contents) -> str:
    shown = [", ".join(entry.called) or entry.target.digest for entry in contents.entries]
    return "; ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
