"""The processes of a running container, found through its cgroup and read from /proc: no ``ps`` anywhere.

Where it has no cgroup they are found by its PID namespace.
Source: proc_pid_status(5), proc_pid_stat(5), cgroups(7), pid_namespaces(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

from lamella.containers.cgroups import Cgroup
from lamella.structs import Struct

_TICKS = os.sysconf("SC_CLK_TCK")
_COMMAND_MAX = 64 * 1024
_NAMESPACE = "ns/pid"


class ProcessInfo(Struct, frozen=True, kw_only=True):
    """One process. ``pid`` and ``uid`` are as the container sees them, ``host_pid`` as we do; ``cpu`` is seconds.

    ``user`` is the name that the container's /etc/passwd has for the uid, else the number. ``command`` is as the process
    itself shows it, in brackets where it shows nothing. ``memory`` is resident bytes.
    """

    pid: int
    host_pid: int
    parent: int
    uid: int
    user: str
    state: str
    threads: int
    cpu: float
    memory: int
    command: list[str]


def list_processes(cgroup: Cgroup, path: str, names: Mapping[int, str]) -> list[ProcessInfo]:
    """Return the processes in the cgroup ``path``, by their numbers in the container. FileNotFoundError when it is gone.

    ``names`` are login names by uid. A process that ends meanwhile is left out.
    """
    cgroup.check()
    return _read_all(cgroup.processes(), names, "cgroup", path.strip("/"))


def list_namespace(first: int, names: Mapping[int, str]) -> list[ProcessInfo] | None:
    """Return the processes in the PID namespace of one, as :func:`list_processes`; None where it is this process's.

    OSError when there is no such process.
    """
    own = os.readlink(f"/proc/{first}/{_NAMESPACE}")  # noqa: PTH115 (a name that is no path)
    if own == os.readlink(f"/proc/self/{_NAMESPACE}"):  # noqa: PTH115
        return None
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    # What has ended and is not reaped yet is in no cgroup either.
    return [process for process in _read_all(pids, names, _NAMESPACE, own) if process.state != "Z"]


def _read_all(pids: Iterable[int], names: Mapping[int, str], mark: str, marked: str) -> list[ProcessInfo]:
    """Read those whose file or link ``mark`` of /proc has ``marked`` in it: another may have a number by now."""
    found = []
    for pid in pids:
        with suppress(OSError, ValueError, KeyError, IndexError):  # it has ended
            found.append(_read(pid, names, mark, marked))
    return sorted(found, key=lambda process: process.pid)


def _read(pid: int, names: Mapping[int, str], mark: str, marked: str) -> ProcessInfo:
    folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:

        def read(name: str) -> bytes:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                return file.read(_COMMAND_MAX)

        shown = (
            os.readlink(mark, dir_fd=folder) if mark == _NAMESPACE else read(mark).decode(errors="replace")
        )
        if marked not in shown:
            raise ProcessLookupError(pid)
        lines = read("status").decode(errors="replace").splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        # Its name may hold anything: what is behind the last bracket is fields.
        stat = read("stat").rpartition(b")")[2].split()
        arguments = read("cmdline").rstrip(b"\0")
        host_uid = int(status["Uid"][1])
        uid = _inside(host_uid, read("uid_map").decode())
        command = [word.decode(errors="replace") for word in arguments.split(b"\0")] if arguments else []
        return ProcessInfo(
            pid=int(status.get("NSpid", status["Pid"])[-1]),
            host_pid=pid,
            parent=int(status["PPid"][0]),
            uid=uid,
            user=names.get(uid, str(uid)),
            state=status["State"][0],
            threads=int(status["Threads"][0]),
            cpu=(int(stat[11]) + int(stat[12])) / _TICKS,
            memory=int(status.get("VmRSS", ["0"])[0]) * 1024,
            command=command or [f"[{' '.join(status['Name'])}]"],
        )
    finally:
        os.close(folder)


def _inside(host_uid: int, uid_map: str) -> int:
    """Turn a uid that we see into the one that the process's user namespace has for it."""
    for line in uid_map.splitlines():
        inside, outside, count = map(int, line.split())
        if outside <= host_uid < outside + count:
            return inside + host_uid - outside
    return host_uid
