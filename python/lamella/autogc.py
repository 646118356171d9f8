"""Garbage collection by itself: for machines that pull, run and remove all day, where nobody wants to remember ``lamella gc``.

It is off unless LAMELLA_GC=auto or ``Client(auto_gc=True)`` says so. There is no daemon that could do it later, so that the call
which makes garbage collects it before it returns: removing an image, and a pull that brought something (its tag may have been
another image before). That costs such a call some milliseconds in a store of some images. In a large one collecting takes
longer, and then waits for a later such call: at most SHARE of the time goes into it (the idea of containerd's
``pause_threshold``). What fails is logged, not raised: the call itself has succeeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.errors import LamellaError, Unavailable
from lamella.logs import Log
from lamella.metadata import timestamp

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.gc import GcReport

_log = Log("lamella")
SHARE = 0.05
"""Of the time, at most, in which collections run by themselves."""


def collect_if_due(client: Client) -> GcReport | None:
    """Collect if the store's user wants that to happen by itself and the last one is long enough ago.

    Nothing is done while another process collects, and inside a transaction.
    """
    if not client.config.auto_gc or client.database.in_transaction:
        return None
    try:
        if not _due(client.last_gc()):
            return None
        return client.gc(wait=False)
    except Unavailable as error:  # another process is at it, or writes for very long
        _log.debug("garbage was not collected: %(reason)s", reason=str(error))
        return None
    except LamellaError as error:
        _log.warning("garbage was not collected: %(reason)s", reason=str(error))
        return None


def _due(last: GcReport | None) -> bool:
    if last is None or last.times is None:
        return True
    # In the future: the clock was set back since.
    return not timestamp(-last.times.total / SHARE) < last.times.finished_at <= timestamp()
