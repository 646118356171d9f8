//! Differences between trees, as a layer: what [`super::Applier`] has to be given to make one out of the other.
//!
//! The tree is an overlay's upper folder, in which the kernel has recorded the differences already and nothing beneath is looked
//! at, or any tree, held against another one entry by entry. Either way the walk finds all changes first, in the order of
//! their names, folders before what is in them; [`write`] then makes a layer of them whose bytes depend on the tree alone.
//! Whoever changes the tree meanwhile gets an error or a mixture, but nothing from outside the tree: all access is through
//! descriptors and never follows a symlink.

#[cfg(feature = "unpack")]
mod blob;
mod links;
mod pack;
mod scan;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attributes::Attributes;
use super::folders::open_tree;
use super::kept::Kept;
use super::{Follow, Merged, WhiteoutFormat};
use crate::error::Result;
use crate::tree::Check;

#[cfg(feature = "unpack")]
pub use blob::{Blob, Form, pack};
pub use pack::{write, write_until};

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub enum Trees<'a> {
    /// An overlay's upper folder: whatever is in it is a change.
    Upper {
        /// The folder.
        folder: &'a Path,
        /// It hides what is beneath it, for which overlayfs has no mark at the root.
        opaque: bool,
        /// How it records deletions.
        format: WhiteoutFormat,
    },
    /// A tree and what it was before; without that, all of it is new.
    Pair {
        /// The tree before.
        before: Option<&'a Path>,
        /// The tree after.
        after: &'a Path,
    },
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It is new. In an upper folder: it is there, and may have been there before.
    Added,
    /// It is not what it was.
    Modified,
    /// It is gone.
    Deleted,
}

/// One difference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Where, without a leading slash. Empty for the root.
    pub path: Vec<u8>,
    /// What is there now; none of what is gone.
    node: Option<Node>,
}

/// An inode of the tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Node {
    kind: NodeKind,
    attributes: Attributes,
    /// Device and inode, of one that has several names.
    inode: Option<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum NodeKind {
    Folder { opaque: bool },
    File { size: u64, holes: bool },
    Symlink(Vec<u8>),
    Character(u64),
    Block(u64),
    Fifo,
    HardLink(Vec<u8>),
}

/// The differences between two trees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// The tree that has what is new.
    pub tree: PathBuf,
    /// Sorted as a layer has them.
    pub changes: Vec<Change>,
    /// What was left out on purpose.
    pub notes: Vec<String>,
}

/// Find the differences.
///
/// Errors: what the file system says; `ResourceExhausted` for a tree too deep for a layer; `InvalidArgument` for a name that
/// a layer cannot have (`.wh.*`).
pub fn diff(trees: &Trees<'_>, check: Check<'_>) -> Result<Changes> {
    let (before, after, upper) = match *trees {
        Trees::Upper { folder, opaque, format } => (None, folder, Some(scan::Upper { opaque, format })),
        Trees::Pair { before, after } => (before, after, None),
    };
    let kept = (before.map_or_else(|| Ok(Kept::default()), Kept::beside)?, Kept::beside(after)?);
    let mut scan = scan::Scan::new(after, upper, kept, check);
    scan.root(before.map(open_tree).transpose()?, &open_tree(after)?)?;
    Ok(scan.finish())
}

/// Read from `at` until the buffer is full or the file ends.
pub(super) fn read_full(file: &OwnedFd, buffer: &mut [u8], at: u64) -> std::result::Result<usize, Errno> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::pread(file, &mut buffer[length..], at + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Tell what is new in an upper folder from what was there before, in the layers beneath it.
pub fn tell_apart(changes: &mut Changes, beneath: &Merged) -> Result<()> {
    for change in &mut changes.changes {
        let was_there = change.path.is_empty() || beneath.lookup(&change.path, Follow::Never)?.is_some();
        if change.kind == ChangeKind::Added && was_there {
            change.kind = ChangeKind::Modified;
        }
    }
    Ok(())
}
