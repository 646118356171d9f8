//! Writes what is at a path of a container as an archive.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::{Output, Root};
use crate::error::{Error, Kind, Result, show};
use crate::inode::{find_at, reopen};
use crate::layer::{Attributes, Target, read_xattrs};
use crate::mount::IdMaps;
use crate::tar::{Device, Entry, EntryKind, Writer};
use crate::tree::{Descent, names};

const PIECE: usize = 256 * 1024;
/// `PROC_SUPER_MAGIC`, `SYSFS_MAGIC`, `CGROUP_SUPER_MAGIC`, `CGROUP2_SUPER_MAGIC` (linux/magic.h).
const KERNEL_FILES: [u32; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];

/// What of a tree is written, and under which name.
#[derive(Clone, Copy, Debug)]
pub struct Packing<'a> {
    /// What the tree is called in the archive; nothing: the names in it stand alone.
    pub name: &'a [u8],
    /// Follow a symlink at the end of the path.
    pub follow: bool,
}

/// Write a file or a tree, in the order of the names, and the end of the archive. Gives notes of what was left out: sockets, and
/// what went away meanwhile. Of /proc, /sys and cgroups beneath the path only the mount points are there.
///
/// A file that becomes shorter while it is read is filled up with zeros, as GNU tar does, and noted.
pub fn pack(root: &Root, path: &[u8], packing: Packing<'_>, mut output: Output<'_>) -> Result<Vec<String>> {
    pack_into(root, path, packing, &mut output).map_err(|error| output.failure().unwrap_or(error))
}

fn pack_into(root: &Root, path: &[u8], packing: Packing<'_>, output: &mut Output<'_>) -> Result<Vec<String>> {
    let found = root.find(path, packing.follow)?;
    let mut pack = Pack {
        ids: root.ids.as_ref(),
        archive: Writer::new(output),
        buffer: vec![0; PIECE],
        links: HashMap::new(),
        notes: Vec::new(),
    };
    let name = packing.name.to_vec();
    if let Some(folder) = pack.inode(&found, None, name.clone())? {
        pack.tree(folder, &name)?;
    }
    pack.archive.finish()?.flush().map_err(|error| Error::system("cannot write the archive", error))?;
    Ok(pack.notes)
}

struct Pack<'a, 'check> {
    ids: Option<&'a IdMaps>,
    archive: Writer<&'a mut Output<'check>>,
    buffer: Vec<u8>,
    /// Files with several names: the first of them in the archive.
    links: HashMap<(u64, u64), Vec<u8>>,
    notes: Vec<String>,
}

