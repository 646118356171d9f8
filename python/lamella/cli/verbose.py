"""What ``-v`` and ``-vv`` show: the library's own log records, on stderr.

Of the library alone: what others log at these levels (HTTP libraries do) may have signed addresses in it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from lamella.cli.output import one_line


class _Formatter(logging.Formatter):
    """One line a record, whose control characters are made visible: some of it comes from registries."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class _Handler(logging.Handler):
    """Writes to what stderr is at that moment: a progress display puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except OSError:
            return  # nobody reads it
        except Exception:
            self.handleError(record)


def start_logging(name: str = "lamella", *, every_step: bool, handled: bool = False) -> Callable[[], None]:
    """Show a logger's records from INFO on, or from DEBUG on, until the function that is returned is called.

    ``handled``: they are shown already, by a logger above it, but for its level.
    """
    logger = logging.getLogger(name)
    before = logger.level
    handler = _Handler()
    handler.setFormatter(_Formatter())
    if not handled:
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if every_step else logging.INFO)

    def stop() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    return stop
