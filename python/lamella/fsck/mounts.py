"""What is mounted on this machine, and which layers are read through a mount."""

from __future__ import annotations

from pathlib import Path

from lamella import _core
from lamella.config import Config
from lamella.containers.task import Task
from lamella.metadata import Database


def mount_points() -> list[str]:
    """Give the mount points of this process's namespace, in the order in which they were mounted."""
    points = [line.split(" ")[4] for line in _mountinfo()]
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):  # proc(5)
        points = [point.replace(code, char) for point in points]
    return points


def unmount(point: str) -> str:
    """Unmount what is left there."""
    _core.unmount(point)
    return "unmounted it"


def user_of_layer(database: Database, config: Config, layer_id: str) -> str | None:
    """Say who reads a layer's folder at this moment: a running container, or a mount that this process sees."""
    with database.read() as db:
        containers = db.execute(
            """
            WITH RECURSIVE above (number) AS (
                SELECT number FROM snapshots WHERE layer = ?
                UNION SELECT s.number FROM above CROSS JOIN snapshots s ON s.parent = above.number
            )
            SELECT k.namespace, k.id, k.name FROM above CROSS JOIN snapshots s ON s.number = above.number
                CROSS JOIN containers k ON k.namespace = s.namespace AND k.snapshotter = s.snapshotter
                    AND (k.snapshot_key = s.name OR EXISTS (
                        SELECT 1 FROM json_each(k.extra, '$.sources') v WHERE json_extract(v.value, '$.snapshot') = s.name))
            ORDER BY k.namespace, k.name
            """,
            (layer_id,),
        ).fetchall()
    for namespace, identifier, name in containers:
        if Task(Config(root=config.root, state=config.state, namespace=namespace), identifier).running():
            return f"container {namespace}/{name}"
    for line in _mountinfo():
        if layer_id in line:
            return f"the mount at {line.split(' ')[4]}"
    return None


def _mountinfo() -> list[str]:
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return text.splitlines()
