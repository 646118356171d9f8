"""Network devices and routes, by rtnetlink(7): of this machine, and of a network namespace that is kept on a file."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct

from lamella import _core
from lamella.errors import PermissionDenied, Unavailable

_RTM_DELLINK, _RTM_NEWROUTE, _RTM_DELROUTE = 17, 24, 25
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_NLMSG_ERROR = 2
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 3, 0, 1
_SIOCGIFINDEX = 0x8933
_SIOCGIFHWADDR = 0x8927
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr


def remove_link(name: str) -> None:
    """Remove a network device of this machine. Harmless when it is not there; PermissionDenied without CAP_NET_ADMIN."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        number = _ask(sock, _RTM_DELLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))
    if number not in (0, errno.ENODEV):
        raise _failure(f"remove the network device {name}", number)


def present_mac(name: str) -> dict[str, str]:
    """Give ``{"mac": ...}`` of a device of this machine; nothing for one that is not there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            found = fcntl.ioctl(
                sock, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()[:15])
            )  # struct ifreq
        except OSError:
            return {}
    return {"mac": found[18:24].hex(":")}


def make_route_secondary(namespace: str, interface: str, gateway: str, metric: int) -> None:
    """Give the default route by a gateway a metric, so that it serves only where there is none without. Harmless twice.

    Errors: PermissionDenied, Unavailable.
    """
    what = f"change the default route by {gateway}"
    with socket.socket(fileno=_core.route_socket(namespace)) as sock:
        try:
            request = struct.pack("16si12x", interface.encode(), 0)  # struct ifreq
            index = struct.unpack_from("16si", fcntl.ioctl(sock, _SIOCGIFINDEX, request))[1]
        except OSError as error:
            raise _failure(what, error.errno or errno.ENODEV) from None
        number = _ask(sock, _RTM_NEWROUTE, _NLM_F_CREATE, _default_route(index, gateway, metric))
        if number not in (0, errno.EEXIST):
            raise _failure(what, number)
        number = _ask(sock, _RTM_DELROUTE, 0, _default_route(index, gateway, _usual_metric(gateway)))
        if number not in (0, errno.ESRCH):
            raise _failure(what, number)


def _usual_metric(gateway: str) -> int:
    return 1024 if ":" in gateway else 0  # IP6_RT_PRIO_USER


def _default_route(index: int, gateway: str, metric: int) -> bytes:
    address = ipaddress.ip_address(gateway)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    message = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    for kind, value in (
        (_RTA_GATEWAY, address.packed),
        (_RTA_OIF, struct.pack("=I", index)),
        (_RTA_PRIORITY, struct.pack("=I", metric)),
    ):
        message += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return message


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> int:
    """Send one request; give the number of its error, 0 for none."""
    length = _HEADER.size + len(body)
    sock.send(_HEADER.pack(length, kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0) + body)
    answer = sock.recv(8192)
    _, answered, _, _, _ = _HEADER.unpack_from(answer)
    return int(-struct.unpack_from("=i", answer, _HEADER.size)[0]) if answered == _NLMSG_ERROR else 0


def _failure(what: str, number: int) -> PermissionDenied | Unavailable:
    failure = PermissionDenied if number == errno.EPERM else Unavailable
    return failure(f"cannot {what}: {os.strerror(number)}")
