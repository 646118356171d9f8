"""The overlayfs snapshotter: layer folders stacked by the kernel.

========================================  ==================================================================
snapshot                                  mounts
========================================  ==================================================================
active or view, no parent                 bind of its own ``fs``, rw or ro
view, one layer to be seen                read-only bind of that layer's ``fs``
view, several                             overlay of ``lowerdir`` alone, nearest first
active, with a parent                     overlay with ``workdir``, ``upperdir`` and ``lowerdir``, nearest first
========================================  ==================================================================

What is beneath a layer with ``opaque_root`` cannot be seen, and overlayfs does not honour an opaque attribute on a layer's
top folder, so that the list ends after such a layer.

``index=off`` lets an upper folder be mounted again after its lower ones were shared by other mounts. ``redirect_dir`` and
``metacopy`` are switched off where this kernel has them on: with them a layer folder would not hold what it shows, so that it
could neither be shared nor exported. Outside the initial user namespace trusted.* attributes are out of reach. A store that is
begun there keeps to user.* attributes: overlayfs is told so (``userxattr``), by root of the machine too, and layers are unpacked
with the whiteouts that :attr:`OverlaySnapshotter.whiteouts` says. A store that root has begun cannot be used there: what
an opaque folder hides would be seen.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lamella import _core
from lamella.errors import FailedPrecondition
from lamella.snapshots import Mount, SnapshotKind, Whiteouts
from lamella.snapshots.folders import Draft, needs_user_attributes
from lamella.snapshots.recorded import RecordedSnapshotter

_MAX_LAYERS = 500
"""Lower folders of an overlay (the kernel's OVL_MAX_STACK)."""


class OverlaySnapshotter(RecordedSnapshotter):
    """Snapshots as overlay mounts; see :class:`lamella.snapshots.Snapshotter`."""

    name = "overlayfs"
    _has_user_attributes: bool | None = None

    @property
    def whiteouts(self) -> Whiteouts:
        """How a layer must be unpacked so that its whiteouts work in the mounts of this process."""
        return "overlay-userxattr" if self._user_attributes() else "overlay"

    def _user_attributes(self) -> bool:
        """Tell whether overlayfs's attributes are user.* here. FailedPrecondition where they are not, and out of reach."""
        if self._has_user_attributes is None:
            self._has_user_attributes = self._folders.has_user_attributes()
        if self._has_user_attributes is None:
            return needs_user_attributes()
        if needs_user_attributes() and not self._has_user_attributes:
            raise FailedPrecondition(
                f"root unpacked the layers in {self._folders.top}: what overlayfs has to know of them cannot be seen from here",
                hint="Use another root folder in a user namespace (--root).",
            )
        return self._has_user_attributes

    def _create_folder(self, kind: SnapshotKind, parents: list[str], filled: Draft | None) -> str | None:
        self._user_attributes()  # which may refuse
        if len(parents) > _MAX_LAYERS:
            raise FailedPrecondition(
                f"its parent has {len(parents)} layers, and overlayfs stacks {_MAX_LAYERS}",
                hint="Make an image with one layer of those above its image (commit with squash), and go on from that.",
            )
        if not parents:
            return self._folders.create(work=False)
        if kind == "view":
            return None
        return self._folders.create(like=self._folders.fs(parents[0]), work=True)

    def _mounts(self, kind: SnapshotKind, own: str | None, parents: list[str]) -> list[Mount]:
        access = "rw" if kind == "active" else "ro"
        bound = own if not parents else parents[0] if len(parents) == 1 and kind == "view" else None
        if bound is not None:
            return [Mount(type="bind", source=self._folders.fs(bound), options=[access, "rbind"])]
        options = [*_overlay_options(user_attributes=self._user_attributes())]
        if kind == "active":
            assert own is not None
            options.append(f"workdir={_escape(self._folders.work(own))}")
            options.append(f"upperdir={_escape(self._folders.fs(own))}")
        lower = ":".join([_escape(self._folders.fs(parent), ":") for parent in parents])
        options.append(f"lowerdir={lower}")
        return [Mount(type="overlay", source="overlay", options=options)]

    def _diff(self, own: str, parents: list[str], *, opaque: bool) -> _core.Changes:
        lowers = [self._folders.fs(parent) for parent in parents]
        return _core.diff_upper(self._folders.fs(own), lowers, opaque=opaque, whiteouts=self.whiteouts)


def _escape(path: str, separator: str = "") -> str:
    """Protect what would end a path in an option (see :class:`lamella.snapshots.Mount`)."""
    if "\\" in path:
        path = path.replace("\\", "\\\\")
    return path.replace(separator, f"\\{separator}") if separator and separator in path else path


@cache
def _overlay_options(*, user_attributes: bool) -> tuple[str, ...]:
    if user_attributes:
        return ("index=off", "userxattr")  # which switches the other two off
    return ("index=off", *(f"{name}=off" for name in ("redirect_dir", "metacopy") if _is_on(name)))


def _is_on(parameter: str) -> bool:
    try:
        return Path("/sys/module/overlay/parameters", parameter).read_text(encoding="utf-8").strip() == "Y"
    except OSError:
        return False
