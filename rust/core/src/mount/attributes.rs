//! Attributes of mounts: by mount_setattr(2), and where the kernel has no such call (gVisor) by mount(2), which changes those of
//! mounts that are attached in this mount namespace.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, mount_change, mount_remount};

use super::table::mounts_beneath;
use crate::sys::{MountAttributes, descriptor_path, mount_setattr};

/// What mount(2) can change, too: as mount_setattr(2), statvfs(3) and mount(2) call it.
const REMOUNTED: [(MountAttrFlags, StatVfsMountFlags, MountFlags); 6] = [
    (MountAttrFlags::MOUNT_ATTR_RDONLY, StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
    (MountAttrFlags::MOUNT_ATTR_NOSUID, StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
    (MountAttrFlags::MOUNT_ATTR_NODEV, StatVfsMountFlags::NODEV, MountFlags::NODEV),
    (MountAttrFlags::MOUNT_ATTR_NOEXEC, StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    (MountAttrFlags::MOUNT_ATTR_NOATIME, StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
    (MountAttrFlags::MOUNT_ATTR_NODIRATIME, StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
];

/// Change the attributes of the mount that `mount` is the root of. NOSYS for what this kernel cannot change there.
pub fn change(mount: impl AsFd, attributes: MountAttributes<'_>) -> Result<(), Errno> {
    match mount_setattr(mount.as_fd(), attributes) {
        Err(Errno::NOSYS) => remount(mount.as_fd(), attributes),
        result => result,
    }
}

fn remount(mount: BorrowedFd<'_>, attributes: MountAttributes<'_>) -> Result<(), Errno> {
    // The path of a descriptor is one where the kernel says so: a container's root may have anything in the place of /proc.
    if !rustix::fs::statfs("/proc/self/fd").is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC) {
        return Err(Errno::NOSYS);
    }
    let place = descriptor_path(mount);
    let changed = attributes.set | attributes.clear;
    let times = MountAttrFlags::MOUNT_ATTR__ATIME; // of relatime and strictatime there is nothing to see and to keep
    let known = REMOUNTED.iter().fold(times, |known, (attribute, ..)| known | *attribute);
    if attributes.id_map.is_some() || !known.contains(changed) {
        return Err(Errno::NOSYS);
    }
    if !changed.is_empty() {
        remount_one(&place, &attributes)?;
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::NOSYS);
        let beneath = if attributes.recursive { mounts_beneath(mount).map_err(failed)? } else { Vec::new() };
        for path in beneath {
            remount_one(&place.join(path), &attributes)?;
        }
    }
    if attributes.propagation != 0 {
        let recursive = if attributes.recursive { libc::MS_REC } else { 0 };
        let flags = (attributes.propagation | recursive) as u32;
        mount_change(&place, MountPropagationFlags::from_bits_retain(flags))?;
    }
    Ok(())
}

fn remount_one(path: &Path, attributes: &MountAttributes<'_>) -> Result<(), Errno> {
    let present = rustix::fs::statvfs(path)?.f_flag;
    let mut wanted = MountFlags::BIND;
    for (attribute, shown, flag) in REMOUNTED {
        let stays = present.contains(shown) && !attributes.clear.contains(attribute);
        wanted.set(flag, stays || attributes.set.contains(attribute));
    }
    wanted.set(MountFlags::STRICTATIME, attributes.set.contains(MountAttrFlags::MOUNT_ATTR_STRICTATIME));
    // INVAL: it is not attached, or not here.
    mount_remount(path, wanted, c"").map_err(|error| if error == Errno::INVAL { Errno::NOSYS } else { error })
}
