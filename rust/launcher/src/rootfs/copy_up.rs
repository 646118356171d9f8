//! `tmpcopyup`: a tmpfs that begins with what the image has at its place.
//!
//! Both trees are walked together, by descriptors and single names; symlinks are copied, never followed. Owners, modes and
//! times are kept. Extended attributes, and that two names are one file, are not.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lamella_core::inode;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// Copy what is in one folder into another, and the folder's own attributes.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let status = rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                copy(open(&from, name, flags)?.as_fd(), open(to, name, flags)?.as_fd())?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&from, name, Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
                own(to, name, &status)?;
            }
            FileType::RegularFile => {
                // Where another container has the folder, too, something else may have taken the file's place.
                let (source, _) = inode::open_file_at(from.as_fd(), name)?.ok_or(Errno::STALE)?;
                let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, name, create, Mode::RWXU)?;
                let copied = std::io::copy(&mut File::from(source), &mut File::from(target));
                copied.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                own(to, name, &status)?;
            }
            kind => {
                rustix::fs::mknodat(to, name, kind, Mode::RWXU, status.st_rdev)?;
                own(to, name, &status)?;
            }
        }
    }
    let status = rustix::fs::fstat(&from)?;
    own(to, c".", &status)
}

fn open(folder: impl AsFd, name: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(folder, name, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// Give a copy its original's owner, mode and times, in this order: a change of owner takes set-id bits away.
fn own(folder: BorrowedFd<'_>, name: &std::ffi::CStr, status: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(folder, name, Mode::from_raw_mode(status.st_mode & 0o7777), AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: status.st_atime, tv_nsec: status.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: status.st_mtime, tv_nsec: status.st_mtime_nsec as i64 },
    };
    rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_tree_is_copied_with_its_modes_and_links_are_not_followed() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        std::fs::create_dir(from.path().join("folder")).expect("made");
        std::fs::write(from.path().join("folder/file"), "text").expect("written");
        let mode = PermissionsExt::from_mode(0o4751);
        std::fs::set_permissions(from.path().join("folder/file"), mode).expect("set");
        symlink("/etc/passwd", from.path().join("link")).expect("linked");
        std::fs::set_permissions(from.path(), PermissionsExt::from_mode(0o1777)).expect("set");
        let folder = |path: &std::path::Path| {
            rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opened")
        };
        copy(folder(from.path()).as_fd(), folder(to.path()).as_fd()).expect("copied");
        assert_eq!(std::fs::read_to_string(to.path().join("folder/file")).expect("there"), "text");
        let mode = |path: &str| std::fs::metadata(to.path().join(path)).expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode("folder/file"), mode(".")), (0o4751, 0o1777));
        assert_eq!(std::fs::read_link(to.path().join("link")).expect("a link").to_str(), Some("/etc/passwd"));
    }
}
