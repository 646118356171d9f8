//! Copies single inodes: content with its holes, and attributes.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::attributes::{
    Attributes, KEPT, Target, Xattrs, mode_bits, owner_xattr, read_xattrs, set_attributes, set_owner_at, set_times_at,
    set_xattrs,
};
use super::merged::Found;
use crate::error::{Error, Kind, Result, show};
use crate::inode;
use crate::sys;
use crate::tree::Check;

/// How much of a file is copied between two looks whether to go on.
const PIECE: u64 = 64 * 1024 * 1024;

/// A name in an open folder.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    pub folder: BorrowedFd<'a>,
    pub name: &'a CStr,
}

/// How a copy is made.
pub struct Manner<'a> {
    /// Which extended attributes are copied.
    pub xattrs: fn(&Target<'_>) -> Result<Xattrs>,
    /// Called during long work; an error stops it.
    pub check: Check<'a>,
    /// Is told what could not be kept.
    pub note: &'a mut dyn FnMut(String),
}

/// The attributes of what was found.
pub fn attributes_of(found: &Found) -> Result<Attributes> {
    Ok(Attributes::read(&found.stat, read_xattrs(&Target::Name(found.parent.as_fd(), &found.name))?))
}

/// Make a copy of what was found (no folder) under a new name.
pub fn copy_up(found: &Found, to: Name<'_>) -> Result<()> {
    let from = Name { folder: found.parent.as_fd(), name: &found.name };
    let manner = &mut Manner { xattrs: read_xattrs, check: &mut || Ok(()), note: &mut |_| {} };
    copy_inode(from, &found.stat, to, manner)
}

/// Make a copy of a name that leads to something else than a folder, as `stat` says, under a new name.
pub fn copy_inode(from: Name<'_>, stat: &Stat, to: Name<'_>, manner: &mut Manner<'_>) -> Result<()> {
    let failed = |error: Errno| Error::system(format!("cannot copy '{}'", show(from.name.to_bytes())), error);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return copy_file(from, to, manner),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from.folder, from.name, Vec::new()).map_err(failed)?;
            rustix::fs::symlinkat(&target, to.folder, to.name).map_err(failed)?;
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket) => {
            rustix::fs::mknodat(to.folder, to.name, kind, Mode::empty(), stat.st_rdev).map_err(failed)?;
        }
        _ => return Err(Error::new(Kind::Internal, "a folder cannot be copied as a file")),
    }
    let xattrs = (manner.xattrs)(&Target::Name(from.folder, from.name))?;
    set_attributes_at(to.folder, to.name, &Attributes::read(stat, xattrs), manner.note)
}

fn copy_file(from: Name<'_>, to: Name<'_>, manner: &mut Manner<'_>) -> Result<()> {
    let failed = |error: Errno| Error::system(format!("cannot copy '{}'", show(from.name.to_bytes())), error);
    // Something else may have taken the file's place since it was looked at.
    let opened = inode::open_file_at(from.folder, from.name).map_err(failed)?;
    let (source, stat) = opened.ok_or(Errno::STALE).map_err(failed)?;
    let attributes = Attributes::read(&stat, (manner.xattrs)(&Target::Descriptor(source.as_fd()))?);
    // Attributes may need a writable mode; set-id bits come when the content is complete.
    let mode = if attributes.xattrs.is_empty() { attributes.mode & 0o777 } else { 0o600 };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = File::from(rustix::fs::openat(to.folder, to.name, flags, mode_bits(mode)).map_err(failed)?);
    copy_content(&source, &target, u64::try_from(stat.st_size).unwrap_or(0), manner.check)
        .map_err(|error| error.context(format!("'{}'", show(from.name.to_bytes()))))?;
    set_attributes(target.as_fd(), &attributes, manner.note).map(drop)
}

