//! The container's view of its cgroups.

use lamella_core::mount::{Options, copy_of_path, put};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::detached::{change_attributes, file_system, set_attributes};
use super::path::{FOLDER_MODE, Root, Target};
use crate::cgroup::Cgroup;
use crate::error::{Failure, Step};

/// Mount the cgroups on a folder. v2: the hierarchy as the container's cgroup namespace shows it, or the container's
/// folder of it. v1: a small file system with one folder a hierarchy, which shows the container's part.
pub(super) fn mount(
    root: &Root,
    destination: &str,
    options: &Options,
    cgroup: &Cgroup,
    what: &str,
) -> Result<(), Failure> {
    let target = root.mount_point(destination, Target::Folder)?;
    if let Some(folder) = cgroup.unified_folder() {
        let copy = copy_of_path(&folder, false).step(|| what)?;
        change_attributes(&copy, false, options.set, options.clear).step(|| what)?;
        return put(&copy, &target).step(|| what);
    }
    let frame = file_system("tmpfs", &["nosuid", "nodev", "noexec", "mode=755", "size=64k"], what)?;
    put(&frame, &target).step(|| what)?;
    for (name, folder) in cgroup.legacy_folders() {
        // Nobody else has the frame: a name in it is what was made by it.
        rustix::fs::mkdirat(&frame, name, FOLDER_MODE).step(|| what)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let point = rustix::fs::openat(&frame, name, flags, Mode::empty()).step(|| what)?;
        let copy = copy_of_path(&folder, false).step(|| what)?;
        change_attributes(&copy, false, options.set, options.clear).step(|| what)?;
        put(&copy, &point).step(|| what)?;
    }
    set_attributes(&frame, false, options.set & MountAttrFlags::MOUNT_ATTR_RDONLY).step(|| what)
}
