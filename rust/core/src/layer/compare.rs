//! Comparing two layer folders, as far as an image decides what is in them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::attributes::{Target, Xattrs, read_all_xattrs};
use super::folders::{FOLDER, open_child, open_tree};
use super::kept::Kept;
use crate::error::{Error, Result, show};
use crate::tree::{Check, names};

const PIECE: usize = 1 << 20;
/// An attribute that the machine sets by itself.
const NOT_THE_IMAGES: &[u8] = b"security.selinux";

/// Say where two trees differ first and how; None if they don't. Nothing is followed out of them.
///
/// Compared are names, kinds, modes, owners, device numbers, sizes, bytes, targets of symlinks, extended attributes, which files
/// are linked to each other, and times, but for those of folders: a folder that its tar does not name has the time of its
/// unpacking. Errors: what the file system says when something cannot be read.
pub fn first_difference(expected: &Path, found: &Path, check: Check<'_>) -> Result<Option<String>> {
    let tops = (open_tree(expected)?, open_tree(found)?);
    let mut links = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let pair = (open(&tops.0, &path)?, open(&tops.1, &path)?);
        let listed = |folder: &OwnedFd| -> Result<Vec<_>> {
            let mut found = names(folder).map_err(|error| failed(&path, error))?;
            found.sort();
            Ok(found)
        };
        let (wanted, there) = (listed(&pair.0)?, listed(&pair.1)?);
        if wanted != there {
            let odd = |one: &[_], other: &[std::ffi::CString]| {
                one.iter().filter(|name| other.binary_search(name).is_err()).min().cloned()
            };
            let (missing, extra) = (odd(&wanted, &there), odd(&there, &wanted));
            let is_missing = extra.as_ref().is_none_or(|extra| missing.as_ref().is_some_and(|name| name < extra));
            let name = if is_missing { missing } else { extra }.unwrap_or_default();
            let word = if is_missing { "missing" } else { "extra" };
            return Ok(Some(format!("{} is {word}", show(&join(&path, &name)))));
        }
        if path.is_empty()
            && let Some(difference) = Entry::of_top(&tops.0)?.difference(&Entry::of_top(&tops.1)?, &mut links)
        {
            return Ok(Some(format!("the top folder has {difference}")));
        }
        for name in wanted {
            check()?;
            let at = join(&path, &name);
            let entries = (Entry::of(&pair.0, &name, &at)?, Entry::of(&pair.1, &name, &at)?);
            let mut difference = entries.0.difference(&entries.1, &mut links);
            if difference.is_none()
                && entries.0.kind() == FileType::RegularFile
                && !same_bytes(&pair, &name, &at, check)?
            {
                difference = Some("other bytes".to_owned());
            }
            if let Some(difference) = difference {
                return Ok(Some(format!("{} has {difference}", show(&at))));
            }
            if entries.0.kind() == FileType::Directory {
                pending.push(at);
            }
        }
    }
    let kept = (Kept::beside(expected)?.archive()?, Kept::beside(found)?.archive()?);
    Ok((kept.0 != kept.1).then(|| "the entries kept beside it are others".to_owned()))
}

/// One inode of a tree.
struct Entry {
    stat: Stat,
    target: Vec<u8>,
    xattrs: Xattrs,
}

impl Entry {
    fn of_top(top: &OwnedFd) -> Result<Self> {
        let stat = rustix::fs::fstat(top).map_err(|error| failed(b"", error))?;
        Self::new(stat, Vec::new(), &Target::Descriptor(top.as_fd()))
    }

    fn of(folder: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Self> {
        let failed = |error| failed(path, error);
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let target = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            rustix::fs::readlinkat(folder, name, Vec::new()).map_err(failed)?.into_bytes()
        } else {
            Vec::new()
        };
        Self::new(stat, target, &Target::Name(folder.as_fd(), name))
    }

    fn new(stat: Stat, target: Vec<u8>, place: &Target<'_>) -> Result<Self> {
        let mut xattrs = read_all_xattrs(place)?;
        xattrs.retain(|(name, _)| name != NOT_THE_IMAGES);
        xattrs.sort();
        Ok(Self { stat, target, xattrs })
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What differs between two; `links` has, of what is linked more than once, each inode with its twin.
    fn difference(&self, other: &Self, links: &mut HashMap<u64, u64>) -> Option<String> {
        let (one, two) = (&self.stat, &other.stat);
        let plain = self.kind() != FileType::Directory;
        let facts = [
            ("mode", one.st_mode == two.st_mode),
            ("owner", (one.st_uid, one.st_gid) == (two.st_uid, two.st_gid)),
            ("device number", one.st_rdev == two.st_rdev),
            ("size", !plain || one.st_size == two.st_size),
            ("time", !plain || (one.st_mtime, one.st_mtime_nsec) == (two.st_mtime, two.st_mtime_nsec)),
            ("count of hard links", !plain || one.st_nlink == two.st_nlink),
            ("target", self.target == other.target),
            ("extended attribute", self.xattrs == other.xattrs),
        ];
        if let Some((what, _)) = facts.iter().find(|(_, same)| !same) {
            return Some(format!("another {what}"));
        }
        let linked = plain && one.st_nlink > 1;
        (linked && *links.entry(one.st_ino).or_insert(two.st_ino) != two.st_ino).then(|| "another hard link".to_owned())
    }
}

fn same_bytes(folders: &(OwnedFd, OwnedFd), name: &CStr, path: &[u8], check: Check<'_>) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |folder| rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(|error| failed(path, error));
    let (one, other) = (open(&folders.0)?, open(&folders.1)?);
    let mut buffers = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    loop {
        check()?;
        let read =
            |file, buffer: &mut [u8]| super::diff::read_full(file, buffer, at).map_err(|error| failed(path, error));
        let counts = (read(&one, &mut buffers.0)?, read(&other, &mut buffers.1)?);
        if buffers.0[..counts.0] != buffers.1[..counts.1] {
            return Ok(false);
        }
        if counts.0 == 0 {
            return Ok(true);
        }
        at += counts.0 as u64;
    }
}

/// Open a folder of a tree by its path.
fn open(top: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let opened = if path.is_empty() {
        open_child(top.as_fd(), c".")
    } else {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(top, path, FOLDER, Mode::empty(), resolve)
    };
    opened.map_err(|error| failed(path, error))
}

fn failed(path: &[u8], error: Errno) -> Error {
    Error::system(format!("cannot read '{}'", show(path)), error)
}

fn join(folder: &[u8], name: &CStr) -> Vec<u8> {
    if folder.is_empty() { name.to_bytes().to_vec() } else { [folder, b"/", name.to_bytes()].concat() }
}
