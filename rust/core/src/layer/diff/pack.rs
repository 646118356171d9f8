//! Writes changes as a layer.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::attributes::Attributes;
use super::super::whiteout::{OPAQUE, PREFIX};
use super::{ChangeKind, Changes, Node, NodeKind, open_tree, read_full};
use crate::error::{Error, Kind, Result, show};
use crate::inode;
use crate::tar::{Device, Entry, EntryKind, Segment, Timestamp, Writer, is_zero};
use crate::tree::Check;

const PIECE: usize = 256 * 1024;
/// Holes are found by the content, in blocks of this size, so that they do not depend on what a file system chose to allocate.
const HOLE: usize = 4096;

/// Write changes as entries of a layer.
///
/// `Unavailable` when a file became shorter meanwhile, or something else.
pub fn write<W: Write>(changes: &Changes, archive: &mut Writer<W>, check: Check<'_>) -> Result<()> {
    write_until(changes, archive, None, check)
}

/// The same, in which nothing is younger than `latest`: a later time of change becomes that (`SOURCE_DATE_EPOCH`).
pub fn write_until<W: Write>(
    changes: &Changes,
    archive: &mut Writer<W>,
    latest: Option<Timestamp>,
    check: Check<'_>,
) -> Result<()> {
    let mut pack = Pack { root: open_tree(&changes.tree)?, archive, latest, buffer: vec![0; PIECE], check };
    for change in &changes.changes {
        (pack.check)()?;
        match &change.node {
            None => pack.mark(&parent_and(&change.path, PREFIX))?,
            Some(node) => pack.node(&change.path, node)?,
        }
        debug_assert_eq!(change.node.is_none(), change.kind == ChangeKind::Deleted);
    }
    Ok(())
}

struct Pack<'a, W> {
    root: OwnedFd,
    archive: &'a mut Writer<W>,
    latest: Option<Timestamp>,
    buffer: Vec<u8>,
    check: Check<'a>,
}

impl<W: Write> Pack<'_, W> {
    /// A whiteout or an opaque marker.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        self.archive.entry(&Attributes::default().entry(path.to_vec(), EntryKind::File))
    }

    fn entry(&self, node: &Node, name: Vec<u8>, kind: EntryKind) -> Entry {
        let mut attributes = node.attributes.clone();
        attributes.mtime = attributes.mtime.min(self.latest.unwrap_or(attributes.mtime));
        attributes.entry(name, kind)
    }

    fn node(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let (kind, opaque) = match &node.kind {
            NodeKind::Folder { opaque } => (EntryKind::Directory, *opaque),
            NodeKind::File { size, holes } => return self.file(path, node, *size, *holes),
            NodeKind::Symlink(target) => (EntryKind::Symlink(target.clone()), false),
            NodeKind::HardLink(target) => (EntryKind::HardLink(target.clone()), false),
            NodeKind::Character(number) => (EntryKind::Character(device(*number)), false),
            NodeKind::Block(number) => (EntryKind::Block(device(*number)), false),
            NodeKind::Fifo => (EntryKind::Fifo, false),
        };
        let mut name = if path.is_empty() { b".".to_vec() } else { path.to_vec() };
        if kind == EntryKind::Directory {
            name.push(b'/');
        }
        let mut written = self.entry(node, name, kind);
        if matches!(written.kind, EntryKind::HardLink(_)) {
            written.xattrs.clear(); // the first name has them
        }
        self.archive.entry(&written)?;
        if opaque {
            self.mark(&[path, if path.is_empty() { b"" } else { b"/" }, OPAQUE].concat())?;
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], node: &Node, size: u64, holes: bool) -> Result<()> {
        let file = Entry { size, ..self.entry(node, path.to_vec(), EntryKind::File) };
        let content = self.open(path, size)?;
        let whole = [Segment { offset: 0, length: size }];
        if !holes {
            self.archive.entry(&file)?;
            return self.copy(path, &content, &whole);
        }
        let segments = self.segments(path, &content, size)?;
        if segments == whole {
            self.archive.entry(&file)?;
        } else {
            self.archive.sparse_file(&file, &segments)?;
        }
        self.copy(path, &content, &segments)
    }

    /// Open a file of the tree that is what it was when it was found.
    fn open(&self, path: &[u8], size: u64) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let found =
            rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve).map_err(|error| match error {
                Errno::NOENT | Errno::LOOP | Errno::NOTDIR => changed(path),
                _ => Error::system(format!("cannot open '{}'", show(path)), error),
            })?;
        match inode::open_file(found.as_fd()).map_err(|error| failed(path, error))? {
            Some((file, stat)) if u64::try_from(stat.st_size) == Ok(size) => Ok(file),
            _ => Err(changed(path)),
        }
    }

    fn copy(&mut self, path: &[u8], content: &OwnedFd, segments: &[Segment]) -> Result<()> {
        for segment in segments {
            let mut at = segment.offset;
            let end = segment.offset + segment.length;
            while at < end {
                (self.check)()?;
                let wanted = self.read(path, content, at, end)?;
                self.archive.data(&self.buffer[..wanted])?;
                at += wanted as u64;
            }
        }
        Ok(())
    }

    /// The stretches of a file that are not zero, in whole blocks.
    fn segments(&mut self, path: &[u8], content: &OwnedFd, size: u64) -> Result<Vec<Segment>> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut at = 0;
        while at < size {
            (self.check)()?;
            // What the file system knows to be a hole need not be read.
            match rustix::fs::seek(content.as_fd(), rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => at = data / HOLE as u64 * HOLE as u64,
                Err(Errno::NXIO) => break,
                Err(_) => {}
            }
            let wanted = self.read(path, content, at, size)?;
            for (index, block) in self.buffer[..wanted].chunks(HOLE).enumerate() {
                if is_zero(block) {
                    continue;
                }
                let offset = at + (index * HOLE) as u64;
                match segments.last_mut() {
                    Some(last) if last.offset + last.length == offset => last.length += block.len() as u64,
                    _ => segments.push(Segment { offset, length: block.len() as u64 }),
                }
            }
            at += wanted as u64;
        }
        Ok(segments)
    }

    /// Read from `at` what the buffer holds, to `end` at most; say how much that is.
    fn read(&mut self, path: &[u8], content: &OwnedFd, at: u64, end: u64) -> Result<usize> {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
        match read_full(content, &mut self.buffer[..wanted], at).map_err(|error| failed(path, error))? {
            count if count == wanted => Ok(wanted),
            _ => Err(changed(path)),
        }
    }
}

fn failed(path: &[u8], error: Errno) -> Error {
    Error::system(format!("cannot read '{}'", show(path)), error)
}

fn changed(path: &[u8]) -> Error {
    Error::new(Kind::Unavailable, format!("'{}' changed while it was read", show(path)))
        .hint("Somebody writes to the tree; pause the container, or stop it.")
}

fn device(number: u64) -> Device {
    Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
}

/// The path with `prefix` before its last component.
fn parent_and(path: &[u8], prefix: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..at], prefix, &path[at..]].concat()
}
