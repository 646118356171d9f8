//! Whiteouts: what their names in a tar mean, and how they look in a layer folder.
//!
//! Names: OCI image spec, layer.md, "Whiteouts". On disk: the kernel's overlayfs.rst, "whiteouts and opaque directories".

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat, XattrFlags, makedev};
use rustix::io::Errno;

use super::WhiteoutFormat;
use super::attributes::set_times_at;
use crate::error::{Error, Result, show};
use crate::sys;
use crate::tar::Timestamp;

/// Before the name of what is deleted.
pub const PREFIX: &[u8] = b".wh.";
/// In a folder that hides what is beneath it.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
const METADATA: &[u8] = b".wh..wh.";

/// What the name of an entry asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary entry.
    Entry,
    /// Delete this name of the lower layers.
    Delete(&'a [u8]),
    /// Hide everything that lower layers have in this folder.
    Opaque,
    /// Book-keeping of aufs (`.wh..wh.plnk` and the like), which is no part of the tree.
    Metadata,
}

/// Read the meaning of a path.
pub fn meaning<'a>(components: &[&'a [u8]]) -> Result<Meaning<'a>> {
    let Some((last, parents)) = components.split_last() else { return Ok(Meaning::Entry) };
    for parent in parents {
        if parent.starts_with(METADATA) {
            return Ok(Meaning::Metadata);
        }
        if parent.starts_with(PREFIX) {
            return Err(Error::invalid(format!("the whiteout '{}' stands as a folder", show(parent))));
        }
    }
    if *last == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    if last.starts_with(METADATA) {
        return Ok(Meaning::Metadata);
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Meaning::Entry),
        Some(b"" | b"." | b"..") => Err(Error::invalid(format!("the whiteout '{}' names nothing", show(last)))),
        Some(name) => Ok(Meaning::Delete(name)),
    }
}

/// Whether a file cannot be in a layer, since its name means something else there.
pub fn stands_for_whiteout(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// Whether an attribute belongs to overlayfs: taken from a tar it would rewire the mount (redirects, metacopy).
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn opaque_xattr(format: WhiteoutFormat) -> Option<&'static CStr> {
    match format {
        WhiteoutFormat::Overlay => Some(c"trusted.overlay.opaque"),
        WhiteoutFormat::OverlayUserXattr => Some(c"user.overlay.opaque"),
        WhiteoutFormat::Plain => None,
    }
}

/// Record that `name` is deleted.
///
/// The kernel lets anyone make the device 0:0 since Linux 5.8, so both overlay formats have it.
pub fn make(folder: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::fs::mknodat(folder, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).map_err(|error| {
        let what = format!("cannot make the whiteout of '{}'", show(name.to_bytes()));
        match error {
            Errno::PERM => Error::system(what, error).hint(
                "Unprivileged whiteouts take Linux 5.8, and a file system that allows device nodes in this namespace.",
            ),
            _ => Error::system(what, error),
        }
    })?;
    // The clock has no part in what a layer becomes.
    set_times_at(folder, name, Timestamp::default(), Timestamp::default())
}

/// Record that a folder hides what lower layers have in it.
pub fn set_opaque(folder: BorrowedFd<'_>, format: WhiteoutFormat) -> Result<()> {
    let Some(name) = opaque_xattr(format) else { return Ok(()) };
    rustix::fs::fsetxattr(folder, name, b"y", XattrFlags::empty()).map_err(|error| {
        Error::system(format!("cannot set {}", name.to_string_lossy()), error)
            .hint("Choose a root on a file system with extended attributes (--root), or the native snapshotter.")
    })
}

/// Whether an inode of a layer folder is a whiteout. `parent` and `name` lead to it.
///
/// As for [`is_opaque`], only attributes of the layer's own form count, as for overlayfs: those of the other anybody in a
/// container may set.
pub fn is_whiteout(parent: BorrowedFd<'_>, name: &CStr, stat: &Stat, format: WhiteoutFormat) -> bool {
    let attribute = match format {
        WhiteoutFormat::Overlay => c"trusted.overlay.whiteout",
        WhiteoutFormat::OverlayUserXattr => c"user.overlay.whiteout",
        WhiteoutFormat::Plain => return false,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        // The other form that overlayfs knows since Linux 6.7; an upper folder of a nested overlay may have it.
        FileType::RegularFile if stat.st_size == 0 => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(file) = rustix::fs::openat(parent, name, flags, Mode::empty()) else { return false };
            rustix::fs::getxattr(sys::descriptor_path(file.as_fd()), attribute, &mut [0u8; 8]).is_ok()
        }
        _ => false,
    }
}

/// Whether a folder hides what lower layers have in it.
pub fn is_opaque(folder: BorrowedFd<'_>, format: WhiteoutFormat) -> bool {
    let mut value = [0u8; 2];
    opaque_xattr(format).is_some_and(|name| matches!(rustix::fs::fgetxattr(folder, name, &mut value), Ok(1)))
        && value[0] == b'y'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_the_spec_says() {
        assert_eq!(meaning(&[b"a", b"b"]).unwrap(), Meaning::Entry);
        assert_eq!(meaning(&[b"a", b".wh.b"]).unwrap(), Meaning::Delete(b"b"));
        assert_eq!(meaning(&[b"a", b".wh..wh..opq"]).unwrap(), Meaning::Opaque);
        assert_eq!(meaning(&[b".wh..wh.plnk", b"1.2"]).unwrap(), Meaning::Metadata);
        assert_eq!(meaning(&[b".wh..wh.aufs"]).unwrap(), Meaning::Metadata);
        assert_eq!(meaning(&[b".wh..hidden"]).unwrap(), Meaning::Delete(b".hidden"));
        assert_eq!(meaning(&[b".wh"]).unwrap(), Meaning::Entry);
    }

    #[test]
    fn whiteouts_of_nothing_and_whiteouts_as_folders_are_refused() {
        for bad in [&[&b".wh."[..]][..], &[b".wh.."], &[b".wh..."], &[b"a", b".wh.b", b"c"]] {
            assert!(meaning(bad).is_err());
        }
    }

    #[test]
    fn attributes_of_overlayfs_are_known() {
        assert!(is_overlay_xattr(b"trusted.overlay.redirect"));
        assert!(is_overlay_xattr(b"user.overlay.metacopy"));
        assert!(!is_overlay_xattr(b"user.overlayfs"));
    }
}
