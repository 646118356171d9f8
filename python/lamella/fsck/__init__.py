"""fsck: walk the database and the disk, both ways, and name what does not fit; mend what can be mended.

There are two sorts of it. *Findings* are wrong: something that was promised is not there. *Leftovers* are what a process leaves
that is killed, at whichever moment: files and folders that no row names. They are invisible, harm nobody and go with the next
garbage collection. A store on which processes were killed has leftovers, never findings.

Findings:

==================  =================================================  ====================================================
kind                what it is                                         what --repair does
==================  =================================================  ====================================================
database            SQLite finds the metadata damaged                  nothing
damaged-blob        a blob's bytes have another digest                 fetches it, else removes it and names its images
missing-blob        a blob has a row and no file                       fetches it, else names its images
missing-layer       the folder of a layer is gone                      unpacks it anew; gives an active snapshot an empty
                                                                       one; forgets a committed one that nothing stands on
unverified-layer    another boot left a layer without a sync           unpacks it anew
damaged-layer       a layer's folder differs from its blob             unpacks it anew, unless a container runs on it
unverifiable        unverified, and somebody committed it              keeps it: only its owner can tell
dangling-image      an image points at content that is not here        fetches it
dangling-container  a container's snapshot or volume is gone           nothing; remove the container
mount               something is mounted in the store or at a task     unmounts it
unknown-task        a task runs that has no container                  nothing; stop it
==================  =================================================  ====================================================

Leftovers:

==================  =================================================  ====================================================
kind                what it is                                         what --repair and gc do
==================  =================================================  ====================================================
orphan-blob         a file under blobs/ has no row                     remove it
orphan-folder       a folder under snapshots/ has no row               remove it
damaged-ingest      an ingest has no record, or is being removed       remove it
stale-task          a task or log folder has no container              remove it
stale-network       a container that has ended is still plugged in     let go of it
stale-volume        a volume was being made or removed                 remove it
==================  =================================================  ====================================================

What is fetched comes from the repositories that the content's labels name (``containerd.io/distribution.source.*``), one after
the other until one has it, and is verified like everything that is pulled (:mod:`lamella.fsck.sources`). A layer is unpacked
from its blob, or from the registry where blobs are not kept. A blob that nothing refers to is forgotten instead; one that is
needed and cannot be had keeps its row, so that what it refers to is kept too, and a later pull or repair fetches just it.

What is in use is never taken for damage: files that are being written are locked, and what has no row is looked at again in a
write transaction before it goes (as garbage collection does, gc.py). Blobs are hashed in several threads; hashing takes
seconds a gigabyte and holds nobody up. Each package file looks after one thing: blobs, layers, and the rest in check.
"""

from __future__ import annotations

from lamella.fsck.check import check
from lamella.fsck.report import Finding, FindingKind, FsckReport, LeftoverKind

__all__ = ["Finding", "FindingKind", "FsckReport", "LeftoverKind", "check"]
