//! Identity: user, group, supplementary groups, and who owns the standard streams.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Gid, Uid};

use crate::error::{Failure, Kind, Step};
use crate::sys;

/// Become a user. The supplementary groups are exactly `groups` (CVE-2022-2995: none is left over from the caller).
///
/// Permitted capabilities survive the change; the effective ones do not, and are set afterwards.
pub(super) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Failure> {
    rustix::thread::set_keep_capabilities(true).step(|| "keep the capabilities through the change of user")?;
    let list: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&list) {
        // A user namespace made without privilege forbids it, and then holds no foreign group that could be used.
        Err(rustix::io::Errno::PERM) if sys::child_groups_denied() => {
            if let Some(other) = groups.iter().find(|other| **other != gid) {
                return Err(unmapped(format!("set the supplementary groups {groups:?}"), "gid", *other));
            }
        }
        Err(rustix::io::Errno::INVAL) => {
            let highest = groups.iter().max().copied().unwrap_or_default();
            return Err(unmapped(format!("set the supplementary groups {groups:?}"), "gid", highest));
        }
        result => result.step(|| format!("set the supplementary groups {groups:?}"))?,
    }
    let step = || format!("become group {gid}");
    let raw = Gid::from_raw(gid);
    match rustix::thread::set_thread_res_gid(raw, raw, raw) {
        Err(rustix::io::Errno::INVAL) => return Err(unmapped(step(), "gid", gid)),
        result => result.step(step)?,
    }
    let step = || format!("become user {uid}");
    let raw = Uid::from_raw(uid);
    match rustix::thread::set_thread_res_uid(raw, raw, raw) {
        Err(rustix::io::Errno::INVAL) => return Err(unmapped(step(), "uid", uid)),
        result => result.step(step)?,
    }
    rustix::thread::set_keep_capabilities(false).step(|| "stop keeping capabilities")
}

/// No id of the machine stands for one of the container's: of a user who is not root, who has his own for 0 and those of his
/// ranges from 1 on, or of a container with maps of its own.
fn unmapped(step: String, kind: &str, id: u32) -> Failure {
    let message = format!("{step}: the container's user namespace has no {kind} {id}");
    Failure::new(Kind::FailedPrecondition, message).with_hint(format!(
        "it takes ranges of at least {id} ids in /etc/sub{kind}, which the administrator gives (usermod --add-sub{kind}s FIRST-LAST USER), \
         or maps with more ids for a container with its own; user=0 does without"
    ))
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
