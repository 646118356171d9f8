//! What a layer's folder cannot hold here, kept beside it: `kept.tar`, an archive of the entries as the layer has them.
//!
//! A user namespace has no device nodes, and no owners without an id in it. Files and folders keep such an owner in an attribute;
//! symlinks and FIFOs cannot have one, and a device is not there at all. So their entries, which have no content, stand in an
//! archive beside the folder, under the names that they have in it. Who reads the folder in order to make a layer of it gives
//! them back. Nothing else looks there: programs see a tree without the devices, whose symlinks are root's.
//!
//! A tree that was changed is believed more than the archive: a symlink or FIFO has to be root's still, and of the same target
//! and time, and a device is there only where nothing else is.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::Attributes;
use crate::error::{Error, Result};
use crate::tar::{Entry, EntryKind, Limits, Reader, Writer};

/// What a layer's folder is called; one of another name has nothing beside it.
const LAYER: &str = "fs";
const ARCHIVE: &str = "kept.tar";
/// A bound for what is read: some millions of names.
const LONGEST: u64 = 1 << 30;

/// The entries beside a layer's folder.
#[derive(Debug, Default)]
pub struct Kept {
    entries: Vec<Entry>,
    places: BTreeMap<Vec<u8>, Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Names of one inode have the same.
    entry: usize,
    /// It stood there before the layer that is being applied.
    from_beneath: bool,
}

/// Where it stands, if this is a layer's folder.
fn place(folder: &Path) -> Option<PathBuf> {
    (folder.file_name()? == LAYER).then(|| folder.with_file_name(ARCHIVE))
}

impl Kept {
    /// What stands beside a layer's folder; nothing where it is none.
    pub fn beside(folder: &Path) -> Result<Self> {
        let Some(path) = place(folder) else { return Ok(Self::default()) };
        let failed = |error: Errno| Error::system(format!("cannot read {}", path.display()), error);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened: OwnedFd = match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
        };
        let mut archive = Vec::new();
        std::fs::File::from(opened)
            .take(LONGEST)
            .read_to_end(&mut archive)
            .map_err(|error| Error::system(format!("cannot read {}", path.display()), error))?;
        Self::read(&archive).map_err(|error| error.context(path.display().to_string()))
    }

    fn read(archive: &[u8]) -> Result<Self> {
        let mut kept = Self::default();
        let mut reader = Reader::new(archive, Limits::default());
        while let Some(entry) = reader.next_entry()? {
            if let EntryKind::HardLink(target) = &entry.kind {
                kept.link(&entry.path, target);
                continue;
            }
            kept.places.insert(entry.path.clone(), Place { entry: kept.entries.len(), from_beneath: true });
            kept.entries.push(entry);
        }
        Ok(kept)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Keep the entry of a name.
    pub fn keep(&mut self, path: Vec<u8>, entry: Entry) {
        self.places.insert(path, Place { entry: self.entries.len(), from_beneath: false });
        self.entries.push(entry);
    }

    /// Keep the entry of a name for another one too; false where there is none.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> bool {
        let Some(place) = self.places.get(target) else { return false };
        let place = Place { from_beneath: false, ..*place };
        self.places.insert(path.to_vec(), place);
        true
    }

    /// Forget a name, and what is beneath it.
    pub fn forget(&mut self, path: &[u8]) {
        if !self.places.is_empty() {
            self.places.remove(path);
            self.forget_in(path, |_| true);
        }
    }

    /// Forget what stood in a folder before the layer that is being applied.
    pub fn forget_beneath(&mut self, folder: &[u8]) {
        self.forget_in(folder, |place| place.from_beneath);
    }

    /// Forget a name that stood there before the layer that is being applied.
    pub fn delete(&mut self, path: &[u8]) {
        if self.places.get(path).is_some_and(|place| place.from_beneath) {
            self.places.remove(path);
        }
    }

    fn forget_in(&mut self, folder: &[u8], which: impl Fn(&Place) -> bool) {
        let inside: Vec<Vec<u8>> =
            self.within(folder).filter(|(_, place)| which(place)).map(|(path, _)| path.clone()).collect();
        for path in inside {
            self.places.remove(&path);
        }
    }

    fn within(&self, folder: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Place)> {
        let prefix = if folder.is_empty() { Vec::new() } else { [folder, b"/"].concat() };
        self.places.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix))
    }

    /// The names of devices in a folder.
    pub fn devices_in<'a>(&'a self, folder: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let start = if folder.is_empty() { 0 } else { folder.len() + 1 };
        self.within(folder).filter(|(_, place)| is_device(&self.entries[place.entry])).filter_map(move |(path, _)| {
            let name = &path[start..];
            (!name.contains(&b'/')).then_some(name)
        })
    }

    /// The device that stands at a path, if nothing else does, and which of the entries it is.
    pub fn device(&self, path: &[u8]) -> Option<(&Entry, usize)> {
        let index = self.places.get(path)?.entry;
        Some((&self.entries[index], index)).filter(|(entry, _)| is_device(entry))
    }

    /// Give what was read of a symlink or FIFO the owner and the attributes that were kept for it.
    pub fn restore(&self, path: &[u8], stat: &Stat, target: Option<&[u8]>, attributes: &mut Attributes) {
        let Some(place) = self.places.get(path) else { return };
        let entry = &self.entries[place.entry];
        let same_kind = match (&entry.kind, FileType::from_raw_mode(stat.st_mode)) {
            (EntryKind::Symlink(kept), FileType::Symlink) => target == Some(kept),
            (EntryKind::Fifo, FileType::Fifo) => true,
            _ => false,
        };
        if same_kind && (stat.st_uid, stat.st_gid) == (0, 0) && attributes.mtime == entry.mtime {
            (attributes.uid, attributes.gid) = (entry.uid, entry.gid);
        }
    }

    /// Keep for a name what is kept elsewhere at a path; false where nothing is.
    pub fn adopt(&mut self, path: Vec<u8>, other: &Self, at: &[u8]) -> bool {
        let Some(place) = other.places.get(at) else { return false };
        self.keep(path, other.entries[place.entry].clone());
        true
    }

    /// The archive; empty where there is nothing to keep.
    pub fn archive(&self) -> Result<Vec<u8>> {
        if self.places.is_empty() {
            return Ok(Vec::new());
        }
        let mut writer = Writer::new(Vec::new());
        let mut first: BTreeMap<usize, &[u8]> = BTreeMap::new();
        for (path, place) in &self.places {
            let mut entry = Entry { path: path.clone(), ..self.entries[place.entry].clone() };
            if let Some(target) = first.get(&place.entry) {
                entry.kind = EntryKind::HardLink(target.to_vec());
                entry.xattrs.clear();
            } else {
                first.insert(place.entry, path);
            }
            writer.entry(&entry)?;
        }
        writer.finish()
    }

    /// Write it beside a layer's folder.
    pub fn store(&self, folder: &Path) -> Result<()> {
        store(folder, &self.archive()?)
    }
}

