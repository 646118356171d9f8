//! Paths that a container must not read (masked) or write (read-only).

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{copy_of, copy_of_path, put};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::detached::{file_system, set_attributes};
use super::path::Root;
use crate::error::{Failure, Kind, Step};

pub(super) const NULL_DEVICE: (u32, u32) = (1, 3);

/// Put an empty read-only folder over folders and the null device over files. What does not exist needs no mask.
///
/// The source is the host's null device, opened in a mount namespace that no container reaches and checked to be one
/// (CVE-2025-31133 was a source that a container had exchanged for a symlink).
pub(super) fn mask(root: &Root, paths: &[String]) -> Result<(), Failure> {
    let (mut null, mut empty) = (None, None);
    for path in paths {
        let what = || format!("mask {path}");
        let Some(target) = present(root, path)? else { continue };
        let status = rustix::fs::fstat(&target).step(what)?;
        let folder = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        let source: &mut Option<OwnedFd> = if folder { &mut empty } else { &mut null };
        // The first is put in place itself, the others are copies of its mount: a tenth of what a new one costs.
        let cover = match source {
            Some(first) => copy_of(&*first, false).step(what)?,
            None if folder => empty_folder()?,
            None => null_device()?,
        };
        put(&cover, &target).step(what)?;
        source.get_or_insert(cover);
    }
    Ok(())
}

/// Make paths read-only, with all that is mounted beneath them.
pub(super) fn make_readonly(root: &Root, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let what = || format!("make {path} read-only");
        let Some(target) = present(root, path)? else { continue };
        let copy = copy_of(&target, true).step(what)?;
        set_attributes(&copy, true, MountAttrFlags::MOUNT_ATTR_RDONLY).step(what)?;
        put(&copy, &target).step(what)?;
    }
    Ok(())
}

fn present(root: &Root, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match root.open(path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).step(|| format!("open {path} in {}", root.shown())),
    }
}

fn empty_folder() -> Result<OwnedFd, Failure> {
    let options = ["ro", "nosuid", "nodev", "noexec", "mode=555", "size=4k", "nr_inodes=1"];
    file_system("tmpfs", &options, "make an empty folder to mask with")
}

fn null_device() -> Result<OwnedFd, Failure> {
    let device = rustix::fs::openat(CWD, "/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .step(|| "open the host's /dev/null")?;
    let status = rustix::fs::fstat(device.as_fd()).step(|| "look at the host's /dev/null")?;
    let number = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
    if FileType::from_raw_mode(status.st_mode) != FileType::CharacterDevice || number != NULL_DEVICE {
        return Err(Failure::new(Kind::FailedPrecondition, "the host's /dev/null is not the null device"));
    }
    let mount = copy_of(&device, false).step(|| "copy the mount of the host's /dev/null")?;
    // Read-only keeps the node's owner and mode, which are the host's, from being changed through the mask.
    set_attributes(&mount, false, super::devices::NODE_ATTRIBUTES).step(|| "make the mask read-only")?;
    Ok(mount)
}

/// A host path that is a device, as a detached mount; None when it is not there.
pub(super) fn device_copy(
    path: &str,
    kind: FileType,
    number: (u32, u32),
) -> Result<Option<(OwnedFd, rustix::fs::Stat)>, Errno> {
    let mount = match copy_of_path(path, false) {
        Ok(mount) => mount,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let status = rustix::fs::fstat(&mount)?;
    let found = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
    Ok((FileType::from_raw_mode(status.st_mode) == kind && found == number).then_some((mount, status)))
}
