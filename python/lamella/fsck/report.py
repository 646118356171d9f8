"""What a check says: findings, and how much it looked at."""

from __future__ import annotations

from typing import Literal

import msgspec

FindingKind = Literal[
    "database",
    "damaged-blob",
    "missing-blob",
    "missing-layer",
    "unverified-layer",
    "damaged-layer",
    "unverifiable",
    "dangling-image",
    "dangling-container",
    "mount",
    "unknown-task",
]
LeftoverKind = Literal[
    "orphan-blob", "orphan-folder", "damaged-ingest", "stale-task", "stale-network", "stale-volume"
]


class Finding(msgspec.Struct, kw_only=True):
    """One thing that does not fit: its kind, which one, what exactly, what was or can be done, and whether it is right now."""

    kind: FindingKind | LeftoverKind
    name: str
    detail: str
    action: str
    mended: bool = False


class FsckReport(msgspec.Struct, kw_only=True):
    """What a check found, and how much it looked at. ``bytes_hashed`` and ``bytes_fetched`` in bytes.

    ``findings`` are wrong, ``leftovers`` only take room (see the head of the package).
    ``layers_compared``: layer folders that were held against their blobs (``verify_layers``).
    """

    repair: bool
    findings: list[Finding] = []
    leftovers: list[Finding] = []
    blobs: int = 0
    layers: int = 0
    snapshots: int = 0
    bytes_hashed: int = 0
    bytes_fetched: int = 0
    layers_compared: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, or nothing is left that is. Leftovers are not wrong."""
        return all(finding.mended for finding in self.findings)

    def __str__(self) -> str:
        text = f"{self.blobs} blobs, {self.layers} layers, {self.snapshots} snapshots"
        if self.layers_compared:
            text += f", {self.layers_compared} layers compared"
        if self.findings:
            mended = sum(finding.mended for finding in self.findings)
            text += f": {len(self.findings)} problems, {mended} mended"
        else:
            text += ": nothing is wrong"
        if self.leftovers:
            removed = sum(finding.mended for finding in self.leftovers)
            text += f"; {len(self.leftovers)} leftovers of killed processes, {removed} removed"
        return text
