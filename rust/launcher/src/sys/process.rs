//! Making processes, and what a process changes about itself.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;

use super::checked;

/// From linux/sched.h; libc's constant overflows its type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// From linux/sched.h; the C library's headers lack it.
pub const CLONE_NEWTIME: i32 = 0x80;

/// What clone3(2) and unshare(2) may be asked for: new namespaces, and nothing that two processes or threads would share, or
/// cease to share, behind Rust's back.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | CLONE_NEWTIME;

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

/// fork(2) by the means that every container's seccomp profile leaves: clone3(2) is not among them.
pub fn fork_plainly() -> io::Result<Forked> {
    // SAFETY: this process has one thread, so that the child may do anything.
    let pid = checked(unsafe { libc::fork() }.into())?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(pid as i32) })
}

/// clone3(2) without sharing memory: fork into new namespaces (`CLONE_NEW*` in `flags`) and, on cgroup v2, right into
/// a cgroup. `flags` may hold `CLONE_PARENT`; EINVAL for any other.
pub fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    if flags & !((NAMESPACES | libc::CLONE_PARENT) as u64) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: clone_args is integers only, of which zeros are valid ones.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    if flags & libc::CLONE_PARENT as u64 == 0 {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments live until the call returns, have the size that is passed along, and hold no pointer. Without
    // CLONE_VM (see above) the child gets its own copy of this process, which has one thread, so that no lock can be held by
    // a thread that the child lacks.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(pid as i32) })
}

/// Leave at once, without destructors: for the process that a fork left with copies of another's state.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Take over a descriptor that the parent process handed down; None when it is not open, or was taken over before.
pub fn inherited(descriptor: RawFd) -> Option<OwnedFd> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let bit = u32::try_from(descriptor).ok().and_then(|number| 1u64.checked_shl(number))?;
    if TAKEN.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return None;
    }
    // SAFETY: fcntl with F_SETFD takes integers only, and refuses a descriptor that is not open.
    checked(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) }.into()).ok()?;
    // SAFETY: the descriptor is open, and nobody else took it over. It is one of those that the launcher's protocol hands
    // down, and they are asked for before this process has opened any that could have got its number.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Close every descriptor above standard error but some. Whoever still owns another must not use or drop it.
pub fn close_all_but<'a>(kept: impl IntoIterator<Item = BorrowedFd<'a>>) {
    let close = |first: RawFd, last: u32| {
        // SAFETY: integers only. Values that own one of these descriptors are left dangling: the caller is about to become
        // another program, or to make the process that is, and touches none of them.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    let mut kept: Vec<RawFd> = kept.into_iter().map(|file| file.as_raw_fd()).collect();
    kept.sort_unstable();
    let mut next = 3;
    for descriptor in kept {
        if descriptor > next {
            close(next, descriptor as u32 - 1);
        }
        next = next.max(descriptor + 1);
    }
    close(next, u32::MAX);
}

/// Give a descriptor a number under which exec leaves it open. What had that number is closed; the caller is about to
/// become another program.
pub fn hand_down(descriptor: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    let descriptor = descriptor.as_raw_fd();
    if descriptor == number {
        // SAFETY: integers only.
        checked(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }.into())?;
        return Ok(());
    }
    // SAFETY: integers only. A value that owns `number` is left with another file; see above.
    checked(unsafe { libc::dup2(descriptor, number) }.into())?;
    Ok(())
}

