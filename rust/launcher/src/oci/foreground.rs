//! Being a process's way to the caller's terminal and signals, until it ends.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::termios::{OptionalActions, Termios};

use crate::error::{Failure, Kind, Step};
use crate::sys;

const SIGNAL_BASE: i32 = 128;
const END_OF_TRANSMISSION: u8 = 4;
const PASSED_ON: [i32; 11] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGALRM,
    libc::SIGTSTP,
    libc::SIGCHLD,
    libc::SIGWINCH,
];

/// What stands between a process and the caller.
#[derive(Debug, Default)]
pub(super) struct Foreground {
    /// The other end of the process's terminal.
    terminal: Option<OwnedFd>,
    signals: Option<OwnedFd>,
    /// How the caller's terminal was.
    before: Option<Termios>,
    /// Input that the terminal has not taken yet.
    queue: Vec<u8>,
    input_ended: bool,
}

impl Foreground {
    /// Take the other end of the process's terminal.
    pub(super) fn take(&mut self, terminal: OwnedFd) -> Result<(), Failure> {
        rustix::io::ioctl_fionbio(&terminal, true).step(|| "take over the process's terminal")?;
        self.terminal = Some(terminal);
        Ok(())
    }

    /// Take the caller's signals and terminal; to be called once the process is made, whose signals stay as they are.
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        sys::block_all();
        self.signals = Some(sys::signal_descriptor(&PASSED_ON).step(|| "take over signals")?);
        if self.terminal.is_some()
            && let Ok(mode) = rustix::termios::tcgetattr(rustix::stdio::stdin())
        {
            self.resize();
            let mut raw = mode.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)
                .step(|| "make the terminal raw")?;
            self.before = Some(mode);
        }
        Ok(())
    }

    /// Serve until the process, a child of this one, has ended; returns its exit status, 128 and the signal's number for one
    /// that a signal ended.
    pub(super) fn wait(mut self, pid: i32) -> Result<i32, Failure> {
        let child =
            Pid::from_raw(pid).ok_or_else(|| Failure::new(Kind::Internal, "there is no process to wait for"))?;
        loop {
            match waitpid(Some(child), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    while self.pass_output() {}
                    return Ok(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code,
                        (None, signal) => SIGNAL_BASE + signal.unwrap_or_default(),
                    });
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).step(|| format!("wait for process {pid}")),
            }
            self.serve(pid);
        }
    }

    /// Wait for something to pass on, and pass it on.
    fn serve(&mut self, pid: i32) {
        let Some(signals) = &self.signals else { return };
        let input = if self.input_ended || !self.queue.is_empty() { PollFlags::empty() } else { PollFlags::IN };
        let output = if self.queue.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let stdin = rustix::stdio::stdin();
        let mut watched = vec![PollFd::new(signals, PollFlags::IN)];
        if let Some(terminal) = &self.terminal {
            watched.push(PollFd::new(terminal, output));
            if !input.is_empty() {
                watched.push(PollFd::from_borrowed_fd(stdin, input));
            }
        }
        if poll(&mut watched, None).is_err() {
            return;
        }
        let ready: Vec<bool> = watched.iter().map(|file| !file.revents().is_empty()).collect();
        drop(watched);
        if ready[0] {
            self.pass_signals(pid);
        }
        if ready.get(1) == Some(&true) && !self.pass_output() && self.queue.is_empty() {
            // Hung up: nobody has it open any more. The end of the process, or another one that opens it, is what comes next.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if ready.get(2) == Some(&true) {
            self.take_input();
        }
        self.pass_input();
    }

    fn pass_signals(&self, pid: i32) {
        let Some(signals) = &self.signals else { return };
        for signal in sys::read_signals(signals.as_fd()) {
            match signal {
                libc::SIGCHLD => {}
                libc::SIGWINCH if self.terminal.is_some() => self.resize(),
                signal => drop(sys::kill(pid, signal)),
            }
        }
    }

    fn take_input(&mut self) {
        let mut buffer = [0; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) | Err(_) => {
                self.input_ended = true;
                self.queue.push(END_OF_TRANSMISSION);
            }
            Ok(count) => self.queue.extend_from_slice(&buffer[..count]),
        }
    }

    fn pass_input(&mut self) {
        let Some(terminal) = &self.terminal else { return };
        match rustix::io::write(terminal, &self.queue) {
            Ok(count) => drop(self.queue.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.queue.clear(),
        }
    }

    /// Pass some output on; false when there is none.
    fn pass_output(&self) -> bool {
        let Some(terminal) = &self.terminal else { return false };
        let mut buffer = [0; 16 * 1024];
        let Ok(count) = rustix::io::read(terminal, &mut buffer) else { return false };
        let mut left = &buffer[..count];
        while !left.is_empty() {
            match rustix::io::write(rustix::stdio::stdout(), left) {
                Ok(count) => left = &left[count..],
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        count > 0
    }

    /// Give the process's terminal the size of the caller's.
    fn resize(&self) {
        if let (Some(terminal), Ok(size)) = (&self.terminal, rustix::termios::tcgetwinsize(rustix::stdio::stdin())) {
            let _ = rustix::termios::tcsetwinsize(terminal, size);
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}
