"""Networks, and the files of /etc that follow from them.

``none`` is a network namespace of its own with loopback up (the default, as with ctr); ``host`` is the host's.
"""

from __future__ import annotations

from pathlib import Path

from lamella.errors import Unsupported

NETWORKS = ("none", "host")
RESOLV_CONF_MAX = 64 * 1024


def network_path(network: str) -> str:
    """Return what :func:`lamella.containers.spec.build_spec` wants: '' or 'host'. Unsupported for another network."""
    if network == "none":
        return ""
    if network == "host":
        return "host"
    raise Unsupported(f"network {network!r} is not one of {', '.join(NETWORKS)}")


def network_files(network: str, hostname: str) -> dict[str, bytes]:
    """Give the contents of the container's hosts, hostname and resolv.conf."""
    if network == "host":
        hosts, resolv = _read_host("/etc/hosts"), _read_host("/etc/resolv.conf")
    else:
        hosts = (
            "127.0.0.1\tlocalhost\n"
            "::1\tlocalhost ip6-localhost ip6-loopback\n"
            "fe00::\tip6-localnet\n"
            "ff00::\tip6-mcastprefix\n"
            "ff02::1\tip6-allnodes\n"
            "ff02::2\tip6-allrouters\n"
            f"127.0.1.1\t{hostname}\n"
        ).encode()
        resolv = b"# This container has no network beyond loopback.\n"
    return {"hosts": hosts, "hostname": f"{hostname}\n".encode(), "resolv.conf": resolv}


def _read_host(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(RESOLV_CONF_MAX)
    except OSError:
        return b""
