//! Network namespaces that outlive the process that made them: each is kept by a mount on a file (ip-netns(8) does the same).
//!
//! What was plugged into such a namespace can be unplugged in good order whoever died meanwhile. One for a container that has ids
//! of its own belongs to a user namespace, which is kept beside it: what is root there has a say in it, and nobody else inside.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::mount::IdMaps;
use crate::{mount, sys};

/// Make a network namespace with nothing but loopback, which is up, and keep it on `path`, a file that is made.
///
/// With `maps` it belongs to a user namespace that has them, which is kept on [`owner`]. AlreadyExists when something is at
/// `path`; PermissionDenied without CAP_SYS_ADMIN. After an error nothing is left.
pub fn pin(path: &Path, maps: Option<&IdMaps>) -> Result<()> {
    let failed = |error: Errno| Error::system(format!("cannot make the network namespace {}", path.display()), error);
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?);
    let made = match maps {
        None => in_thread(|| make(path)).map_err(failed),
        Some(maps) => make_owned(path, maps, &failed),
    };
    if made.is_err() {
        let _ = unpin(path);
    }
    made
}

/// Where the user namespace is kept that the network namespace on `path` belongs to, if it is not the machine's.
#[must_use]
pub fn owner(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".user");
    name.into()
}

fn make(path: &Path) -> std::result::Result<(), Errno> {
    sys::own_network_namespace()?;
    sys::bring_loopback_up()?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path)
}

fn make_owned(path: &Path, maps: &IdMaps, failed: &dyn Fn(Errno) -> Error) -> Result<()> {
    let (_keeper, process) = maps.kept_namespace(true)?;
    let files = sys::descriptor_path(process.as_fd()).join("ns");
    let owner = owner(path);
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::open(&owner, flags, Mode::empty()).map_err(failed)?);
    rustix::mount::mount_bind(files.join("user"), owner).map_err(failed)?;
    rustix::mount::mount_bind(files.join("net"), path).map_err(failed)?;
    in_thread(|| {
        enter(path)?;
        sys::bring_loopback_up()
    })
    .map_err(failed)
}

/// Do something in a thread of its own, which ends with it: this one stays in its namespaces.
fn in_thread<T: Send>(work: impl FnOnce() -> std::result::Result<T, Errno> + Send) -> std::result::Result<T, Errno> {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or(Err(Errno::CANCELED))
}

fn enter(path: &Path) -> std::result::Result<(), Errno> {
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
}

/// A socket of netlink(7) for routes, that acts in the namespace which is kept on `path`.
pub fn route_socket(path: &Path) -> Result<OwnedFd> {
    let failed = |error: Errno| Error::system(format!("cannot enter the network namespace {}", path.display()), error);
    in_thread(|| open_route_socket(path)).map_err(failed)
}

fn open_route_socket(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    enter(path)?;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    // NETLINK_ROUTE is protocol 0.
    rustix::net::socket_with(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, flags, None)
}

/// Whether something is kept there: then it lies on another file system than its folder.
#[must_use]
pub fn is_pinned(path: &Path) -> bool {
    let device = |path: &Path| path.symlink_metadata().map(|metadata| metadata.dev()).ok();
    path.parent().is_some_and(|folder| device(path).is_some_and(|own| device(folder) != Some(own)))
}

/// Let go of a namespace, and of the user namespace that it belongs to: they end with the last process in them. Harmless twice.
pub fn unpin(path: &Path) -> Result<()> {
    for path in [path, &owner(path)] {
        // Where nothing is, who is not root needs no right to unmount it.
        if is_pinned(path) {
            mount::unmount(path)?;
        }
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(Error::system(format!("cannot remove {}", path.display()), error)),
        }
    }
    Ok(())
}
