//! Copies of mounts. They are attached nowhere until they are put in their places; or, where the kernel gives attributes to
//! attached mounts alone and copies no file's mount (gVisor), in a folder that nobody looks at.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, mount_bind, mount_bind_recursive, open_tree};
use rustix::path::Arg;

use super::attach::put;
use crate::sys::descriptor_path;

/// Where copies wait.
static WAITING: OnceLock<OwnedFd> = OnceLock::new();
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Attach copies, from now on and in this process, in a folder: of a file system that is not shared, and of this process's mount
/// namespace.
pub fn wait_in(folder: OwnedFd) {
    let _ = WAITING.set(folder);
}

/// Copy the mount of a path, with those beneath it when `recursive`.
pub fn copy_of_path(path: &str, recursive: bool) -> Result<OwnedFd, Errno> {
    let Some(folder) = WAITING.get() else { return detached_copy_of_path(path, recursive) };
    let file = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    waiting_copy(folder.as_fd(), file.as_fd(), recursive)
}

/// Copy the mount of an open file or folder, with those beneath it when `recursive`.
pub fn copy_of(file: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    match WAITING.get() {
        Some(folder) => waiting_copy(folder.as_fd(), file.as_fd(), recursive),
        None => detached_copy(file, recursive),
    }
}

/// As [`copy_of`], attached nowhere wherever copies wait.
pub fn detached_copy(file: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    open_tree(file, "", flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)
}

/// As [`copy_of_path`], attached nowhere wherever copies wait.
pub fn detached_copy_of_path(path: &str, recursive: bool) -> Result<OwnedFd, Errno> {
    open_tree(CWD, path, flags(recursive))
}

fn flags(recursive: bool) -> OpenTreeFlags {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags
}

/// Have a mount that was made wait where copies do, if they do.
pub fn let_wait(made: &OwnedFd) -> Result<(), Errno> {
    let Some(folder) = WAITING.get() else { return Ok(()) };
    put(made, Place::new(folder.as_fd(), made.as_fd())?.open()?)
}

fn waiting_copy(folder: BorrowedFd<'_>, file: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let place = Place::new(folder, file)?;
    let (source, target) = (descriptor_path(file), place.open()?);
    let target = descriptor_path(target.as_fd());
    bind(source, target, recursive)?;
    place.open() // what was mounted on it
}

/// Bind by mount(2).
pub(super) fn bind(source: impl Arg, target: impl Arg, recursive: bool) -> Result<(), Errno> {
    if recursive { mount_bind_recursive(source, target) } else { mount_bind(source, target) }
}

/// A name in the folder, of which there was none like it.
struct Place<'a> {
    folder: BorrowedFd<'a>,
    name: String,
}

impl<'a> Place<'a> {
    /// Make one that a file or folder like this can be mounted on.
    fn new(folder: BorrowedFd<'a>, like: BorrowedFd<'_>) -> Result<Self, Errno> {
        let name = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
        if FileType::from_raw_mode(rustix::fs::fstat(like)?.st_mode) == FileType::Directory {
            rustix::fs::mkdirat(folder, &name, Mode::RWXU)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(folder, &name, flags, Mode::RUSR)?;
        }
        Ok(Self { folder, name })
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.folder, &self.name, flags, Mode::empty())
    }
}
