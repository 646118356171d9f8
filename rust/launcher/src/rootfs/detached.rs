//! File systems that are made while they hang nowhere, and what is changed about a mount.

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{Mount, Options, change, make};
use lamella_core::sys::MountAttributes;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::Failure;

/// A new instance of a file system, for the launcher's own purposes.
pub(super) fn file_system(kind: &str, options: &[&str], what: &str) -> Result<OwnedFd, Failure> {
    let mount = Mount { kind: kind.into(), source: kind.into(), options: Vec::new() };
    let made = Options::parse(options).and_then(|options| make(&mount, &options));
    made.map_err(|error| Failure::from(error.context(what)))
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
    change(mount, MountAttributes { set, clear, recursive, ..MountAttributes::default() })
}

/// Change how mounts beneath one, and it itself, spread: `MS_PRIVATE` and its like.
pub(super) fn set_propagation(mount: impl AsFd, recursive: bool, propagation: u64) -> Result<(), Errno> {
    change(mount, MountAttributes { propagation, recursive, ..MountAttributes::default() })
}
