//! Landlock (landlock(7)): what a thread may do with files, other than through what it has open.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::checked;

/// The oldest version in which a file may be linked from one folder to another.
const OLDEST: libc::c_long = 2;
const RULE_PATH_BENEATH: libc::c_int = 1;
const CREATE_RULESET_VERSION: u32 = 1;

/// `struct landlock_ruleset_attr`, whose later fields older kernels do not know.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    folder: i32,
}

fn version() -> libc::c_long {
    let none = std::ptr::null::<Ruleset>();
    // SAFETY: a null pointer and numbers, which ask for the version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, CREATE_RULESET_VERSION) }
}

/// Whether the kernel has what [`confine_to`] takes.
#[cfg(test)]
pub fn has_landlock() -> bool {
    version() >= OLDEST
}

/// Confine the calling thread, and those it starts, to what lies beneath a folder: nothing else is opened, made or removed; no
/// TCP connection is made, no signal sent to another process. False where the kernel has no such thing.
///
/// What is open stays usable. Attributes of what can be reached otherwise are not among what Landlock knows.
pub fn confine_to(folder: BorrowedFd<'_>) -> io::Result<bool> {
    let version = version();
    if version < OLDEST {
        return Ok(false);
    }
    let files = match version {
        ..3 => (1u64 << 14) - 1, // with LANDLOCK_ACCESS_FS_REFER
        3 | 4 => (1 << 15) - 1,  // and TRUNCATE
        _ => (1 << 16) - 1,      // and IOCTL_DEV
    };
    let rules = Ruleset { files, network: 3, scoped: 3 };
    let known = match version {
        ..4 => size_of::<u64>(),
        4 | 5 => 2 * size_of::<u64>(), // TCP: bind and connect
        _ => size_of::<Ruleset>(),     // abstract sockets, signals
    };
    // SAFETY: the struct lives until the call returns, and is at least as long as is said; the kernel only reads it.
    let made = checked(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, known, 0) })?;
    // SAFETY: the call just made this descriptor, and nobody else knows it.
    let made = unsafe { OwnedFd::from_raw_fd(made as i32) };
    let beneath = Beneath { allowed: files, folder: folder.as_raw_fd() };
    // SAFETY: descriptors that are open, and a struct of the kind that is named, which lives until the call returns.
    checked(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, made.as_raw_fd(), RULE_PATH_BENEATH, &raw const beneath, 0)
    })?;
    // SAFETY: numbers only.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: an open descriptor and a number. It takes rights from this thread, and touches no memory.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, made.as_raw_fd(), 0) })?;
    Ok(true)
}
