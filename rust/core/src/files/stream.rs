//! Descriptors as streams that can be interrupted while they wait.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::tar::Source;
use crate::tree::Check;

const BUFFER: usize = 256 * 1024;
/// How long to wait before it is asked whether to go on.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Wait until a descriptor can be read or written, asking now and then whether to go on.
fn wait(descriptor: &OwnedFd, flags: PollFlags, check: Check<'_>) -> Result<()> {
    loop {
        check()?;
        match poll(&mut [PollFd::new(descriptor, flags)], Some(&WAIT)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(Error::system("cannot wait for the stream", error)),
        }
    }
}

/// An archive that is read from a descriptor.
pub struct Input<'a> {
    descriptor: OwnedFd,
    check: Check<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Input<'a> {
    /// Read from a descriptor; `check` is called while it waits.
    pub fn new(descriptor: OwnedFd, check: Check<'a>) -> Self {
        Self { descriptor, check, buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    /// Read what is left, so that whoever writes it is not cut off.
    pub fn drain(&mut self) -> Result<()> {
        while !self.fill()?.is_empty() {
            self.start = self.end;
        }
        Ok(())
    }
}

impl Source for Input<'_> {
    fn fill(&mut self) -> Result<&[u8]> {
        while self.start == self.end {
            wait(&self.descriptor, PollFlags::IN, self.check)?;
            match rustix::io::read(&self.descriptor, &mut self.buffer[..]) {
                Ok(0) => break,
                Ok(count) => (self.start, self.end) = (0, count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(Error::system("cannot read the archive", error)),
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}

/// An archive that is written to a descriptor. What stops it waits in `failure`.
pub struct Output<'a> {
    descriptor: OwnedFd,
    check: Check<'a>,
    buffer: Vec<u8>,
    failure: Option<Error>,
}

impl<'a> Output<'a> {
    /// Write to a descriptor; `check` is called while it waits.
    pub fn new(descriptor: OwnedFd, check: Check<'a>) -> Self {
        Self { descriptor, check, buffer: Vec::with_capacity(BUFFER), failure: None }
    }

    /// The error that ended it, with more in it than what [`Write`] can carry.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    fn send(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.buffer.len() {
            wait(&self.descriptor, PollFlags::OUT, self.check)?;
            // It may block in there, until the reader goes on or goes away.
            match rustix::io::write(&self.descriptor, &self.buffer[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(Error::system("cannot write the archive", error)),
            }
        }
        self.buffer.clear();
        Ok(())
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send().map_err(|error| {
            self.failure = Some(error);
            io::Error::other("stopped")
        })
    }
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Input").field("descriptor", &self.descriptor.as_fd()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Output").field("descriptor", &self.descriptor.as_fd()).finish_non_exhaustive()
    }
}
