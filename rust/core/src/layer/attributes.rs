//! Owner, mode, extended attributes and times: setting them without ever following a symlink.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::whiteout::is_overlay_xattr;
use crate::error::{Error, Result, show};
use crate::tar::{Entry, Timestamp};

/// What is set on an inode besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub atime: Timestamp,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    pub fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            atime: entry.atime.unwrap_or(entry.mtime),
            xattrs: entry.xattrs.clone(),
        }
    }

    /// Those of an inode, without the attributes of overlayfs.
    pub fn read(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: timestamp(stat.st_mtime, stat.st_mtime_nsec),
            atime: timestamp(stat.st_atime, stat.st_atime_nsec),
            xattrs,
        }
    }
}

/// stat's fields differ in width between architectures.
fn timestamp(seconds: impl TryInto<i64>, nanoseconds: impl TryInto<u32>) -> Timestamp {
    Timestamp { seconds: seconds.try_into().unwrap_or(0), nanoseconds: nanoseconds.try_into().unwrap_or(0) }
}

pub fn mode_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Set the owner through a descriptor.
pub fn set_owner(inode: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    rustix::fs::fchown(inode, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|error| owner_error(uid, gid, error))
}

/// Set the owner of a name that may be a symlink.
pub fn set_owner_at(folder: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<()> {
    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(folder, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| owner_error(uid, gid, error))
}

fn owner_error(uid: u32, gid: u32, error: Errno) -> Error {
    let error_text = Error::system(format!("cannot set the owner {uid}:{gid}"), error);
    match error {
        // In a user namespace: an id without a mapping.
        Errno::INVAL => error_text
            .hint("The user namespace does not map this id; give it a larger range in /etc/subuid and /etc/subgid."),
        _ => error_text,
    }
}

/// Where extended attributes are set.
pub enum Target<'a> {
    /// A file or folder opened for more than its path.
    Descriptor(BorrowedFd<'a>),
    /// A name in a folder: symlinks and devices, which cannot or must not be opened.
    Name(BorrowedFd<'a>, &'a CStr),
}

/// The path of a name in an open folder; only the last component is looked up, and `l*xattr` does not follow that.
fn path_of(folder: BorrowedFd<'_>, name: &CStr) -> Result<CString> {
    let path = [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    CString::new(path).map_err(|_| Error::invalid("a name holds a NUL"))
}

/// Set extended attributes. What the file system cannot hold becomes a note, as containerd has it.
pub fn set_xattrs(target: &Target<'_>, xattrs: &[(Vec<u8>, Vec<u8>)], note: &mut dyn FnMut(String)) -> Result<()> {
    for (name, value) in xattrs {
        if is_overlay_xattr(name) {
            note(format!("the attribute {} belongs to overlayfs and was left out", show(name)));
            continue;
        }
        let c_name = CString::new(name.as_slice()).map_err(|_| Error::invalid("an attribute's name holds a NUL"))?;
        let result = match target {
            Target::Descriptor(inode) => rustix::fs::fsetxattr(inode, &c_name, value, XattrFlags::empty()),
            Target::Name(folder, file) => {
                rustix::fs::lsetxattr(path_of(*folder, file)?, &c_name, value, XattrFlags::empty())
            }
        };
        match result {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => note(format!("the file system does not support the attribute {}", show(name))),
            // Without privilege over the initial user namespace: trusted.*, security.*; user.* on a symlink.
            Err(Errno::PERM) if !name.starts_with(b"user.") || matches!(target, Target::Name(..)) => {
                note(format!("the attribute {} may not be set here", show(name)));
            }
            Err(error) => return Err(Error::system(format!("cannot set the attribute {}", show(name)), error)),
        }
    }
    Ok(())
}

/// Read all extended attributes but those of overlayfs.
pub fn read_xattrs(target: &Target<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let failed = |error: Errno| Error::system("cannot read extended attributes", error);
    let mut list = vec![0u8; 64 * 1024];
    let listed = match target {
        Target::Descriptor(inode) => rustix::fs::flistxattr(inode, list.as_mut_slice()),
        Target::Name(folder, file) => rustix::fs::llistxattr(path_of(*folder, file)?, list.as_mut_slice()),
    };
    let length = match listed {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut xattrs = Vec::new();
    let mut value = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_overlay_xattr(name)) {
        value.resize(64 * 1024, 0);
        let c_name = CString::new(name).map_err(|_| Error::invalid("an attribute's name holds a NUL"))?;
        let read = match target {
            Target::Descriptor(inode) => rustix::fs::fgetxattr(inode, &c_name, value.as_mut_slice()),
            Target::Name(folder, file) => rustix::fs::lgetxattr(path_of(*folder, file)?, &c_name, value.as_mut_slice()),
        };
        match read {
            Ok(length) => xattrs.push((name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(xattrs)
}

/// Remove all extended attributes that may be removed here, but those of overlayfs.
pub fn remove_xattrs(inode: BorrowedFd<'_>) -> Result<()> {
    for (name, _) in read_xattrs(&Target::Descriptor(inode))? {
        let c_name = CString::new(name.as_slice()).map_err(|_| Error::invalid("an attribute's name holds a NUL"))?;
        match rustix::fs::fremovexattr(inode, &c_name) {
            Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(Error::system(format!("cannot remove the attribute {}", show(&name)), error)),
        }
    }
    Ok(())
}

/// Set times through a descriptor. A time that the file system cannot hold is an error: the kernel would clamp it.
pub fn set_times(inode: BorrowedFd<'_>, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    rustix::fs::futimens(inode, &timestamps(atime, mtime)).map_err(|error| Error::system("cannot set times", error))?;
    if is_usual(mtime) {
        return Ok(());
    }
    let stat = rustix::fs::fstat(inode).map_err(|error| Error::system("cannot read times", error))?;
    check_time(&stat, mtime)
}

/// Set times of a name that may be a symlink.
pub fn set_times_at(folder: BorrowedFd<'_>, name: &CStr, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    rustix::fs::utimensat(folder, name, &timestamps(atime, mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::system("cannot set times", error))?;
    if is_usual(mtime) {
        return Ok(());
    }
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::system("cannot read times", error))?;
    check_time(&stat, mtime)
}

fn timestamps(atime: Timestamp, mtime: Timestamp) -> Timestamps {
    let spec = |time: Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
}

/// In the range that every Linux file system holds (32-bit seconds), so that no check is needed.
fn is_usual(time: Timestamp) -> bool {
    i32::try_from(time.seconds).is_ok()
}

fn check_time(stat: &Stat, mtime: Timestamp) -> Result<()> {
    if timestamp(stat.st_mtime, stat.st_mtime_nsec).seconds == mtime.seconds {
        return Ok(());
    }
    Err(Error::invalid(format!("the file system cannot hold the time {} (seconds since 1970)", mtime.seconds)))
}
