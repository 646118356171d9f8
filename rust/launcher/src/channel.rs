//! How the monitor and a process that it sets up talk until the program starts: a socket pair that exec closes.
//!
//! One packet is one message, its first byte says what it is. End of file without a failure before it means that the
//! program runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::error::{Failure, Kind, Step};

/// What either side says.
#[derive(Debug)]
pub enum Message {
    /// To the process: its user namespace's mappings are written.
    Mapped,
    /// To the process: run the program, or the one that the file names (a JSON document) where that was left open.
    Go(Option<OwnedFd>),
    /// From the process: something could not be had, which does not stop it.
    Warning(String),
    /// From the process: the monitor's end of its terminal.
    Terminal(OwnedFd),
    /// From the process: its namespaces and mounts are made, it waits for `Proceed`.
    Made,
    /// To the process: it may go on.
    Proceed,
    /// From the process: all is set up, it waits for `Go`.
    Ready,
    /// From a helper: the process that it made, as the monitor sees it.
    Pid(i32),
    /// From the process: the next thing is exec.
    Running,
    /// From the process: what stopped it. It ends now.
    Failed(Failure),
}

/// The longest message; a failure's texts are cut to fit.
const LONGEST: usize = 16 * 1024;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(end: OwnedFd) -> Self {
        Self(end)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl Channel {
    /// Make both ends.
    pub fn pair() -> Result<(Self, Self), Failure> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .step(|| "make the channel to the container's first process")?;
        Ok((Self(one), Self(other)))
    }

    /// Say something.
    pub fn send(&self, message: &Message) -> Result<(), Failure> {
        let (mark, text) = match message {
            Message::Mapped => (b'M', String::new()),
            Message::Go(_) => (b'G', String::new()),
            Message::Made => (b'N', String::new()),
            Message::Proceed => (b'C', String::new()),
            Message::Ready => (b'R', String::new()),
            Message::Running => (b'X', String::new()),
            Message::Pid(pid) => (b'P', pid.to_string()),
            Message::Warning(text) => (b'W', text.chars().take(LONGEST / 8).collect()),
            Message::Terminal(_) => (b'T', String::new()),
            Message::Failed(failure) => {
                let mut failure = failure.clone();
                failure.message = failure.message.chars().take(LONGEST / 16).collect();
                (b'E', serde_json::to_string(&failure).unwrap_or_default())
            }
        };
        let (mark, slices) = ([mark], text.as_bytes());
        let slices = [IoSlice::new(&mark), IoSlice::new(slices)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors;
        if let Message::Terminal(carried) | Message::Go(Some(carried)) = message {
            descriptors = [carried.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg(&self.0, &slices, &mut ancillary, SendFlags::NOSIGNAL)
            .step(|| "speak to the other side of the container's set-up")?;
        Ok(())
    }

    /// Wait for a message; None at the end.
    pub fn receive(&self) -> Result<Option<Message>, Failure> {
        let step = || "listen to the other side of the container's set-up";
        let mut buffer = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let length = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            match recvmsg(&self.0, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // The other side died with unread messages.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                result => break result.step(step)?.bytes,
            }
        };
        let received = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let Some((mark, text)) = buffer.get(..length).and_then(<[u8]>::split_first) else { return Ok(None) };
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(Some(match (mark, received) {
            (b'M', _) => Message::Mapped,
            (b'G', program) => Message::Go(program),
            (b'N', _) => Message::Made,
            (b'C', _) => Message::Proceed,
            (b'R', _) => Message::Ready,
            (b'X', _) => Message::Running,
            (b'P', _) => Message::Pid(text.parse().unwrap_or(0)),
            (b'W', _) => Message::Warning(text),
            (b'T', Some(terminal)) => Message::Terminal(terminal),
            (b'E', _) => {
                Message::Failed(serde_json::from_str(&text).unwrap_or_else(|_| Failure::new(Kind::Internal, text)))
            }
            _ => return Err(Failure::new(Kind::Internal, format!("{}: unknown message", step()))),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (one, other) = Channel::pair().expect("made");
        let failure = Failure::new(Kind::NotFound, "a \"quoted\" name").with_hint("look");
        one.send(&Message::Warning("careful".into())).expect("sent");
        one.send(&Message::Failed(failure.clone())).expect("sent");
        let terminal = rustix::event::eventfd(7, rustix::event::EventfdFlags::CLOEXEC).expect("made");
        one.send(&Message::Terminal(terminal)).expect("sent");
        drop(one);
        assert!(matches!(other.receive(), Ok(Some(Message::Warning(text))) if text == "careful"));
        assert!(matches!(other.receive(), Ok(Some(Message::Failed(received))) if received == failure));
        let Ok(Some(Message::Terminal(received))) = other.receive() else { panic!("no descriptor") };
        let mut value = [0; 8];
        rustix::io::read(&received, &mut value).expect("it is the event descriptor");
        assert_eq!(u64::from_ne_bytes(value), 7);
        assert!(matches!(other.receive(), Ok(None)));
    }
}
