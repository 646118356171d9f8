//! New file systems by the mount API of Linux 5.2: detached mounts that are put onto descriptors.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::options::MountOptions;
use crate::error::{Failure, Step};
use crate::sys::{self, MountAttributes};

/// Make a new instance of a file system; the mount hangs nowhere yet. `what` names it in errors.
pub(super) fn create(kind: &str, source: &str, options: &MountOptions, what: &str) -> Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).step(|| format!("{what}: open file system {kind}"))?;
    let explain = |error: rustix::io::Errno| {
        let mut failure = Failure::system(what, &error.into());
        if let Some(log) = kernel_log(&context) {
            failure.message = format!("{} ({log})", failure.message);
        }
        failure
    };
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source).map_err(explain)?;
    }
    for flag in &options.flags {
        fsconfig_set_flag(&context, *flag).map_err(explain)?;
    }
    for option in &options.data {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        }
        .map_err(|error| {
            let mut failure = explain(error);
            failure.message = format!("{} (option {option:?})", failure.message);
            failure
        })?;
    }
    fsconfig_create(&context).map_err(explain)?;
    let attributes = MountAttrFlags::from_bits_retain(options.set as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(explain)
}

/// What the kernel wrote about a failure into the file-system context.
pub(super) fn kernel_log(context: &OwnedFd) -> Option<String> {
    let mut buffer = [0; 512];
    let length = rustix::io::read(context, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(buffer.get(..length)?).trim().to_owned();
    // Each message starts with its level: "e " for an error.
    Some(text.strip_prefix("e ").unwrap_or(&text).to_owned()).filter(|text| !text.is_empty())
}

/// Copy the mount of a host path (with what is mounted beneath it, when `recursive`) as a detached mount.
pub(super) fn copy_of_path(path: &str, recursive: bool) -> Result<OwnedFd, rustix::io::Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
}

/// Copy the mount of an open file.
pub(super) fn copy_of(file: impl AsFd, recursive: bool) -> Result<OwnedFd, rustix::io::Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(file, "", flags)
}

/// Hang a detached mount onto an open file or folder.
pub(super) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), rustix::io::Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Set and clear attributes of a mount.
pub(super) fn set_attributes(mount: impl AsFd, recursive: bool, set: u64, clear: u64) -> io::Result<()> {
    if set | clear == 0 {
        return Ok(());
    }
    sys::mount_setattr(mount, recursive, MountAttributes { set, clear, ..MountAttributes::default() })
}
