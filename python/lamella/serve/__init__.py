"""containerd's gRPC API on a socket, over the store that the library uses (``pip install lamella[serve]``).

A server keeps nothing of its own: whatever it is told goes into the store, and library, command and any number of servers may
use one store at the same time::

    with Server(root="/var/lib/lamella", address="/run/lamella/containerd.sock") as server:
        server.wait()

:mod:`~lamella.serve.service` says what a service looks like, :mod:`~lamella.serve.call` what a request carries.
"""

from __future__ import annotations

from lamella.serve.server import Server

__all__ = ["Server"]
