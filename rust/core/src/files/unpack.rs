//! Takes an archive into a folder of a container.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::owners::ActingAsRoot;
use super::{Input, Root, not_found};
use crate::error::{Error, Kind, Result, show};
use crate::inode::reopen;
use crate::layer::{Attributes, mode_bits, set_attributes, set_attributes_at, set_times};
use crate::tar::{Entry, EntryKind, Limits, Reader, is_zero};

/// Zeros that fill a block of this size become a hole.
const HOLE: usize = 4096;
/// How often something may come between while a name is made free and taken.
const ATTEMPTS: u32 = 256;
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
const SET_IDS: u32 = 0o6000;

/// How entries are made.
#[derive(Clone, Copy, Debug)]
pub struct Unpacking {
    /// Whose everything becomes; None: as the archive says. Set-user-ID and set-group-ID bits go with the owner that they were
    /// for.
    pub owner: Option<(u32, u32)>,
    /// Make device nodes; else they are left out and noted.
    pub devices: bool,
}

/// Apply an archive to the folder at `path`, which has to be there; read it to its end. Gives notes of what was left out.
///
/// As docker does: what is there is replaced, but a folder only by a folder, whose content stays (`FailedPrecondition`). Symlinks
/// on the way to an entry lead on inside the root; one in its place is replaced. A whiteout has no meaning here. What was made
/// before an error stays.
pub fn unpack(root: &Root, path: &[u8], unpacking: Unpacking, input: Input<'_>) -> Result<Vec<String>> {
    let folder = root.folder(path).map_err(|error| not_found(path, error))?;
    drop(folder);
    let _acting = root.ids.as_ref().map(ActingAsRoot::of).transpose()?;
    let mut unpack = Unpack { root, top: path, unpacking, parent: None, folders: Vec::new(), notes: Vec::new() };
    let mut reader = Reader::new(input, Limits { archive: u64::MAX, entries: u64::MAX, ..Limits::default() });
    while let Some(entry) = reader.next_entry()? {
        unpack.entry(&entry, &mut reader).map_err(|error| error.context(format!("'{}'", show(&entry.path))))?;
    }
    reader.source().drain()?;
    unpack.finish();
    Ok(unpack.notes)
}

struct Unpack<'a> {
    root: &'a Root,
    top: &'a [u8],
    unpacking: Unpacking,
    /// The folder of the last entry, and its path.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Folders whose times are set at the end: everything that is made in one changes them.
    folders: Vec<(Vec<u8>, Attributes)>,
    notes: Vec<String>,
}

