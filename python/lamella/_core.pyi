"""The Rust core: what costs time. Every call releases the GIL, maps errors to lamella.errors and polls signals.

Counters.add and Counters.read alone keep the GIL: they take less time than letting it go.

What works on the files of layers does so in a helper process, in a user namespace, where this process is not root: Pipeline with
a ``layer``, Changes, copy_tree, copy_mounts, resolve, first_difference, try_mount; copy_owner, read_file, disk_usage and
remove_tree where access is refused otherwise. Each raises Unavailable when the helper is killed meanwhile (the next call starts
another), and PermissionDenied, Unsupported or ResourceExhausted where the kernel gives no user namespace.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, final

from typing_extensions import Buffer

__all__ = [
    "HOSTS_COMMENTS",
    "Appender",
    "Changes",
    "Counters",
    "Deferred",
    "Files",
    "Packed",
    "Pattern",
    "Pipeline",
    "Stream",
    "Transport",
    "Unpacked",
    "__version__",
    "await_strays",
    "become_launcher",
    "check_mount_options",
    "connect_network",
    "copy_mounts",
    "copy_owner",
    "copy_tree",
    "default_seccomp",
    "diff_trees",
    "diff_upper",
    "digest_of",
    "disk_usage",
    "first_difference",
    "helper_maps",
    "launch",
    "make_network",
    "mount",
    "network_owner",
    "pin_network",
    "prepare_launch",
    "prepare_unpacking",
    "read_file",
    "recompress",
    "release_network",
    "remove_tree",
    "resolve",
    "route_socket",
    "run_program",
    "serves_network",
    "set_top_directory",
    "tell_names",
    "try_mount",
    "unmount",
    "unpin_network",
    "user_extents",
]

__version__: Final[str]

_Compression = Literal["none", "gzip", "zstd"]
_Whiteouts = Literal["overlay", "overlay-userxattr", "plain"]
_Mount = tuple[str, str, Sequence[str]]
"""Type, source, options: as in containerd's mount structure and in fstab."""

@final
class Pipeline:
    """One pass over one blob: hash and write it, and, for a layer, inflate, hash the tar and apply it.

    Bytes go in by ``write`` (any thread, one at a time); stages run in threads of their own with bounded buffers.
    ``blob``: the file to write, None when the blob is in the store already and comes by ``read_from``.
    ``offset``: bytes that the file holds already; they are read back, hashed and unpacked first (resume).
    ``layer``: the folder to apply to, which must exist and be empty (not so for ``whiteouts="plain"``, where it holds a
    copy of the lower layers and deletions happen in it); None to only write the blob.
    ``confined``: a helper applies the layer, also of a root (Unavailable when it is killed meanwhile).
    The blob's magic number decides on its compression; ``compression`` only serves the message when it is damaged.
    After an error of any call the stages have stopped, and later calls raise the same error.
    """

    def __new__(
        cls,
        *,
        digest: str,
        size: int,
        blob: str | None = None,
        offset: int = 0,
        compression: _Compression = "none",
        layer: str | None = None,
        diff_id: str | None = None,
        whiteouts: _Whiteouts = "overlay",
        max_tar_size: int | None = None,
        max_entries: int | None = None,
        confined: bool = False,
    ) -> Pipeline: ...
    def write(self, data: Buffer) -> None:
        """Hand over bytes; blocks while the stages are behind. Raises what a stage failed with, as soon as it did."""
    def read_from(self, path: str) -> None:
        """Feed a whole file."""
    def finish(self) -> Unpacked:
        """Wait for all stages and check size, digest and diffID (FailedPrecondition when one is wrong)."""
    def abort(self) -> None:
        """Stop all stages and wait for them. Harmless twice, and after finish."""
    @property
    def received(self) -> int:
        """Bytes of the blob taken so far, the resumed ones included."""
    @property
    def unpacked(self) -> int:
        """Bytes of the tar applied so far."""

@final
class Stream:
    """One RPC under way, as its handler sees it. Safe to use from several threads."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers, names in lower case; of one that was sent several times the first."""
    @property
    def remaining(self) -> float | None:
        """Seconds until the client gives up, 0.0 after that; None: it does not."""
    @property
    def peer(self) -> tuple[int, int, int]:
        """Process, user and group of the other end, as they were when it connected (SO_PEERCRED)."""
    def on_cancel(self, action: Callable[[], object]) -> None:
        """Have this called, once, when the client has gone or its time is up, on some thread; at once if it was so."""
    def send(self, message: bytes) -> bool:
        """Send a message of a bidirectional RPC; waits while the client reads slowly. False: the RPC has ended."""
    def expect(self, head: bytes, number: int, most: int, appender: Appender) -> None:
        """Say, while a bidirectional RPC is answered, what its next message may be.

        That is the encoded fields ``head``, followed by nothing but field ``number`` with at most ``most`` bytes. If it is, and
        large, these are appended as they come, and ``receive`` gets ``head`` once the last one was; the appender's ``poured()``
        tells of them. Any other message comes as ever, and nothing is expected then.
        """
    def finish(self) -> None:
        """End a bidirectional RPC with OK, after what was sent. Harmless twice."""

