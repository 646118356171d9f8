//! Detached mounts: made or copied while they hang nowhere, then put onto descriptors.

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{Mount, Options, make};
use lamella_core::sys::{MountAttributes, mount_setattr};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::error::Failure;

/// A new instance of a file system, for the launcher's own purposes.
pub(super) fn file_system(kind: &str, options: &[&str], what: &str) -> Result<OwnedFd, Failure> {
    let mount = Mount { kind: kind.into(), source: kind.into(), options: Vec::new() };
    let made = Options::parse(options).and_then(|options| make(&mount, &options));
    made.map_err(|error| Failure::from(error.context(what)))
}

/// Copy the mount of a host path as a detached mount.
pub(super) fn copy_of_path(path: &str, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
}

/// Copy the mount of an open file or folder.
pub(super) fn copy_of(file: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(file, "", flags)
}

/// Put a detached mount onto an open file or folder.
pub(super) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Set attributes of a mount, with those beneath it when `recursive`.
pub(super) fn set_attributes(mount: impl AsFd, recursive: bool, set: MountAttrFlags) -> Result<(), Errno> {
    change_attributes(mount, recursive, set, MountAttrFlags::empty())
}

/// Set and clear attributes of a mount.
pub(super) fn change_attributes(
    mount: impl AsFd,
    recursive: bool,
    set: MountAttrFlags,
    clear: MountAttrFlags,
) -> Result<(), Errno> {
    mount_setattr(mount.as_fd(), MountAttributes { set, clear, recursive, ..MountAttributes::default() })
}

/// Change how mounts beneath one, and it itself, spread: `MS_PRIVATE` and its like.
pub(super) fn set_propagation(mount: impl AsFd, recursive: bool, propagation: u64) -> Result<(), Errno> {
    mount_setattr(mount.as_fd(), MountAttributes { propagation, recursive, ..MountAttributes::default() })
}
