//! Network namespaces that outlive the process that made them: each is kept by a mount on a file (ip-netns(8) does the same).
//!
//! What was plugged into such a namespace can be unplugged in good order whoever died meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::{mount, sys};

/// Make a network namespace with nothing but loopback, which is up, and keep it on `path`, a file that is made.
///
/// AlreadyExists when something is at `path`; PermissionDenied without CAP_SYS_ADMIN. After an error nothing is left.
pub fn pin(path: &Path) -> Result<()> {
    let failed = |error: Errno| Error::system(format!("cannot make the network namespace {}", path.display()), error);
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?);
    // In a thread of its own, which ends with it: this one stays where it is.
    let made = std::thread::scope(|scope| scope.spawn(|| make(path).map_err(failed)).join());
    let made = made.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the thread that makes a namespace panicked")));
    if made.is_err() {
        let _ = unpin(path);
    }
    made
}

fn make(path: &Path) -> std::result::Result<(), Errno> {
    sys::own_network_namespace()?;
    sys::bring_loopback_up()?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path)
}

/// A socket of netlink(7) for routes, that acts in the namespace which is kept on `path`.
pub fn route_socket(path: &Path) -> Result<OwnedFd> {
    let failed = |error: Errno| Error::system(format!("cannot enter the network namespace {}", path.display()), error);
    // In a thread of its own, which ends with it: this one stays where it is.
    let made = std::thread::scope(|scope| scope.spawn(|| open_route_socket(path).map_err(failed)).join());
    made.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the thread that enters a namespace panicked")))
}

fn open_route_socket(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    // NETLINK_ROUTE is protocol 0.
    rustix::net::socket_with(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, flags, None)
}

/// Let go of a namespace: it ends with the last process in it. Harmless twice.
pub fn unpin(path: &Path) -> Result<()> {
    mount::unmount(path)?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(Error::system(format!("cannot remove {}", path.display()), error)),
    }
}