@final
class Transport:
    """A gRPC server on a Unix socket: bodies of messages in, bodies out; compressed ones are not read.

    ``methods``: path (``/package.Service/Method``), kind and function of each RPC; other paths are answered Unimplemented.
    Functions are called on threads of a pool, at most ``threads``, and what they raise ends the RPC with the status that the
    exception has as ``code`` (a number) and ``message``, or with Internal:

    - ``unary``: ``function(body, stream) -> body``. ``waiting``: the same; it ends when the server begins to.
    - ``responses``: ``function(body, stream) ->`` a generator of bodies, closed early when the client has gone. One of
      (descriptor, offset, size) in their place is bytes of a file, sent as messages of the offset (field 1) and the bytes
      (field 2); the descriptor is duplicated.
    - ``talk``: ``function(stream) ->`` an object with ``begin()``, ``receive(body)`` and ``half_close()``, each of which gives a
      list of bodies; ``ended``, which is true once the RPC is to end after them; and ``close()``, which is called at the end. One
      thread at a time uses it, and none while the client is silent.

    ``message_max``: bytes of a message that is received. ``counts``, in which each call is counted at its end: counters, the
    bounds of histograms in seconds and, of each method, the first cells of its counts by status code (0 to 16) and of its
    histogram (its buckets, then the sum in ns). ``log``: told of each, on one thread: path, namespace, code, seconds.
    """

    def __new__(
        cls,
        methods: Sequence[
            tuple[str, Literal["unary", "waiting", "responses", "talk"], Callable[..., object]]
        ],
        *,
        threads: int,
        message_max: int,
        counts: tuple[Counters, Sequence[float], Sequence[tuple[int, int]]] | None = None,
        log: Callable[[str, str | None, int, float], object] | None = None,
    ) -> Transport: ...
    def start(self, descriptor: int, *, uids: Sequence[int], gids: Sequence[int]) -> None:
        """Serve what connects to a listening Unix socket, which is duplicated: those users and groups, and root. Once."""
    def stop(self, grace: float) -> None:
        """End it: streams at once, unary RPCs after ``grace`` seconds and a last one. Harmless twice."""

@final
class Unpacked:
    """What a Pipeline found."""

    digest: str
    size: int
    diff_id: str | None
    tar_size: int
    disk_bytes: int
    """Bytes the layer folder takes (512-byte blocks, as du counts)."""
    inodes: int
    opaque_root: bool
    """The layer hides everything beneath it (an opaque marker at its root)."""
    deferred: Deferred
    notes: list[str]
    """What was left out on purpose, such as sockets."""

@final
class Deferred:
    """Entries of a layer that depend on the layers beneath: unnamed parent folders, hard links into lower layers."""

    def __bool__(self) -> bool: ...

@final
class Pattern:
    """A regular expression in Rust's syntax, which is RE2's but for rarities. It is searched for in time linear in the text.

    InvalidArgument for one that is malformed, or takes more than 10 MiB when compiled.
    """

    def __new__(cls, text: str) -> Pattern: ...
    def search(self, text: str) -> bool:
        """Tell whether it matches anywhere in the text."""

@final
class Appender:
    """A file that grows at its end, how much of it counts, and the digest of that (SHA-256, unless it is told otherwise).

    It is made if it is not there (0600); a symlink is refused. All that is in it counts at first. Errors are OSError. Safe to use
    from several threads; what takes long lets the GIL go.
    """

    def __new__(cls, path: str) -> Appender: ...
    @property
    def offset(self) -> int:
        """Bytes that count; also after it was closed."""
    @property
    def length(self) -> int:
        """Bytes of the file, written by whomever."""
    def hash_with(self, algorithm: str) -> None:
        """Hash with this algorithm from now on; what counts is read back if it was another. Unsupported."""
    def append(self, data: Buffer) -> None:
        """Append bytes. After an error that much counts which was written."""
    def digest(self) -> str | None:
        """Give the digest; what it did not write itself is read back. None: the file is shorter than what counts.

        Also after it was closed, if nothing had to be read for it then.
        """
    def cut(self, size: int) -> None:
        """Cut the file to so many bytes, which count then."""
    def count(self, size: int) -> None:
        """Let so many bytes count, which somebody else wrote."""
    def poured(self) -> int:
        """Give how many bytes a Transport has appended since the last call; raise what went wrong then, once."""
    def close(self) -> None:
        """Close the file. Harmless twice."""

