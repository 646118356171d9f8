//! The root file system: a snapshot's mounts, or a folder that is ready, in the container's mount namespace.

use std::os::fd::OwnedFd;
use std::path::Path;

use lamella_core::mount::{Mount, put};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::detached::set_attributes;
use crate::error::{Failure, Step};

/// Mount a snapshot on a folder of the host; returns the root of the topmost mount.
pub(super) fn mount(mounts: &[Mount], target: &str) -> Result<OwnedFd, Failure> {
    lamella_core::mount::mount(mounts, Path::new(target))?;
    let root = open_folder(target).step(|| format!("open {target}"))?;
    without_devices(&root)?;
    Ok(root)
}

/// Put the copy of a root that is ready in the place of that: pivot_root wants a mount.
pub(super) fn place_copy(copy: &OwnedFd, target: &str) -> Result<OwnedFd, Failure> {
    let what = || format!("bind the root {target}");
    put(copy, open_folder(target).step(what)?).step(what)?;
    let root = open_folder(target).step(what)?;
    without_devices(&root)?;
    Ok(root)
}

/// Device nodes of the image, and those that the container's root makes, open nothing.
pub(super) fn without_devices(root: &OwnedFd) -> Result<(), Failure> {
    set_attributes(root, false, MountAttrFlags::MOUNT_ATTR_NODEV).step(|| "mount the root without devices")
}

pub(super) fn open_folder(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
