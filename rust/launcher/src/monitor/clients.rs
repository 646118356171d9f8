//! Clients of the control socket: who they are, what they sent, what they are still to get.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use serde::Serialize;

use super::frames::{self, FrameKind, Malformed};

/// A client that has this much to get still makes its process wait.
pub(super) const HIGH_WATER: usize = 256 * 1024;
/// Its process goes on when it has no more than this to get.
pub(super) const LOW_WATER: usize = 64 * 1024;
const CHUNK: usize = 64 * 1024;

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    received: Vec<u8>,
    queue: VecDeque<u8>,
    /// The process whose output it gets.
    pub(super) attached: Option<u32>,
    /// It may send standard input.
    pub(super) gives_input: bool,
    /// It wants to know how the container ends.
    pub(super) waiting: bool,
    /// It wants to know how the added process of this name ends.
    pub(super) waiting_for: Option<String>,
    /// It has got all that it will get: to be closed when its queue is empty.
    pub(super) finished: bool,
    /// It said that it sends no more.
    pub(super) silent: bool,
    /// Its process does not take input fast enough: it is not read for now.
    pub(super) held_back: bool,
    /// Its process takes input again: what it sent meanwhile is to be looked at.
    pub(super) resumed: bool,
    /// What epoll watches for (reading, writing), so that nothing is changed for nothing.
    pub(super) watched: Option<(bool, bool)>,
}

/// The connection is of no more use.
#[derive(Debug)]
pub(super) struct Gone;

impl Client {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
            queue: VecDeque::new(),
            attached: None,
            gives_input: false,
            waiting: false,
            waiting_for: None,
            finished: false,
            silent: false,
            held_back: false,
            resumed: false,
            watched: None,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// It is owed an answer when something ends.
    pub(super) fn waits(&self) -> bool {
        self.waiting || self.waiting_for.is_some()
    }

    /// Bytes that it has not taken yet.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Read what it sent.
    pub(super) fn read(&mut self) -> Result<(), Gone> {
        let mut buffer = vec![0; CHUNK];
        match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, 0)) => self.silent = true,
            Ok((_, length)) => self.received.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Gone),
        }
        Ok(())
    }

    /// The next frame that it sent.
    pub(super) fn frame(&mut self) -> Result<Option<(FrameKind, Vec<u8>)>, Malformed> {
        let frame = frames::take(&mut self.received);
        if self.received.is_empty() {
            // An idle client of an idle container shall not keep a buffer.
            self.received = Vec::new();
        }
        frame
    }

    /// Send a frame: at once what it takes, the rest when it can take more.
    pub(super) fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Gone> {
        let header = frames::header(kind, payload.len());
        let mut sent = 0;
        if self.queue.is_empty() {
            let slices = [IoSlice::new(&header), IoSlice::new(payload)];
            sent = self.write(&slices)?;
        }
        let left = header.iter().chain(payload).skip(sent);
        if sent < header.len() + payload.len() {
            self.queue.extend(left);
        }
        Ok(())
    }

    /// Send a JSON document.
    pub(super) fn send_document(&mut self, document: &impl Serialize) -> Result<(), Gone> {
        self.send(FrameKind::Control, &serde_json::to_vec(document).map_err(|_| Gone)?)
    }

    /// Send what waits.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        while !self.queue.is_empty() {
            let (front, back) = self.queue.as_slices();
            let sent = self.write(&[IoSlice::new(front), IoSlice::new(back)])?;
            if sent == 0 {
                return Ok(());
            }
            self.queue.drain(..sent);
        }
        self.queue.shrink_to(LOW_WATER);
        Ok(())
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> Result<usize, Gone> {
        // Not set on the socket itself: its other descriptors, in other processes, would be changed too.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.socket, slices, &mut SendAncillaryBuffer::default(), flags) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(_) => Err(Gone),
        }
    }
}

/// Whether the other side may command this container: root, or the user or group that the monitor runs as.
pub(super) fn may_command(socket: BorrowedFd<'_>) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(socket) else { return false };
    peer.uid.is_root() || peer.uid == rustix::process::geteuid() || peer.gid == rustix::process::getegid()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("made");
        (Client::new(ours.into()), theirs)
    }

    #[test]
    fn what_a_slow_client_does_not_take_waits_and_arrives_whole() {
        let (mut client, mut theirs) = pair();
        let payload: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
        client.send(FrameKind::Output, &payload).expect("sent or queued");
        client.send(FrameKind::Error, b"end").expect("queued");
        assert!(client.queued() > HIGH_WATER);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).expect("read");
            all
        });
        while client.queued() > 0 {
            client.flush().expect("flushed");
            std::thread::yield_now();
        }
        drop(client);
        let all = reader.join().expect("joined");
        assert_eq!(all[..5], frames::header(FrameKind::Output, payload.len()));
        assert!(all[5..5 + payload.len()] == payload[..]);
        assert_eq!(all[5 + payload.len()..], [3, 3, 0, 0, 0, b'e', b'n', b'd']);
    }

    #[test]
    fn a_client_that_is_gone_is_noticed() {
        let (mut client, theirs) = pair();
        drop(theirs);
        assert!(client.send(FrameKind::Output, b"x").is_err());
        let (mut client, mut theirs) = pair();
        theirs.write_all(&[9; 8]).expect("sent");
        client.read().expect("readable");
        assert!(client.frame().is_err());
    }

    #[test]
    fn the_own_user_may_command() {
        let (client, _theirs) = pair();
        assert!(may_command(client.socket()));
    }
}
