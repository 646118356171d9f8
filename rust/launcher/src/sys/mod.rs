//! System calls that neither rustix nor the core wraps. The only module of the crate with unsafe code.

#![allow(unsafe_code)]

mod landlock;
mod process;
mod program;
mod signal;

use std::io;

pub use lamella_core::sys::reset_signals;
pub use landlock::confine_to;
#[cfg(test)]
pub use landlock::has_landlock;
pub use process::{
    CLONE_NEWTIME, Forked, Scheduling, child_groups_denied, children, clone_process, close_all_but, close_from,
    ends_within, execute, execute_file, exit_now, fork, fork_plainly, hand_down, in_user_namespace, inherited,
    is_exiting, join_session_keyring, kill, memory_file, move_into, set_io_priority, set_personality, set_rlimit,
    set_scheduling, signal_process, signal_session, unshare,
};
pub use program::{SeccompInstruction, attach_device_program, install_seccomp};
pub use signal::{block_all, end_on_signals, read_signals, signal_descriptor};

/// Turn the result of a libc call into a Result.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