/// Set all attributes of a name, whatever it is, without following a symlink.
pub fn set_attributes_at(
    folder: BorrowedFd<'_>,
    name: &CStr,
    attributes: &Attributes,
    note: &mut dyn FnMut(String),
) -> Result<()> {
    let failed = |error: Errno| Error::system(format!("cannot set attributes of '{}'", show(name.to_bytes())), error);
    let found = inode::find_at(folder, name).map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found).map_err(failed)?.st_mode);
    if !set_owner_at(folder, name, attributes.uid, attributes.gid)? {
        note(KEPT.to_owned());
        set_xattrs(&Target::Name(folder, name), &[owner_xattr(attributes.uid, attributes.gid)], note)?;
    }
    set_xattrs(&Target::Name(folder, name), &attributes.xattrs, note)?;
    if kind != FileType::Symlink {
        rustix::fs::chmod(sys::descriptor_path(found.as_fd()), mode_bits(attributes.mode)).map_err(failed)?;
    }
    set_times_at(folder, name, attributes.atime, attributes.mtime)
}

/// Copy a file's content into an empty one: by sharing its blocks where the file system can (ioctl_ficlone(2)), else its data
/// segments; what lies between them stays a hole.
fn copy_content(from: &OwnedFd, to: &File, size: u64, check: Check<'_>) -> Result<()> {
    let failed = |error: Errno| Error::system("cannot copy the content", error);
    // It says no for many reasons (another file system, one that cannot, a swap file); a real one comes up again below.
    if size == 0 || rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => position,
            Err(error) => return Err(failed(error)),
        };
        position = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        copy_range(from, to, start, position, check)?;
    }
    if position < size {
        rustix::fs::ftruncate(to, size).map_err(failed)?;
    }
    Ok(())
}

fn copy_range(from: &OwnedFd, to: &File, start: u64, end: u64, check: Check<'_>) -> Result<()> {
    let failed = |error: Errno| Error::system("cannot copy the content", error);
    let (mut source, mut target) = (start, start);
    while source < end {
        check()?;
        let length = usize::try_from((end - source).min(PIECE)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(0) => return Err(failed(Errno::IO)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(from, to, source, end, check);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Where the kernel cannot copy by itself: between file systems before Linux 5.19, and some file systems.
fn copy_by_hand(from: &OwnedFd, to: &File, mut position: u64, end: u64, check: Check<'_>) -> Result<()> {
    let failed = |error: Errno| Error::system("cannot copy the content", error);
    let mut buffer = vec![0u8; 256 * 1024];
    while position < end {
        check()?;
        let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        let count = rustix::io::pread(from, &mut buffer[..length], position).map_err(failed)?;
        if count == 0 {
            return Err(failed(Errno::IO));
        }
        to.write_all_at(&buffer[..count], position).map_err(|error| Error::system("cannot copy the content", error))?;
        position += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use rustix::fs::{AtFlags, inotify};

    use super::*;

    #[test]
    fn what_took_a_files_place_is_not_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = File::open(folder.path()).expect("opened");
        std::fs::write(folder.path().join("file"), "text").expect("written");
        let stat = rustix::fs::statat(&opened, c"file", AtFlags::SYMLINK_NOFOLLOW).expect("there");
        std::fs::remove_file(folder.path().join("file")).expect("removed");
        rustix::fs::mknodat(&opened, c"file", FileType::Fifo, Mode::RUSR, 0).expect("made");
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).expect("made");
        inotify::add_watch(&watch, folder.path(), inotify::WatchFlags::OPEN).expect("watched");
        let at = |name| Name { folder: opened.as_fd(), name };
        let manner = &mut Manner { xattrs: read_xattrs, check: &mut || Ok(()), note: &mut |_| {} };
        copy_inode(at(c"file"), &stat, at(c"copy"), manner).expect_err("it is no file any more");
        let mut buffer = [MaybeUninit::uninit(); 1024];
        assert_eq!(inotify::Reader::new(&watch, &mut buffer).next().err(), Some(Errno::AGAIN));
    }
}
