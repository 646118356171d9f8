"""How often and how long one operation tries again: counted and paced, with back-off, jitter and Retry-After."""

from __future__ import annotations

import threading

import urllib3
from urllib3.util.retry import Retry

from lamella.errors import Cancelled, LamellaError
from lamella.registry.failures import RETRY_STATUSES, retry_after

RETRY_AFTER_MAX = 60
"""Seconds; a registry that asks for a longer pause gets no second request but becomes an error."""


class Patience:
    """The attempts of one operation; urllib3's Retry counts, this waits interruptibly."""

    def __init__(self, attempts: int, backoff: float, interrupted: threading.Event) -> None:
        self._retry = Retry(
            total=max(attempts - 1, 0),
            backoff_factor=backoff / 2,
            backoff_max=15,
            backoff_jitter=backoff,
            status_forcelist=RETRY_STATUSES,
            allowed_methods=None,
        )
        self._fresh = self._retry
        self._interrupted = interrupted

    def renew(self) -> None:
        """Start counting anew, after progress."""
        self._retry = self._fresh

    def spend(self, error: LamellaError) -> None:
        """Wait before another attempt; raise ``error`` if there is none left."""
        try:
            self._retry = self._retry.increment("GET", error=urllib3.exceptions.ProtocolError())
        except urllib3.exceptions.MaxRetryError:
            raise error from None
        self._wait(self._retry.get_backoff_time())

    def spend_status(self, response: urllib3.BaseHTTPResponse) -> bool:
        """Wait before another attempt after an answer; False if there is none left or the pause is too long."""
        pause = retry_after(response.headers.get("Retry-After"))
        if pause is not None and pause > RETRY_AFTER_MAX:
            return False
        try:
            self._retry = self._retry.increment(response=response)
        except urllib3.exceptions.MaxRetryError:
            return False
        self._wait(pause or self._retry.get_backoff_time())
        return True

    def _wait(self, seconds: float) -> None:
        if self._interrupted.wait(seconds):
            raise Cancelled("the transfer was stopped")
