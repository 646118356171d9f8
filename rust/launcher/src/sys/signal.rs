//! Signals as the monitor reads them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::checked;

fn empty_set() -> libc::sigset_t {
    // SAFETY: a sigset_t is an array of integers, of which zeros are valid ones.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live set.
    unsafe { libc::sigemptyset(&raw mut set) };
    set
}

/// Block every signal, so that they wait for the signal descriptor.
pub fn block_all() {
    let mut set = empty_set();
    // SAFETY: the pointer is to a live set.
    unsafe { libc::sigfillset(&raw mut set) };
    set_mask(&set);
}

/// End, with the exit status of a process that they killed, on those signals that would otherwise mean nothing to the first
/// process of a PID namespace: it heeds none from inside or outside that it has no handler for. Exec resets it.
pub fn end_on_signals() {
    extern "C" fn end(signal: libc::c_int) {
        super::exit_now(128 + signal);
    }
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: the handler calls _exit alone, which is safe at any moment.
        unsafe { libc::signal(signal, end as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

fn set_mask(set: &libc::sigset_t) {
    // SAFETY: the set lives until the call returns, which only reads it; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
}

/// Make a descriptor that becomes readable when one of the (blocked) signals arrives.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let mut set = empty_set();
    for signal in signals {
        // SAFETY: the pointer is to a live, initialised set; a number that is no signal is refused.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    // SAFETY: the set lives until the call returns, which only reads it.
    let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    checked(descriptor.into())?;
    // SAFETY: the call just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Take the signals that arrived.
pub fn read_signals(descriptor: BorrowedFd<'_>) -> Vec<i32> {
    let mut signals = Vec::new();
    loop {
        // SAFETY: a signalfd_siginfo is integers only, of which zeros are valid ones.
        let mut information: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer is to a live value of the size that is passed along, and any bytes are a valid one.
        let length = unsafe { libc::read(descriptor.as_raw_fd(), (&raw mut information).cast(), size) };
        if length <= 0 {
            return signals;
        }
        signals.push(information.ssi_signo as i32);
    }
}
