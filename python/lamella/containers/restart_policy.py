"""Restart policies, in docker's words: what the monitor does when a container has ended.

There is no daemon: the monitor, which is there as long as the container is, runs it again itself. So what ends the monitor
ends the restarts too: kill -9 of it, and a restart of the machine, after which ``lamella serve`` starts its clients'
containers. ``unless-stopped`` differs from ``always`` only in what docker's daemon does when the machine starts, and is the
same here.
"""

from __future__ import annotations

from collections.abc import Mapping

from lamella.containers.monitor import Exit
from lamella.errors import InvalidArgument
from lamella.structs import Struct
from lamella.typings import Any, Literal

NAMES = ("no", "on-failure", "always", "unless-stopped")
_FORMS = "Write no, on-failure, on-failure:5, always or unless-stopped."


class RestartPolicy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a container that has ended is run again; ``max_retries`` (of on-failure) 0 is no limit."""

    name: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    max_retries: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.max_retries}" if self.max_retries else self.name

    def __bool__(self) -> bool:
        return self.name != "no"

    def for_monitor(self) -> dict[str, Any]:
        """Give the form in which a launcher takes it."""
        if self.name == "on-failure":
            return {"name": self.name, "max_retries": self.max_retries}
        return {"name": "always" if self.name == "unless-stopped" else self.name}


def parse_restart_policy(value: RestartPolicy | str | Mapping[str, Any] | None) -> RestartPolicy:
    """Parse ``on-failure:5`` or docker-py's ``{"Name": "on-failure", "MaximumRetryCount": 5}``. InvalidArgument."""
    if isinstance(value, RestartPolicy):
        return value
    name: Any
    count: Any
    if value is None or value == "":
        return RestartPolicy()
    if isinstance(value, str):
        name, colon, count = value.partition(":")
        if colon and not (count.isascii() and count.isdigit()):
            raise InvalidArgument(f"restart policy {value!r} is malformed", hint=_FORMS)
        count = int(count) if colon else 0
    elif isinstance(value, Mapping) and set(value) <= {"Name", "MaximumRetryCount"}:
        name, count = value.get("Name") or "no", value.get("MaximumRetryCount") or 0
    else:
        raise InvalidArgument(f"restart policy {value!r} is malformed", hint=_FORMS)
    if name not in NAMES or not isinstance(count, int) or count < 0:
        raise InvalidArgument(f"restart policy {value!r} is malformed", hint=_FORMS)
    if count and name != "on-failure":
        raise InvalidArgument(f"restart policy {name!r} takes no number of retries", hint=_FORMS)
    return RestartPolicy(name=name, max_retries=count)


STATUS_LABEL = "containerd.io/restart.status"
POLICY_LABEL = "containerd.io/restart.policy"
STOPPED_LABEL = "containerd.io/restart.explicitly-stopped"
COUNT_LABEL = "containerd.io/restart.count"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")


def policy_of_labels(labels: Mapping[str, str]) -> RestartPolicy:
    """Give the policy that labels ask for, as clients of containerd's API write it (containerd, core/runtime/restart).

    None unless it is to run and nobody has stopped it; ``always`` where they name none; none for a malformed one, which
    containerd passes over, too.
    """
    if labels.get(STATUS_LABEL) != "running" or labels.get(STOPPED_LABEL) in _TRUE:
        return RestartPolicy()
    try:
        return parse_restart_policy(labels.get(POLICY_LABEL) or "always")
    except InvalidArgument:
        return RestartPolicy()


class Restarts(Struct, frozen=True):
    """What the monitor keeps in ``restart.json`` from the end of the first run on.

    ``count`` runs came after the first one; ``exit`` is the end of the last that has ended, ``error`` why it could not begin,
    ``next_run_at`` when the next one begins, None while it runs.
    """

    count: int
    exit: Exit
    error: str | None = None
    next_run_at: str | None = None
