"""Removing a network device, by rtnetlink(7)."""

from __future__ import annotations

import errno
import os
import socket
import struct

from lamella.errors import PermissionDenied, Unavailable

_RTM_DELLINK = 17
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg


def remove_link(name: str) -> None:
    """Remove a network device of this machine. Harmless when it is not there; PermissionDenied without CAP_NET_ADMIN."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(body), _RTM_DELLINK, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.send(header + body)
        answer = sock.recv(8192)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    number = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _NLMSG_ERROR else 0
    if number in (0, errno.ENODEV):
        return
    failure = PermissionDenied if number == errno.EPERM else Unavailable
    raise failure(f"cannot remove the network device {name}: {os.strerror(number)}")
