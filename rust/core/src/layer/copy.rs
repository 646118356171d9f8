//! Copies single inodes: content with its holes, and attributes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::attributes::{Attributes, Target, mode_bits, read_xattrs, set_owner_at, set_times_at, set_xattrs};
use super::merged::Found;
use crate::error::{Error, Kind, Result, show};
use crate::sys;

/// The attributes of what was found.
pub fn attributes_of(found: &Found) -> Result<Attributes> {
    Ok(Attributes::read(&found.stat, read_xattrs(&Target::Name(found.parent.as_fd(), &found.name))?))
}

/// Make a copy of what was found (no folder) under a new name.
pub fn copy_up(found: &Found, folder: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let failed = |error: Errno| Error::system(format!("cannot copy to '{}'", show(name.to_bytes())), error);
    match found.file_type() {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = rustix::fs::openat(&found.parent, &found.name, flags, Mode::empty()).map_err(failed)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let to = rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
            let size = u64::try_from(found.stat.st_size).unwrap_or(0);
            copy_content(&from, &to, size).map_err(failed)?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&found.parent, &found.name, Vec::new()).map_err(failed)?;
            rustix::fs::symlinkat(&target, folder, name).map_err(failed)?;
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket) => {
            rustix::fs::mknodat(folder, name, kind, Mode::empty(), found.stat.st_rdev).map_err(failed)?;
        }
        _ => return Err(Error::new(Kind::Internal, "a folder cannot be copied up as a file")),
    }
    set_attributes_at(folder, name, &attributes_of(found)?)
}

/// Set all attributes of a name, whatever it is, without following a symlink.
pub fn set_attributes_at(folder: BorrowedFd<'_>, name: &CStr, attributes: &Attributes) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inode = rustix::fs::openat(folder, name, flags, Mode::empty());
    let failed = |error: Errno| Error::system(format!("cannot set attributes of '{}'", show(name.to_bytes())), error);
    let inode = inode.map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&inode).map_err(failed)?.st_mode);
    set_owner_at(folder, name, attributes.uid, attributes.gid)?;
    set_xattrs(&Target::Name(folder, name), &attributes.xattrs, &mut |_| {})?;
    if kind != FileType::Symlink {
        rustix::fs::chmod(sys::descriptor_path(inode.as_fd()), mode_bits(attributes.mode)).map_err(failed)?;
    }
    set_times_at(folder, name, attributes.atime, attributes.mtime)
}

/// Copy a file's data segments; what lies between them stays a hole.
fn copy_content(from: &OwnedFd, to: &OwnedFd, size: u64) -> std::result::Result<(), Errno> {
    rustix::fs::ftruncate(to, size)?;
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        copy_range(from, to, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> std::result::Result<(), Errno> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let length = usize::try_from(end - source).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(from, to, source, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where the kernel cannot copy by itself: between file systems before Linux 5.19, and some file systems.
fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, mut position: u64, end: u64) -> std::result::Result<(), Errno> {
    let mut buffer = vec![0u8; 256 * 1024];
    while position < end {
        let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        let count = rustix::io::pread(from, &mut buffer[..length], position)?;
        if count == 0 {
            return Err(Errno::IO);
        }
        let mut written = 0;
        while written < count {
            written += rustix::io::pwrite(to, &buffer[written..count], position + written as u64)?;
        }
        position += count as u64;
    }
    Ok(())
}
