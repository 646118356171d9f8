//! Finds the changes: walks the tree after, beside the tree before if there is one.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::super::WhiteoutFormat;
use super::super::attributes::{Attributes, Target, read_xattrs};
use super::super::folders::open_child;
use super::super::kept::Kept;
use super::super::name::MAX_DEPTH;
use super::super::whiteout::{PREFIX, is_opaque, is_whiteout, stands_for_whiteout};
use super::links::{self, Unchanged};
use super::{Change, ChangeKind, Changes, Node, NodeKind, read_full};
use crate::error::{Error, Kind, Result, show};
use crate::inode;
use crate::tar::{Device, EntryKind, MAX_PATH};
use crate::tree::{Check, allocated, names};

/// Attributes that speak of this machine, not of the file: labels of its policy, and signatures over inode and host.
const OF_THE_HOST: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
/// Of a path, with room for a whiteout's prefix.
const LONGEST: usize = MAX_PATH - PREFIX.len();
const COMPARED: usize = 128 * 1024;

/// What an overlay's upper folder is beyond a tree.
pub struct Upper {
    /// See [`super::Trees::Upper`].
    pub opaque: bool,
    /// The same.
    pub format: WhiteoutFormat,
}

pub struct Scan<'a> {
    upper: Option<Upper>,
    check: Check<'a>,
    path: Vec<u8>,
    depth: usize,
    changes: Changes,
    unchanged: Vec<Unchanged>,
    /// What is kept beside the trees: before, after.
    kept: (Kept, Kept),
}

/// A name in an open folder, and what it leads to.
struct Place<'a> {
    folder: BorrowedFd<'a>,
    name: &'a CStr,
    stat: Stat,
    file_type: FileType,
}

impl<'a> Place<'a> {
    fn look(folder: BorrowedFd<'a>, name: &'a CStr) -> std::result::Result<Option<Self>, Errno> {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Self { folder, name, stat, file_type: FileType::from_raw_mode(stat.st_mode) })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn inode(&self) -> Option<(u64, u64)> {
        let shared = self.stat.st_nlink > 1 && self.file_type != FileType::Directory;
        shared.then_some((self.stat.st_dev, self.stat.st_ino))
    }
}

impl<'a> Scan<'a> {
    pub fn new(tree: &Path, upper: Option<Upper>, kept: (Kept, Kept), check: Check<'a>) -> Self {
        let changes = Changes { tree: tree.to_owned(), changes: Vec::new(), notes: Vec::new() };
        Self { upper, check, path: Vec::new(), depth: 0, changes, unchanged: Vec::new(), kept }
    }

    pub fn finish(mut self) -> Changes {
        links::settle(&mut self.changes.changes, self.unchanged);
        self.changes
    }

