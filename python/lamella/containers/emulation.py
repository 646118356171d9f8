"""Whether programs of an image can run on this machine: natively, or by an emulator that the kernel calls for them.

Source: Linux, Documentation/admin-guide/binfmt-misc.rst; the ELF header of elf(5).
"""

from __future__ import annotations

import os
from pathlib import Path

from lamella.errors import Unsupported
from lamella.oci import Platform
from lamella.typings import Literal

BINFMT = Path("/proc/sys/fs/binfmt_misc")
_COMMON = {"x86_64": "amd64", "aarch64": "arm64"}
"""Names of uname, so that the usual image is found to fit without a look at anything else."""
_LITTLE, _BIG = 1, 2
_ELF = {
    "386": (1, _LITTLE, 3), "amd64": (2, _LITTLE, 62), "arm": (1, _LITTLE, 40), "arm64": (2, _LITTLE, 183),
    "loong64": (2, _LITTLE, 258), "mips": (1, _BIG, 8), "mipsle": (1, _LITTLE, 8), "mips64": (2, _BIG, 8),
    "mips64le": (2, _LITTLE, 8), "ppc64": (2, _BIG, 21), "ppc64le": (2, _LITTLE, 21), "riscv64": (2, _LITTLE, 243),
    "s390x": (2, _BIG, 22), "sparc64": (2, _BIG, 43),
}  # fmt: skip
"""Class, order of bytes and e_machine of an architecture's programs."""


def check_runnable(platform: Platform, *, binfmt: Path = BINFMT) -> None:
    """Refuse an image whose programs this machine cannot run: Unsupported. One that does not say its platform passes."""
    if platform.os == "linux" and platform.architecture == _COMMON.get(os.uname().machine):
        return
    from lamella.platforms import acceptable, describe, normalize, own_platform

    if not platform.architecture:
        return
    wanted, here = normalize(platform), own_platform()
    if wanted.os == "linux":
        if wanted.architecture in {native.architecture for native in acceptable(here)}:
            return
        if _has_handler(wanted.architecture, binfmt):
            return
    raise Unsupported(
        f"the image is for {describe(wanted)}, and this machine, which is {here}, cannot run it",
        hint=f"Choose the image for {here}, or install an emulator that binfmt_misc calls, such as qemu-user-static.",
    )


def _has_handler(architecture: str, folder: Path) -> bool:
    """Say whether the kernel hands programs of an architecture to an interpreter."""
    if architecture not in _ELF:
        return False
    size, order, machine = _ELF[architecture]
    endian: Literal["little", "big"] = "little" if order == _LITTLE else "big"
    headers = [
        b"\x7fELF"
        + bytes([size, order, 1, *bytes(9)])
        + kind.to_bytes(2, endian)
        + machine.to_bytes(2, endian)
        + (1).to_bytes(4, endian)
        for kind in (2, 3)  # a program, and one that may lie anywhere
    ]
    try:
        if (folder / "status").read_text().strip() != "enabled":
            return False
        entries = [path.read_text() for path in folder.iterdir() if path.name not in ("register", "status")]
    except OSError:
        return False  # it is not mounted
    return any(_takes(entry, header) for entry in entries for header in headers)


def _takes(entry: str, header: bytes) -> bool:
    """Say whether an entry of binfmt_misc is for a program that begins so."""
    lines = entry.splitlines()
    fields = dict(line.split(" ", 1) for line in lines if " " in line)
    if lines[:1] != ["enabled"] or "magic" not in fields:
        return False
    magic = bytes.fromhex(fields["magic"])
    mask = bytes.fromhex(fields["mask"]) if "mask" in fields else b"\xff" * len(magic)
    start = int(fields.get("offset", "0"))
    seen = header[start : start + len(magic)]
    return len(seen) == len(magic) and all(
        have & look == want & look for have, want, look in zip(seen, magic, mask, strict=True)
    )
