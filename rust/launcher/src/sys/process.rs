//! Making processes, and what a process changes about itself.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::checked;

/// From linux/sched.h; libc's constant overflows its type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's id.
    Parent(i32),
}

/// fork(2). The launcher has one thread, so the child may do anything.
pub fn fork() -> io::Result<Forked> {
    clone_process(0, None)
}

/// clone3(2) without sharing memory: fork into new namespaces (`CLONE_NEW*` in `flags`) and, on cgroup v2, right into
/// a cgroup. `flags` may hold `CLONE_PARENT`.
pub fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    // SAFETY: clone_args of zeros is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    if flags & libc::CLONE_PARENT as u64 == 0 {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments have the size that is passed along. Without CLONE_VM the child gets its own copy of this
    // process, which has one thread, so no lock can be held by a thread that the child lacks.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(pid as i32) })
}

/// Leave at once, without destructors: for the process that a fork left with copies of another's state.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Take over a descriptor that the parent process handed down; None when it is not open.
pub fn inherited(descriptor: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl with F_SETFD takes an integer only.
    checked(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) }.into()).ok()?;
    // SAFETY: the descriptor is open, and this process owns what it was started with; the caller asks once for each.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Close every descriptor above standard error but one. Whoever still owns another must not use or drop it.
pub fn close_all_but(kept: BorrowedFd<'_>) {
    let close = |first: RawFd, last: u32| {
        // SAFETY: integers only.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    let kept = kept.as_raw_fd();
    if kept > 3 {
        close(3, kept as u32 - 1);
    }
    close(kept.max(2) + 1, u32::MAX);
}

/// Close every descriptor from `first` on. Whoever still owns one must not use or drop it.
pub fn close_from(first: RawFd) {
    // SAFETY: integers only.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// execve(2); returns only when it failed.
pub fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and point at NUL-terminated strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Send a signal by number. `pid` as kill(2) takes it.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    checked(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// Move this process to new namespaces.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: integers only; CLONE_FILES is not among the flags that the crate uses.
    checked(unsafe { libc::unshare(flags) }.into())?;
    Ok(())
}

/// Move this process into a namespace (a file of /proc/PID/ns), or into several ones of a process (a pidfd).
pub fn move_into(namespace: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: integers only.
    checked(unsafe { libc::setns(namespace.as_raw_fd(), flags) }.into())?;
    Ok(())
}

/// Join a new, anonymous session keyring, so that the keys of whoever started the launcher are out of reach.
pub fn join_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) })?;
    Ok(())
}

/// personality(2).
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: integers only.
    checked(unsafe { libc::personality(domain as libc::c_ulong) }.into())?;
    Ok(())
}

/// Set a resource limit of this process, `resource` being one of `RLIMIT_*`.
///
/// A limit above the present hard one that the kernel refuses is cut to the hard one; returns what was set then.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<Option<(u64, u64)>> {
    let set = |soft, hard| {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the struct lives until the call returns.
        checked(unsafe { libc::setrlimit(resource, &raw const limit) }.into())
    };
    match set(soft, hard) {
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let mut present = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the struct is writable and lives until the call returns.
            checked(unsafe { libc::getrlimit(resource, &raw mut present) }.into())?;
            let (soft, hard) = (soft.min(present.rlim_max), hard.min(present.rlim_max));
            set(soft, hard)?;
            Ok(Some((soft, hard)))
        }
        Err(error) => Err(error),
    }
}

/// Whether the user namespace of this process forbids setgroups(2) (a mapping made without privilege).
pub fn child_groups_denied() -> bool {
    std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"))
}
