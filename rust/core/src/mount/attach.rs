//! Bind mounts, and putting a mount in its place by `move_mount`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::copies::copy_of_path;
use super::{Mount, Options, attributes};
use crate::error::{Error, Result};
use crate::sys::{MountAttributes, descriptor_path, has_mount_setattr};

/// A copy of what is mounted at the source, with the attributes that the options name.
pub fn clone(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    if let Some((key, _)) = options.data.first() {
        return Err(Error::invalid(format!("a bind mount takes no option '{key}'")));
    }
    let tree =
        copy_of_path(&mount.source, mount.is_recursive(options)).map_err(|error| Error::system("open_tree", error))?;
    set_attributes(tree.as_fd(), options)?;
    Ok(tree)
}

/// Give a mount the attributes that the options name.
pub fn set_attributes(mount: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let change =
        |attributes| attributes::change(mount, attributes).map_err(|error| Error::system("mount_setattr", error));
    if !options.set.is_empty() || !options.clear.is_empty() {
        change(MountAttributes { set: options.set, clear: options.clear, ..MountAttributes::default() })?;
    }
    if !options.set_recursive.is_empty() {
        change(MountAttributes { set: options.set_recursive, recursive: true, ..MountAttributes::default() })?;
    }
    Ok(())
}

/// Put a mount on an open file or folder.
pub fn put(made: impl AsFd, target: impl AsFd) -> std::result::Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let (made, target) = (made.as_fd(), target.as_fd());
    rustix::mount::move_mount(made, "", target, "", flags).or_else(|error| match error {
        // Files, in gVisor, which moves folders alone. A copy has the attributes that the first one was given.
        Errno::NOTDIR => rustix::mount::mount_bind(descriptor_path(made), descriptor_path(target)).map_err(|_| error),
        _ => Err(error),
    })
}

/// Whether [`bind_file`] may do where a copy was refused: in gVisor, which copies folders alone.
pub fn can_bind_file(mount: &Mount, options: &Options) -> bool {
    mount.is_bind(options) && options.data.is_empty() && options.id_maps.is_none() && !has_mount_setattr()
}

/// Bind a file by mount(2), and give it its attributes in its place. When that fails, nothing stays.
pub fn bind_file(mount: &Mount, target: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let failed = |error| Error::system("mount(2)", error);
    let place = std::fs::read_link(descriptor_path(target)).map_err(|error| Error::system("its place", error))?;
    rustix::mount::mount_bind(&mount.source, descriptor_path(target)).map_err(failed)?;
    let opened = rustix::fs::open(&place, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let dressed = opened.map_err(failed).and_then(|made| {
        set_attributes(made.as_fd(), options)?;
        spread(made.as_fd(), options)
    });
    if dressed.is_err() {
        let _ = rustix::mount::unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    dressed
}

/// Put a mount in its place, and let it spread as the options say.
pub fn attach(made: BorrowedFd<'_>, target: BorrowedFd<'_>, options: &Options) -> Result<()> {
    put(made, target).map_err(|error| mismatch(made, target).unwrap_or_else(|| Error::system("move_mount", error)))?;
    spread(made, options)
}

fn spread(made: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let Some((propagation, recursive)) = options.propagation else { return Ok(()) };
    let attributes = MountAttributes { propagation: propagation.flag(), recursive, ..MountAttributes::default() };
    attributes::change(made, attributes).map_err(|error| Error::system("mount_setattr (propagation)", error))
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
