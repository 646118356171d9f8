"""Metrics: what all processes that use a store have done, and what is in it.

There is no daemon that could keep counters: thousands of short ``lamella run`` and programs that embed the library do the work,
and ``lamella metrics`` is one more process. They share a file in the state folder::

    <state>/metrics-<layout>   0600   64-bit cells, one after the other; what each means says table.py

which every process maps at its first count. Adding is one atomic instruction, so that no lock guards the file, nothing is
lost when processes add at once, and what was added stays when one is killed. The name holds a hash of the table: versions that
count other things use files of their own. The state folder is the machine's memory as a rule, so that counters start at zero with
the boot, as Prometheus expects; where it is on a disk they go on.

Counting never makes an operation fail. Where the file cannot be made or mapped (a full or read-only disk, a folder of another
user) a process counts for itself, and :attr:`Recorder.problem` says why.

- :mod:`lamella.metrics.table`: what is counted.
- :class:`Recorder`: counting.
- :func:`read`, ``client.metrics()``: everything as data, with what is in the store now.
- :class:`Collector`: the same for a prometheus_client registry, :func:`exposition`: as Prometheus' text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lamella import _core
from lamella.disk import make_state_folder
from lamella.errors import LamellaError
from lamella.logs import Log
from lamella.metrics.table import LOCK_WAIT, NANO, SIZE, Series, layout
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.metrics.prometheus import Collector as Collector
    from lamella.metrics.prometheus import exposition as exposition
    from lamella.metrics.scrape import Metric as Metric
    from lamella.metrics.scrape import read as read

_HOMES = {
    "Collector": "lamella.metrics.prometheus",
    "Metric": "lamella.metrics.scrape",
    "exposition": "lamella.metrics.prometheus",
    "read": "lamella.metrics.scrape",
}
_log = Log("lamella.metrics")
RECORDERS_MAX = 64
"""How many state folders' files stay mapped: a process may have 65,530 mappings (vm.max_map_count)."""
_recorders: dict[str, Recorder] = {}


class Recorder:
    """Counts for one state folder. The file is mapped at the first count.

    Safe in threads and across a fork: the child goes on adding to the same file.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.problem: str | None = None
        """Why this process counts for itself alone, once it has counted; None when it does not."""
        self._counters: _core.Counters | None = None

    def add(self, cell: int, amount: int = 1) -> None:
        """Add to a counter's cell."""
        self._open().add(cell, amount)

    def observe(self, series: Series, seconds: float) -> None:
        """Put a duration into a histogram."""
        self.add(series.bucket(seconds))
        self.add(series.total, int(seconds * NANO))

    def waits(self, lock: str) -> Callable[[float], None]:
        """Give what takes the seconds of each wait for a kind of lock."""
        return partial(self.observe, LOCK_WAIT.series(lock))

    @property
    def counters(self) -> _core.Counters:
        """The cells themselves, for what counts without Python."""
        return self._open()

    def values(self) -> list[int]:
        """Return all cells, in the order of the table."""
        return self._open().read()

    def _open(self) -> _core.Counters:
        if self._counters is None:
            try:
                make_state_folder(self.state)
                counters = _core.Counters(str(self.state / f"metrics-{layout()}"), SIZE)
            except (LamellaError, OSError) as error:
                self.problem = str(error)
                _log.info("this process counts for itself: %(reason)s", reason=self.problem)
                counters = _core.Counters(None, SIZE)
            # Another thread may have been quicker: what it added must not be lost.
            self._counters = self.__dict__.setdefault("_first", counters)
            self.__dict__["add"] = self._counters.add  # from now on without this detour
        return self._counters


def recorder(state: Path) -> Recorder:
    """Give this process's recorder for a state folder; the same one for those of the last RECORDERS_MAX."""
    key = str(state)
    found = _recorders.get(key)
    if found is None:
        found = _recorders.setdefault(key, Recorder(state))
        if len(_recorders) > RECORDERS_MAX:
            _recorders.pop(next(iter(_recorders)), None)
    return found


def __getattr__(name: str) -> object:
    """Load what only a scrape needs on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lamella.metrics' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