/// Write an archive beside a layer's folder, or take one away where there is nothing to keep any more.
pub fn store(folder: &Path, archive: &[u8]) -> Result<()> {
    let Some(path) = place(folder) else { return Ok(()) };
    let failed = |error: std::io::Error| Error::system(format!("cannot write {}", path.display()), error);
    if archive.is_empty() {
        return match rustix::fs::unlinkat(CWD, &path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error.into())),
        };
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat(CWD, &path, flags, Mode::from_raw_mode(0o600)).map_err(|error| failed(error.into()))?;
    std::fs::File::from(opened).write_all(archive).map_err(failed)
}

fn is_device(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::Character(_) | EntryKind::Block(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Device, Timestamp};

    fn device(minor: u32) -> Entry {
        let attributes = Attributes {
            mode: 0o600,
            uid: 7,
            mtime: Timestamp { seconds: 5, nanoseconds: 0 },
            ..Attributes::default()
        };
        attributes.entry(Vec::new(), EntryKind::Character(Device { major: 1, minor }))
    }

    #[test]
    fn names_come_back_from_the_archive_and_those_of_one_inode_as_one() {
        let mut kept = Kept::default();
        kept.keep(b"dev/null".to_vec(), device(3));
        assert!(kept.link(b"dev/also", b"dev/null"));
        assert!(!kept.link(b"x", b"dev/zero"));
        kept.keep(b"dev/zero".to_vec(), device(5));
        kept.keep(b"device".to_vec(), device(1));
        let read = Kept::read(&kept.archive().unwrap()).unwrap();
        assert_eq!(read.devices_in(b"dev").collect::<Vec<_>>(), [&b"also"[..], b"null", b"zero"]);
        assert_eq!(read.devices_in(b"").collect::<Vec<_>>(), [&b"device"[..]]);
        let (null, also) = (read.device(b"dev/null").unwrap(), read.device(b"dev/also").unwrap());
        assert_eq!((null.0.uid, null.1), (7, also.1));
        assert_ne!(read.device(b"dev/zero").unwrap().1, also.1);
    }

    #[test]
    fn what_is_replaced_is_forgotten_with_all_that_is_in_it_and_deleting_speaks_of_what_lies_beneath() {
        let mut beneath = Kept::default();
        beneath.keep(b"dev/null".to_vec(), device(3));
        beneath.keep(b"devices".to_vec(), device(4));
        let mut kept = Kept::read(&beneath.archive().unwrap()).unwrap();
        kept.keep(b"dev/own".to_vec(), device(5));
        kept.delete(b"dev/own");
        kept.forget_beneath(b"dev");
        assert_eq!(kept.devices_in(b"dev").collect::<Vec<_>>(), [&b"own"[..]]);
        kept.forget(b"dev");
        kept.delete(b"devices");
        assert!(kept.archive().unwrap().is_empty());
    }

    #[test]
    fn it_stands_beside_a_folder_of_a_layer_alone_and_goes_when_there_is_nothing_to_keep() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::default();
        kept.keep(b"null".to_vec(), device(3));
        kept.store(&folder.path().join("data")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        kept.store(&folder.path().join("fs")).unwrap();
        assert!(Kept::beside(&folder.path().join("fs")).unwrap().device(b"null").is_some());
        Kept::default().store(&folder.path().join("fs")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
