"""What keeps what: the graph that garbage collection follows, in both directions.

Nodes are rows of content, snapshots, images and containers, written as one integer: number * 4 + kind. Edges, within a
namespace: an image keeps its target, a container its snapshot, a snapshot its parent, and the labels that the table
gc_labels indexes (schema.py) keep what they name, or, the back references, are kept by it.

Roots: containers; images and what has ``containerd.io/gc.root``, until their ``containerd.io/gc.expire``; active snapshots,
but for those that say otherwise (labels.COLLECTABLE); what an unexpired lease names. A lease with ``containerd.io/gc.flat`` keeps
what it names, and the parents of a snapshot, which cannot be without them, but not what these lead to.

:func:`mark` walks down from all roots, over one state of the whole store. :func:`condemned` walks up from a few nodes and
says which of them no root leads to: quick enough to ask again in the transaction that deletes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lamella.errors import InvalidArgument
from lamella.labels import COLLECTABLE
from lamella.metadata.clock import parse_time

if TYPE_CHECKING:
    from lamella.metadata.database import Transaction

CONTENT, SNAPSHOT, IMAGE, CONTAINER = range(4)

# CROSS JOIN has SQLite take the tables in the order they are written: from the nodes that were reached to their neighbours.
# Left to itself it turned some of these around, which took 50 s for 10,000 images instead of 0.1.

# Nodes that the nodes in "live" keep.
_DOWN = """
    SELECT c.number * 4 FROM live CROSS JOIN images i ON i.number = live.node >> 2
        CROSS JOIN content c ON c.namespace = i.namespace AND c.digest = i.digest
        WHERE live.node & 3 = 2
    UNION
    SELECT s.number * 4 + 1 FROM live CROSS JOIN containers k ON k.number = live.node >> 2
        CROSS JOIN snapshots s ON s.namespace = k.namespace AND s.snapshotter = k.snapshotter AND s.name = k.snapshot_key
        WHERE live.node & 3 = 3
    UNION
    SELECT s.parent * 4 + 1 FROM live CROSS JOIN snapshots s ON s.number = live.node >> 2
        WHERE live.node & 3 = 1 AND s.parent IS NOT NULL
    UNION
    SELECT c.number * 4 FROM live CROSS JOIN gc_labels g ON g.owner = live.node AND g.kind = 'content'
        CROSS JOIN content c ON c.namespace = g.namespace AND c.digest = g.named
    UNION
    SELECT s.number * 4 + 1 FROM live CROSS JOIN gc_labels g ON g.owner = live.node AND g.kind = 'snapshot'
        CROSS JOIN snapshots s ON s.namespace = g.namespace AND s.snapshotter = g.scope AND s.name = g.named
"""
# Left out where there are none, which is nearly always: they cost a look-up for each node.
_DOWN_BACK_REFERENCES = """
    UNION
    SELECT g.owner FROM live CROSS JOIN content c ON c.number = live.node >> 2
        CROSS JOIN gc_labels g ON g.kind = '<content' AND g.namespace = c.namespace AND g.scope = '' AND g.named = c.digest
        WHERE live.node & 3 = 0
    UNION
    SELECT g.owner FROM live CROSS JOIN snapshots s ON s.number = live.node >> 2
        CROSS JOIN gc_labels g ON g.kind = '<snapshot' AND g.namespace = s.namespace AND g.scope = s.snapshotter
            AND g.named = s.name
        WHERE live.node & 3 = 1
    UNION
    SELECT g.owner FROM live CROSS JOIN images i ON i.number = live.node >> 2
        CROSS JOIN gc_labels g ON g.kind = '<image' AND g.namespace = i.namespace AND g.scope = '' AND g.named = i.name
        WHERE live.node & 3 = 2
    UNION
    SELECT g.owner FROM live CROSS JOIN containers k ON k.number = live.node >> 2
        CROSS JOIN gc_labels g ON g.kind = '<container' AND g.namespace = k.namespace AND g.scope = '' AND g.named = k.id
        WHERE live.node & 3 = 3
