"""Logs through Python's ``logging``: one logger a package (``lamella``, ``lamella.transfer``, ``lamella.registry`` ...).

No handler is ever added and no level set: what is shown, and where, is the program's decision. A record's message is for
people; the same facts are attributes of the record (``extra``) under names that stay, for formatters that write JSON:
``image``, ``digest``, ``container``, ``seconds`` ... (:data:`lamella.tracing.ATTRIBUTES` has all). DEBUG are steps (requests,
waits, what was here already) and errors that are raised anyway, INFO what changed for a user (pulled, started, collected),
WARNING what was repaired or ignored. Secrets are in none: requests are logged without headers and queries.

``import logging`` takes 9 ms, a tenth of a ``lamella run``. A program that has not imported it has no handler either, so that
nothing is lost by looking whether it was; only a warning imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

DEBUG, INFO, WARNING = 10, 20, 30
"""Logging's own numbers."""

show_warning: Callable[[str], None] | None = None
"""What shows warnings in the place of ``logging``, if it is set: the command has its own way to say something on stderr."""


class Log:
    """The logger of one package, which costs 100 ns where nobody listens.

    Messages name fields, as in ``log.info("pulled %(image)s", image=name)``.
    """

    __slots__ = ("_logger", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger: logging.Logger | None = None

    def debug(self, message: str, **fields: Any) -> None:
        """Log a step."""
        if self.listened(DEBUG):
            self.write(DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """Log a change that a user sees."""
        if self.listened(INFO):
            self.write(INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Log what was repaired or ignored. Python shows it on stderr where nobody set logging up."""
        if show_warning is not None:
            show_warning(message % fields if fields else message)
            return
        import logging  # noqa: F401 (rarely needed, and not to be missed)

        if self.listened(WARNING):
            self.write(WARNING, message, fields)

    def listened(self, level: int) -> bool:
        """Tell whether a record of that level would be seen by anybody."""
        logger = self._logger
        if logger is None:
            get = getattr(sys.modules.get("logging"), "getLogger", None)
            if get is None:
                return False
            logger = self._logger = get(self.name)
        return logger.isEnabledFor(level)

    def write(self, level: int, message: str, fields: dict[str, Any], *, stacklevel: int = 3) -> None:
        """Log a message with its fields; only where :meth:`listened`."""
        assert self._logger is not None
        self._logger.log(level, message, *((fields,) if fields else ()), extra=fields, stacklevel=stacklevel)
