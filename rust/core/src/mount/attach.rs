//! Bind mounts by `open_tree`, and putting a mount in its place by `move_mount`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::{Mount, Options};
use crate::error::{Error, Result};
use crate::sys::{MountAttributes, mount_setattr};

/// A copy of what is mounted at the source, with the attributes that the options name.
pub fn clone(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    if let Some((key, _)) = options.data.first() {
        return Err(Error::invalid(format!("a bind mount takes no option '{key}'")));
    }
    let tree = copy(&mount.source, mount.is_recursive(options))?;
    set_attributes(tree.as_fd(), options)?;
    Ok(tree)
}

/// A copy of what is mounted at a path, attached nowhere.
pub fn copy(path: &str, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags).map_err(|error| Error::system("open_tree", error))
}

/// Give a mount the attributes that the options name.
pub fn set_attributes(mount: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let change = |attributes| mount_setattr(mount, attributes).map_err(|error| Error::system("mount_setattr", error));
    if !options.set.is_empty() || !options.clear.is_empty() {
        change(MountAttributes { set: options.set, clear: options.clear, ..MountAttributes::default() })?;
    }
    if !options.set_recursive.is_empty() {
        change(MountAttributes { set: options.set_recursive, recursive: true, ..MountAttributes::default() })?;
    }
    Ok(())
}

/// Put a mount in its place.
pub fn attach(made: BorrowedFd<'_>, target: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(made, "", target, "", flags)
        .map_err(|error| mismatch(made, target).unwrap_or_else(|| Error::system("move_mount", error)))?;
    let Some((propagation, recursive)) = options.propagation else { return Ok(()) };
    let attributes = MountAttributes { propagation: propagation.flag(), recursive, ..MountAttributes::default() };
    mount_setattr(made, attributes).map_err(|error| Error::system("mount_setattr (propagation)", error))
}

/// The usual reason for a refusal: a folder goes onto folders only, a file onto what is none.
fn mismatch(made: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Option<Error> {
    let is_folder = |file| Some(FileType::from_raw_mode(rustix::fs::fstat(file).ok()?.st_mode) == FileType::Directory);
    let message = match (is_folder(made)?, is_folder(target)?) {
        (true, false) => "the source is a folder, the target is none",
        (false, true) => "the target is a folder, the source is none",
        _ => return None,
    };
    Some(Error::invalid(message).hint("Mount a folder onto a folder, and a file onto a file."))
}
