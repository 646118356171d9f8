//! Out-of-memory kills: how many there were, and word of the next.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{CWD, Mode, OFlags};

use super::{Cgroup, write_file};

/// A descriptor that epoll reports when memory ran out, or is about to: on v1 the kernel says it before it kills.
/// Sources: cgroup-v2.rst on memory.events, cgroup-v1/memory.rst on "OOM Control".
#[derive(Debug)]
pub struct OomWatch {
    file: OwnedFd,
    unified: bool,
}

impl Cgroup {
    /// How many processes the kernel killed because a memory limit was reached.
    pub fn oom_kills(&self) -> u64 {
        let Some(folder) = self.folder("memory") else { return 0 };
        let file = if self.unified.is_some() { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Watch for the next ones; None where the kernel does not tell.
    pub fn watch_oom(&self) -> Option<OomWatch> {
        let folder = self.folder("memory")?;
        let open = |name: &str| {
            rustix::fs::openat(CWD, folder.join(name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        if self.unified.is_some() {
            return Some(OomWatch { file: open("memory.events")?, unified: true });
        }
        let control = open("memory.oom_control")?;
        let file = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let registration =
            format!("{} {}", std::os::fd::AsRawFd::as_raw_fd(&file), std::os::fd::AsRawFd::as_raw_fd(&control));
        write_file(&folder.join("cgroup.event_control"), &registration).ok()?;
        Some(OomWatch { file, unified: false })
    }
}

impl OomWatch {
    /// What epoll is to wait for.
    pub fn flags(&self) -> EventFlags {
        if self.unified { EventFlags::PRI } else { EventFlags::IN }
    }

    /// Have epoll report the next time only.
    pub fn acknowledge(&self) {
        let mut buffer = [0; 256];
        // Reading anew, from the start, is what tells the kernel that this file's state was seen.
        let _ = if self.unified {
            rustix::io::pread(&self.file, &mut buffer, 0)
        } else {
            rustix::io::read(&self.file, &mut buffer)
        };
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
