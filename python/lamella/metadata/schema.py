"""The tables, and how older databases become the present one.

``PRAGMA user_version`` holds the number of migrations that were applied. A released migration is never edited: a change
of the schema is a new one at the end of MIGRATIONS, and tests/unit/test_metadata.py opens a database of each earlier version.

Times are text (clock.py), labels JSON objects (labels.encode_labels). A row in ``namespaces`` is made by the first row that
names it. Images point at content by digest and containers at snapshots by name, not by foreign keys: a reference may dangle
(a blob that was not fetched), and deleting an image leaves its content to garbage collection.

``gc_labels`` is an index over the labels that garbage collection follows, kept by triggers, so that whoever writes a label
keeps it right: JSON cannot be searched the other way round ("who names this blob?"), and that is what makes a sweep in small
transactions safe. ``owner`` is the row that carries the label, as a node (gc.py): id * 4 + 0 content, 1 snapshot, 2 image,
3 container. ``kind`` is root, expire, or the kind of what is named; with "<" in front the reference goes from the
named object to the owner. ``scope`` is the snapshotter of a named snapshot.

``events`` is filled by triggers too (version 2), so that an event is there if, and only if, its change is, whoever wrote it, a
process of an older lamella that has the store open included. Only what tasks do comes from elsewhere (events/spool.py).
Numbers have no gaps: they are given inside the write transaction, and the newest row is never deleted.
"""

from __future__ import annotations

_TABLES = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    labels TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- platform (JSON) and total_size say what the manifest and config say, so that a list need not read them; null: look there.
CREATE TABLE images (
    number INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    annotations TEXT NOT NULL DEFAULT '{}',
    labels TEXT NOT NULL DEFAULT '{}',
    platform TEXT,
    total_size INTEGER,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (namespace, name)
) STRICT;
CREATE INDEX images_target ON images (namespace, digest);

-- What lies under blobs/, shared by all namespaces. boot_id and synced: see content.py, "Durability".
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    synced INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- A blob as one namespace sees it.
CREATE TABLE content (
    number INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    digest TEXT NOT NULL REFERENCES blobs (digest),
    labels TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (namespace, digest)
) STRICT;
CREATE INDEX content_blob ON content (digest);
CREATE INDEX content_discarded ON content (namespace) WHERE instr(labels, '"lamella.dev/layers-discarded"');

