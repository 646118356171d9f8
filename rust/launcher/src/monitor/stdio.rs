//! Standard streams of a process, as the monitor holds them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::frames::FrameKind;
use crate::container::Streams;
use crate::error::{Failure, Step};

/// Input that waits for the process; above this its clients are not read.
pub(super) const INPUT_LIMIT: usize = 64 * 1024;
const END_OF_TRANSMISSION: u8 = 4;

/// One stream out of the process.
#[derive(Debug)]
pub(super) struct Output {
    /// What its frames are marked with.
    pub(super) kind: FrameKind,
    /// None at its end.
    pub(super) source: Option<OwnedFd>,
}

/// The stream into the process.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) target: OwnedFd,
    queue: VecDeque<u8>,
    ended: bool,
    terminal: bool,
}

/// The monitor's ends of a process's standard streams.
#[derive(Debug, Default)]
pub struct Stdio {
    pub(super) input: Option<Input>,
    pub(super) outputs: Vec<Output>,
    /// The terminal, to be resized; a process with one has it as its only output and as its input.
    pub(super) terminal: Option<OwnedFd>,
}

impl Stdio {
    /// Make pipes; the process's ends come back beside the monitor's. Without `input` it has no end for that.
    pub fn pipes(input: bool) -> Result<(Self, Streams), Failure> {
        let step = || "make the pipes of the standard streams";
        let (out_source, output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
        let (error_source, error) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
        let mut monitor_input = None;
        let input = if input {
            let (input, target) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
            monitor_input = Some(Input::new(target, false).step(step)?);
            Some(input)
        } else {
            None
        };
        let mut outputs = Vec::with_capacity(2);
        for (kind, source) in [(FrameKind::Output, out_source), (FrameKind::Error, error_source)] {
            rustix::io::ioctl_fionbio(&source, true).step(step)?;
            outputs.push(Output { kind, source: Some(source) });
        }
        Ok((Self { input: monitor_input, outputs, terminal: None }, Streams { input, output, error }))
    }

    /// Make what a process needs; a terminal, in whose place are no streams here, is made by whoever makes the process.
    pub fn for_process(terminal: bool, input: bool) -> Result<(Self, Option<Streams>), Failure> {
        if terminal {
            return Ok((Self::default(), None));
        }
        let (stdio, streams) = Self::pipes(input)?;
        Ok((stdio, Some(streams)))
    }

    /// Use the monitor's end of a terminal.
    pub fn of_terminal(master: OwnedFd) -> Result<Self, Failure> {
        let step = || "take over the container's terminal";
        rustix::io::ioctl_fionbio(&master, true).step(step)?;
        let source = master.try_clone().step(step)?;
        let input = Input::new(master.try_clone().step(step)?, true).step(step)?;
        let outputs = vec![Output { kind: FrameKind::Output, source: Some(source) }];
        Ok(Self { input: Some(input), outputs, terminal: Some(master) })
    }

    /// Whether there may be more output.
    pub(super) fn has_output(&self) -> bool {
        self.outputs.iter().any(|output| output.source.is_some())
    }
}

impl Input {
    fn new(target: OwnedFd, terminal: bool) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&target, true)?;
        Ok(Self { target, queue: VecDeque::new(), ended: false, terminal })
    }

    /// Take input from a client; empty input is the end. A terminal has no end: its user's Ctrl-D goes in instead.
    pub(super) fn push(&mut self, data: &[u8]) {
        if self.ended {
            return;
        }
        if !data.is_empty() {
            self.queue.extend(data);
        } else if self.terminal {
            self.queue.push_back(END_OF_TRANSMISSION);
        } else {
            self.ended = true;
        }
    }

    /// Bytes that the process has not taken yet.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Hand over what the process takes now; false when the stream is to be closed.
    pub(super) fn flush(&mut self) -> bool {
        while !self.queue.is_empty() {
            match rustix::io::write(self.target.as_fd(), self.queue.as_slices().0) {
                Ok(written) => drop(self.queue.drain(..written)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.queue = VecDeque::new();
        !self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_handed_over_in_order_and_closed_at_its_end() {
        let (mut stdio, streams) = Stdio::pipes(true).expect("made");
        let program = streams.input.expect("the other end");
        let mut input = stdio.input.take().expect("an input");
        let sent: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
        input.push(&sent);
        assert!(input.flush());
        assert!(input.queued() > 0, "more than a pipe holds");
        input.push(b"");
        input.push(b"too late");
        let mut received = Vec::new();
        let mut buffer = [0; 4096];
        let mut open = true;
        loop {
            if open && !input.flush() {
                open = false;
                drop(std::mem::replace(
                    &mut input.target,
                    rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).expect("made"),
                ));
            }
            match rustix::io::read(&program, &mut buffer).expect("read") {
                0 => break,
                length => received.extend_from_slice(&buffer[..length]),
            }
        }
        assert!(received == sent);
    }

    #[test]
    fn a_process_without_input_gets_nothing_from_here() {
        let (stdio, streams) = Stdio::pipes(false).expect("made");
        assert!(stdio.input.is_none() && streams.input.is_none());
    }
}
