//! The init of a container that asked for one: its first process, which runs the program as its child, passes signals on to
//! it, reaps whatever was left to it, and ends as the program does.
//!
//! It is this executable in another role, from a sealed copy in memory that is made for this container alone. So it has
//! no path, in the container or on the host; nobody can write to it (CVE-2019-5736); and whatever the container does to the
//! file behind `/proc/1/exe`, such as taking its mode away, no other container and no launcher ever runs from it. By exec
//! nothing stays in its memory of what the launcher knew of the host. The program's signals, terminal and exit status are
//! those that it would have without: it leads a process group of its own, in the foreground of its terminal if it has one.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{WaitOptions, WaitStatus};

use crate::channel::{Channel, Message};
use crate::error::{Failure, Step};
use crate::process;
use crate::sys::{self, Forked};

/// What it is called; by its name the executable knows its role.
pub const NAME: &str = "lamella-init";
/// The way to the monitor, until the program runs.
pub const CHANNEL: i32 = 3;
const SIGNAL_BASE: i32 = 128;
const LAST_SIGNAL: i32 = 64;
/// F_SEAL_EXEC, since Linux 6.3.
const KEEP_EXECUTABLE: SealFlags = SealFlags::from_bits_retain(0x20);

/// Copy this executable into memory, where nobody can change it any more.
pub fn sealed_copy() -> Result<OwnedFd, Failure> {
    let step = || "make the container's init";
    let mut own = File::open("/proc/self/exe").step(step)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 all are executable.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        result => result,
    };
    let mut copy = File::from(copy.step(step)?);
    std::io::copy(&mut own, &mut copy).step(step)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let _ = rustix::fs::fcntl_add_seals(&copy, KEEP_EXECUTABLE);
    rustix::fs::fcntl_add_seals(&copy, seals | SealFlags::SEAL).step(step)?;
    // Run from a descriptor that cannot write: exec refuses a file that is open for writing.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    Ok(File::open(path).step(step)?.into())
}

/// Copy this executable to a file: for a container, in which another runtime mounts it read-only, or to be called there.
pub fn write_copy(path: &Path) -> Result<(), Failure> {
    let step = || format!("write {}", path.display());
    let _ = std::fs::remove_file(path);
    std::fs::copy("/proc/self/exe", path).step(step)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).step(step)
}

/// Whether this process was started by a name: the executable's roles are told apart by theirs.
pub fn is_called(name: &str) -> bool {
    std::env::args_os().next().is_some_and(|path| Path::new(&path).file_name().is_some_and(|own| own == name))
}

/// Be the init: arguments and environment are the program's, behind its own name and `--`. The result is its exit status.
pub fn run() -> i32 {
    sys::block_all();
    let _ = rustix::thread::set_name(c"lamella-init");
    let strings = |text: std::ffi::OsString| CString::new(text.into_vec()).ok();
    let arguments: Vec<CString> = std::env::args_os().skip(2).filter_map(strings).collect();
    // Another runtime has none to give.
    let channel = sys::inherited(CHANNEL).map(Channel::from);
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        // In somebody else's PID namespace orphans would go to another.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    let child = match sys::fork_plainly() {
        Ok(Forked::Parent(pid)) => pid,
        Ok(Forked::Child) => {
            let failure = become_program(&arguments);
            let code = failure.exit_code.unwrap_or(1);
            match &channel {
                Some(channel) => drop(channel.send(&Message::Failed(failure))),
                None => drop(rustix::io::write(rustix::stdio::stderr(), format!("{failure}\n").as_bytes())),
            }
            sys::exit_now(code);
        }
        Err(error) => {
            let failure = Failure::system("start the program beneath the init", &error);
            let _ = channel.map(|channel| channel.send(&Message::Failed(failure)));
            return 1;
        }
    };
    // With the program's copy, which exec closes, the way to the monitor ends: that says that the program runs.
    drop(channel);
    serve(child)
}

/// In the child; returns what failed.
fn become_program(arguments: &[CString]) -> Failure {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::process::setpgid(None, None);
    // Fails where standard input is no terminal. SIGTTOU is blocked, so that a background process may do it.
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')).ok())
        .collect();
    let Some(name) = arguments.first() else { return Failure::invalid("process.args", "is empty") };
    match process::resolve(name, &environment) {
        Err(failure) => failure,
        Ok(program) => {
            sys::reset_signals();
            process::exec_failure(&program, &sys::execute(&program, arguments, &environment))
        }
    }
}

/// Pass signals on and reap until the program has ended.
fn serve(child: i32) -> i32 {
    let signals: Vec<i32> =
        (1..=LAST_SIGNAL).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)).collect();
    let Ok(signals) = sys::signal_descriptor(&signals) else { return 1 };
    loop {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid.as_raw_nonzero().get() == child {
                return exit_code(status);
            }
        }
        let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
        for signal in sys::read_signals(signals.as_fd()) {
            // Those of the terminal are for who is in its background, which the init is by its own will.
            if ![libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) {
                let _ = sys::kill(child, signal);
            }
        }
    }
}

fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => SIGNAL_BASE + signal,
        (None, None) => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_copy_is_this_executable_and_cannot_be_changed() {
        let copy = File::from(sealed_copy().expect("made"));
        let own = std::fs::metadata("/proc/self/exe").expect("there");
        let status = copy.metadata().expect("there");
        assert_eq!((status.len(), status.permissions().mode() & 0o111), (own.len(), 0o111));
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
        if let Ok(mut writable) = File::options().write(true).open(path) {
            writable.write_all(b"x").expect_err("sealed");
            writable.set_len(0).expect_err("sealed");
        }
    }
}