-- What lies under snapshots/<snapshotter>/<id>. With a diff_id it is an unpacked layer, shared by all namespaces; with a
-- chain_id too it is right on top of that chain's parent only. Without, it belongs to a snapshot that somebody wrote.
CREATE TABLE layers (
    id TEXT PRIMARY KEY,
    snapshotter TEXT NOT NULL,
    diff_id TEXT,
    chain_id TEXT,
    disk_bytes INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    opaque_root INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    synced INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX layers_diff ON layers (snapshotter, diff_id, coalesce(chain_id, '')) WHERE diff_id IS NOT NULL;

-- number grows from parent to child: a child is inserted while its parent is there.
CREATE TABLE snapshots (
    number INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    snapshotter TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    parent INTEGER REFERENCES snapshots (number),
    layer TEXT REFERENCES layers (id),
    labels TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (namespace, snapshotter, name)
) STRICT;
CREATE INDEX snapshots_parent ON snapshots (parent);
CREATE INDEX snapshots_layer ON snapshots (layer);

CREATE TABLE containers (
    number INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    image TEXT NOT NULL DEFAULT '',
    snapshotter TEXT NOT NULL DEFAULT '',
    snapshot_key TEXT NOT NULL DEFAULT '',
    runtime TEXT NOT NULL DEFAULT '',
    spec TEXT NOT NULL DEFAULT '{}',
    labels TEXT NOT NULL DEFAULT '{}',
    extra TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (namespace, id),
    UNIQUE (namespace, name)
) STRICT;
CREATE INDEX containers_snapshot ON containers (namespace, snapshotter, snapshot_key);

CREATE TABLE leases (
    number INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    id TEXT NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    expires_at TEXT,
    UNIQUE (namespace, id)
) STRICT;

-- type: content, ingests, images, layers or snapshots/<snapshotter>. What is named need not be there (yet).
CREATE TABLE lease_resources (
    lease INTEGER NOT NULL REFERENCES leases (number) ON DELETE CASCADE,
    type TEXT NOT NULL,
    resource TEXT NOT NULL,
    PRIMARY KEY (lease, type, resource)
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_resources_named ON lease_resources (type, resource);

CREATE TABLE gc_labels (
    owner INTEGER NOT NULL,
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    scope TEXT NOT NULL,
    named TEXT NOT NULL,
    PRIMARY KEY (owner, kind, scope, named)
) STRICT, WITHOUT ROWID;
CREATE INDEX gc_labels_named ON gc_labels (kind, namespace, scope, named);
"""

_NAMESPACE_TRIGGER = """
CREATE TRIGGER {table}_namespace BEFORE INSERT ON {table} BEGIN
    INSERT INTO namespaces (name, created_at, updated_at)
        SELECT new.namespace, now, now FROM (SELECT strftime('%Y-%m-%dT%H:%M:%f000Z') AS now)
        WHERE NOT EXISTS (SELECT 1 FROM namespaces WHERE name = new.namespace);
END;
"""

_LABEL_TRIGGERS = """
CREATE TRIGGER {table}_labels_added AFTER INSERT ON {table} WHEN instr(new.labels, '"containerd.io/gc.') BEGIN
    {index}
END;
CREATE TRIGGER {table}_labels_changed AFTER UPDATE OF labels ON {table}
    WHEN new.labels <> old.labels AND instr(new.labels || old.labels, '"containerd.io/gc.') BEGIN
    DELETE FROM gc_labels WHERE owner = new.number * 4 + {node};
    {index}
END;
CREATE TRIGGER {table}_labels_removed AFTER DELETE ON {table} WHEN instr(old.labels, '"containerd.io/gc.') BEGIN
    DELETE FROM gc_labels WHERE owner = old.number * 4 + {node};
END;
"""

# A label is "containerd.io/gc." + what; what is root, expire, ref.<kind> or bref.<kind>, the kind ending with the text or
# at a "." or "/" (content, image, container), or, for snapshots, a snapshotter's name that ends at a "/".
_INDEX = """
    INSERT OR IGNORE INTO gc_labels (owner, kind, namespace, scope, named)
    SELECT
        new.number * 4 + {node},
        CASE
            WHEN what IN ('root', 'expire') THEN what
            ELSE iif(what GLOB 'bref.*', '<', '') || CASE
                WHEN target GLOB 'snapshot.?*' THEN 'snapshot'
                ELSE target_word
            END
        END,
        new.namespace,
        CASE WHEN target GLOB 'snapshot.?*' THEN
            substr(target, 10, instr(substr(target, 10) || '/', '/') - 1)
        ELSE '' END,
        value
    FROM (
        SELECT *, substr(target, 1, min(instr(target || '.', '.'), instr(target || '/', '/')) - 1) AS target_word
        FROM (
            SELECT substr(key, 18) AS what, substr(key, instr(key, 'ref.') + 4) AS target, value
            FROM json_each(new.labels)
            WHERE key GLOB 'containerd.io/gc.*'
        )
    )
    WHERE what IN ('root', 'expire')
        OR what GLOB 'ref.*' AND (target_word = 'content' OR target GLOB 'snapshot.?*')
        OR what GLOB 'bref.*' AND (target_word IN ('content', 'image', 'container') OR target GLOB 'snapshot.?*');
"""


def _first_version() -> str:
    script = _TABLES
    for table in ("images", "content", "snapshots", "containers", "leases"):
        script += _NAMESPACE_TRIGGER.format(table=table)
    for node, table in enumerate(("content", "snapshots", "images", "containers")):
        script += _LABEL_TRIGGERS.format(table=table, node=node, index=_INDEX.format(node=node))
    return script


_SECOND_TABLES = """
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    namespace TEXT NOT NULL,
    topic TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
-- The newest 32,768 are kept.
CREATE TRIGGER events_trimmed AFTER INSERT ON events WHEN new.number % 256 = 0 BEGIN
    DELETE FROM events WHERE number <= new.number - 32768;
END;

-- Spool files whose lines are in the table already, until somebody sees that they are gone (events/spool.py).
CREATE TABLE drained_spools (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

-- For durability.py. An active snapshot's layer has no inodes counted: it is never done, and there may be very many.
CREATE INDEX blobs_unsynced ON blobs (boot_id, created_at) WHERE synced = 0;
CREATE INDEX layers_unsynced ON layers (boot_id, created_at) WHERE synced = 0 AND (diff_id IS NOT NULL OR inodes > 0);
"""

_EVENT_TRIGGER = """
CREATE TRIGGER {table}_event_{name} AFTER {change} BEGIN
    INSERT INTO events (at, namespace, topic, data)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), {namespace}, '{topic}', json_object({data}));
END;
"""

# (table, name of the trigger, change, topic, data). Topics and fields are those of containerd's api/events, and "name" of a
# container. An update that changes nothing is none.
_EVENTS = (
    ("namespaces", "created", "INSERT ON namespaces", "/namespaces/create",
     "'name', new.name, 'labels', json(new.labels)"),
    ("namespaces", "updated", "UPDATE ON namespaces WHEN new.labels <> old.labels", "/namespaces/update",
     "'name', new.name, 'labels', json(new.labels)"),
    ("namespaces", "deleted", "DELETE ON namespaces", "/namespaces/delete", "'name', old.name"),
    ("images", "created", "INSERT ON images", "/images/create", "'name', new.name, 'labels', json(new.labels)"),
    ("images", "updated",
     "UPDATE ON images WHEN (new.name, new.media_type, new.digest, new.size, new.annotations, new.labels)"
     " IS NOT (old.name, old.media_type, old.digest, old.size, old.annotations, old.labels)",
     "/images/update", "'name', new.name, 'labels', json(new.labels)"),
    ("images", "deleted", "DELETE ON images", "/images/delete", "'name', old.name"),
    ("content", "created", "INSERT ON content", "/content/create",
     "'digest', new.digest, 'size', (SELECT size FROM blobs WHERE digest = new.digest)"),
    ("content", "updated", "UPDATE ON content WHEN new.labels <> old.labels", "/content/update",
     "'digest', new.digest, 'labels', json(new.labels)"),
    ("content", "deleted", "DELETE ON content", "/content/delete", "'digest', old.digest"),
    ("snapshots", "prepared", "INSERT ON snapshots WHEN new.kind <> 'committed'", "/snapshot/prepare",
     "'key', new.name, 'parent', coalesce((SELECT name FROM snapshots WHERE number = new.parent), ''),"
     " 'snapshotter', new.snapshotter"),
    # An unpacked layer becomes a committed snapshot without ever having been an active one: its key is empty.
    ("snapshots", "added", "INSERT ON snapshots WHEN new.kind = 'committed'", "/snapshot/commit",
     "'key', '', 'name', new.name, 'snapshotter', new.snapshotter"),
    ("snapshots", "committed", "UPDATE ON snapshots WHEN new.kind = 'committed' AND old.kind <> 'committed'",
     "/snapshot/commit", "'key', old.name, 'name', new.name, 'snapshotter', new.snapshotter"),
    ("snapshots", "updated", "UPDATE ON snapshots WHEN new.kind = old.kind AND new.labels <> old.labels",
     "/snapshot/update", "'key', new.name, 'labels', json(new.labels), 'snapshotter', new.snapshotter"),
    ("snapshots", "removed", "DELETE ON snapshots", "/snapshot/remove",
     "'key', old.name, 'snapshotter', old.snapshotter"),
    ("containers", "created", "INSERT ON containers", "/containers/create",
     "'id', new.id, 'image', new.image, 'runtime', json_object('name', new.runtime), 'name', new.name"),
    ("containers", "updated",
     "UPDATE ON containers WHEN (new.name, new.image, new.snapshotter, new.snapshot_key, new.runtime, new.spec, new.labels,"
     " new.extra) IS NOT (old.name, old.image, old.snapshotter, old.snapshot_key, old.runtime, old.spec, old.labels, old.extra)",
     "/containers/update",
     "'id', new.id, 'image', new.image, 'labels', json(new.labels), 'snapshot_key', new.snapshot_key, 'name', new.name"),
    ("containers", "deleted", "DELETE ON containers", "/containers/delete", "'id', old.id, 'name', old.name"),
)  # fmt: skip


def _second_version() -> str:
    script = _SECOND_TABLES
    for table, name, change, topic, data in _EVENTS:
        row = "old" if change.startswith("DELETE") else "new"
        column = "name" if table == "namespaces" else "namespace"
        script += _EVENT_TRIGGER.format(
            table=table, name=name, change=change, namespace=f"{row}.{column}", topic=topic, data=data
        )
    return script


MIGRATIONS: tuple[str, ...] = (_first_version(), _second_version())
"""SQL scripts; the n-th brings a database from version n to n + 1."""

VERSION = len(MIGRATIONS)