    pub fn root(&mut self, before: Option<OwnedFd>, after: &OwnedFd) -> Result<()> {
        let look = |folder: BorrowedFd<'_>, opaque: bool| {
            let stat = rustix::fs::fstat(folder).map_err(|error| Error::system("cannot read the root", error))?;
            folder_node(folder, &stat, opaque)
        };
        // overlayfs honours no mark at the root: whoever keeps the layer says so.
        let opaque = self.upper.as_ref().is_some_and(|upper| upper.opaque || is_opaque(after.as_fd(), upper.format));
        let node = look(after.as_fd(), opaque)?;
        let old = before.as_ref().map(|before| look(before.as_fd(), false)).transpose()?;
        self.enter(before, after, old, node)
    }

    /// Note a folder if it is not what it was, or if what is in it is not.
    fn enter(&mut self, before: Option<OwnedFd>, after: &OwnedFd, old: Option<Node>, node: Node) -> Result<()> {
        let same = old.as_ref().is_some_and(|old| is_same_folder(old, &node));
        let change = |path: &[u8]| {
            let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
            Change { kind, path: path.to_vec(), node: Some(node.clone()) }
        };
        if !same {
            self.changes.changes.push(change(&self.path));
        }
        let known = (self.changes.changes.len(), self.unchanged.len());
        self.depth += 1;
        self.folder(before, after)?;
        self.depth -= 1;
        // A layer names the folders above what it holds, or it would depend on what lies beneath it.
        if same && self.changes.changes.len() > known.0 {
            self.changes.changes.push(change(&self.path));
        } else if same && self.unchanged.len() > known.1 {
            self.unchanged.push(Unchanged { change: change(&self.path), before: None });
        }
        Ok(())
    }

    fn note(&mut self, kind: ChangeKind, node: Option<Node>) {
        self.changes.changes.push(Change { kind, path: self.path.clone(), node });
    }

    fn failed(&self, verb: &str, error: Errno) -> Error {
        Error::system(format!("cannot {verb} '{}'", show(&self.path)), error)
    }

    /// Go through what is in a folder, and in the one that was in its place.
    fn folder(&mut self, before: Option<OwnedFd>, after: &OwnedFd) -> Result<()> {
        if self.depth > MAX_DEPTH {
            let text = format!("'{}' lies more than {MAX_DEPTH} folders deep", show(&self.path));
            return Err(Error::new(Kind::ResourceExhausted, text));
        }
        let mut all: BTreeSet<CString> =
            names(after).map_err(|error| self.failed("list", error))?.into_iter().collect();
        if let Some(before) = &before {
            all.extend(names(before).map_err(|error| self.failed("list", error))?);
        }
        for kept in [&self.kept.0, &self.kept.1] {
            all.extend(kept.devices_in(&self.path).filter_map(|name| CString::new(name).ok()));
        }
        let end = self.path.len();
        for name in all {
            (self.check)()?;
            if end > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            if self.path.len() > LONGEST {
                let text = format!("the path '{}' is longer than {LONGEST} bytes", show(&self.path));
                return Err(Error::invalid(text).hint("No layer can hold it; move or remove it."));
            }
            self.name(before.as_ref(), after, &name)?;
            self.path.truncate(end);
        }
        Ok(())
    }

    fn name(&mut self, before: Option<&OwnedFd>, after: &OwnedFd, name: &CStr) -> Result<()> {
        let old = match before {
            Some(folder) => Place::look(folder.as_fd(), name).map_err(|error| self.failed("read", error))?,
            None => None,
        };
        let was = before.filter(|_| old.is_none()).and_then(|_| device_node(&self.kept.0, &self.path));
        let was_there = old.is_some() || was.is_some();
        let new = Place::look(after.as_fd(), name).map_err(|error| self.failed("read", error))?;
        let hides = |new: &Place<'_>| {
            self.upper.as_ref().is_some_and(|upper| is_whiteout(after.as_fd(), name, &new.stat, upper.format))
        };
        if new.as_ref().is_none_or(hides)
            && let Some(node) = device_node(&self.kept.1, &self.path)
        {
            let same = was.is_some_and(|was| was.kind == node.kind && is_same(&was.attributes, &node.attributes));
            if !same {
                self.note(if was_there { ChangeKind::Modified } else { ChangeKind::Added }, Some(node));
            }
            return Ok(());
        }
        let Some(new) = new else {
            if was_there {
                self.note(ChangeKind::Deleted, None);
            }
            return Ok(()); // or it went while we came
        };
        if stands_for_whiteout(name.to_bytes()) {
            return Err(Error::invalid(format!("'{}' cannot be in a layer", show(&self.path)))
                .hint("Its name would delete something; rename or remove the file."));
        }
        if self.upper.as_ref().is_some_and(|upper| is_whiteout(after.as_fd(), name, &new.stat, upper.format)) {
            self.note(ChangeKind::Deleted, None);
            return Ok(());
        }
        if new.file_type == FileType::Socket {
            self.changes.notes.push(format!("'{}' is a socket and was left out", show(&self.path)));
            if old.is_some_and(|old| old.file_type != FileType::Socket) {
                self.note(ChangeKind::Deleted, None);
            }
            return Ok(());
        }
        if new.file_type == FileType::Directory {
            return self.subfolder(old, &new);
        }
        let node = self.node(&new, &self.kept.1)?;
        let Some(old) = old else {
            self.note(if was_there { ChangeKind::Modified } else { ChangeKind::Added }, Some(node));
            return Ok(());
        };
        if old.file_type == new.file_type && self.is_unchanged(&old, &new, &node)? {
            if let (None, None) = (old.inode(), new.inode()) {
                return Ok(());
            }
            let inode = Some((new.stat.st_dev, new.stat.st_ino));
            let node = Some(Node { inode, ..node });
            let change = Change { kind: ChangeKind::Modified, path: self.path.clone(), node };
            self.unchanged.push(Unchanged { change, before: Some((old.stat.st_dev, old.stat.st_ino)) });
            return Ok(());
        }
        self.note(ChangeKind::Modified, Some(node));
        Ok(())
    }

    fn subfolder(&mut self, old: Option<Place<'_>>, new: &Place<'_>) -> Result<()> {
        let opened = match open_child(new.folder, new.name) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()), // it went while we came
            Err(error) => return Err(self.failed("open", error)),
        };
        let opaque = self.upper.as_ref().is_some_and(|upper| is_opaque(opened.as_fd(), upper.format));
        let node = folder_node(opened.as_fd(), &new.stat, opaque)?;
        let Some(old) = old else { return self.enter(None, &opened, None, node) };
        if old.file_type != FileType::Directory {
            let was = self.node(&old, &self.kept.0)?;
            return self.enter(None, &opened, Some(was), node);
        }
        let before = open_child(old.folder, old.name).map_err(|error| self.failed("open", error))?;
        let was = folder_node(before.as_fd(), &old.stat, false)?;
        self.enter(Some(before), &opened, Some(was), node)
    }

    fn node(&self, place: &Place<'_>, kept: &Kept) -> Result<Node> {
        let stat = &place.stat;
        let device = stat.st_rdev;
        let kind = match place.file_type {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                NodeKind::File { size, holes: allocated(stat) < size }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(place.folder, place.name, Vec::new())
                    .map_err(|error| self.failed("read", error))?;
                NodeKind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => NodeKind::Character(device),
            FileType::BlockDevice => NodeKind::Block(device),
            FileType::Fifo => NodeKind::Fifo,
            _ => return Err(Error::invalid(format!("'{}' is nothing that a layer can hold", show(&self.path)))),
        };
        let xattrs = own_xattrs(&Target::Name(place.folder, place.name))
            .map_err(|error| error.context(format!("'{}'", show(&self.path))))?;
        let mut attributes = Attributes::read(stat, xattrs);
        let target = if let NodeKind::Symlink(target) = &kind { Some(&**target) } else { None };
        kept.restore(&self.path, stat, target, &mut attributes);
        Ok(Node { kind, attributes, inode: place.inode() })
    }

    /// Whether a name leads to what it led to before. Two files of one size and time are the same; of whole seconds only
    /// if their content is, too: programs that unpack archives set such times.
    fn is_unchanged(&mut self, old: &Place<'_>, new: &Place<'_>, node: &Node) -> Result<bool> {
        if (old.stat.st_dev, old.stat.st_ino) == (new.stat.st_dev, new.stat.st_ino) {
            return Ok(true);
        }
        let before = self.node(old, &self.kept.0)?;
        let same_kind = match (&before.kind, &node.kind) {
            (NodeKind::File { size: one, .. }, NodeKind::File { size: other, .. }) => one == other,
            (one, other) => one == other,
        };
        if !same_kind || !is_same(&before.attributes, &node.attributes) {
            return Ok(false);
        }
        if matches!(node.kind, NodeKind::File { .. }) && node.attributes.mtime.nanoseconds == 0 {
            return self.is_same_content(old, new);
        }
        Ok(true)
    }

    fn is_same_content(&mut self, old: &Place<'_>, new: &Place<'_>) -> Result<bool> {
        let open = |place: &Place<'_>| {
            inode::open_file_at(place.folder, place.name).map_err(|error| self.failed("open", error))
        };
        let (Some((one, _)), Some((other, _))) = (open(old)?, open(new)?) else {
            return Ok(false); // it is no file any more
        };
        let (mut here, mut there) = (vec![0; COMPARED], vec![0; COMPARED]);
        let mut at = 0;
        loop {
            (self.check)()?;
            let count = read_full(&one, &mut here, at).map_err(|error| self.failed("read", error))?;
            let others = read_full(&other, &mut there, at).map_err(|error| self.failed("read", error))?;
            if here[..count] != there[..others] {
                return Ok(false);
            }
            if count < COMPARED {
                return Ok(true);
            }
            at += COMPARED as u64;
        }
    }
}

