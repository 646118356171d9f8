"""Which hosts cannot be reached, so that one that is dead costs one short time-out and not one a request."""

from __future__ import annotations

import time

import msgspec

from lamella.errors import LamellaError, Unavailable
from lamella.registry.failures import Unreachable
from lamella.registry.hosts import Host
from lamella.registry.targets import Home

OUTAGE_SECONDS = 30.0
"""For how long a process leaves a host alone that one of its exchanges could not reach, while others can be asked."""


class Outages:
    """Which hosts cannot be reached, or say nothing. One that answers and breaks off is given a second chance."""

    _recent: dict[Home, tuple[float, LamellaError]] = {}

    def __init__(self) -> None:
        self._known: dict[Home, LamellaError] = {}
        self._strikes: set[Home] = set()
        self._answered: set[Home] = set()

    def of(self, home: Home) -> LamellaError | None:
        """Say why a host is not to be asked, None if it is."""
        error = self._known.get(home)
        if error is None and home in self._recent:
            until, error = self._recent[home]
            if until < time.monotonic():
                return None
            self._known[home] = error
        return error

    def as_asked(self, host: Host) -> Host:
        """Give a host as it is to be asked: with the time for any answer once it has given one."""
        if host.home not in self._answered:
            return host
        return msgspec.structs.replace(host, home=msgspec.structs.replace(host.home, silence=None))

    def note(self, home: Home, error: LamellaError) -> None:
        """Take note of a request that got no answer."""
        if isinstance(error, Unreachable):
            self._recent[home] = time.monotonic() + OUTAGE_SECONDS, error
            self._known[home] = error
        elif isinstance(error, Unavailable):
            if home in self._strikes:
                self._known[home] = error
            self._strikes.add(home)

    def end(self, home: Home) -> None:
        """Take note of an answer."""
        self._strikes.discard(home)
        self._answered.add(home)