impl Pack<'_, '_> {
    /// The attributes of something, with the owner that the container knows.
    fn attributes(&self, stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Attributes {
        let mut attributes = Attributes::read(stat, xattrs);
        if let Some(maps) = self.ids {
            (attributes.uid, attributes.gid) = maps.stored(attributes.uid, attributes.gid);
        }
        attributes
    }

    fn tree(&mut self, folder: OwnedFd, top: &[u8]) -> Result<()> {
        let mut descent = Descent::default();
        enter(&mut descent, folder, c".")?;
        while let Some((_, next)) = descent.next() {
            let Some(name) = next else {
                descent.leave().map_err(|error| read_error(top, error))?;
                continue;
            };
            let Some(folder) = descent.folder() else { break };
            let mut path = top.to_vec();
            for part in descent_path(&descent).chain([name.as_c_str()]) {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part.to_bytes());
            }
            let found = match find_at(folder, &name) {
                Ok(found) => found,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(read_error(&path, error)),
            };
            let shown = path.clone();
            match self.inode(&found, Some((folder, &name)), path) {
                Ok(Some(inner)) if !begins_kernel_files(folder, &inner) => enter(&mut descent, inner, &name)?,
                Ok(_) => {}
                Err(error) if error.kind == Kind::NotFound => {
                    self.notes.push(format!("'{}' went away and was left out", show(&shown)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Write an entry, with the content of a file; give the folder, opened, if it is one.
    fn inode(
        &mut self,
        found: &OwnedFd,
        at: Option<(BorrowedFd<'_>, &CStr)>,
        path: Vec<u8>,
    ) -> Result<Option<OwnedFd>> {
        let failed = |error| read_error(&path, error);
        let stat = rustix::fs::fstat(found).map_err(failed)?;
        let device = || Device { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let folder = reopen(found.as_fd(), OFlags::DIRECTORY).map_err(failed)?;
                let attributes = self.attributes(&stat, read_xattrs(&Target::Descriptor(folder.as_fd()))?);
                let name = [if path.is_empty() { b"." } else { &path[..] }, b"/"].concat();
                self.archive.entry(&attributes.entry(name, EntryKind::Directory))?;
                return Ok(Some(folder));
            }
            FileType::RegularFile => {
                self.file(found, &stat, path)?;
                return Ok(None);
            }
            FileType::Symlink => {
                EntryKind::Symlink(rustix::fs::readlinkat(found, c"", Vec::new()).map_err(failed)?.into_bytes())
            }
            FileType::CharacterDevice => EntryKind::Character(device()),
            FileType::BlockDevice => EntryKind::Block(device()),
            FileType::Fifo => EntryKind::Fifo,
            _ => {
                self.notes.push(format!("'{}' is a socket and was left out", show(&path)));
                return Ok(None);
            }
        };
        // By its name, where it may be something else by now: then these are that one's attributes.
        let xattrs = at.map(|(folder, name)| read_xattrs(&Target::Name(folder, name)).unwrap_or_default());
        self.archive.entry(&self.attributes(&stat, xattrs.unwrap_or_default()).entry(path, kind))?;
        Ok(None)
    }

    fn file(&mut self, found: &OwnedFd, stat: &Stat, path: Vec<u8>) -> Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let link = EntryKind::HardLink(first.clone());
                return self.archive.entry(&self.attributes(stat, Vec::new()).entry(path, link));
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        let content = reopen(found.as_fd(), OFlags::empty()).map_err(|error| read_error(&path, error))?;
        let attributes = self.attributes(stat, read_xattrs(&Target::Descriptor(content.as_fd()))?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.archive.entry(&Entry { size, ..attributes.entry(path.clone(), EntryKind::File) })?;
        let (mut left, mut ended) = (size, false);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            let piece = &mut self.buffer[..wanted];
            let count = if ended {
                piece.fill(0);
                wanted
            } else {
                match rustix::io::read(&content, &mut *piece) {
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(read_error(&path, error)),
                }
            };
            if count == 0 {
                ended = true;
                self.notes.push(format!("'{}' became shorter while it was read; the rest is zeros", show(&path)));
            }
            self.archive.data(&self.buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }
}

/// Whether a file system of the kernel's own (/proc, /sys, cgroups) is mounted at a folder: what is in there are no files to keep,
/// unless somebody asks for them by name.
fn begins_kernel_files(above: BorrowedFd<'_>, folder: &OwnedFd) -> bool {
    let kind = |descriptor: BorrowedFd<'_>| rustix::fs::fstatfs(descriptor).map(|found| found.f_type).ok();
    let found = kind(folder.as_fd());
    let is_kernels = found.is_some_and(|found| KERNEL_FILES.contains(&u32::try_from(found).unwrap_or(0)));
    is_kernels && kind(above) != found
}

/// Go into a folder whose names come in order.
fn enter(descent: &mut Descent, folder: OwnedFd, name: &CStr) -> Result<()> {
    let failed = |error| read_error(name.to_bytes(), error);
    let mut inside = names(&folder).map_err(failed)?;
    inside.sort_unstable_by(|one, other| other.cmp(one)); // taken from the end
    descent.follow(folder, name.to_owned(), inside).map_err(failed)
}

fn descent_path(descent: &Descent) -> impl Iterator<Item = &CStr> {
    descent.path().map(std::ffi::CString::as_c_str)
}

fn read_error(path: &[u8], error: Errno) -> Error {
    Error::system(format!("cannot read '{}'", show(path)), error)
}
