//! mount_setattr(2), Linux 5.12.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::checked;

/// What mount_setattr changes: attributes to set and to clear (`MOUNT_ATTR_*`), a propagation, and the user namespace
/// of an id-mapped mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes<'a> {
    /// Attributes that the mount gets.
    pub set: u64,
    /// Attributes that the mount loses.
    pub clear: u64,
    /// The mount's new propagation type.
    pub propagation: Option<Propagation>,
    /// A user namespace whose mappings the (detached) mount shall show its files through.
    pub id_mapping: Option<BorrowedFd<'a>>,
}

/// How mounts and unmounts travel between copies of a mount: mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// In neither direction.
    Private,
    /// From the copied mount to this one.
    Slave,
    /// Both ways.
    Shared,
    /// In neither direction, and it cannot be bound.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Slave => libc::MS_SLAVE,
            Self::Shared => libc::MS_SHARED,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// Change the mount that `mount` is the root of, with all mounts beneath when `recursive`.
pub fn mount_setattr(mount: impl AsFd, recursive: bool, attributes: MountAttributes<'_>) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.set | if attributes.id_mapping.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: attributes.clear,
        propagation: attributes.propagation.map_or(0, Propagation::flag),
        userns_fd: attributes.id_mapping.map_or(0, |namespace| namespace.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated string, the argument a struct of the size that is passed along.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
