//! The socket on which a runtime sends the monitor's end of a terminal that it has made (runc(8), `--console-socket`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
    recvmsg,
};

use crate::error::{Failure, Kind, Step};

/// A socket that listens, until it is dropped.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    path: String,
    whole: PathBuf,
    listener: OwnedFd,
}

impl ConsoleSocket {
    /// Listen at a path from the bundle's folder on: a whole one may be longer than a socket's address takes. This process
    /// is in that folder afterwards.
    pub(super) fn listen(bundle: &Path, path: String) -> Result<Self, Failure> {
        let step = || format!("make the socket {path}");
        rustix::process::chdir(bundle).step(step)?;
        let _ = rustix::fs::unlink(path.as_str());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).step(step)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path.as_str()).step(step)?).step(step)?;
        rustix::net::listen(&listener, 1).step(step)?;
        Ok(Self { whole: bundle.join(&path), path, listener })
    }

    /// Where it listens, from the bundle's folder on.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Take what the runtime, which has ended, has sent.
    pub(super) fn receive(self) -> Result<OwnedFd, Failure> {
        let step = || "take the terminal that the runtime has made";
        let connection = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC).step(step)?;
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut name)];
        recvmsg(&connection, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).step(step)?;
        let received = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        received.ok_or_else(|| Failure::new(Kind::Internal, format!("{}: it has sent none", step())))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.whole);
    }
}