@final
class Counters:
    """Counters by index, kept in the file ``path``, which all processes of this user map, or (None) in own memory.

    The file is made if it is not there; its folder is not. FailedPrecondition when it is of another user or length;
    what else the file system refuses.
    """

    def __new__(cls, path: str | None, count: int) -> Counters: ...
    def add(self, index: int, amount: int = 1) -> None:
        """Add to a counter: an atomic instruction, about 50 ns. IndexError; OverflowError for a negative amount."""
    def read(self) -> list[int]:
        """Return all values. What is added meanwhile may be in some of them and not in others."""
    @property
    def shared(self) -> bool:
        """Whether other processes see what is added."""

@final
class Files:
    """The files beneath a root folder, walked as a process does that has it as its root, whoever changes them meanwhile.

    ``root`` is the caller's path: its own symlinks are followed. With ``symlinks=False`` a path with one in it is refused
    (FailedPrecondition). ``ids``: maps of users and groups in containerd's form; owners are those that a container knows which
    has its ids mapped so. ``theirs``: they are a container's, which may belong to any id that a user may map: where he is not
    root, the helper does the work.
    """

    def __new__(
        cls, root: str, *, symlinks: bool = True, ids: tuple[str, str] | None = None, theirs: bool = False
    ) -> Files: ...
    @staticmethod
    def of_mount(mount: tuple[str, str, Sequence[str]]) -> Files:
        """Open what a mount (type, source, options) shows: the helper makes it, attached nowhere, and it goes when this does.

        For a user who is not root; FailedPrecondition for root. Errors of :func:`mount`.
        """
    def close(self) -> None:
        """Let go of the root, so that what is mounted there can be unmounted. Harmless twice."""
    def beneath(self, path: str) -> Files:
        """Return a folder beneath the root as a root of its own; symlinks that lead out are refused. NotFound."""
    def stat(self, path: str, *, follow: bool = False) -> tuple[int, int, int, int, int, int, bytes, bytes]:
        """Return mode, uid, gid, size, nanoseconds of the last change, device, target of a symlink, and the place in the root.

        ``follow``: of what a symlink at the end leads to. NotFound, and what else the kernel says.
        """
    def pack(
        self, path: str, descriptor: int, *, name: str, follow: bool = False, timeout: float | None = None
    ) -> list[str]:
        """Write a file or a tree as a tar archive to a descriptor, under ``name`` ("": what is in it alone), names in order.

        Gives notes of what was left out: sockets. A file that becomes shorter meanwhile is filled up with zeros. DeadlineExceeded
        after ``timeout`` seconds, in :meth:`unpack` too.
        """
    def unpack(
        self,
        folder: str,
        descriptor: int,
        *,
        owner: tuple[int, int] | None = None,
        devices: bool = True,
        timeout: float | None = None,
    ) -> list[str]:
        """Take a tar archive from a descriptor, to its end, into a folder that is there.

        Everything becomes ``owner``'s (uid, gid), or whose the archive says; with ``devices=False`` device nodes are left out.
        Gives notes of what was. FailedPrecondition for a folder where the archive has something else, or the reverse.
        """

@final
class Changes:
    """The differences between two trees, in the order of a layer: sorted, folders before what is in them."""

    def __len__(self) -> int: ...
    @property
    def notes(self) -> list[str]:
        """What was left out on purpose."""

    def list(self) -> Sequence[tuple[Literal["added", "modified", "deleted"], bytes]]:
        """The changes, with paths that have no leading slash; the root is empty."""

    def pack(
        self,
        target: str,
        *,
        compression: str = "gzip",
        level: int | None = None,
        threads: int = 2,
        latest: int | None = None,
    ) -> Packed:
        """Write the changes as a layer's blob to a file, over what is in it.

        ``compression``: none, gzip or zstd. The same tree gives the same bytes, whatever ``threads`` is. Nothing in it is
        younger than ``latest``, in seconds since 1970: a later time of change becomes that. Unavailable when
        somebody changed the tree meanwhile; InvalidArgument for a level that does not exist; ResourceExhausted for a full disk.
        """

