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
could neither be shared nor exported. Outside the initial user namespace trusted.* attributes are out of reach, and overlayfs
is told (``userxattr``) to use user.overlay.* instead; layers must then be unpacked with the whiteouts that
:attr:`OverlaySnapshotter.whiteouts` says.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from lamella import _core
from lamella.errors import FailedPrecondition
from lamella.snapshots import Mount, SnapshotKind
from lamella.snapshots.recorded import RecordedSnapshotter


_MAX_LAYERS = 500
"""Lower folders of an overlay (the kernel's OVL_MAX_STACK)."""


class OverlaySnapshotter(RecordedSnapshotter):
    """Snapshots as overlay mounts; see :class:`lamella.snapshots.Snapshotter`."""

    name = "overlayfs"

    @property
    def whiteouts(self) -> Literal["overlay", "overlay-userxattr"]:
        """How a layer must be unpacked so that its whiteouts work in the mounts of this process."""
        return "overlay-userxattr" if _needs_user_attributes() else "overlay"

    def _create_folder(self, kind: SnapshotKind, parents: list[str]) -> str | None:
        if len(parents) > _MAX_LAYERS:
            raise FailedPrecondition(
                f"its parent has {len(parents)} layers, and overlayfs stacks {_MAX_LAYERS}",
                hint="Stand on one with fewer layers, or copy what it shows into a snapshot without a parent.",
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
        options = [*_overlay_options()]
        if kind == "active":
            assert own is not None
            options.append(f"workdir={_escape(self._folders.work(own))}")
            options.append(f"upperdir={_escape(self._folders.fs(own))}")
        lower = ":".join([_escape(self._folders.fs(parent), ":") for parent in parents])
        options.append(f"lowerdir={lower}")
        return [Mount(type="overlay", source="overlay", options=options)]

    def _diff(self, own: str, parents: list[str], *, opaque: bool) -> _core.Changes:
        lowers = [self._folders.fs(parent) for parent in parents]
        return _core.diff_upper(self._folders.fs(own), lowers, opaque=opaque)


def _escape(path: str, separator: str = "") -> str:
    """Protect what would end a path in an option (see :class:`lamella.snapshots.Mount`)."""
    if "\\" in path:
        path = path.replace("\\", "\\\\")
    return path.replace(separator, f"\\{separator}") if separator and separator in path else path


@cache
def _overlay_options() -> tuple[str, ...]:
    if _needs_user_attributes():
        return ("index=off", "userxattr")  # which switches the other two off
    return ("index=off", *(f"{name}=off" for name in ("redirect_dir", "metacopy") if _is_on(name)))


@cache
def _needs_user_attributes() -> bool:
    """Tell whether this process is not root of the initial user namespace."""
    if os.geteuid() != 0:
        return True
    try:
        inside, outside, count = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:3]
    except (OSError, ValueError):
        return False
    return (inside, outside, count) != ("0", "0", "4294967295")


def _is_on(parameter: str) -> bool:
    try:
        return Path("/sys/module/overlay/parameters", parameter).read_text(encoding="ascii").strip() == "Y"
    except OSError:
        return False
