"""The table of all commands: names, one line each, and the module that holds the rest.

Looking a name up imports that one module; ``lamella --help`` imports none.
"""

from __future__ import annotations

from importlib import import_module

from lamella.cli.parser import Command, Group, unknown


class Entry:
    """One row: ``module`` is below ``lamella.cli``, ``attribute`` the Command or Group in it, or GROUP.VERB for a verb."""

    def __init__(
        self, name: str, summary: str, module: str, attribute: str, aliases: tuple[str, ...] = ()
    ) -> None:
        self.name, self.summary, self.module = name, summary, module
        self.attribute, self.aliases = attribute, aliases

    def load(self) -> Command | Group:
        """Import the module and return the command."""
        attribute, _, verb = self.attribute.partition(".")
        value = getattr(import_module(f"lamella.cli.{self.module}"), attribute)
        if verb:
            assert isinstance(value, Group)
            value = value.names()[verb]
        assert isinstance(value, Command | Group)
        return value


SECTIONS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Images",
        (
            Entry("pull", "Fetch an image and unpack its layers.", "pull", "PULL"),
            Entry("push", "Send an image to a registry.", "push", "PUSH"),
            Entry("copy", "Copy an image from one registry to another.", "push", "COPY"),
            Entry("login", "Log in to a registry.", "login", "LOGIN"),
            Entry("logout", "Log out of a registry.", "login", "LOGOUT"),
            Entry("images", "List, inspect, convert and remove images.", "images", "IMAGES", ("image",)),
            Entry("tag", "Give an image another name.", "images", "TAG"),
            Entry("import", "Take images from a file or a folder.", "archives", "IMPORT", ("load",)),
            Entry("export", "Write images to a file or a folder.", "archives", "EXPORT", ("save",)),
            Entry("graph", "Draw what belongs to an image.", "graph", "GRAPH"),
        ),
    ),
    (
        "Containers",
        (
            Entry("run", "Run a command in a new container.", "run", "RUN"),
            Entry("ps", "List containers.", "containers", "PS"),
            Entry("cp", "Copy files into a container, or out of it.", "cp", "CP"),
            Entry("logs", "Show what a container wrote.", "logs", "LOGS"),
            Entry("stats", "Show what running containers use.", "stats", "STATS"),
            Entry("top", "Show the processes of a running container.", "top", "TOP"),
            Entry("update", "Change the limits and restart policy of containers.", "update", "UPDATE"),
            Entry(
                "containers",
                "Create, start, watch and remove containers.",
                "containers",
                "CONTAINERS",
                ("container",),
            ),
            Entry(
                "networks", "List, make, connect and remove networks.", "networks", "NETWORKS", ("network",)
            ),
            Entry("volumes", "List, make and remove volumes.", "volumes", "VOLUMES", ("volume",)),
            Entry(
                "branches",
                "List, export and remove frozen containers.",
                "branches",
                "BRANCHES",
                ("branch",),
            ),
        ),
    ),
    (
        "One container, in docker's words (short for 'containers ...')",
        (
            Entry(
                "create",
                "Make a container and print its id; nothing runs yet.",
                "containers",
                "CONTAINERS.create",
            ),
            Entry("start", "Start containers.", "containers", "CONTAINERS.start"),
            Entry("exec", "Run one more command in a running container.", "exec", "EXEC"),
            Entry("attach", "Join the streams of a running container until its end.", "exec", "ATTACH"),
            Entry(
                "wait",
                "Wait for containers to end and print their exit statuses.",
                "containers",
                "CONTAINERS.wait",
            ),
            Entry("kill", "Send a signal to containers.", "containers", "CONTAINERS.kill"),
            Entry(
                "stop",
                "Ask containers to end, and kill those that don't in time.",
                "containers",
                "CONTAINERS.stop",
            ),
            Entry("restart", "Stop containers and start them again.", "containers", "CONTAINERS.restart"),
            Entry("pause", "Freeze all processes of containers.", "containers", "CONTAINERS.pause"),
            Entry("resume", "Let paused containers go on.", "containers", "CONTAINERS.resume", ("unpause",)),
            Entry("rename", "Give a container another name.", "containers", "CONTAINERS.rename"),
            Entry("port", "Show where the ports of a container are published.", "port", "PORT"),
            Entry("rm", "Remove containers.", "containers", "CONTAINERS.rm"),
        ),
    ),
    (
        "Store",
        (
            Entry("content", "List, read and remove blobs.", "content", "CONTENT"),
            Entry(
                "additional-stores",
                "List, fill and empty stores of images for all users.",
                "additional",
                "ADDITIONAL_STORES",
                ("additional-store",),
            ),
            Entry("snapshots", "List, make and remove snapshots.", "snapshots", "SNAPSHOTS", ("snapshot",)),
            Entry("leases", "Protect objects from garbage collection.", "leases", "LEASES", ("lease",)),
            Entry(
                "namespaces",
                "List, create and remove namespaces.",
                "namespaces",
                "NAMESPACES",
                ("namespace",),
            ),
            Entry("gc", "Remove what nothing refers to.", "gc", "GC"),
            Entry("fsck", "Look for damage and mend it.", "fsck", "FSCK"),
            Entry("du", "Show what takes the disk.", "du", "DU"),
            Entry("events", "Follow what happens.", "events", "EVENTS"),
            Entry("metrics", "Print counters and gauges for Prometheus.", "metrics", "METRICS"),
            Entry(
                "serve",
                "Serve containerd's API on a socket, for ctr, nerdctl and Go programs.",
                "serve",
                "SERVE",
            ),
        ),
    ),
    (
        "This machine and this program",
        (
            Entry("doctor", "Check what this machine offers.", "doctor", "DOCTOR"),
            Entry(
                "registry",
                "Look at and manage what registries have, and serve images.",
                "registry",
                "REGISTRY",
            ),
            Entry("completion", "Print a completion script for a shell.", "completion", "COMPLETION"),
            Entry("version", "Show versions.", "version", "VERSION"),
        ),
    ),
)


def entries() -> list[Entry]:
    """Give all rows in the order of the help text."""
    return [entry for _, rows in SECTIONS for entry in rows]


def find(word: str) -> Command | Group:
    """Return the command of that name or alias; UsageError when there is none."""
    for entry in entries():
        if word == entry.name or word in entry.aliases:
            return entry.load()
    raise unknown(word, [entry.name for entry in entries()])