@final
class Packed:
    """A blob that was packed: its digest and size in bytes, and those of the archive in it."""

    digest: str
    size: int
    diff_id: str
    tar_size: int

def diff_trees(after: str, before: str | None = None) -> Changes:
    """Find what turns the tree ``before`` (nothing by default) into ``after``.

    InvalidArgument for a name that no layer can have (.wh.*); ResourceExhausted for a tree too deep for one.
    """

def diff_upper(
    folder: str, lowers: Sequence[str], *, opaque: bool = False, whiteouts: _Whiteouts = "overlay"
) -> Changes:
    """Find what an overlay's upper folder changes of the layers beneath it (nearest first), which are looked at by name only.

    ``opaque``: it hides them all. ``whiteouts``: how deletions are recorded in it and in them. Errors as :func:`diff_trees`.
    """

def recompress(
    source: str,
    target: str,
    *,
    diff_id: str,
    compression: str = "gzip",
    level: int | None = None,
    threads: int = 2,
) -> Packed:
    """Write the layer in the file ``source`` in another form to the file ``target``, over what is in it.

    Its bytes depend on the archive, ``compression`` (none, gzip or zstd) and ``level`` alone. FailedPrecondition when its
    diffID is another, DataLoss when it is damaged; InvalidArgument for a level that does not exist; ResourceExhausted for a
    full disk.
    """

def first_difference(expected: str, found: str) -> str | None:
    """Say where two trees differ first and how, as far as an image decides what is in them; None if they don't.

    Compared are names, kinds, modes, owners, device numbers, sizes, bytes, targets of symlinks, extended attributes, which files
    are linked to each other, and times, but for those of folders. Errors: what the file system says when one cannot be read.
    """

def resolve(layer: str, lowers: Sequence[str], deferred: Deferred) -> bool:
    """Finish a layer with what lies beneath it (folders of the lower layers, nearest first).

    Returns True when the result depends on them, so that the folder is right for this chain alone. InvalidArgument
    when a hard link's target exists nowhere. Harmless twice.
    """

def read_file(
    layers: Sequence[str], path: str, limit: int, *, whiteouts: _Whiteouts = "overlay"
) -> bytes | None:
    """Read a regular file from the merged view of layer folders (nearest first) without mounting it.

    Whiteouts (of the form that is said), opaque folders and symlinks (resolved inside the merged root) are honoured. None
    when it is not there or no regular file. ResourceExhausted when it is longer than ``limit`` bytes.
    """

def mount(mounts: Sequence[_Mount], target: str) -> None:
    """Put a snapshot's mounts on a folder (new mount API; the old call on older kernels). Errors name source, options."""

def try_mount(mounts: Sequence[_Mount], target: str, name: str) -> None:
    """Put mounts on a folder, make an empty file of this name in them, and unmount them, where this process may mount.

    Errors as :func:`mount`; nothing stays mounted after one.
    """

def copy_mounts(mounts: Sequence[_Mount], point: str, target: str) -> list[str]:
    """Copy what mounts show into an empty folder, where this process's snapshots are mounted: on ``point``, until it is copied.

    Gives notes of what was left out. Errors as :func:`mount`; after one the folder must be thrown away.
    """

def check_mount_options(options: Sequence[str]) -> None:
    """Look at mount options: InvalidArgument for a map of ids that is none, Unsupported for what takes another program."""

def unmount(target: str) -> None:
    """Unmount everything stacked on a folder, lazily if busy. Harmless when nothing is mounted there."""

def pin_network(path: str, maps: tuple[str, str] | None = None) -> None:
    """Make a network namespace with nothing but loopback, which is up, and keep it by a mount on ``path``, a file that is made.

    With maps of ids (users, groups; ``0:100000:65536``) it belongs to a user namespace that has them, which is kept on
    :func:`network_owner`. AlreadyExists when something is there, PermissionDenied without CAP_SYS_ADMIN. After an error nothing
    is left.
    """

def network_owner(path: str) -> str:
    """Say where the user namespace is kept that the network namespace on ``path`` belongs to, if it is not the machine's."""

def unpin_network(path: str) -> None:
    """Let go of such a namespace, and of its user namespace: they end with the last process in them. Harmless twice."""

HOSTS_COMMENTS: Final[tuple[str, str]]
"""The lines above and below what is kept up to date in a hosts file."""

_Ended = tuple[int | None, bytes, bytes]
"""Exit status (negative for a signal, None when it took too long and was killed), and the beginnings of output and errors."""

