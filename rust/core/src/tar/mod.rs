//! Reads a tar archive that is not trusted: ustar, PAX, GNU and star, with sparse files. Writes one in a single fixed form.
//!
//! What a header says decides nothing by itself: sizes, counts and depths are held against [`Limits`], numbers that do
//! not fit their use are errors (never cut), and names are bytes. What the reader understands, and how it settles what
//! the formats leave open, follows Go's archive/tar, which containerd and Docker unpack with, so that an image means
//! the same here as there.

// A number of the archive is converted, or refused, never cut. (Sums are held against the caps before they are made; the fuzz
// targets run with overflow checks.)
#![cfg_attr(not(test), deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss))]

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use reader::{Piece, Reader};
pub use sparse::Segment;
pub use writer::Writer;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Longest name of an entry, and target of a link, in bytes (PATH_MAX).
pub const MAX_PATH: usize = 4096;

/// Where the archive's bytes come from, as slices that are not copied.
pub trait Source {
    /// The next bytes, at least one; empty at the end of the archive only.
    fn fill(&mut self) -> Result<&[u8]>;
    /// Drop the first `count` bytes of what `fill` gave.
    fn consume(&mut self, count: usize);
}

impl Source for &[u8] {
    fn fill(&mut self) -> Result<&[u8]> {
        Ok(self)
    }

    fn consume(&mut self, count: usize) {
        *self = &self[count..];
    }
}

/// Caps that keep a hostile archive from using up memory, disk or inodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the whole archive.
    pub archive: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of one PAX header, GNU long name or GNU long link, and of the extended attributes of one entry, to which global
    /// headers may add.
    pub extension: u64,
    /// Extension headers before one entry.
    pub extensions: u32,
    /// Data segments of one sparse file.
    pub sparse_segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { archive: 1 << 40, entries: 4_000_000, extension: 1 << 20, extensions: 16, sparse_segments: 1 << 18 }
    }
}

/// A point in time: seconds since 1970, negative before it, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its content follows.
    File,
    /// A folder.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A further name for an entry before it, or of a lower layer.
    HardLink(Vec<u8>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Major number, 12 bits as Linux has them.
    pub major: u32,
    /// Minor number, 20 bits.
    pub minor: u32,
}

/// One entry of the archive, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as it stands in the archive, at most 4096 bytes, with no NUL in it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner, never 2^32-1 (chown(2)'s "leave as it is").
    pub uid: u32,
    /// Group, never 2^32-1.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: Timestamp,
    /// Time of the last access, where the archive has it.
    pub atime: Option<Timestamp>,
    /// Size of a regular file, holes included.
    pub size: u64,
    /// Whether the file has holes.
    pub sparse: bool,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whether bytes are all zero; most are not, and show it at once.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Each byte equals the one before it: memcmp, which takes many at once.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}