"""
# The same edges the other way: nodes that keep the nodes in "up".
_UP = """
    SELECT i.number * 4 + 2 FROM up CROSS JOIN content c ON c.number = up.node >> 2
        CROSS JOIN images i ON i.namespace = c.namespace AND i.digest = c.digest
        WHERE up.node & 3 = 0
    UNION
    SELECT k.number * 4 + 3 FROM up CROSS JOIN snapshots s ON s.number = up.node >> 2
        CROSS JOIN containers k ON k.namespace = s.namespace AND k.snapshotter = s.snapshotter AND k.snapshot_key = s.name
        WHERE up.node & 3 = 1
    UNION
    SELECT s.number * 4 + 1 FROM up CROSS JOIN snapshots s ON s.parent = up.node >> 2 WHERE up.node & 3 = 1
    UNION
    SELECT g.owner FROM up CROSS JOIN content c ON c.number = up.node >> 2
        CROSS JOIN gc_labels g ON g.kind = 'content' AND g.namespace = c.namespace AND g.scope = '' AND g.named = c.digest
        WHERE up.node & 3 = 0
    UNION
    SELECT g.owner FROM up CROSS JOIN snapshots s ON s.number = up.node >> 2
        CROSS JOIN gc_labels g ON g.kind = 'snapshot' AND g.namespace = s.namespace AND g.scope = s.snapshotter
            AND g.named = s.name
        WHERE up.node & 3 = 1
    UNION
    SELECT c.number * 4 FROM up CROSS JOIN gc_labels g ON g.owner = up.node AND g.kind = '<content'
        CROSS JOIN content c ON c.namespace = g.namespace AND c.digest = g.named
    UNION
    SELECT s.number * 4 + 1 FROM up CROSS JOIN gc_labels g ON g.owner = up.node AND g.kind = '<snapshot'
        CROSS JOIN snapshots s ON s.namespace = g.namespace AND s.snapshotter = g.scope AND s.name = g.named
    UNION
    SELECT i.number * 4 + 2 FROM up CROSS JOIN gc_labels g ON g.owner = up.node AND g.kind = '<image'
        CROSS JOIN images i ON i.namespace = g.namespace AND i.name = g.named
    UNION
    SELECT k.number * 4 + 3 FROM up CROSS JOIN gc_labels g ON g.owner = up.node AND g.kind = '<container'
        CROSS JOIN containers k ON k.namespace = g.namespace AND k.id = g.named
