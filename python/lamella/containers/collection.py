"""The containers of one namespace."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import islice

from lamella import _core
from lamella.config import DEFAULT_RUNTIME, check_identifier
from lamella.containers.container import Container, signal_number
from lamella.containers.emulation import check_runnable
from lamella.containers.id_maps import settle_maps
from lamella.containers.log_config import parse_log_config
from lamella.containers.networks import namespace_path, settle
from lamella.containers.options import Options, labels_of
from lamella.containers.record import ContainerRecord, Extra, change_record, check_free, find_records, insert
from lamella.containers.restart_policy import parse_restart_policy
from lamella.containers.result import RunResult, await_result
from lamella.containers.spec import build_spec
from lamella.containers.user import UserFiles
from lamella.durability import Unverified
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound
from lamella.images import Image
from lamella.labels import check_labels
from lamella.locks import is_locked
from lamella.logs import Log
from lamella.metadata import Transaction, timestamp
from lamella.structs import replace
from lamella.tracing import span
from lamella.typings import TYPE_CHECKING, Literal, Unpack, overload

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.config import Config
    from lamella.containers.branches import Branch
    from lamella.containers.id_maps import IdMaps
    from lamella.containers.monitor import OnOutput
    from lamella.containers.mount_sources import Attached
    from lamella.containers.mounts import AnyMount
    from lamella.containers.networks.ports import Port
    from lamella.containers.options import CreateOptions
    from lamella.containers.pool import Pool
    from lamella.containers.selection import Selection
    from lamella.docker_filters import Filters
    from lamella.filters import Fields
    from lamella.oci import RunConfig
    from lamella.snapshots import Mount

Command = str | Sequence[str] | None
_log = Log("lamella.containers")


def _fields(container: Container) -> Fields:
    """Give what filters know of a container: containerd's fields, and what it has beyond them."""
    record = container.record
    return {
        "id": record.id,
        "name": record.name,
        "image": record.image,
        "status": container.status,
        "snapshotter": record.snapshotter,
        "runtime": {"name": record.runtime},
        "labels": record.labels,
    }


