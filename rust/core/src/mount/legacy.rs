//! mount(2), for kernels without the new API and for overlays whose options it cannot carry.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};

use super::options::lower_folders;
use super::{Mount, Options, Propagation, open_path, path_of};
use crate::error::{Error, Kind, Result};
use crate::sys;

/// mount(2) copies one page of options.
const PAGE: usize = 4096;

pub fn mount(mount: &Mount, options: &Options, target: BorrowedFd<'_>) -> Result<()> {
    let point = path_of(target);
    let bind = options.bind || matches!(mount.kind.as_str(), "bind" | "rbind" | "" | "none");
    if bind {
        return self::bind(mount, options, &point);
    }
    let data = data(options, &lower_folders(options.value("lowerdir").unwrap_or_default()));
    let result = if mount.kind == "overlay" && data.len() >= PAGE {
        shortened(mount, options, target)
    } else {
        call(mount, options, &point, &data)
    };
    result.map_err(|error| Error::system(format!("mount(2) of {}", mount.kind), error))?;
    propagate(options, &point)
}

fn call(mount: &Mount, options: &Options, point: &Path, data: &str) -> std::result::Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let source = if mount.source.is_empty() { "none" } else { mount.source.as_str() };
    rustix::mount::mount(source, point, mount.kind.as_str(), flags(options), data.as_c_str())
}

/// An overlay with more lower folders than a page holds: name them from their common parent, in a thread that stands
/// there.
fn shortened(mount: &Mount, options: &Options, target: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let lower = lower_folders(options.value("lowerdir").unwrap_or_default());
    let common = common_parent(&lower).ok_or(Errno::TOOBIG)?;
    let parent: OwnedFd = open_path(&common)?;
    let short: Vec<String> = lower.iter().map(|folder| folder[common.len() + 1..].to_owned()).collect();
    let data = data(options, &short);
    if data.len() >= PAGE {
        return Err(Errno::TOOBIG);
    }
    let point = path_of(target);
    std::thread::scope(|scope| {
        let work = || {
            sys::own_working_folder(parent.as_fd())?;
            call(mount, options, &point, &data)
        };
        scope.spawn(work).join().unwrap_or(Err(Errno::CANCELED))
    })
}

fn common_parent(folders: &[String]) -> Option<String> {
    let mut common = Path::new(folders.first()?).parent()?;
    while !folders.iter().all(|folder| Path::new(folder).starts_with(common)) {
        common = common.parent()?;
    }
    let text = common.to_str()?;
    // The root itself shortens nothing.
    (text.len() > 1).then(|| text.to_owned())
}

/// The file system's own options in one string; overlayfs wants colons, commas and backslashes in paths protected.
fn data(options: &Options, lower: &[String]) -> String {
    let mut parts = Vec::new();
    for (key, value) in &options.data {
        match value {
            Some(_) if key == "lowerdir" => {
                let protected: Vec<String> = lower
                    .iter()
                    .map(|folder| folder.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,"))
                    .collect();
                parts.push(format!("lowerdir={}", protected.join(":")));
            }
            Some(value) => parts.push(format!("{key}={value}")),
            None => parts.push(key.clone()),
        }
    }
    parts.join(",")
}

fn bind(mount: &Mount, options: &Options, point: &Path) -> Result<()> {
    let failed = |error| Error::system("mount(2)", error);
    if !options.set_recursive.is_empty() {
        return Err(Error::new(Kind::Unsupported, "recursive mount attributes take Linux 5.12"));
    }
    let recursive = options.recursive || mount.kind == "rbind";
    if recursive {
        rustix::mount::mount_bind_recursive(mount.source.as_str(), point).map_err(failed)?;
    } else {
        rustix::mount::mount_bind(mount.source.as_str(), point).map_err(failed)?;
    }
    if !options.set.is_empty() || !options.clear.is_empty() {
        rustix::mount::mount_remount(point, flags(options) | MountFlags::BIND, "").map_err(failed)?;
    }
    propagate(options, point)
}

fn propagate(options: &Options, point: &Path) -> Result<()> {
    let Some((propagation, recursive)) = options.propagation else { return Ok(()) };
    let mut flags = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    if recursive {
        flags |= MountPropagationFlags::REC;
    }
    rustix::mount::mount_change(point, flags).map_err(|error| Error::system("mount(2) (propagation)", error))
}

fn flags(options: &Options) -> MountFlags {
    let pairs = [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
        (MountAttrFlags::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
    ];
    let mut flags = MountFlags::empty();
    for (attribute, flag) in pairs {
        if options.set.contains(attribute) {
            flags |= flag;
        }
    }
    for name in &options.system_flags {
        flags |= match name.as_str() {
            "sync" => MountFlags::SYNCHRONOUS,
            "dirsync" => MountFlags::DIRSYNC,
            _ => MountFlags::LAZYTIME,
        };
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_from_their_common_parent() {
        let folders = ["/s/o/aa/fs".to_owned(), "/s/o/bb/fs".to_owned(), "/s/o/aabb/fs".to_owned()];
        assert_eq!(common_parent(&folders).as_deref(), Some("/s/o"));
        assert_eq!(common_parent(&["/a/x".to_owned(), "/b/x".to_owned()]), None);
    }

    #[test]
    fn paths_are_protected_in_the_option_string() {
        let options = Options::parse(&["lowerdir=/a:/b", "upperdir=/u", "userxattr"]).unwrap();
        assert_eq!(data(&options, &["/x:y,z".to_owned()]), r"lowerdir=/x\:y\,z,upperdir=/u,userxattr");
    }
}
