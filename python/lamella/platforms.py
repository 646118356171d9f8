"""Platforms: what this machine runs, what a user asks for, and which manifest of an index fits.

The rules are containerd's (its ``platforms`` package): names are normalised (``x86_64`` is ``amd64``, ``aarch64`` is
``arm64``, ``arm`` without a variant is ``v7``), and a platform also accepts what it can run besides its own code,
nearest first: arm/v7 then v6 and v5; arm64 then arm/v8, v7, v6, v5; amd64/v3 then v2, v1 and 386. A manifest that
demands features of the system (``os.features``) fits a platform that has them all; for Windows the builds must fit
(``os.version``). This machine's own level of amd64 is that of its processor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lamella.errors import InvalidArgument, NotFound
from lamella.oci import Descriptor, Platform

_ARCHITECTURES = {
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "x86": ("386", None),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", None),
}
"""Names of uname, Debian and LLVM for what the OCI specs name as Go does."""

_KNOWN_ARCHITECTURES = frozenset({
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc", "ppc64", "ppc64le",
    "riscv64", "s390x", "sparc64", "wasm",
})  # fmt: skip
_KNOWN_SYSTEMS = frozenset({
    "aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "linux", "netbsd", "openbsd", "plan9", "solaris",
    "wasip1", "windows",
})  # fmt: skip
INDEX_DEPTH_MAX = 8
"""How deep indexes may nest within indexes."""
_COMPONENT = r"[A-Za-z0-9_.-]+"
_SYSTEM = r"([A-Za-z0-9_.-]+)\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\)"
_AMD64_LEVELS = (
    {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
)
"""What each level from v2 on adds (x86-64 psABI, "Micro-Architecture Levels"), in the words of /proc/cpuinfo."""
_WINDOWS_2022 = 20348
"""The first build of Windows Server whose successors run the containers of all builds since."""
_ARM_NEWEST, _ARM_OLDEST = 8, 5


def normalize(platform: Platform) -> Platform:
    """Give the platform in the OCI specs' own words; the os, if missing, is linux. Harmless twice."""
    system = platform.os.lower() or "linux"
    if system == "macos":
        system = "darwin"
    architecture, variant = platform.architecture.lower(), (platform.variant or "").lower() or None
    if architecture in _ARCHITECTURES:
        architecture, implied = _ARCHITECTURES[architecture]
        variant = variant or implied
    if variant and variant[0].isdecimal():
        variant = "v" + variant
    if (architecture, variant) in {("amd64", "v1"), ("arm64", "v8"), ("arm64", "v8.0")}:
        variant = None
    if architecture == "arm" and variant is None:
        variant = "v7"
    return Platform(
        os=system,
        architecture=architecture,
        variant=variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def default_platform() -> Platform:
    """Give the platform of this machine; its variant says what the processor can do."""
    platform = own_platform()
    if platform.architecture != "amd64":
        return platform
    return normalize(Platform(platform.os, platform.architecture, f"v{amd64_level()}"))


def own_platform() -> Platform:
    """Give the platform of this machine, whatever its processor can do beyond others of its kind."""
    return normalize(Platform(os="linux", architecture=os.uname().machine))


@cache
def amd64_level() -> int:
    """Say which level of the x86-64 architecture this machine's processor has, 1 to 4; 1 where that is not known."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        line = ""
    flags = set(line.partition(":")[2].split())
    level = 1
    for more in _AMD64_LEVELS:
        if not more <= flags:
            break
        level += 1
    return level


def parse_platform(text: str) -> Platform:
    """Read ``os/arch[/variant]``, ``os(version+feature)/arch``, or an os or an architecture alone.

    What is left out is this machine's. InvalidArgument if malformed or if a lone word is neither os nor architecture.
    """
    parts = text.split("/")
    system, version, features = parts[0], None, None
    matched = re.fullmatch(_SYSTEM, system)
    if matched:
        system, version = matched[1], matched[2] or None
        features = matched[3].split("+")[1:] or None
    words = [system, *parts[1:]]
    if len(words) > 3 or not all(re.fullmatch(_COMPONENT, word) for word in words):
        raise InvalidArgument(
            f"{text[:100]!r} is not a platform", hint="A platform reads linux/arm64 or linux/arm/v7."
        )
    here = own_platform()  # what runs on every processor of its kind
    if len(words) > 1:
        variant = words[2] if len(words) > 2 else None
        return normalize(Platform(words[0], words[1], variant, version, features))
    alone = normalize(Platform(architecture=words[0]))
    if alone.architecture in _KNOWN_ARCHITECTURES:
        return alone
    named = normalize(
        Platform(words[0], here.architecture, here.variant, os_version=version, os_features=features)
    )
    if named.os in _KNOWN_SYSTEMS:
        return named
    raise InvalidArgument(
        f"{text[:100]!r} is neither an operating system nor an architecture",
        hint="A platform reads linux/arm64 or linux/arm/v7.",
    )


def acceptable(platform: Platform) -> list[Platform]:
    """Give what runs on ``platform``, nearest first, in normalised form."""
    platform = normalize(platform)
    system, version, variant = platform.os, platform.os_version, platform.variant or ""
    pairs: list[tuple[str, str | None]] = [(platform.architecture, platform.variant)]
    number = _number(variant)
    if platform.architecture == "amd64":
        pairs += [("amd64", f"v{level}") for level in range(int(number) - 1, 0, -1)]
        pairs.append(("386", None))
    elif platform.architecture == "arm":
        pairs += [("arm", f"v{level}") for level in range(int(number) - 1, _ARM_OLDEST - 1, -1)]
    elif platform.architecture == "arm64":
        pairs += [("arm64", older) for older in _older_arm64(variant)]
        pairs += [("arm", f"v{level}") for level in range(_ARM_NEWEST, _ARM_OLDEST - 1, -1)]
    found: list[Platform] = []
    for architecture, name in pairs:
        candidate = normalize(Platform(system, architecture, name, version, platform.os_features))
        if candidate not in found:
            found.append(candidate)
    return found


def describe(platform: Platform) -> str:
    """Write a platform as :func:`parse_platform` reads it, with the version and features of the system where it names some."""
    extra = (platform.os_version or "") + "".join(f"+{feature}" for feature in platform.os_features or ())
    text = str(platform)
    return text.replace(platform.os, f"{platform.os}({extra})", 1) if extra else text


def is_attestation(descriptor: Descriptor) -> bool:
    """Say whether an entry of an index is about another entry (BuildKit's attestations) and runs nowhere."""
    platform = descriptor.platform
    if platform and "unknown" in {platform.os, platform.architecture}:
        return True
    return "vnd.docker.reference.type" in (descriptor.annotations or {})


def choose(manifests: Iterable[Descriptor], platform: Platform) -> Descriptor:
    """Give the entry of an index that fits ``platform`` best: of equals that of most features, the newest Windows, the first.

    An entry that names no platform is taken only if none fits by name. NotFound names the platforms that are there.
    """
    entries = [entry for entry in manifests if not is_attestation(entry)]
    named = [(normalize(entry.platform), entry) for entry in entries if entry.platform]
    for wanted in acceptable(platform):
        fitting = [(offered, entry) for offered, entry in named if _matches(wanted, offered)]
        if fitting:
            return max(fitting, key=lambda pair: _rank(pair[0]))[1]
    for entry in entries:
        if entry.platform is None and entry.artifact_type is None:
            return entry
    present = list(dict.fromkeys(describe(normalize(entry.platform)) for entry in entries if entry.platform))
    shown = ", ".join(present[:20]) + (f" and {len(present) - 20} more" if len(present) > 20 else "")
    from shlex import quote

    hint = f"Ask for one of them, such as --platform {quote(present[0])}." if present else None
    if not present and entries:
        hint = "Fetch all that it has: --all-platforms --no-unpack."
    raise NotFound(
        f"the image has no manifest for {describe(normalize(platform))}; it has {shown or 'none for any platform'}",
        hint=hint,
    )


def _matches(wanted: Platform, offered: Platform) -> bool:
    same = (wanted.os, wanted.architecture, wanted.variant) == (
        offered.os,
        offered.architecture,
        offered.variant,
    )
    if not same or not {*(offered.os_features or ())} <= {*(wanted.os_features or ())}:
        return False
    # Only Windows images are bound to a build of the system; elsewhere the field is information.
    return wanted.os != "windows" or _runs_on_windows(wanted.os_version, offered.os_version)


def _runs_on_windows(host: str | None, image: str | None) -> bool:
    """Compare builds of Windows, as ``10.0.20348.1``: of each major and minor version the same, but see _WINDOWS_2022."""
    if not host or not image:
        return True
    have, needs = _build(host), _build(image)
    if have[:3] == needs[:3]:
        return True
    return have[:2] == needs[:2] and have[2] >= needs[2] >= _WINDOWS_2022


def _build(version: str) -> tuple[int, int, int, int]:
    numbers = [int(part) if part.isdecimal() and len(part) < 10 else 0 for part in version.split(".")[:4]]
    major, minor, build, revision = (*numbers, 0, 0, 0, 0)[:4]
    return major, minor, build, revision


def _rank(offered: Platform) -> tuple[int, tuple[int, ...]]:
    """Order equals: those that use more features, then newer builds of Windows."""
    build = _build(offered.os_version or "") if offered.os == "windows" else ()
    return len(offered.os_features or ()), build


def _number(variant: str) -> float:
    """Read ``v7`` as 7; what is no number counts as the oldest, which has no elders."""
    digits = variant.removeprefix("v")
    return float(digits) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", digits) else 1


def _older_arm64(variant: str) -> list[str | None]:
    """Give older arm64 variants: v9.N includes v8.(N+5) (Arm ARM, A2.2), a later minor every earlier one."""
    matched = re.fullmatch(r"v([89])(?:\.([0-9]{1,2}))?", variant)
    if not matched:
        return [None]
    major, minor = int(matched[1]), int(matched[2] or 0)
    older: list[str | None] = []
    if major == 9:
        older += [f"v9.{n}" if n else "v9" for n in range(minor - 1, -1, -1)]
        minor += 6
    older += [f"v8.{n}" for n in range(minor - 1, 0, -1)]
    return [*older, None]
