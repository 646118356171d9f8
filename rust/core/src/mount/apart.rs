//! A place to mount things on the way to a mount that is attached nowhere, seen by nobody.

use rustix::mount::{MountPropagationFlags, mount_change};

use crate::error::{Error, Kind};
use crate::sys;

/// Make something in a thread with a mount namespace and a working folder of its own, both of which end with it.
pub fn apart<T: Send, E: From<Error> + Send>(make: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    let work = || {
        sys::own_mount_namespace().map_err(|error| Error::system("cannot make a mount namespace", error))?;
        // What is mounted here must not spread to where its namespace was copied from.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|error| Error::system("cannot keep mounts in their namespace", error))?;
        make()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("lamella-mount".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| Error::system("cannot start a thread", error))?;
        thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the thread that mounts has panicked").into()))
    })
}
