//! Identity: user, group, supplementary groups, and who owns the standard streams.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Gid, Uid};

use crate::error::{Failure, Step};
use crate::sys;

/// Become a user. The supplementary groups are exactly `groups` (CVE-2022-2995: none is left over from the caller).
///
/// Permitted capabilities survive the change; the effective ones do not, and are set afterwards.
pub(super) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Failure> {
    rustix::thread::set_keep_capabilities(true).step(|| "keep the capabilities through the change of user")?;
    let list: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&list) {
        // A user namespace made without privilege forbids it, and then holds no foreign group that could be used.
        Err(rustix::io::Errno::PERM) if groups.is_empty() && sys::child_groups_denied() => {}
        result => result.step(|| format!("set the supplementary groups {groups:?}"))?,
    }
    let gid = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| format!("become group {}", gid.as_raw()))?;
    let uid = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| format!("become user {}", uid.as_raw()))?;
    rustix::thread::set_keep_capabilities(false).step(|| "stop keeping capabilities")
}

/// Give the standard streams to the user, so that a program that opens /dev/stdout anew may do so.
///
/// Devices are left alone: /dev/null is the host's.
pub(super) fn own_standard_streams(uid: u32) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let _ = own(stream, uid);
    }
}

fn own(stream: BorrowedFd<'_>, uid: u32) -> rustix::io::Result<()> {
    let status = rustix::fs::fstat(stream)?;
    let terminal = rustix::termios::isatty(stream);
    if status.st_uid != uid && (terminal || FileType::from_raw_mode(status.st_mode) == FileType::Fifo) {
        rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None)?;
    }
    Ok(())
}
