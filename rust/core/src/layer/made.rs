//! What a layer has made so far: an index in memory of its folders and links.
//!
//! Paths are walked, and symlinks followed, in the index, without the kernel. Files are not in it: whether a name is taken the folder
//! on disk knows, so that a layer of a million files takes the memory of its folders. (In the plain format the folder holds a
//! copy of the lower layers; the applier adds what it meets of their folders and symlinks, marked as not made, and keeps all names
//! that are.)

use std::collections::HashMap;

use crate::error::{Error, Kind, Result};

/// Folders of one layer, at most. The cap on entries does not bound them: one entry's path, and each symlink on its way, may
/// have hundreds of folders made that no entry names.
const MAX_FOLDERS: usize = 1 << 22;

/// A folder of the index; the root is 0. A folder's number is larger than its parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FolderId(u32);

impl FolderId {
    /// The root of the layer.
    pub const ROOT: Self = Self(0);

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// A name in a folder.
#[derive(Clone, Debug)]
pub struct Child {
    pub kind: ChildKind,
    /// Made by this layer; false for what a plain folder had before.
    pub made: bool,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildKind {
    Folder(FolderId),
    Symlink(Box<[u8]>),
    /// A hard link that waits for the lower layers, with its target there.
    DeferredLink(Box<[u8]>),
    Whiteout,
    /// Any other inode. Kept in the plain format only.
    Other,
}

/// A folder of the layer.
#[derive(Debug)]
pub struct Folder<A> {
    pub parent: FolderId,
    pub name: Box<[u8]>,
    pub depth: usize,
    pub children: HashMap<Box<[u8]>, Child>,
    /// The attributes that the tar gave it; None when the tar did not name it.
    pub attributes: Option<A>,
    /// It hides what lower layers have in it.
    pub opaque: bool,
    /// It is not the lower layers' folder of that name: its attributes owe nothing to them.
    pub fresh: bool,
    /// Removed again.
    pub gone: bool,
}

/// The index. `A` is what is kept of a named folder's attributes.
#[derive(Debug)]
pub struct Made<A> {
    folders: Vec<Folder<A>>,
    most: usize,
}

impl<A> Made<A> {
    pub fn new() -> Self {
        let mut made = Self { folders: Vec::new(), most: MAX_FOLDERS };
        made.push(FolderId::ROOT, &[], 0);
        made
    }

    fn push(&mut self, parent: FolderId, name: &[u8], depth: usize) -> FolderId {
        // Far below 2^32: see MAX_FOLDERS.
        let id = FolderId(u32::try_from(self.folders.len()).unwrap_or(u32::MAX));
        self.folders.push(Folder {
            parent,
            name: name.into(),
            depth,
            children: HashMap::new(),
            attributes: None,
            opaque: false,
            fresh: false,
            gone: false,
        });
        id
    }

    pub fn folder(&self, id: FolderId) -> &Folder<A> {
        &self.folders[id.index()]
    }

    pub fn folder_mut(&mut self, id: FolderId) -> &mut Folder<A> {
        &mut self.folders[id.index()]
    }

    pub fn child(&self, folder: FolderId, name: &[u8]) -> Option<&Child> {
        self.folder(folder).children.get(name)
    }

    pub fn insert(&mut self, folder: FolderId, name: &[u8], kind: ChildKind, made: bool) {
        self.folder_mut(folder).children.insert(name.into(), Child { kind, made });
    }

    /// Add a folder; `ResourceExhausted` when there are too many.
    pub fn insert_folder(&mut self, parent: FolderId, name: &[u8], made: bool) -> Result<FolderId> {
        if self.folders.len() >= self.most {
            return Err(Error::new(Kind::ResourceExhausted, format!("the layer has more than {} folders", self.most)));
        }
        let depth = self.folder(parent).depth + 1;
        let id = self.push(parent, name, depth);
        self.insert(parent, name, ChildKind::Folder(id), made);
        Ok(id)
    }

    /// Forget a name, and with a folder all that is in it; `closed` is told of each folder.
    pub fn remove(&mut self, folder: FolderId, name: &[u8], closed: &mut dyn FnMut(FolderId)) {
        let Some(child) = self.folder_mut(folder).children.remove(name) else { return };
        let mut stack: Vec<FolderId> = match child.kind {
            ChildKind::Folder(id) => vec![id],
            _ => Vec::new(),
        };
        while let Some(id) = stack.pop() {
            closed(id);
            let folder = self.folder_mut(id);
            folder.gone = true;
            for child in std::mem::take(&mut folder.children).into_values() {
                if let ChildKind::Folder(id) = child.kind {
                    stack.push(id);
                }
            }
        }
    }

    /// The components that lead to a folder.
    pub fn path(&self, mut folder: FolderId) -> Vec<&[u8]> {
        let mut components = Vec::with_capacity(self.folder(folder).depth);
        while folder != FolderId::ROOT {
            let here = self.folder(folder);
            components.push(&*here.name);
            folder = here.parent;
        }
        components.reverse();
        components
    }

    /// Whether lower layers cannot show through in a folder: it, or one above it, is opaque.
    pub fn is_hidden(&self, mut folder: FolderId) -> bool {
        loop {
            let here = self.folder(folder);
            if here.opaque {
                return true;
            }
            if folder == FolderId::ROOT {
                return false;
            }
            folder = here.parent;
        }
    }

    /// All folders that are there, parents before their children.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = FolderId> + use<A> {
        let alive: Vec<FolderId> = (0u32..)
            .zip(&self.folders)
            .filter(|(_, folder)| !folder.gone)
            .map(|(number, _)| FolderId(number))
            .collect();
        alive.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_counted_also_where_no_entry_names_them_or_they_are_gone() {
        let mut made: Made<()> = Made { most: 3, ..Made::new() };
        let first = made.insert_folder(FolderId::ROOT, b"a", true).unwrap();
        made.insert_folder(first, b"b", true).unwrap();
        made.remove(FolderId::ROOT, b"a", &mut |_| {});
        assert_eq!(made.insert_folder(FolderId::ROOT, b"c", true).unwrap_err().kind, Kind::ResourceExhausted);
    }
}
