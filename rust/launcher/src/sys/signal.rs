//! Signals as the monitor reads them, and the clean slate that a container's program starts with.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::checked;

const LAST_SIGNAL: i32 = 64;

fn empty_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set; zeros are valid to begin with.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

/// Block every signal, so that they wait for the signal descriptor.
pub fn block_all() {
    let mut set = empty_set();
    // SAFETY: both pointers are to live sets, the old mask is not asked for.
    unsafe {
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Give every signal its default disposition and unblock all: what a program may expect at its start.
///
/// Python ignores SIGPIPE, Rust too; an ignored signal would stay so through exec.
pub fn reset_all() {
    let set = empty_set();
    // The kernel's struct of the largest architecture: handler, flags, restorer, mask. Past the C library, which keeps
    // two signals for itself and would leave them ignored if they were.
    let default = [0u64; 4];
    // SAFETY: zeros mean SIG_DFL, no flags, empty mask, in every architecture's layout. SIGKILL and SIGSTOP cannot be
    // set and have their default anyway.
    unsafe {
        for signal in 1..=LAST_SIGNAL {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size_of::<u64>());
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Make a descriptor that becomes readable when one of the (blocked) signals arrives.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let mut set = empty_set();
    // SAFETY: the set is initialised; the descriptor that comes back is ours alone.
    unsafe {
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        let descriptor = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        checked(descriptor.into())?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Take the signals that arrived.
pub fn read_signals(descriptor: BorrowedFd<'_>) -> Vec<i32> {
    let mut signals = Vec::new();
    loop {
        // SAFETY: zeros are a valid signalfd_siginfo; read writes at most its size.
        let (information, length) = unsafe {
            let mut information: libc::signalfd_siginfo = std::mem::zeroed();
            let size = size_of::<libc::signalfd_siginfo>();
            let length = libc::read(descriptor.as_raw_fd(), (&raw mut information).cast(), size);
            (information, length)
        };
        if length <= 0 {
            return signals;
        }
        signals.push(information.ssi_signo as i32);
    }
}