class Containers:
    """Create, find and run containers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._user_files = UserFiles(_core.read_file)

    def create(
        self, image: str | Image | Branch, command: Command = None, **options: Unpack[CreateOptions]
    ) -> Container:
        """Make a container: its active snapshot on the image, or on a branch, and its record. Nothing runs yet.

        Keyword options (docker's names and meanings): name, entrypoint, environment (mapping or ``K=V`` list), env_file (one or
        several, docker's: ``K=V`` lines, ``K`` alone for the caller's value), working_dir, user (``name``, ``uid:gid``),
        hostname, domainname,
        network (``none``, ``host``, ``container:NAME``, ``pasta``, or the name of a CNI network;
        :mod:`lamella.containers.networks`) or networks (several of CNI: ``["web", "db"]``, ``["name=db,alias=sql"]``,
        ``{"db": {"ip": "10.0.0.2", "aliases": ["sql"]}}``), ports (``{"80/tcp": 8080}``, ``["8080:80"]``), expose (``["80"]``)
        and publish_all_ports (what the image or expose names gets a free port of the host), dns, dns_search, dns_options,
        extra_hosts (``{"db": "10.0.0.5"}``), in the first network ip, ip6, mac_address and network_aliases, memory and
        memory_swap (bytes or ``"512m"``), memory_reservation, cpus or cpu_quota and cpu_period, cpu_shares, cpuset, cpuset_mems,
        pids_limit, memory_swappiness and oom_kill_disable (cgroup v1), blkio_weight, blkio_weight_device
        (``{"/dev/sda": 300}``), device_read_bps, device_write_bps, device_read_iops and device_write_iops
        (``{"/dev/sda": "10m"}``), cgroup_parent (a path from the root of the hierarchies, to make its cgroup in),
        read_only, tmpfs (``"/run"``, ``"/tmp:size=1m,mode=700,uid=5"``), mounts
        (``"type=bind,source=/a,target=/b,readonly"``, ``"type=image,source=tools:1,target=/tools"``: an image's files, read-only,
        or a mapping of those fields, or docker-py's ``types.Mount``; :mod:`lamella.containers.mounts`), volumes
        (``"/a:/b:ro"``, or a volume by its name: ``"data:/b"``, which
        is made if it is not there; ``"/b"``: a fresh one, as for what the image declares), shm_size, cap_add, cap_drop, devices
        (``"/dev/fuse:/dev/fuse:rwm"``, ``"/dev/dri"`` for all in a folder), device_cgroup_rules (``"c 189:* rw"``),
        no_new_privileges, seccomp (None: the default profile; ``"unconfined"``, a path, an
        object), privileged, labels, label_file, annotations, auto_remove (when the store is
        next looked at after its end), stdin (keep it open), tty, ulimits (``"nofile=1024:2048"``),
        oom_score_adj, sysctls, stop_signal, stop_timeout (seconds), log_config (docker-py's:
        ``{"type": "json-file", "config": {"max-size": "10m", "max-file": 5}}``, which is the default; ``{"type": "none"}`` keeps
        no log), restart_policy (``"on-failure:5"``, ``"always"``, or docker-py's mapping), init (run the command beneath an init
        that passes signals on and reaps), group_add (names or numbers), pid_mode, ipc_mode, uts_mode and
        cgroupns (``"host"``: the machine's), userns (``"auto"``: ids of its own; ``"container:NAME"``: those of the one whose
        network it has), uid_maps and gid_maps
        (``["0:100000:65536"]``), platform (``"linux/arm64"``, of an index), snapshotter (by name,
        instead of the client's), runtime (``"lamella"``, or another OCI runtime by its name on PATH or its path: ``"runc"``;
        docs/runtimes.md), masked_paths and readonly_paths (instead of the usual ones of /proc and /sys; ``[]``
        for none), and spec: a callable that gets the runtime spec as a dict and changes it, or a JSON merge patch (RFC 7386).

        Errors: NotFound (image, its snapshot, a bind source, the runtime), AlreadyExists (the name), InvalidArgument (an option),
        Unsupported (an image for another architecture, for which binfmt_misc has no emulator).
        """
        return self._create(image, self._options(command, options))[0]

    @staticmethod
    def _options(command: Command, options: CreateOptions) -> Options:
        try:
            return Options(command=command, **options)
        except TypeError as error:
            from lamella.containers.docker_words import explain

            reasons = [reason for word in options if (reason := explain(word))]
            text = str(error).replace("Options.", "containers.create() ")
            raise TypeError("; ".join([text, *reasons])) from None

    def _create(
        self, image: str | Image | Branch, options: Options, *, pool: str = ""
    ) -> tuple[Container, list[Mount]]:
        """Make a container; give what its root is mounted from, too, for who starts it at once."""
        name = _name(image)
        with span("lamella.container.create", image=name):
            try:
                container, root = self._create_once(image, options, pool=pool)
            except Unverified as error:
                _log.warning("%(reason)s; unpacking them anew", image=name, reason=str(error))
                self._client.using(options.snapshotter or self._client.config.snapshotter).images.unpack(name)
                container, root = self._create_once(image, options, pool=pool)
        _log.debug(
            "created the container %(container_name)s from %(image)s",
            container=container.id,
            container_name=container.name,
            image=container.image,
        )
        return container, root

    def _create_once(
        self, source: str | Image | Branch, options: Options, *, pool: str
    ) -> tuple[Container, list[Mount]]:
        client = self._client.using(options.snapshotter or self._client.config.snapshotter)
        namespace = client.config.namespace
        if options.platform is not None:
            source = _for_platform(source, client, options.platform)
        elif isinstance(source, str):
            source = client.images.get(source)
        if isinstance(source, Image):
            image, parent = source, str(source.chain_id)
        else:
            image, parent = source.image, source.name
            if options.snapshotter not in (None, source.snapshotter):
                raise InvalidArgument(
                    f"the branch {source.name} belongs to the {source.snapshotter} snapshotter",
                    hint="Leave the snapshotter out: what stands on a branch has its own.",
                )
            client = client.using(source.snapshotter)
        check_runnable(image.platform)
        run_config = image.config.run
        container_id = os.urandom(32).hex()
        name = (
            check_identifier(options.name, "container name")
            if options.name is not None
            else container_id[:12]
        )
        stop_signal = _stop_signal(options, run_config)
        log = parse_log_config(options.log_config)
        exposed = _exposed(options, run_config)
        runtime = _runtime(client.config, options)
        settled = settle(client, options, exposed)
        mounts = _mounts(options, run_config)
        restart = parse_restart_policy(options.restart_policy)
        if restart and options.auto_remove:
            raise _removed_and_restarted()
        labels = check_labels({**(run_config.labels or {}), **labels_of(options)})
        key = name if options.name is not None else container_id
        with ExitStack() as stack:
            if options.name is not None:
                with client.database.read() as db:
                    check_free(db, namespace, name)
                    if _has_snapshot(db, client.config, key):
                        key = container_id  # of a container that was renamed
            id_maps = _id_maps(client, options, settled.shared)
            with _unpacked(source, parent, client):
                prepare = stack.enter_context(
                    client.snapshots.preparing(key, parent, id_maps.labels if id_maps is not None else None)
                )
                attach = stack.enter_context(_attaching(client, parent, container_id, mounts, id_maps))
            db = stack.enter_context(client.database.write())
            check_free(db, namespace, name)
            with _unpacked(source, parent, client):
                prepared = prepare()
            attached = attach()
            spec, hostname = build_spec(
                run_config,
                replace(options, hostname=settled.hostname, domainname=settled.domainname or None),
                container_id=container_id,
                namespace=namespace,
                files_folder=str(
                    client.config.root / "containers" / namespace / (settled.shared or container_id)
                ),
                network_path=namespace_path(settled.network),
                mounts=attached.mounts if attached else [],
                id_maps=id_maps,
                read_file=self._user_files.of(prepared.layers, client.snapshots.whiteouts),
            )
            now = timestamp()
            record = ContainerRecord(
                id=container_id,
                name=name,
                image=image.name,
                snapshotter=client.config.snapshotter,
                snapshot_key=key,
                runtime=runtime,
                spec=spec.decode(),
                labels=labels,
                extra=Extra(
                    network=settled.network,
                    network_settings=settled.settings,
                    networks=list(settled.more),
                    exposed=[port.name for port in exposed],
                    hostname=hostname,
                    domainname=settled.domainname,
                    stdin=options.stdin,
                    tty=options.tty,
                    stop_signal=stop_signal,
                    stop_timeout=options.stop_timeout,
                    auto_remove=options.auto_remove,
                    pool=pool,
                    manifest=image.manifest_descriptor.digest,
                    log=log,
                    volumes=attached.volumes if attached else [],
                    sources=attached.sources if attached else [],
                    restart=restart,
                    init=options.init,
                    id_maps=id_maps,
                ),
                created_at=now,
                updated_at=now,
            )
            insert(db, namespace, record)
        return Container(client, record), prepared.mounts

    def pool(
        self,
        image: str | Image | Branch,
        *,
        size: int,
        **options: Unpack[CreateOptions],
    ) -> Pool:
        """Keep ``size`` containers ready, so that a start takes little more than the start of their program.

        ``options`` and errors are those of :meth:`create`, without a name; the program comes with
        :meth:`lamella.containers.pool.Pool.take` and ``run``. With ``auto_remove`` the end of none waits until the disk has what
        it wrote. Close the pool, or use it as a context manager; what a killed process leaves waiting is removed when somebody
        next looks at containers.
        """
        from lamella.containers.pool import Pool

        self.remove_ended()
        if isinstance(image, str):
            image = self._client.images.get(image)
        return Pool(self._client, image, self._options(None, options), size)

    def create_held(self, image: Image | Branch, options: Options, pool: str) -> Container:
        """Make a container that is to wait in a pool, for a program that is not known yet."""
        options = replace(options, command=["-"], entrypoint=[])
        return self._create(image, options, pool=pool)[0]

    def get(self, container: str) -> Container:
        """Return a container by name, identifier, or a prefix of it that fits no other. NotFound, InvalidArgument."""
        namespace = self._client.config.namespace
        if not container:
            raise InvalidArgument("the container's name is empty")
        with self._client.database.read() as db:
            found = list(find_records(db, namespace, "name = ? OR id = ?", container, container))
            if not found:
                last = container + "\U0010ffff"
                found = list(islice(find_records(db, namespace, "id >= ? AND id < ?", container, last), 2))
        if not found:
            raise NotFound(f"there is no container {container!r} in namespace {namespace}")
        if len(found) > 1:
            raise InvalidArgument(f"several containers begin with {container!r}", hint="Give more of it.")
        return Container(self._client, found[0])

    def list(self, *, all: bool = False, filters: Filters = ()) -> list[Container]:
        """Return the containers that run or are about to again, or all of them, oldest first; after :meth:`remove_ended`.

        Networks that killed monitors have left are let go of, too.

        With ``filters`` those that match: docker's, such as ``{"status": "exited", "label": ["job=7"]}`` or ``["name=box"]``
        (:mod:`lamella.containers.selection`; a status or exit status asks for those that don't run, too), or containerd's, of
        which one has to match (:mod:`lamella.filters`): by id, name, image, status, snapshotter, runtime.name, labels.
        """
        from lamella.containers.orphans import release_stale_networks

        everything, selected = self._selection(all, filters)
        self.remove_ended()
        release_stale_networks(self._client.database, self._client.config)
        shown = ("running", "restarting")
        found = (container for container in self._all() if everything or container.status in shown)
        return [container for container in found if selected(container)]

    def _selection(self, all: bool, filters: Filters) -> tuple[bool, Selection]:
        """Give whether all containers are meant, and which of them."""
        if not filters:
            return all, lambda container: True
        from lamella.containers.selection import select, shows_all
        from lamella.docker_filters import docker_filters

        if (words := docker_filters(filters)) is not None:
            return all or shows_all(words), select(self._client, words)
        from lamella.filters import compile_filters

        match = compile_filters(list(filters) if not isinstance(filters, str) else [filters])
        return all, lambda container: match(_fields(container))

    def rename(self, container_id: str, name: str) -> None:
        """Give the container of an identifier another name; see :meth:`Container.rename`."""
        namespace = self._client.config.namespace
        with self._client.database.write() as db:
            row = db.execute(
                "SELECT name FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id)
            ).fetchone()
            if row is None:
                raise NotFound(f"there is no container {container_id[:12]} in namespace {namespace}")
            if row[0] == name:
                return
            if name != container_id[:12]:  # the name that it would have had without one
                check_free(db, namespace, name)
            change_record(db, namespace, container_id, name=name)

    def prune(self, *, filters: Filters = (), volumes: bool = False) -> builtins.list[str]:
        """Remove the containers that don't run, and return their names; with ``volumes`` their anonymous volumes, too.

        Filters are those of :meth:`list`. One that others stand on stays, and so does one that is started meanwhile. Twice is
        harmless.
        """
        removed = []
        for container in self.list(all=True, filters=filters):
            if container.status in ("created", "stopped", "unknown"):
                with suppress(FailedPrecondition, NotFound):
                    container.remove(volumes=volumes)
                    removed.append(container.name)
        return removed

    def remove_ended(self) -> int:
        """Remove the containers that have ended and were to be removed then; return their number.

        There is no daemon that would do it at their end, so that it is done when somebody next looks.
        """
        count = 0
        for container in self._all(pooled=True):
            if pool := container.record.extra.pool:
                if not is_locked(self._client.config.root / "locks" / f"pool-{pool}"):  # its pool is gone
                    container.remove(force=True, volumes=True)
                    count += 1
            elif container.record.extra.auto_remove and container.status in ("stopped", "unknown"):
                with suppress(FailedPrecondition):  # it was started again, or others stand on its snapshot
                    container.remove(volumes=True)
                    count += 1
        return count

    def put_right(self) -> None:
        """Take away what killed monitors have left on the machine; the containers keep their state ``unknown``."""
        for container in self._all():
            if container.status == "unknown":
                container.task.put_right()

    def records(self) -> Iterator[ContainerRecord]:
        """Give the records of all containers, oldest first; nothing is cleared away before."""
        return (container.record for container in self._all())

    def _all(self, *, pooled: bool = False) -> Iterator[Container]:
        """Give all containers, with ``pooled`` also those that wait in a pool."""
        with self._client.database.read() as db:
            records = find_records(db, self._client.config.namespace, "true")
        containers = (Container(self._client, record) for record in records)
        return (container for container in containers if pooled or not container.record.extra.pool)

    @overload
    def run(
        self,
        image: str | Image | Branch,
        command: Command = None,
        *,
        detach: Literal[True],
        remove: bool = False,
        **options: Unpack[CreateOptions],
    ) -> Container: ...

    @overload
    def run(
        self,
        image: str | Image | Branch,
        command: Command = None,
        *,
        detach: Literal[False] = False,
        remove: bool = False,
        timeout: float | None = None,
        input: bytes | None = None,
        check: bool = False,
        on_output: OnOutput | None = None,
        **options: Unpack[CreateOptions],
    ) -> RunResult: ...

    def run(
        self,
        image: str | Image | Branch,
        command: Command = None,
        *,
        detach: bool = False,
        remove: bool = False,
        timeout: float | None = None,
        input: bytes | None = None,
        check: bool = False,
        on_output: OnOutput | None = None,
        **options: Unpack[CreateOptions],
    ) -> Container | RunResult:
        """Create a container, start it, and wait for it, or with ``detach`` return it running.

        ``remove`` removes it at its end, with its anonymous volumes (a detached one when the store is next looked at).
        ``timeout`` seconds after its start it is killed, with everything in it; the result says ``timed_out``. ``input`` is fed
        to its stdin. ``check`` raises CommandFailed or DeadlineExceeded instead of returning another status than 0.
        ``on_output(stream, data)`` is called, in this thread, with each piece of output as it comes. ``options`` and errors are
        those of :meth:`create` and :meth:`Container.start`; a container that could not be started is removed.
        """
        if input is not None:
            if not isinstance(input, bytes | bytearray | memoryview):
                raise InvalidArgument(
                    f"input is {type(input).__name__}, not bytes", hint="Encode text: input=text.encode()."
                )
            options["stdin"] = True
        with span("lamella.container.run", image=_name(image)):
            parsed = self._options(command, options)
            remove |= parsed.auto_remove
            if remove and parse_restart_policy(parsed.restart_policy):
                raise _removed_and_restarted()
            parsed = replace(parsed, auto_remove=remove and detach)
            container, root = self._create(image, parsed)
            container.is_transient = remove
            try:
                attached = container.start_on(root, attach=not detach)
            except BaseException:
                container.remove(force=True, volumes=True)
                raise
            if attached is None:
                return container
            try:
                with attached:
                    result = await_result(
                        attached,
                        input=input,
                        timeout=timeout,
                        kill=container.kill,
                        container_id=container.id,
                        on_output=on_output,
                    )
            except BaseException:
                container.stop(0)
                raise
            finally:
                if remove:
                    container.remove(force=True, volumes=True)
        return result.check(f"{container.command[0]!r} in {container.name}") if check else result


def _mounts(options: Options, image: RunConfig) -> list[AnyMount]:
    """Give the mounts that the options name, and the volumes that the image asks for."""
    mounts: list[AnyMount] = []
    if options.volumes or options.mounts or options.tmpfs:
        from lamella.containers.mounts import parse_mounts

        mounts = parse_mounts(options)
    if image.volumes:
        from lamella.containers.volumes import image_volumes

        mounts += image_volumes(image.volumes, mounts, defaults=("/proc", "/sys", "/dev"))
    return mounts


def _exposed(options: Options, image: RunConfig) -> tuple[Port, ...]:
    """Give the ports that the image and the options name as served."""
    if not image.exposed_ports and not options.expose:
        return ()
    from lamella.containers.networks.ports import parse_exposed

    return parse_exposed(image.exposed_ports, options.expose)


def _runtime(config: Config, options: Options) -> str:
    """Give the name of the runtime that is to make a container. Errors: those of ``find_runtime``."""
    name = options.runtime if options.runtime is not None else config.runtime
    if name != DEFAULT_RUNTIME:
        from lamella.containers.runtimes import find_runtime

        find_runtime(name)
    return name


def _attaching(
    client: Client, parent: str, container_id: str, mounts: list[AnyMount], id_maps: IdMaps | None
) -> AbstractContextManager[Callable[[], Attached | None]]:
    """Begin to give a container what it mounts; the result, to be called in its transaction, gives that, None for nothing."""
    if not mounts:
        return nullcontext(lambda: None)
    from lamella.containers.mount_sources import attaching

    return attaching(client, parent, container_id, mounts, id_maps)


def _id_maps(client: Client, options: Options, shared: str) -> IdMaps | None:
    """Give the maps of ids of a container, as :func:`lamella.containers.id_maps.settle_maps` does."""
    if not (options.asks_for_maps or shared):
        return None
    with client.database.read() as db:
        return settle_maps(db, client.config.namespace, options, shared)


def _has_snapshot(db: Transaction, config: Config, key: str) -> bool:
    """Say whether a container has the snapshot of this key."""
    row = db.execute(
        "SELECT 1 FROM containers WHERE namespace = ? AND snapshotter = ? AND snapshot_key = ?",
        (config.namespace, config.snapshotter, key),
    ).fetchone()
    return row is not None


@contextmanager
def _unpacked(image: Image | Branch, parent: str, client: Client) -> Iterator[None]:
    """Say of a parent that is missing what that means for an image."""
    try:
        yield
    except NotFound:
        if not isinstance(image, Image) or _is_there(client, parent):  # it is something else that is missing
            raise
        raise NotFound(
            f"image {image.name} is not unpacked for the {client.config.snapshotter} snapshotter",
            hint=f"Unpack it: lamella --snapshotter {client.config.snapshotter} pull {image.name}",
        ) from None


def _is_there(client: Client, key: str) -> bool:
    try:
        client.snapshots.stat(key)
    except NotFound:
        return False
    return True


def _stop_signal(options: Options, image: RunConfig) -> str | None:
    """Give the signal that asks the container to end, checked, as is how long it has for that."""
    if options.stop_timeout is not None and not 0 <= options.stop_timeout < float("inf"):
        raise InvalidArgument(f"stop_timeout {options.stop_timeout!r} is not a number of seconds")
    stop_signal = options.stop_signal or image.stop_signal
    if stop_signal:
        signal_number(stop_signal)
    return stop_signal


def _removed_and_restarted() -> InvalidArgument:
    return InvalidArgument(
        "a container that is run again cannot be removed at its end",
        hint="Leave out either remove or the restart policy.",
    )


def _for_platform(source: str | Image | Branch, client: Client, platform: str) -> Image:
    """Give the image for a platform, of an index or alone. NotFound; InvalidArgument for a branch: its image was chosen."""
    from lamella.platforms import acceptable, normalize, parse_platform

    if not isinstance(source, str | Image):
        raise InvalidArgument(
            f"the branch {source.name} stands on an image for one platform", hint="Leave the platform out."
        )
    image = client.images.get(_name(source), platform=platform)
    if str(normalize(image.platform)) not in map(str, acceptable(parse_platform(platform))):
        raise NotFound(
            f"image {image.name} is for {image.platform}, not for {platform}",
            hint=f"Fetch the other one, if there is one: lamella pull --platform {platform} {image.name}",
        )
    return image


def _name(image: str | Image | Branch) -> str:
    if isinstance(image, str):
        return image
    return image.name if isinstance(image, Image) else image.image_name
