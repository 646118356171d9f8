//! Mounts: type, source and options as containerd's mount structure and fstab have them.
//!
//! The new mount API comes first (fsopen, fsconfig, fsmount, `open_tree`, `mount_setattr`, `move_mount`): it says what is
//! wrong in words, takes any number of lower folders, and attaches a mount only when it is complete. mount(2) serves
//! kernels without it, and overlays whose options the new API cannot carry.

mod attach;
mod create;
mod legacy;
mod options;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

pub use options::{Options, Propagation};

use crate::error::{Error, Result};
use crate::sys;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// File system type; `bind` (or empty, or `none`) for a bind mount.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options, as in fstab.
    pub options: Vec<String>,
}

impl Mount {
    fn describe(&self) -> String {
        format!("{} mount of '{}' with options '{}'", self.kind, self.source, self.options.join(","))
    }
}

/// Mount one after another on a folder or file, each on top of the one before. When one fails, none stays.
///
/// Symlinks in `target` are followed: it must not be a path that a container controls (see [`mount_at`]).
pub fn mount(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        // Opened anew each time: the next one goes on top of the one before.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let result = rustix::fs::openat(CWD, target, flags, Mode::empty())
            .map_err(|error| Error::system(format!("cannot mount on {}", target.display()), error))
            .and_then(|point| mount_at(mount, point.as_fd()));
        if let Err(error) = result {
            for _ in 0..done {
                let _ = rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
            return Err(error.context(format!("on {}", target.display())));
        }
    }
    Ok(())
}

/// Mount on what a descriptor (of `O_PATH`) stands for.
pub fn mount_at(mount: &Mount, target: BorrowedFd<'_>) -> Result<()> {
    let options = Options::parse(&mount.options).map_err(|error| error.context(mount.describe()))?;
    match make(mount, &options)? {
        Some(made) => attach::attach(made.as_fd(), target, &options),
        None => legacy::mount(mount, &options, target),
    }
    .map_err(|error| error.context(format!("cannot attach the {}", mount.describe())))
}

/// Make a mount that is attached nowhere. None when it takes mount(2), which cannot do that.
pub fn make(mount: &Mount, options: &Options) -> Result<Option<OwnedFd>> {
    let bind = options.bind || matches!(mount.kind.as_str(), "bind" | "rbind" | "" | "none");
    let made = if bind { attach::clone(mount, options) } else { create::create(mount, options) };
    match made {
        Ok(made) => Ok(Some(made)),
        Err(create::Refusal::TooOld) => Ok(None),
        Err(create::Refusal::Failed(error)) => Err(error.context(format!("cannot make the {}", mount.describe()))),
    }
}

/// Unmount everything that is stacked on a path, lazily what is busy. Harmless when nothing is mounted there.
pub fn unmount(target: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // INVAL: no mount point.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(error) => return Err(Error::system(format!("cannot unmount {}", target.display()), error)),
            },
            Err(error) => return Err(Error::system(format!("cannot unmount {}", target.display()), error)),
        }
    }
}

/// Open a path for use as a mount point or source without looking at what it is.
fn open_path(path: &str) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The path of a descriptor for calls that take paths only.
fn path_of(descriptor: BorrowedFd<'_>) -> std::path::PathBuf {
    sys::descriptor_path(descriptor.as_fd())
}
