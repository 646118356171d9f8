"""Containers that are ready before anybody asks for them.

Snapshot, record, namespaces, mounts, cgroup, privileges and filter are there, and the first process waits before its exec. What
is left of a start is to tell it the program.

A container of a pool is in the store, marked with the pool (``Extra.pool``), and nobody else's listing shows it. The pool holds
``<root>/locks/pool-<id>`` while it lives. Of one that was killed, what waits ends with its connections, and the next who looks at
containers, or collects garbage, removes it (:meth:`Containers.remove_ended`). The mark goes once the program runs; from then on
it is a container as any other. What waits has no descriptor but its standard streams and the way to its monitor.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from lamella.config import DEFAULT_RUNTIME
from lamella.containers.container import _START, Container
from lamella.containers.options import Environment, Options, parse_environment
from lamella.containers.record import change_record
from lamella.containers.result import RunResult, await_result
from lamella.containers.spec import arguments
from lamella.errors import FailedPrecondition, InvalidArgument, LamellaError, Unsupported
from lamella.locks import FileLock
from lamella.logs import Log
from lamella.metadata import timestamp
from lamella.structs import encode, read_json, replace
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.client import Client
    from lamella.containers.branches import Branch
    from lamella.containers.monitor import Attached
    from lamella.images import Image

_log = Log("lamella.containers")


def lock_path(root: Path, pool: str) -> Path:
    """Give the lock that a pool holds while it lives."""
    return root / "locks" / f"pool-{pool}"


class _Held(NamedTuple):
    container: Container
    attached: Attached
    spec: dict[str, Any]
    bundle: dict[str, Any]


class Pool:
    """``size`` containers of one image (or branch) and one set of options that wait for a program. A context manager.

    A thread makes new ones in the place of those that were taken. Threads may share it.
    """

    def __init__(self, client: Client, image: Image | Branch, options: Options, size: int) -> None:
        if size < 1:
            raise InvalidArgument(f"a pool of {size} containers holds nothing ready")
        if options.name is not None:
            raise InvalidArgument("the containers of a pool cannot have one name")
        runtime = options.runtime if options.runtime is not None else client.config.runtime
        if runtime != DEFAULT_RUNTIME:
            raise Unsupported(
                f"the runtime {runtime} cannot keep a container ready for a program that comes later",
                hint=f"Leave runtime out, or give runtime={DEFAULT_RUNTIME!r}.",
            )
        self.size = size
        self._client = client
        self._image = image
        self._options = options
        self._run_config = (image if not hasattr(image, "image") else image.image).config.run
        self._id = os.urandom(8).hex()
        self._lock = FileLock(lock_path(client.config.root, self._id), what="a pool", transient=True)
        self._lock.acquire()
        self._ready: deque[_Held] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._takes = 0
        try:
            self._ready.append(self._make())  # errors of the options are the caller's
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._refill, name="lamella-pool", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<lamella.Pool {self.ready} of {self.size} ready>"

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ready(self) -> int:
        """How many wait now."""
        return len(self._ready)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all are ready; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ready) >= self.size, timeout)

    def take(
        self, command: str | Sequence[str] | None = None, *, environment: Environment | None = None
    ) -> Container:
        """Start a container that is ready, and return it running; one is made first where none is ready.

        ``command`` as in :meth:`Containers.create`; ``environment`` goes beside that of the pool's options. Errors:
        CommandNotFound, CommandNotExecutable, FailedPrecondition after :meth:`close`, and those of a start where none was ready.
        After one nothing is left.
        """
        container, attached = self._take(command, environment)
        attached.close()
        return container

    def run(
        self,
        command: str | Sequence[str] | None = None,
        *,
        environment: Environment | None = None,
        input: bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> RunResult:
        """Start one as :meth:`take` does, wait for its end, and remove it; arguments and result as :meth:`Containers.run`.

        ``input`` needs a pool with ``stdin=True``.
        """
        if input is not None and not self._options.stdin:
            raise InvalidArgument(
                "the containers of this pool have no stdin", hint="Make it with stdin=True."
            )
        container, attached = self._take(command, environment)
        try:
            with attached:
                result = await_result(
                    attached,
                    input=input,
                    timeout=timeout,
                    kill=container.kill,
                    container_id=container.id,
                )
        finally:
            container.remove(force=True, volumes=True)
        return result.check(f"{container.command[0]!r} in {container.name}") if check else result

    def close(self) -> None:
        """Remove what waits; what was taken goes on. Harmless twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        while self._ready:
            _discard(self._ready.popleft())
        self._lock.release()

    def _take(
        self, command: str | Sequence[str] | None, environment: Environment | None
    ) -> tuple[Container, Attached]:
        program = arguments(self._run_config, replace(self._options, command=command))
        more = parse_environment(environment)
        with self._changed:
            if self._closed:
                raise FailedPrecondition("the pool is closed")
            held = self._ready.popleft() if self._ready else None
        try:
            return self._start(held or self._make(), program, more)
        finally:
            with (
                self._changed
            ):  # not before: whoever makes the next one would share the interpreter with this start
                self._takes += 1
                self._changed.notify_all()

    def _start(self, held: _Held, program: list[str], more: dict[str, str]) -> tuple[Container, Attached]:
        """Have a container that waits run its program; after an error nothing is left of it."""
        record = held.container.record
        try:
            with _START(
                self._client.database.metrics,
                container=record.id,
                container_name=record.name,
                image=record.image,
            ):
                for document in (held.spec, held.bundle):
                    process = document["process"]
                    variables = dict(item.partition("=")[::2] for item in process["env"]) | more
                    process.update(args=program, env=[f"{name}={value}" for name, value in variables.items()])
                held.container.task.release(held.bundle)
                return self._adopt(held), held.attached
        except BaseException:
            _discard(held)
            raise

    def _adopt(self, held: _Held) -> Container:
        """Make it a container as any other."""
        old = held.container.record
        record = replace(
            old,
            spec=encode(held.spec).decode(),
            extra=replace(old.extra, pool=""),
            updated_at=timestamp(),
        )
        with self._client.database.write() as db:
            fields = {"spec": record.spec, "extra": record.extra, "updated_at": record.updated_at}
            change_record(db, self._client.config.namespace, record.id, **fields)
        return Container(self._client, record)

    def _make(self) -> _Held:
        container = self._client.containers.create_held(self._image, self._options, self._id)
        try:
            attached = container.hold()
            bundle = read_json((container.task.folder / "config.json").read_bytes())
        except BaseException:
            container.remove(force=True, volumes=True)
            raise
        return _Held(container, attached, container.spec, bundle)

    def _refill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self.size)
                if self._closed:
                    return
                takes = self._takes
            try:
                held = self._make()
            except (LamellaError, OSError) as error:
                # Who takes one while none is ready makes it himself, and gets the error.
                _log.warning("a container of a pool could not be made ready: %(reason)s", reason=str(error))
                self._await_take(takes)
                continue
            with self._changed:
                self._ready.append(held)
                self._changed.notify_all()

    def _await_take(self, takes: int) -> None:
        """Wait for one more take than there were, or the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._takes != takes)


def _discard(held: _Held) -> None:
    held.attached.close()
    with suppress(LamellaError):
        held.container.remove(force=True, volumes=True)