"""

_LEASES = """
leases_now (number, namespace, flat) AS (
    SELECT number, namespace, EXISTS (SELECT 1 FROM json_each(labels) WHERE key = 'containerd.io/gc.flat')
    FROM leases WHERE expires_at IS NULL OR expires_at > :now
),
leased (node, flat) AS (
    SELECT c.number * 4, x.flat FROM leases_now x
        CROSS JOIN lease_resources r ON r.lease = x.number AND r.type = 'content'
        CROSS JOIN content c ON c.namespace = x.namespace AND c.digest = r.resource
    UNION ALL
    SELECT s.number * 4 + 1, x.flat FROM leases_now x
        CROSS JOIN lease_resources r ON r.lease = x.number AND r.type GLOB 'snapshots/*'
        CROSS JOIN snapshots s ON s.namespace = x.namespace AND s.snapshotter = substr(r.type, 11) AND s.name = r.resource
    UNION ALL
    SELECT i.number * 4 + 2, x.flat FROM leases_now x
        CROSS JOIN lease_resources r ON r.lease = x.number AND r.type = 'images'
        CROSS JOIN images i ON i.namespace = x.namespace AND i.name = r.resource
)
"""

ACTIVE_ROOT = f"s.kind = 'active' AND NOT instr(s.labels, '\"{COLLECTABLE}\"')"
"""An SQL condition on a row ``s`` of snapshots: it is a root by itself."""

_MARK = """
INSERT INTO temp.live WITH RECURSIVE {leases}, live (node) AS (
    SELECT node FROM (
        SELECT number * 4 + 2 AS node FROM images
        UNION ALL SELECT owner FROM gc_labels WHERE kind = 'root' AND owner & 3 < 2
    ) WHERE node NOT IN (SELECT value FROM json_each(:expired))
    UNION SELECT number * 4 + 3 FROM containers
    UNION SELECT number * 4 + 1 FROM snapshots s WHERE {root}
    UNION SELECT node FROM leased WHERE NOT flat
    UNION {down}
) SELECT node FROM live
"""
_MARK_FLAT = """
INSERT OR IGNORE INTO temp.live WITH RECURSIVE {leases}, flat_nodes (node) AS (
    SELECT node FROM leased WHERE flat
    UNION
    SELECT s.parent * 4 + 1 FROM flat_nodes CROSS JOIN snapshots s ON s.number = flat_nodes.node >> 2
        WHERE flat_nodes.node & 3 = 1 AND s.parent IS NOT NULL
) SELECT node FROM flat_nodes
"""

# Leases that name a node, found from the node's side: a lease may have very many resources.
_LEASE_OF = """
    SELECT r.lease FROM content c CROSS JOIN lease_resources r ON r.type = 'content' AND r.resource = c.digest
        CROSS JOIN leases x ON x.number = r.lease AND x.namespace = c.namespace
        WHERE up.node & 3 = 0 AND c.number = up.node >> 2
    UNION ALL
    SELECT r.lease FROM snapshots s
        CROSS JOIN lease_resources r ON r.type = 'snapshots/' || s.snapshotter AND r.resource = s.name
        CROSS JOIN leases x ON x.number = r.lease AND x.namespace = s.namespace
        WHERE up.node & 3 = 1 AND s.number = up.node >> 2
    UNION ALL
    SELECT r.lease FROM images i CROSS JOIN lease_resources r ON r.type = 'images' AND r.resource = i.name
        CROSS JOIN leases x ON x.number = r.lease AND x.namespace = i.namespace
        WHERE up.node & 3 = 2 AND i.number = up.node >> 2
"""
_ROOTS_ABOVE = f"""
WITH RECURSIVE up (node) AS (SELECT value FROM json_each(:nodes) UNION {_UP})
SELECT node,
    node & 3 = 3
        OR node & 3 = 1 AND EXISTS (SELECT 1 FROM snapshots s WHERE s.number = node >> 2 AND {ACTIVE_ROOT})
        OR EXISTS (
            SELECT 1 FROM leases WHERE number IN ({_LEASE_OF}) AND (expires_at IS NULL OR expires_at > :now) AND (
                node IN (SELECT value FROM json_each(:nodes))
                OR NOT EXISTS (SELECT 1 FROM json_each(labels) WHERE key = 'containerd.io/gc.flat'))),
    node & 3 = 2 OR EXISTS (SELECT 1 FROM gc_labels WHERE owner = node AND kind = 'root'),
    (SELECT named FROM gc_labels WHERE owner = node AND kind = 'expire')
FROM up
"""  # noqa: S608 (constants)

_IMAGES_ABOVE = f"""
WITH RECURSIVE up (node) AS (SELECT value FROM json_each(:nodes) UNION {_UP})
SELECT namespace, name FROM up CROSS JOIN images ON number = node >> 2 WHERE node & 3 = 2 ORDER BY namespace, name
"""  # noqa: S608 (constants)

# The first node above that is an image of one of the names, or is named by a lease with the label. SQLite walks no further.
_NAMED_ABOVE = f"""
WITH RECURSIVE up (node) AS (
    SELECT number * 4 FROM content WHERE namespace = :namespace AND digest = :digest UNION {_UP}
)
SELECT 1 FROM up WHERE
    EXISTS (
        SELECT 1 FROM images i CROSS JOIN json_each(:names) n WHERE up.node & 3 = 2 AND i.number = up.node >> 2
            AND substr(i.name, 1, length(n.value) + 1) IN (n.value || ':', n.value || '@'))
    OR EXISTS (
        SELECT 1 FROM leases x CROSS JOIN json_each(x.labels) l CROSS JOIN json_each(:names) n
        WHERE x.number IN ({_LEASE_OF}) AND (x.expires_at IS NULL OR x.expires_at > :now)
            AND l.key = :label AND l.value = n.value)