/// The device that is kept at a path. Its inode is none of a file system's.
fn device_node(kept: &Kept, path: &[u8]) -> Option<Node> {
    let (entry, number) = kept.device(path)?;
    let device = |device: Device| rustix::fs::makedev(device.major, device.minor);
    let kind = match entry.kind {
        EntryKind::Character(number) => NodeKind::Character(device(number)),
        EntryKind::Block(number) => NodeKind::Block(device(number)),
        _ => return None,
    };
    Some(Node { kind, attributes: Attributes::of(entry), inode: Some((u64::MAX, number as u64)) })
}

fn folder_node(folder: BorrowedFd<'_>, stat: &Stat, opaque: bool) -> Result<Node> {
    let attributes = Attributes::read(stat, own_xattrs(&Target::Descriptor(folder))?);
    Ok(Node { kind: NodeKind::Folder { opaque }, attributes, inode: None })
}

fn own_xattrs(target: &Target<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut xattrs = read_xattrs(target)?;
    xattrs.retain(|(name, _)| !OF_THE_HOST.contains(&name.as_slice()));
    xattrs.sort();
    Ok(xattrs)
}

/// All but the time of the last access, which reading changes.
fn is_same(one: &Attributes, other: &Attributes) -> bool {
    let of = |attributes: &Attributes| (attributes.mode, attributes.uid, attributes.gid, attributes.mtime);
    of(one) == of(other) && one.xattrs == other.xattrs
}

fn is_same_folder(one: &Node, other: &Node) -> bool {
    one.kind == other.kind && is_same(&one.attributes, &other.attributes)
}
