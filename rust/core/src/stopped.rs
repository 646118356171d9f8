//! Waiting for a process no longer than it goes on: its death shows by itself, and that a signal has stopped it does not.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::tree::Check;

/// Time between two looks.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// So many looks in a row, one each 100 ms, show a process that is stopped before who waits for it gives up.
const LOOKS: u32 = 50;

/// The watch over a process that is waited for; the default is over none, which always goes on.
#[derive(Debug, Default)]
pub struct Watch {
    /// 0 for none: no process has that id in /proc.
    process: i32,
    /// What it is called in the error.
    name: &'static str,
    /// How often in a row it was seen stopped.
    seen: u32,
}

impl Watch {
    /// Watch a process, as this one sees it. Nothing is looked at yet.
    #[must_use]
    pub const fn new(process: i32, name: &'static str) -> Self {
        Self { process, name, seen: 0 }
    }

    /// Wait until it has said something, or is gone: until `from` can be read. `check` is called every 100 ms; errors are its,
    /// and those of [`Self::look`].
    pub fn until_readable(&mut self, from: impl AsFd, check: Check<'_>) -> Result<()> {
        loop {
            match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&POLL)) {
                Ok(0) => check().and_then(|()| self.look())?,
                Err(Errno::INTR) => check()?,
                Ok(_) => return Ok(()),
                Err(error) => return Err(Error::system(format!("cannot wait for {}", self.name), error)),
            }
        }
    }

    /// See whether it goes on: whoever waits for it asks every 100 ms. Fails (Unavailable) when it has been stopped for five seconds;
    /// it may take any time else.
    pub fn look(&mut self) -> Result<()> {
        let Self { process, name, .. } = *self;
        self.seen = if is_stopped(process) { self.seen + 1 } else { 0 };
        if self.seen < LOOKS {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, format!("{name}, process {process}, is stopped"))
            .hint(format!("Let it go on: kill -CONT {process}; or end it: kill -KILL {process}. Then try again.")))
    }
}

/// Whether a process is stopped by a signal (proc_pid_stat(5)): one that a debugger stops is not meant.
fn is_stopped(process: i32) -> bool {
    let text = std::fs::read(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = text.iter().rposition(|&byte| byte == b')').unwrap_or(text.len());
    text[after..].starts_with(b") T")
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    fn signal(child: &Child, signal: Signal) {
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    fn until(condition: impl Fn() -> bool) {
        while !condition() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_waits_gives_up_when_the_process_was_stopped_at_every_look() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = i32::try_from(child.id()).unwrap();
        let mut watch = Watch::new(process, "the sleeper");
        assert!((0..2 * LOOKS).all(|_| watch.look().is_ok()));
        signal(&child, Signal::STOP);
        until(|| is_stopped(process));
        assert!((1..LOOKS).all(|_| watch.look().is_ok()));
        signal(&child, Signal::CONT);
        until(|| !is_stopped(process));
        assert!(watch.look().is_ok());
        signal(&child, Signal::STOP);
        until(|| is_stopped(process));
        assert!((1..LOOKS).all(|_| watch.look().is_ok()));
        let error = watch.look().unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert_eq!(error.message, format!("the sleeper, process {process}, is stopped"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watch.look().is_ok(), "it is gone, which shows by itself");
    }
}