LIMIT 1
"""  # noqa: S608 (constants)


def mark(db: Transaction, now: str) -> None:
    """Fill the temporary tables ``live`` and ``garbage`` (content and snapshots) with the nodes of the present state."""
    any_back = db.execute("SELECT 1 FROM gc_labels WHERE kind GLOB '<*' LIMIT 1").fetchone() is not None
    down = _DOWN + (_DOWN_BACK_REFERENCES if any_back else "")
    db.execute(
        """
        CREATE TEMP TABLE IF NOT EXISTS live (node INTEGER PRIMARY KEY);
        CREATE TEMP TABLE IF NOT EXISTS garbage (node INTEGER PRIMARY KEY);
        DELETE FROM temp.live; DELETE FROM temp.garbage;
        """
    ).fetchall()
    expired = msgspec.json.encode(_expired_owners(db, now)).decode()
    db.execute(_MARK.format(leases=_LEASES, down=down, root=ACTIVE_ROOT), {"now": now, "expired": expired})
    db.execute(_MARK_FLAT.format(leases=_LEASES), {"now": now})
    db.execute(
        """
        INSERT INTO temp.garbage
            SELECT number * 4 FROM content WHERE number * 4 NOT IN temp.live
            UNION ALL SELECT number * 4 + 1 FROM snapshots WHERE number * 4 + 1 NOT IN temp.live
            UNION ALL SELECT number * 4 + 2 FROM images WHERE number * 4 + 2 NOT IN temp.live
        """
    )


def condemned(db: Transaction, nodes: Sequence[int], now: str) -> list[int]:
    """Return those of ``nodes`` that no root leads to in the present state."""
    if not nodes:
        return []
    text = msgspec.json.encode(nodes).decode()
    rows = db.execute(_ROOTS_ABOVE, {"nodes": text, "now": now})
    if not any(held or (kept and not is_past(expire, now)) for _, held, kept, expire in rows):
        return list(nodes)
    if len(nodes) == 1:
        return []
    half = len(nodes) // 2
    return condemned(db, nodes[:half], now) + condemned(db, nodes[half:], now)


def images_above(db: Transaction, nodes: Sequence[int]) -> list[tuple[str, str]]:
    """Return the images, as (namespace, name), that lead to any of ``nodes``; an image's own node leads to itself."""
    return db.execute(_IMAGES_ABOVE, {"nodes": msgspec.json.encode(nodes).decode()}).fetchall()


def is_named(
    db: Transaction, namespace: str, digest: str, names: Sequence[str], *, label: str, now: str
) -> bool:
    """Tell whether an image whose name, without tag and digest, is one of ``names`` leads to a digest.

    So does an unexpired lease whose ``label`` has one of them as its value.
    """
    values = {
        "namespace": namespace,
        "digest": digest,
        "names": msgspec.json.encode(names).decode(),
        "label": label,
        "now": now,
    }
    return db.execute(_NAMED_ABOVE, values).fetchone() is not None


def is_past(expire: object, now: str) -> bool:
    """Tell whether a gc.expire label has passed. One that cannot be read never does."""
    try:
        return isinstance(expire, str) and parse_time(expire) <= now
    except InvalidArgument:
        return False


def _expired_owners(db: Transaction, now: str) -> list[int]:
    rows = db.execute("SELECT owner, named FROM gc_labels WHERE kind = 'expire'").fetchall()
    return [owner for owner, expire in rows if is_past(expire, now)]
