"""What systemd and a service tell each other: a socket that is there already, and that it is ready or stopping.

Both are described in sd_listen_fds(3) and sd_notify(3), and need no library.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from lamella.errors import InvalidArgument

_FIRST = 3


def inherited_listener() -> socket.socket | None:
    """Give the listening Unix socket that this process was started with; None: there is none. Once.

    InvalidArgument for several, and for one of another kind.
    """
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # not for the programs of containers
        os.environ.pop(name, None)
    if int(count) != 1:
        raise InvalidArgument(
            f"systemd passes {count} sockets", hint="The .socket unit needs one ListenStream=."
        )
    os.set_inheritable(_FIRST, False)
    listener = socket.socket(fileno=_FIRST)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
        raise InvalidArgument(
            "the socket that systemd passes is no Unix stream socket", hint="Use ListenStream=/a/path."
        )
    return listener


def notify(state: str) -> None:
    """Tell the service manager, where there is one: ``READY=1``, ``STOPPING=1``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
