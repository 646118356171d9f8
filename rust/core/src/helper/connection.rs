//! A connection between caller and helper: messages, each behind its length, on a stream.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(feature = "unpack")]
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
#[cfg(feature = "unpack")]
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::stopped::Watch;
use crate::tree::Check;

/// Longest message: the changes of a tree of some millions of names.
const LONGEST: usize = 1 << 30;
/// Time between two looks whether to go on.
#[cfg(feature = "unpack")]
const LOOK: Duration = Duration::from_millis(100);
/// Room for what is received at once.
const PIECE: usize = 64 * 1024;
/// What a helper is called that is stopped.
#[cfg(feature = "unpack")]
const NAMED: &str = "the helper that works on layers";
/// Descriptors that go with a call: its connection, and at most two that it needs.
const DESCRIPTORS: usize = 3;

/// The helper went away in the middle.
pub fn ended() -> Error {
    Error::new(Kind::Unavailable, "the helper that works on layers was killed while it worked")
        .hint("Try again; a new one is started. If memory is short, the kernel's log says so.")
}

/// Turn a value into bytes.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|error| Error::invalid(format!("a message cannot be written: {error}")))
}

/// Turn bytes into a value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let broken = |error| Error::new(Kind::Internal, format!("a message of the helper cannot be read: {error}"));
    postcard::from_bytes(bytes).map_err(broken)
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// What was received and not asked for yet.
    received: Vec<u8>,
    /// The watch over the helper's process, where this is its caller's end.
    watch: Watch,
}

impl From<OwnedFd> for Connection {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, received: Vec::new(), watch: Watch::default() }
    }
}

impl Connection {
    /// Make both ends: ours, which looks whether to go on while it waits, and the helper's.
    #[cfg(feature = "unpack")]
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let failed = |error| Error::system("cannot make a connection to the helper", error);
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
        for way in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&ours, way, Some(LOOK)).map_err(failed)?;
        }
        Ok((ours.into(), theirs))
    }

    /// Wait no longer for the process `helper` than it goes on: [`ended`] is how its death shows, and nothing would show its being
    /// stopped.
    #[cfg(feature = "unpack")]
    pub fn of_helper(self, helper: Option<i32>) -> Self {
        Self { watch: helper.map_or_else(Watch::default, |process| Watch::new(process, NAMED)), ..self }
    }

    /// Wait until something beside this connection can be read, which the helper has the other end of ([`Watch::until_readable`]).
    #[cfg(feature = "unpack")]
    pub fn until_readable(&mut self, from: impl AsFd, check: Check<'_>) -> Result<()> {
        self.watch.until_readable(from, check)
    }

    /// The same end once more, to speak from one thread while another listens: only one of the two may do that.
    pub fn speaker(&self) -> Result<Self> {
        let socket = self.socket.try_clone();
        Ok(socket.map_err(|error| Error::system("cannot speak to the helper", error))?.into())
    }

    /// Say something, and (the caller's end) call `check` every 100 ms that it is not taken. Fails when the other side is gone.
    #[cfg(feature = "unpack")]
    pub fn ask<T: Serialize>(&mut self, message: &T, check: Check<'_>) -> Result<()> {
        send_whole(&self.socket, message, &mut || check().and_then(|()| self.watch.look()))
    }

    /// Say something. Fails when the other side is gone. It may take any time to take it, unless somebody ends the connection.
    pub fn say<T: Serialize>(&self, message: &T) -> Result<()> {
        send_whole(&self.socket, message, &mut || Ok(()))
    }

    /// Wait for a message, and (the caller's end) call `check` every 100 ms; None when the other side is gone.
    pub fn hear<T: DeserializeOwned>(&mut self, check: Check<'_>) -> Result<Option<T>> {
        loop {
            if let Some((length, rest)) = self.received.split_first_chunk() {
                let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
                if length > LONGEST {
                    return Err(Error::new(Kind::Internal, "a message of the helper is too long"));
                }
                if let Some(body) = rest.get(..length) {
                    let message = decode(body)?;
                    self.received.drain(..length + size_of::<u32>());
                    return Ok(Some(message));
                }
            }
            self.received.reserve(PIECE);
            match rustix::io::read(&self.socket, spare_capacity(&mut self.received)) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
                Ok(_) => {}
                Err(Errno::AGAIN | Errno::INTR) => check().and_then(|()| self.watch.look())?,
                Err(error) => return Err(Error::system("cannot hear the helper", error)),
            }
        }
    }

    /// Hand a descriptor over, in the place of a message.
    pub fn hand_over(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        pass(self.socket.as_fd(), &[descriptor]).map_err(|error| Error::system("cannot speak to the helper", error))
    }

    /// Wait for what is handed over; None when the other side is gone, or has a message in its place, which is heard next.
    #[cfg(feature = "unpack")]
    pub fn take_over(&mut self, check: Check<'_>) -> Result<Option<OwnedFd>> {
        loop {
            match take(self.socket.as_fd()) {
                Ok(Some((_, mut descriptors))) if !descriptors.is_empty() => return Ok(descriptors.pop()),
                Ok(Some((first, _))) => {
                    self.received.push(first);
                    return Ok(None);
                }
                Ok(None) => return Ok(None),
                Err(Errno::AGAIN) => check().and_then(|()| self.watch.look())?,
                Err(error) => return Err(Error::system("cannot hear the helper", error)),
            }
        }
    }

    /// Whether the other side is gone.
    pub fn is_closed(&self) -> bool {
        is_closed(self.socket.as_fd())
    }

    /// Let the other side, and whoever listens here, notice that it is over.
    #[cfg(feature = "unpack")]
    pub fn end(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// Send a message behind its length.
fn send_whole<T: Serialize>(socket: &OwnedFd, message: &T, wait: Check<'_>) -> Result<()> {
    let body = encode(message)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LONGEST);
    let length = length.ok_or_else(|| Error::new(Kind::ResourceExhausted, "a message to the helper is too long"))?;
    let whole = [&length.to_ne_bytes()[..], &body].concat();
    let mut left = &whole[..];
    while !left.is_empty() {
        match send(socket, left, SendFlags::NOSIGNAL) {
            Ok(count) => left = &left[count..],
            Err(Errno::INTR | Errno::AGAIN) => wait()?,
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(ended()),
            Err(error) => return Err(Error::system("cannot speak to the helper", error)),
        }
    }
    Ok(())
}

/// Whether the other end of a socket was closed.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut watched, Some(&now)).is_ok_and(|count| count > 0)
}

/// Make the control socket: both ends.
#[cfg(feature = "unpack")]
pub fn control() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| Error::system("cannot make the helper's control socket", error))
}

/// Pass a connection over the control socket, and what its call needs besides.
pub fn pass(control: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> std::result::Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    loop {
        match sendmsg(control, &[std::io::IoSlice::new(b"c")], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Wait for what [`pass`] passes, and the byte that it goes with; None when the other side is gone.
pub fn take(control: BorrowedFd<'_>) -> std::result::Result<Option<(u8, Vec<OwnedFd>)>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut byte = [0];
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error),
            Ok(message) if message.bytes == 0 => return Ok(None),
            Ok(_) => {
                let descriptors = ancillary.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                });
                let descriptors = descriptors.flatten().collect();
                return Ok(Some((byte[0], descriptors)));
            }
        }
    }
}
