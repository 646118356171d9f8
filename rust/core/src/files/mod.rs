//! Files of a container, from outside, while it may change every path at any moment.
//!
//! A [`Root`] is the container's root folder by descriptor: `/proc/PID/root` of a running one, with all that is mounted there, or
//! a mounted snapshot. A path is looked up by one openat2(2) with `RESOLVE_IN_ROOT`, without magic links: the kernel keeps symlinks
//! and `..` inside the root while it walks. What comes of it is a descriptor, and everything else goes through that and single
//! names that are never followed; nothing is looked at by a path first and used by it afterwards (CVE-2018-15664,
//! CVE-2026-42306). Nothing is opened before it is known to be a regular file or a folder, so that a FIFO cannot block and a device
//! is never touched.
//!
//! [`pack`] writes what is at a path as an archive, [`unpack`] takes one into a folder. Neither keeps more than the names of the
//! folders and of the files with several names.

mod owners;
mod pack;
mod stream;
mod unpack;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use pack::{Packing, pack};
pub use stream::{Input, Output};
pub use unpack::{Unpacking, unpack};

use crate::error::{Error, Kind, Result, show};
use crate::mount::IdMaps;
use crate::sys;

/// openat2 gives EAGAIN when something is renamed or mounted while it walks; give up after this many.
const ATTEMPTS: u32 = 4096;

/// Which symlinks lead on when a path is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Links {
    /// All but magic ones; they and `..` stay inside the root.
    InRoot,
    /// None: a path with one in it is refused.
    None,
}

/// What is at a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Mode, with the kind of file.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: i64,
    /// Nanoseconds of the last change since 1970.
    pub mtime: i128,
    /// The file system's device.
    pub device: u64,
    /// Where a symlink leads.
    pub target: Vec<u8>,
    /// Where it is in the root without symlinks and `..`.
    pub place: Vec<u8>,
}

/// A folder that is the root of all paths.
#[derive(Debug)]
pub struct Root {
    descriptor: OwnedFd,
    links: Links,
    ids: Option<IdMaps>,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Root {
    /// Open a root. `path` is the caller's: its symlinks are followed.
    pub fn open(path: &Path, links: Links) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|error| Error::system(format!("cannot open {}", path.display()), error))?;
        Ok(Self::of(descriptor, links))
    }

    /// Take an open folder as the root.
    #[must_use]
    pub fn of(descriptor: OwnedFd, links: Links) -> Self {
        Self { descriptor, links, ids: None }
    }

    /// Which symlinks lead on.
    #[must_use]
    pub fn links(&self) -> Links {
        self.links
    }

    /// Take owners for those that a container knows, whose ids are mapped so: this machine has others for them.
    #[must_use]
    pub fn with_ids(self, ids: IdMaps) -> Self {
        Self { ids: Some(ids), ..self }
    }

    /// Make a folder the root, with all its paths: a relative path whose symlinks lead nowhere else (EXDEV).
    pub fn beneath(&self, path: &[u8]) -> Result<Self> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let descriptor = self.resolve(path, OFlags::DIRECTORY, resolve).map_err(|error| not_found(path, error))?;
        Ok(Self { descriptor, links: self.links, ids: self.ids.clone() })
    }

    /// Open what is at a path, without touching it (`O_PATH`); with `follow` where a symlink at its end leads.
    pub fn find(&self, path: &[u8], follow: bool) -> Result<OwnedFd> {
        let flags = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        self.look_up(path, flags).map_err(|error| not_found(path, error))
    }

    /// Open a folder, to make things in it.
    fn folder(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        self.look_up(path, OFlags::DIRECTORY)
    }

    fn look_up(&self, path: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT
            | ResolveFlags::NO_MAGICLINKS
            | if self.links == Links::None { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
        self.resolve(path, flags, resolve)
    }

    fn resolve(&self, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> std::result::Result<OwnedFd, Errno> {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let path = if path.is_empty() { c"." } else { path.as_c_str() };
        let mut attempts = 0;
        loop {
            let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.descriptor, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    /// The attributes of what is at a path, and where it is.
    pub fn stat(&self, path: &[u8], follow: bool) -> Result<Found> {
        let found = self.find(path, follow)?;
        let failed = |error| Error::system(format!("cannot read '{}'", show(path)), error);
        let mut stat = rustix::fs::fstat(&found).map_err(failed)?;
        if let Some(maps) = &self.ids {
            (stat.st_uid, stat.st_gid) = maps.stored(stat.st_uid, stat.st_gid);
        }
        // EINVAL, ENOENT: it is no symlink.
        let target = rustix::fs::readlinkat(&found, c"", Vec::new()).map_or_else(|_| Vec::new(), CString::into_bytes);
        let shown = |descriptor: BorrowedFd<'_>| {
            rustix::fs::readlinkat(CWD, sys::descriptor_path(descriptor), Vec::new()).map(CString::into_bytes)
        };
        let (top, place) = (shown(self.as_fd()).map_err(failed)?, shown(found.as_fd()).map_err(failed)?);
        let top = if top == b"/" { &b""[..] } else { &top };
        let place = place.strip_prefix(top).unwrap_or(&place);
        Ok(Found {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size,
            mtime: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            device: stat.st_dev,
            target,
            place: if place.is_empty() { b"/".to_vec() } else { place.to_vec() },
        })
    }
}

fn not_found(path: &[u8], error: Errno) -> Error {
    let error_text = Error::system(format!("cannot open '{}' in the container", show(path)), error);
    match error {
        Errno::AGAIN => {
            Error::new(Kind::Unavailable, format!("the way to '{}' in the container changes all the time", show(path)))
        }
        _ => error_text,
    }
}
