//! Programs that take what a container's processes write, as containerd's clients name them: `binary:///PROGRAM?key=value`.
//!
//! A logger reads standard output from descriptor 3 and standard error from 4, and closes 5 when it is ready, which is waited for.
//! Its arguments are the query's keys and values; CONTAINER_ID and CONTAINER_NAMESPACE say whom it serves, and PATH is all that
//! it has besides. It sees both streams end when the process has ended, and has [`PATIENCE`] from then on. When it ends earlier,
//! what comes is dropped, and the process goes on.
//!
//! Source: containerd, core/runtime/v2/README.md, "Logging", and cmd/containerd-shim-runc-v2/process/io.go.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};

use crate::error::{Failure, Kind, Step};
use crate::sys::{self, Forked};

/// How long a logger may take until it is ready, and until it has ended after the streams have.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The first descriptor that it gets beyond its standard streams.
const FIRST: i32 = 3;
/// Above every descriptor that it gets.
const AWAY: i32 = 16;

/// For whom streams are redirected.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// The container's identifier.
    pub container: String,
    /// Its namespace.
    pub namespace: String,
}

/// What a `binary:` URI names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Absolute.
    pub(super) path: String,
    pub(super) arguments: Vec<String>,
}

/// A logger that runs.
#[derive(Debug)]
pub(super) struct Logger {
    pid: Pid,
}

impl Logger {
    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Ask it, and all that it has started, to end.
    pub(super) fn end(&self) {
        let _ = kill_process_group(self.pid, Signal::TERM);
    }

    /// Kill it with all that it has started, and reap it.
    pub(super) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// A logger that was started.
pub(super) struct Begun {
    pub(super) logger: Logger,
    /// Where its two streams begin.
    pub(super) streams: [OwnedFd; 2],
    /// Ends when it is ready.
    pub(super) ready: OwnedFd,
}

/// Start a logger, which is waited for later. NotFound, PermissionDenied for the program.
pub(super) fn begin(program: &Program, owner: &Owner) -> Result<Begun, Failure> {
    let step = || format!("start the logger {}", program.path);
    let pipe = || pipe_with(PipeFlags::CLOEXEC).step(step);
    let ((output, output_end), (errors, errors_end)) = (pipe()?, pipe()?);
    let ((ready, ready_end), (failed, failed_end)) = (pipe()?, pipe()?);
    let text = |text: String| CString::new(text).map_err(|_| Failure::invalid("stdio", "has a NUL"));
    let words = [&program.path].into_iter().chain(&program.arguments);
    let arguments = words.map(|word| text(word.clone())).collect::<Result<Vec<_>, _>>()?;
    let environment = [
        text("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())?,
        text(format!("CONTAINER_ID={}", owner.container))?,
        text(format!("CONTAINER_NAMESPACE={}", owner.namespace))?,
    ];
    let pid = match sys::fork_plainly().step(step)? {
        Forked::Parent(pid) => Pid::from_raw(pid).ok_or(Errno::SRCH).step(step)?,
        Forked::Child => {
            let failed = fcntl_dupfd_cloexec(&failed_end, AWAY).unwrap_or(failed_end);
            let error = become_logger([&output, &errors, &ready_end], &failed, &arguments, &environment);
            let _ = rustix::io::write(&failed, &error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes());
            sys::exit_now(127)
        }
    };
    drop((output, errors, ready_end, failed_end));
    let logger = Logger { pid };
    let mut code = [0; size_of::<i32>()];
    if rustix::io::read(&failed, &mut code).is_ok_and(|length| length == code.len()) {
        let _ = waitpid(Some(pid), WaitOptions::empty());
        return Err(Failure::system(step(), &std::io::Error::from_raw_os_error(i32::from_ne_bytes(code))));
    }
    for stream in [&output_end, &errors_end] {
        rustix::io::ioctl_fionbio(stream, true).step(step)?;
    }
    Ok(Begun { logger, streams: [output_end, errors_end], ready })
}

/// In the new process. Returns only when it failed.
fn become_logger(
    streams: [&OwnedFd; 3],
    failed: &OwnedFd,
    arguments: &[CString],
    environment: &[CString],
) -> std::io::Error {
    let prepare = || -> std::io::Result<()> {
        rustix::process::setsid()?;
        sys::reset_signals();
        rustix::process::umask(Mode::from_raw_mode(0o022));
        // The numbers that these are to have may be others' still.
        let away = |file: &OwnedFd| fcntl_dupfd_cloexec(file, AWAY);
        let streams = [away(streams[0])?, away(streams[1])?, away(streams[2])?];
        let null = away(&rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        drop(null);
        sys::close_all_but(streams.iter().map(AsFd::as_fd).chain([failed.as_fd()]));
        for (number, stream) in (FIRST..).zip(&streams) {
            sys::hand_down(stream.as_fd(), number)?;
        }
        Ok(())
    };
    let Some(program) = arguments.first() else { return Errno::INVAL.into() };
    match prepare() {
        Ok(()) => sys::execute(program, arguments, environment),
        Err(error) => error,
    }
}

/// What is said of a logger that was not ready in time.
pub(super) fn late() -> Failure {
    let message = format!("the logger was not ready within {} s", PATIENCE.as_secs());
    Failure::new(Kind::Unavailable, message).with_hint("a logger closes its descriptor 5 when it is ready")
}

/// Wait until a logger is ready. Unavailable when it is not in time.
pub(super) fn await_ready(ready: &OwnedFd) -> Result<(), Failure> {
    let timeout = Timespec::try_from(PATIENCE).ok();
    match poll(&mut [PollFd::new(ready, PollFlags::IN)], timeout.as_ref()) {
        Ok(count) if count > 0 => Ok(()),
        Ok(_) => Err(late()),
        Err(error) => Err(Failure::system("wait for the logger", &error.into())),
    }
}
