//! Owner, mode, extended attributes and times: setting them without ever following a symlink.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::whiteout::is_overlay_xattr;
use crate::error::{Error, Result, show};
use crate::tar::{Entry, EntryKind, Timestamp};

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Where the owner of a file or folder is kept for which this user namespace has no ids: `uid:gid`. The inode is root's then, and
/// only of root's it is believed, since whoever may write to a file of his own may set it.
const OWNER: &CStr = c"user.lamella.owner";
/// Said once of what was done so.
pub const KEPT: &str =
    "owners for which this user namespace has no ids are kept beside; what runs here sees root's files";

const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

/// What is set on an inode besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub atime: Timestamp,
    pub xattrs: Xattrs,
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

    /// The entry that they make, of no size; the way back from [`Self::of`] but for the access time, which archives leave out.
    pub fn entry(self, path: Vec<u8>, kind: EntryKind) -> Entry {
        Entry {
            path,
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            atime: None,
            size: 0,
            sparse: false,
            xattrs: self.xattrs,
        }
    }

    /// Those of an inode, with the owner that was kept for it.
    pub fn read(stat: &Stat, mut xattrs: Xattrs) -> Self {
        let mut owner = (stat.st_uid, stat.st_gid);
        if let Some(place) = xattrs.iter().position(|(name, _)| name == OWNER.to_bytes()) {
            let (_, text) = xattrs.remove(place);
            owner = kept_owner(&text).filter(|_| owner == (0, 0)).unwrap_or(owner);
        }
        Self {
            mode: stat.st_mode & 0o7777,
            uid: owner.0,
            gid: owner.1,
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

fn kept_owner(text: &[u8]) -> Option<(u32, u32)> {
    let (user, group) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some((user.parse().ok()?, group.parse().ok()?))
}

/// The attribute that keeps an owner.
pub fn owner_xattr(uid: u32, gid: u32) -> (Vec<u8>, Vec<u8>) {
    (OWNER.to_bytes().to_vec(), format!("{uid}:{gid}").into_bytes())
}

/// Whether an attribute is lamella's own, and no image's.
pub fn is_own_xattr(name: &[u8]) -> bool {
    name == OWNER.to_bytes()
}

/// Set the owner through a descriptor. One that cannot be is kept as an attribute, which is said with `note`.
pub fn set_owner(inode: BorrowedFd<'_>, uid: u32, gid: u32, note: &mut dyn FnMut(String)) -> Result<()> {
    match rustix::fs::fchown(inode, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        // In a user namespace: an id without a mapping.
        Err(Errno::INVAL) => {
            note(KEPT.to_owned());
            set_xattrs(&Target::Descriptor(inode), &[owner_xattr(uid, gid)], note)
        }
        result => result.map_err(|error| owner_error(uid, gid, error)),
    }
}

/// Set the owner of a name that may be a symlink. False where this user namespace has no id for it.
pub fn set_owner_at(folder: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<bool> {
    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match rustix::fs::chownat(folder, name, owner, group, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::INVAL) => Ok(false),
        result => result.map(|()| true).map_err(|error| owner_error(uid, gid, error)),
    }
}

fn owner_error(uid: u32, gid: u32, error: Errno) -> Error {
    Error::system(format!("cannot set the owner {uid}:{gid}"), error)
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

/// Set on an open inode what differs. Gives its stat as far as that may have changed its size on disk.
pub fn set_attributes(inode: BorrowedFd<'_>, attributes: &Attributes, note: &mut dyn FnMut(String)) -> Result<Stat> {
    let failed = |error| Error::system("cannot read attributes", error);
    let stat = rustix::fs::fstat(inode).map_err(failed)?;
    let owner_differs = (stat.st_uid, stat.st_gid) != (attributes.uid, attributes.gid);
    if owner_differs {
        set_owner(inode, attributes.uid, attributes.gid, note)?;
    }
    // After the owner: a change of that clears the set-id bits and security.capability.
    set_xattrs(&Target::Descriptor(inode), &attributes.xattrs, note)?;
    if owner_differs || !attributes.xattrs.is_empty() || stat.st_mode & 0o7777 != attributes.mode {
        rustix::fs::fchmod(inode, mode_bits(attributes.mode))
            .map_err(|error| Error::system("cannot set the mode", error))?;
    }
    set_times(inode, attributes.atime, attributes.mtime)?;
    if attributes.xattrs.is_empty() { Ok(stat) } else { rustix::fs::fstat(inode).map_err(failed) }
}

/// Set extended attributes. What the file system cannot hold becomes a note, as containerd has it.
pub fn set_xattrs(target: &Target<'_>, xattrs: &[(Vec<u8>, Vec<u8>)], note: &mut dyn FnMut(String)) -> Result<()> {
    for (name, value) in xattrs {
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
pub fn read_xattrs(target: &Target<'_>) -> Result<Xattrs> {
    let mut xattrs = read_all_xattrs(target)?;
    xattrs.retain(|(name, _)| !is_overlay_xattr(name));
    Ok(xattrs)
}

/// Read all extended attributes.
pub fn read_all_xattrs(target: &Target<'_>) -> Result<Xattrs> {
    let failed = |error: Errno| Error::system("cannot read extended attributes", error);
    let path = match target {
        Target::Descriptor(_) => CString::default(),
        Target::Name(folder, file) => path_of(*folder, file)?,
    };
    let listed = read_sized(|buffer| match target {
        Target::Descriptor(inode) => rustix::fs::flistxattr(inode, buffer),
        Target::Name(..) => rustix::fs::llistxattr(&path, buffer),
    });
    let list = match listed {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut xattrs = Xattrs::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).map_err(|_| Error::invalid("an attribute's name holds a NUL"))?;
        let value = read_sized(|buffer| match target {
            Target::Descriptor(inode) => rustix::fs::fgetxattr(inode, &c_name, buffer),
            Target::Name(..) => rustix::fs::lgetxattr(&path, &c_name, buffer),
        });
        match value {
            Ok(value) => xattrs.push((name.to_vec(), value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(xattrs)
}

/// Read what is mostly short, and at most 64 KiB (XATTR_SIZE_MAX, XATTR_LIST_MAX).
fn read_sized(
    mut read: impl FnMut(&mut [u8]) -> std::result::Result<usize, Errno>,
) -> std::result::Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    let length = match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(64 * 1024, 0);
            read(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

fn remove_xattr(target: &Target<'_>, name: &CStr) -> Result<()> {
    let removed = match target {
        Target::Descriptor(inode) => rustix::fs::fremovexattr(inode, name),
        Target::Name(folder, file) => rustix::fs::lremovexattr(path_of(*folder, file)?, name),
    };
    match removed {
        Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(Error::system(format!("cannot remove the attribute {}", show(name.to_bytes())), error)),
    }
}

/// Remove all extended attributes that may be removed here, but those of overlayfs.
pub fn remove_xattrs(target: &Target<'_>) -> Result<()> {
    for (name, _) in read_xattrs(target)? {
        let c_name = CString::new(name).map_err(|_| Error::invalid("an attribute's name holds a NUL"))?;
        remove_xattr(target, &c_name)?;
    }
    Ok(())
}

/// Take the default ACL off a folder, which all that is made in it would inherit. Gives what to set again later.
pub fn take_default_acl(folder: &Target<'_>) -> Result<Xattrs> {
    let mut xattrs = read_xattrs(folder)?;
    xattrs.retain(|(name, _)| name == DEFAULT_ACL.to_bytes());
    if !xattrs.is_empty() {
        remove_xattr(folder, DEFAULT_ACL)?;
    }
    Ok(xattrs)
}

/// Set times through a descriptor. A time that the file system cannot hold is an error: the kernel would clamp it.
pub fn set_times(inode: BorrowedFd<'_>, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    rustix::fs::futimens(inode, &timestamps(atime, mtime)).map_err(|error| Error::system("cannot set times", error))?;
    if is_usual(atime) && is_usual(mtime) {
        return Ok(());
    }
    let stat = rustix::fs::fstat(inode).map_err(|error| Error::system("cannot read times", error))?;
    check_times(&stat, atime, mtime)
}

/// Set times of a name that may be a symlink.
pub fn set_times_at(folder: BorrowedFd<'_>, name: &CStr, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    rustix::fs::utimensat(folder, name, &timestamps(atime, mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::system("cannot set times", error))?;
    if is_usual(atime) && is_usual(mtime) {
        return Ok(());
    }
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::system("cannot read times", error))?;
    check_times(&stat, atime, mtime)
}

fn timestamps(atime: Timestamp, mtime: Timestamp) -> Timestamps {
    let spec = |time: Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
}

/// In the range that every Linux file system holds (32-bit seconds), so that no check is needed.
fn is_usual(time: Timestamp) -> bool {
    i32::try_from(time.seconds).is_ok()
}

fn check_times(stat: &Stat, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    let held = [timestamp(stat.st_atime, stat.st_atime_nsec), timestamp(stat.st_mtime, stat.st_mtime_nsec)];
    match held.into_iter().zip([atime, mtime]).find(|(held, wanted)| held.seconds != wanted.seconds) {
        None => Ok(()),
        Some((_, wanted)) => {
            Err(Error::invalid(format!("the file system cannot hold the time {} (seconds since 1970)", wanted.seconds)))
        }
    }
}
