//! The root file system: a snapshot's mounts, or a folder that is ready, in the container's mount namespace.

use std::os::fd::OwnedFd;
use std::path::Path;

use lamella_core::mount::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::detached::{attach, copy_of_path, set_attributes};
use crate::error::{Failure, Step};

/// Mount a snapshot on a folder of the host; returns the root of the topmost mount.
pub(super) fn mount(mounts: &[Mount], target: &str) -> Result<OwnedFd, Failure> {
    lamella_core::mount::mount(mounts, Path::new(target))?;
    let root = open_folder(target).step(|| format!("open {target}"))?;
    without_devices(&root)?;
    Ok(root)
}

/// Bind a root that is ready onto itself: pivot_root wants a mount.
pub(super) fn bind_root(root: &str) -> Result<OwnedFd, Failure> {
    let what = || format!("bind the root {root}");
    let point = open_folder(root).step(what)?;
    let mount = copy_of_path(root, true).step(what)?;
    without_devices(&mount)?;
    attach(&mount, &point).step(what)?;
    open_folder(root).step(what)
}

/// Device nodes of the image, and those that the container's root makes, open nothing.
pub(super) fn without_devices(root: &OwnedFd) -> Result<(), Failure> {
    set_attributes(root, false, MountAttrFlags::MOUNT_ATTR_NODEV).step(|| "mount the root without devices")
}

pub(super) fn open_folder(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
