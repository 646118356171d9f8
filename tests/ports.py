"""Ports of loopback on which nobody listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_port(port: int = 0) -> Iterator[str]:
    """Hold a port, that is given or free, so that nobody gets it; give ``127.0.0.1:PORT``, where connections are refused.

    On one that is given a server may listen all the same: in the place of the one that had it.
    """
    with socket.socket() as held:
        if port:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        yield f"127.0.0.1:{held.getsockname()[1]}"