/// Close every descriptor from `first` on. Whoever still owns one must not use or drop it.
pub fn close_from(first: RawFd) {
    // SAFETY: integers only. The caller has taken over what was handed down, and opened nothing of its own yet.
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

/// As [`execute`], for a program that is an open file: execveat(2).
pub fn execute_file(program: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: the path is empty and NUL-terminated; both arrays end with a null pointer and point at NUL-terminated strings
    // that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// The processes whose parent the calling thread is; none where the kernel does not tell.
pub fn children() -> Vec<i32> {
    let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    listed.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Send a signal by number. `pid` as kill(2) takes it.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    checked(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// Send a signal by number to every process of a session but its leader, again and again until no new one shows up
/// (proc_pid_stat(5), field 6).
pub fn signal_session(leader: i32, signal: i32) {
    let session = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(3)?.parse::<i32>().ok()
    };
    let mut done = vec![leader];
    loop {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let present: Vec<i32> = pids.filter(|pid| !done.contains(pid) && session(*pid) == Some(leader)).collect();
        if present.is_empty() {
            return;
        }
        for pid in &present {
            let _ = kill(*pid, signal);
        }
        done.extend(present);
    }
}

/// Send a signal by number to the process that a pidfd stands for.
pub fn signal_process(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integers, and a null pointer, which asks for the information that kill(2) gives.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, information, 0) })?;
    Ok(())
}

/// A file in memory that holds `content`, to be read from its beginning.
pub fn memory_file(name: &str, content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Wait for the end of the process that a pidfd stands for, without a bound where no time is given; false when it does not
/// come.
pub fn ends_within(process: BorrowedFd<'_>, time: Option<Duration>) -> bool {
    let deadline = time.map(|time| Instant::now() + time);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::from_borrowed_fd(process, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}

/// Move this process to new namespaces; EINVAL for other flags.
pub fn unshare(flags: i32) -> io::Result<()> {
    if flags & !NAMESPACES != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: integers only, and no flag that parts descriptors (CLONE_FILES) or memory from where others know them.
    checked(unsafe { libc::unshare(flags) }.into())?;
    Ok(())
}

/// Move this process into a namespace (a file of /proc/PID/ns), or into several ones of a process (a pidfd).
pub fn move_into(namespace: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: integers only; it enters namespaces, and changes no descriptor or memory.
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

/// Set this process's I/O priority: ioprio_set(2). `class` is one of `IOPRIO_CLASS_*`.
pub fn set_io_priority(class: u32, priority: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    let value = class << IOPRIO_CLASS_SHIFT | priority;
    // SAFETY: integers only.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// What sched_setattr(2) takes, as in linux/sched/types.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Scheduling {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Set how this process is scheduled: sched_setattr(2).
pub fn set_scheduling(scheduling: Scheduling) -> io::Result<()> {
    let scheduling = Scheduling { size: size_of::<Scheduling>() as u32, ..scheduling };
    // SAFETY: the struct lives until the call returns and says its own size.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const scheduling, 0) })?;
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

/// Whether this process is in a user namespace that does not have all ids of the machine.
pub fn in_user_namespace() -> bool {
    let whole = |text: String| text.split_whitespace().eq(["0", "0", "4294967295"]);
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|text| !whole(text))
}

/// Whether the kernel has begun to take a process down: PF_EXITING in its flags (proc_pid_stat(5), field 9).
pub fn is_exiting(pid: i32) -> bool {
    const PF_EXITING: u64 = 4;
    const FLAGS: usize = 6; // after the name, which may hold spaces and parentheses
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(FLAGS)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shared_with_a_new_process_or_parted_from_this_one_but_namespaces() {
        for flag in [libc::CLONE_VM, libc::CLONE_FILES, libc::CLONE_THREAD | libc::CLONE_SIGHAND] {
            assert_eq!(clone_process(flag as u64, None).expect_err("refused").raw_os_error(), Some(libc::EINVAL));
            assert_eq!(unshare(flag).expect_err("refused").raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn a_descriptor_is_taken_over_once() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let number = std::os::fd::IntoRawFd::into_raw_fd(reader);
        let taken = inherited(number);
        assert!(taken.is_some() && inherited(number).is_none());
        assert!(inherited(-1).is_none() && inherited(64).is_none());
    }

    #[test]
    fn a_process_is_exiting_from_its_end_on_and_when_it_is_gone() {
        use std::io::Read as _;

        let own = std::process::id().cast_signed();
        assert!(!is_exiting(own));
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        assert!(!is_exiting(pid));
        drop(child.stdin.take());
        child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        while !is_exiting(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_exiting(pid));
    }
}
