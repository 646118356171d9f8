//! Inodes of trees that somebody else changes, a running container above all: found first, opened once it is known what they are.
//!
//! open(2) of a FIFO waits for its other end, and that of a device does something: a tape is rewound, a watchdog begins to count. A
//! descriptor of `O_PATH` does neither, and stays with its inode whatever is done to the name. `/proc` is needed to open it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::sys;

/// Find what a name leads to, without opening it. A symlink is found itself.
pub fn find_at(folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Open for reading what was found and is known to be a regular file or a folder.
pub fn reopen(found: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, sys::descriptor_path(found), flags, Mode::empty())
}

/// Open for reading what was found if it is a regular file. None when it is something else, which is not opened.
pub fn open_file(found: BorrowedFd<'_>) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let stat = rustix::fs::fstat(found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some((reopen(found, OFlags::empty())?, stat)))
}

/// As [`open_file`], of what a name leads to.
pub fn open_file_at(folder: BorrowedFd<'_>, name: &CStr) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    open_file(find_at(folder, name)?.as_fd())
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use rustix::fs::inotify;

    use super::*;

    #[test]
    fn what_is_no_file_is_not_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = std::fs::File::open(folder.path()).expect("opened");
        std::fs::write(folder.path().join("file"), "text").expect("written");
        std::os::unix::fs::symlink("file", folder.path().join("link")).expect("linked");
        rustix::fs::mknodat(&opened, "fifo", FileType::Fifo, Mode::RUSR, 0).expect("made");
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).expect("made");
        inotify::add_watch(&watch, folder.path(), inotify::WatchFlags::OPEN).expect("watched");
        for name in [c"fifo", c"link"] {
            assert!(open_file_at(opened.as_fd(), name).expect("looked at").is_none());
        }
        assert!(open_file_at(opened.as_fd(), c"file").expect("opened").is_some());
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        assert_eq!(events.next().expect("one").file_name(), Some(c"file"));
    }
}