impl Unpack<'_> {
    fn entry(&mut self, entry: &Entry, reader: &mut Reader<Input<'_>>) -> Result<()> {
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Ok(()); // the folder itself, which stays as it is
        };
        let parent = self.parent(parents)?;
        let name = CString::new(*name).map_err(|_| Error::invalid("a name holds a NUL"))?;
        let attributes = self.attributes(entry)?;
        match &entry.kind {
            EntryKind::File => return self.file(&parent, &name, entry, &attributes, reader),
            EntryKind::Directory => {
                make(&parent, &name, true, |name| rustix::fs::mkdirat(&parent, name, Mode::RWXU))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&parent, &name, flags, Mode::empty()).map_err(make_error)?;
                set_attributes(made.as_fd(), &attributes, &mut |text| self.notes.push(text))?;
                self.folders.push((parts.join(&b'/'), attributes));
                return Ok(());
            }
            EntryKind::HardLink(target) => return self.link(&parent, &name, target),
            EntryKind::Symlink(target) => {
                let target = CString::new(&target[..]).map_err(|_| Error::invalid("a target holds a NUL"))?;
                make(&parent, &name, false, |name| rustix::fs::symlinkat(&target, &parent, name))?;
            }
            EntryKind::Character(device) | EntryKind::Block(device) => {
                if !self.unpacking.devices {
                    self.notes.push(format!("'{}' is a device and was left out", show(&entry.path)));
                    return Ok(());
                }
                let kind = match entry.kind {
                    EntryKind::Block(_) => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                let number = rustix::fs::makedev(device.major, device.minor);
                self.node(&parent, &name, kind, number)?;
            }
            EntryKind::Fifo => self.node(&parent, &name, FileType::Fifo, 0)?,
        }
        set_attributes_at(parent.as_fd(), &name, &attributes, &mut |text| self.notes.push(text))
    }

    fn node(&self, parent: &OwnedFd, name: &CStr, kind: FileType, number: Dev) -> Result<()> {
        make(parent, name, false, |name| rustix::fs::mknodat(parent, name, kind, mode_bits(0o600), number))
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes> {
        let mut attributes = Attributes::of(entry);
        if let Some((uid, gid)) = self.unpacking.owner {
            if (uid, gid) != (attributes.uid, attributes.gid) && entry.kind != EntryKind::Directory {
                attributes.mode &= !SET_IDS;
                attributes.xattrs.retain(|(name, _)| name != b"security.capability");
            }
            (attributes.uid, attributes.gid) = (uid, gid);
        }
        if let Some(maps) = &self.root.ids {
            let owner = (attributes.uid, attributes.gid);
            (attributes.uid, attributes.gid) = maps.shown(owner.0, owner.1).ok_or_else(|| {
                Error::invalid(format!("the owner {}:{} has no id in the container's map", owner.0, owner.1))
                    .hint("Let everything belong to root there: leave out archive (-a).")
            })?;
        }
        Ok(attributes)
    }

    /// Open the folder that an entry goes into; make what is missing of it.
    fn parent(&mut self, parents: &[&[u8]]) -> Result<OwnedFd> {
        let inside = parents.join(&b'/');
        if let Some((path, folder)) = &self.parent
            && *path == inside
        {
            return folder.try_clone().map_err(|error| Error::system("cannot copy a descriptor", error));
        }
        let folder = match self.root.folder(&self.path(&inside)) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => self.make_parents(parents)?,
            Err(error) => return Err(not_found(&self.path(&inside), error)),
        };
        let kept = folder.try_clone().map_err(|error| Error::system("cannot copy a descriptor", error))?;
        self.parent = Some((inside, kept));
        Ok(folder)
    }

    fn make_parents(&self, parents: &[&[u8]]) -> Result<OwnedFd> {
        let mut folder = self.root.folder(self.top).map_err(|error| not_found(self.top, error))?;
        for count in 1..=parents.len() {
            let path = self.path(&parents[..count].join(&b'/'));
            folder = match self.root.folder(&path) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let name = CString::new(parents[count - 1]).map_err(|_| Error::invalid("a name holds a NUL"))?;
                    match rustix::fs::mkdirat(&folder, &name, FOLDER_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(make_error(error)),
                    }
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&folder, &name, flags, Mode::empty()).map_err(make_error)?
                }
                Err(error) => return Err(not_found(&path, error)),
            };
        }
        Ok(folder)
    }

    /// A path of the archive as one of the root.
    fn path(&self, inside: &[u8]) -> Vec<u8> {
        if inside.is_empty() { self.top.to_vec() } else { [self.top, b"/", inside].concat() }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        entry: &Entry,
        attributes: &Attributes,
        reader: &mut Reader<Input<'_>>,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut made = None;
        make(parent, name, false, |name| {
            made = Some(rustix::fs::openat(parent, name, flags, mode_bits(0o600))?);
            Ok(())
        })?;
        let Some(file) = made else { return Err(Error::new(Kind::Internal, "no file was made")) };
        let mut end = 0;
        while let Some(piece) = reader.data()? {
            end = end.max(piece.offset + piece.bytes.len() as u64);
            write_but_zeros(&file, piece.bytes, piece.offset)?;
        }
        if end < entry.size && !entry.sparse {
            return Err(Error::data_loss("the content is shorter than the header says"));
        }
        rustix::fs::ftruncate(&file, entry.size).map_err(|error| Error::system("cannot set the size", error))?;
        set_attributes(file.as_fd(), attributes, &mut |text| self.notes.push(text)).map(drop)
    }

    /// Give an entry before this one another name.
    fn link(&mut self, parent: &OwnedFd, name: &CStr, target: &[u8]) -> Result<()> {
        let parts = components(target)?;
        let Some((last, parents)) = parts.split_last() else {
            return Err(Error::invalid("a hard link leads to a folder"));
        };
        let path = self.path(&parents.join(&b'/'));
        let from = self.root.folder(&path).map_err(|error| not_found(&path, error))?;
        let last = CString::new(*last).map_err(|_| Error::invalid("a target holds a NUL"))?;
        make(parent, name, false, |name| rustix::fs::linkat(&from, &last, parent, name, AtFlags::empty()))
    }

    /// Set the folders' times. One that is not there any more has none.
    fn finish(&mut self) {
        for (path, attributes) in std::mem::take(&mut self.folders).into_iter().rev() {
            if let Ok(folder) = self.root.folder(&self.path(&path))
                && let Ok(folder) = reopen(folder.as_fd(), OFlags::DIRECTORY)
            {
                let _ = set_times(folder.as_fd(), attributes.atime, attributes.mtime);
            }
        }
    }
}

/// Make something at a name; what is there gives way, as far as it may.
fn make(
    parent: &OwnedFd,
    name: &CStr,
    is_folder: bool,
    mut create: impl FnMut(&CStr) -> std::result::Result<(), Errno>,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        match create(name) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(make_error(error)),
        }
        let there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(make_error(error)),
        };
        match (there, is_folder) {
            (true, true) => return Ok(()),
            (true, false) => return Err(refused("a folder is there, which something else cannot replace")),
            (false, true) => return Err(refused("something else is there, which a folder cannot replace")),
            (false, false) => match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(error) => return Err(Error::system("cannot replace it", error)),
            },
        }
    }
    Err(Error::new(Kind::Unavailable, "something else comes there again and again"))
}

fn refused(text: &str) -> Error {
    Error::new(Kind::FailedPrecondition, text)
}

fn make_error(error: Errno) -> Error {
    Error::system("cannot make it", error)
}

/// The parts of a path in an archive; `..` is refused.
fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(Error::invalid(format!("the path '{}' leads out of the archive", show(path))));
    }
    Ok(parts)
}

/// Write bytes to their place; blocks of zeros become holes.
fn write_but_zeros(file: &OwnedFd, bytes: &[u8], at: u64) -> Result<()> {
    let (mut start, mut end) = (0, 0);
    while end < bytes.len() {
        let block = HOLE as u64 - (at + end as u64) % HOLE as u64;
        let next = bytes.len().min(end + usize::try_from(block).unwrap_or(HOLE));
        if next - end == HOLE && is_zero(&bytes[end..next]) {
            write_at(file, &bytes[start..end], at + start as u64)?;
            start = next;
        }
        end = next;
    }
    write_at(file, &bytes[start..], at + start as u64)
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("cannot write the content", error)),
        }
    }
    Ok(())
}