def route_socket(namespace: str) -> int:
    """Open a socket of netlink(7) for routes that acts in the network namespace kept on a file. Who calls closes it."""

def run_program(args: Sequence[str], env: Sequence[str], input: str, patience: float) -> _Ended:
    """Run a program to its end, ``patience`` seconds at most; what it started is killed with it then.

    NotFound and PermissionDenied when it cannot be run. A signal for this process ends it, too.
    """

def release_network(record: str, patience: float) -> tuple[str, _Ended] | None:
    """Let go of the network that a record describes, and remove the record; give the path of the program that failed and its end.

    Each program may take ``patience`` seconds. Harmless twice. InvalidArgument for a record that is none.
    """

def serves_network(pid: int, namespace: str) -> bool:
    """Tell whether a process lives and has the path of a namespace among its arguments."""

def await_strays(container: str) -> None:
    """Wait for the CNI plugins that run for a container without the process that had started them; kill them after 10 seconds."""

def tell_names(path: str, text: str) -> None:
    """Note in the file ``path`` what a container is called and where (JSON), and write the hosts files of its networks anew."""

def disk_usage(path: str) -> tuple[int, int]:
    """Return bytes (512-byte blocks) and inodes of a tree; each hard-linked inode once. Never follows a symlink."""

def remove_tree(path: str) -> None:
    """Remove a tree through directory descriptors, never following a symlink. Harmless when it is not there."""

def copy_tree(source: str, target: str) -> list[str]:
    """Copy a tree into an empty folder, as cp -a does; blocks are shared where the file system can.

    Gives notes of what was left out. After an error the folder must be thrown away.
    """

def copy_owner(source: str, target: str) -> None:
    """Give a folder the owner and the mode of another."""

_Extents = list[tuple[int, int, int]]
"""A map of ids: the first one inside, the first one outside, how many."""

def make_network() -> tuple[int, int]:
    """Make a network namespace with loopback alone, for who is not root; give descriptors: of its user namespace, and of it.

    They are the caller's to close. FailedPrecondition for root, who makes networks without a helper.
    """

def connect_network(
    network: int, path: str, args: Sequence[str], env: Sequence[str], patience: float
) -> tuple[int | None, bytes]:
    """Have a program connect a network namespace that :func:`make_network` made; give its exit status and what it said.

    While it starts the namespace is kept on the file ``path``, as it alone sees. None when it was killed after ``patience``
    seconds. NotFound when it cannot be run.
    """

def helper_maps() -> tuple[_Extents, _Extents, list[str]] | None:
    """Return which users and groups the helper's user namespace maps, and why it is not more; it is started if there is none.

    None where this process needs no helper: it is root. PermissionDenied, Unsupported or ResourceExhausted where the kernel gives
    no user namespace.
    """

def user_extents(own: int, name: str, user: int, text: str, printed: str) -> _Extents:
    """Return how the helper of a user maps ids: ``own`` is 0, and the ranges follow from 1 on.

    They are those that a text like that of /etc/subuid gives the user by name or number, or else those in what getsubids(1)
    ``printed``.
    """

def set_top_directory(path: str) -> bool:
    """Set FS_TOPDIR_FL (chattr +T): ext4 then spreads child folders over block groups. False where unsupported."""

def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Hash bytes: ``algorithm:hex``. Unsupported for an algorithm that is not sha256, sha384 or sha512."""

def default_seccomp(capabilities: Sequence[str]) -> str:
    """Return the default seccomp profile for a container with these capabilities, as JSON (``linux.seccomp``)."""

def become_launcher(arguments: Sequence[str]) -> None:
    """Become the launcher (from a sealed memfd), which takes its role from its name, the first argument.

    Standard streams, open files and environment stay. Returns only by raising.
    """

def prepare_launch() -> None:
    """Make the sealed memfd that the first :func:`launch` starts from, in the background; harmless twice."""

def prepare_unpacking(confined: bool) -> None:
    """Start the helper that unpacks layers ahead of the first, in the background; harmless twice.

    ``confined``: as for :class:`Pipeline`. Where no helper is needed nothing happens; what goes wrong is said by who unpacks.
    """

def launch(request: bytes, descriptors: Sequence[int] = ..., network: tuple[int, int] | None = None) -> bytes:
    """Start the launcher (from a sealed memfd) with a request document; return its reply document.

    The launcher is nobody's child: this process has none to mind. ``descriptors`` appear in it from 5 on, in order.
    For a user who is not root it works in the user namespace of the helper, or in that of ``network``: descriptors of a user
    namespace, and of the network namespace that belongs to it, which the container gets.
    """
