//! Finds names, follows paths, and makes the folders on the way.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::WhiteoutFormat;
use super::apply::Applier;
use super::attributes::{Attributes, Target, take_default_acl};
use super::made::{ChildKind, FolderId};
use super::name::{c_name, join, split};
use crate::error::{Error, Kind, Result, show};

/// As the kernel's MAXSYMLINKS.
const MAX_SYMLINKS: usize = 40;

/// Where a path leads to in the layer.
pub(super) enum Place {
    Folder(FolderId),
    /// Not in the layer: the path that was left to look for in the layers beneath.
    Beneath(Vec<u8>),
}

impl Applier {
    /// What a name stands for.
    pub(super) fn child(&mut self, folder: FolderId, name: &[u8]) -> Result<Option<ChildKind>> {
        match self.made.child(folder, name) {
            Some(child) => Ok(Some(child.kind.clone())),
            None => self.load(folder, name),
        }
    }

    /// Take into the index what was made at a name.
    pub(super) fn remember(&mut self, folder: FolderId, name: &[u8], kind: ChildKind) {
        // The folder on disk knows its files; but in the plain format not which of them are this layer's.
        if kind != ChildKind::Other || self.format == WhiteoutFormat::Plain {
            self.made.insert(folder, name, kind, true);
        }
    }

    /// Look for a name on disk. A folder or symlink is taken into the index.
    fn load(&mut self, folder: FolderId, name: &[u8]) -> Result<Option<ChildKind>> {
        let descriptor = self.folders.get(&self.made, folder)?;
        let c_name = c_name(name)?;
        let failed = |error| Error::system(format!("cannot read '{}'", show(name)), error);
        let stat = match rustix::fs::statat(&descriptor, &c_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let id = self.made.insert_folder(folder, name, false)?;
                // Kept as it is, its times too, unless the tar names it.
                let acl = take_default_acl(&Target::Name(descriptor.as_fd(), &c_name))?;
                self.made.folder_mut(id).attributes = Some(Attributes::read(&stat, acl));
                return Ok(Some(ChildKind::Folder(id)));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&descriptor, &c_name, Vec::new()).map_err(failed)?;
                ChildKind::Symlink(target.into_bytes().into())
            }
            _ => return Ok(Some(ChildKind::Other)),
        };
        self.made.insert(folder, name, kind.clone(), false);
        Ok(Some(kind))
    }

    pub(super) fn make_parents(&mut self, components: &[&[u8]]) -> Result<FolderId> {
        match self.walk(components, true)? {
            Place::Folder(id) => Ok(id),
            Place::Beneath(_) => Err(Error::new(Kind::Internal, "a parent folder was not made")),
        }
    }

    /// Follow a path to a folder: symlinks of the layer lead where they would with the layer as the root.
    pub(super) fn walk(&mut self, components: &[&[u8]], create: bool) -> Result<Place> {
        let mut at = FolderId::ROOT;
        let mut symlinks = 0;
        let mut pending: VecDeque<Box<[u8]>> = VecDeque::new();
        let mut direct = components.iter();
        loop {
            // Only a symlink puts anything into `pending`; without one nothing is copied.
            let owned;
            let by_symlink = !pending.is_empty();
            let name: &[u8] = if let Some(next) = pending.pop_front() {
                owned = next;
                &owned
            } else if let Some(next) = direct.next() {
                next
            } else {
                return Ok(Place::Folder(at));
            };
            if name == b".." {
                at = self.made.folder(at).parent;
                continue;
            }
            match self.child(at, name)? {
                Some(ChildKind::Folder(id)) => at = id,
                Some(ChildKind::Symlink(target)) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(Error::invalid(format!("too many symlinks on the way ('{}')", show(name))));
                    }
                    if target.first() == Some(&b'/') {
                        at = FolderId::ROOT;
                    }
                    for part in split(&target)?.into_iter().rev() {
                        pending.push_front(part.into());
                    }
                }
                None | Some(ChildKind::Whiteout) if create => at = self.make_folder(at, name)?,
                // What the tar has in a folder takes the place of a lower layer's file, whether it names the folder or not.
                Some(ChildKind::Other) if create && !by_symlink && self.is_from_beneath(at, name) => {
                    at = self.make_folder(at, name)?;
                }
                None | Some(ChildKind::Whiteout | ChildKind::DeferredLink(_)) if !create => {
                    let mut path: Vec<&[u8]> = self.made.path(at);
                    path.push(name);
                    path.extend(pending.iter().map(|part| &**part));
                    path.extend(direct);
                    return Ok(Place::Beneath(join(&path)));
                }
                Some(_) | None => {
                    return Err(Error::invalid(format!("'{}' on the way is not a folder", show(name))));
                }
            }
        }
    }
}
