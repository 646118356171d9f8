//! The plain format: the folder holds a copy of the lower layers, and deletions happen in it.

use std::os::fd::AsFd;

use super::WhiteoutFormat;
use super::apply::Applier;
use super::attributes::{Attributes, Target, remove_xattrs, take_default_acl};
use super::made::{ChildKind, FolderId};
use super::name::join;
use crate::error::{Error, Result, show};
use crate::tree;

impl Applier {
    pub(super) fn remember_root(&mut self) -> Result<()> {
        let stat = rustix::fs::fstat(self.folders.root())
            .map_err(|error| Error::system("cannot read the layer folder", error))?;
        let acl = take_default_acl(&Target::Descriptor(self.folders.root()))?;
        self.made.folder_mut(FolderId::ROOT).attributes = Some(Attributes::read(&stat, acl));
        Ok(())
    }

    /// A folder that the tar names has the extended attributes that it says, and no others.
    pub(super) fn forget_attributes(&mut self, folder: FolderId) -> Result<()> {
        if self.format != WhiteoutFormat::Plain {
            return Ok(());
        }
        let descriptor = self.folders.get(&self.made, folder)?;
        remove_xattrs(&Target::Descriptor(descriptor.as_fd()))
    }

    pub(super) fn mark_made(&mut self, parent: FolderId, name: &[u8]) {
        if let Some(child) = self.made.folder_mut(parent).children.get_mut(name) {
            child.made = true;
        }
    }

    pub(super) fn delete_plain(&mut self, parent: FolderId, name: &[u8]) -> Result<()> {
        let Some(kind) = self.child(parent, name)? else {
            self.kept.delete(&self.path_of(parent, name));
            return Ok(());
        };
        let made = self.made.child(parent, name).is_some_and(|child| child.made);
        match kind {
            ChildKind::Folder(id) if made => self.prune(id),
            ChildKind::Folder(id) if self.holds_made(id) => self.renew(parent, name, id),
            _ if made => Ok(()),
            _ => self.clear(parent, name).map(|_| ()),
        }
    }

    /// Make the hard links whose target came after them. It can only be here: all that lies beneath is.
    pub(super) fn link_late(&mut self) -> Result<()> {
        if self.format != WhiteoutFormat::Plain || !self.deferred_links {
            return Ok(());
        }
        let mut late = Vec::new();
        for id in self.made.ids() {
            for (name, child) in &self.made.folder(id).children {
                if let ChildKind::DeferredLink(target) = &child.kind {
                    late.push((id, name.clone(), target.clone()));
                }
            }
        }
        late.sort();
        for (parent, name, target) in late {
            self.made.remove(parent, &name, &mut |_| {});
            self.hard_link(parent, &name, &target)?;
            if let Some(ChildKind::DeferredLink(_)) = self.child(parent, &name)? {
                let (name, target) = (show(&name), show(&target));
                return Err(Error::invalid(format!("'{name}': the target '{target}' of a hard link is not there")));
            }
        }
        Ok(())
    }

    /// Whether a name that is there was there before this layer.
    pub(super) fn is_from_beneath(&self, parent: FolderId, name: &[u8]) -> bool {
        self.format == WhiteoutFormat::Plain && self.made.child(parent, name).is_none_or(|child| !child.made)
    }

    /// Remove everything in a folder that this layer did not make.
    pub(super) fn prune(&mut self, folder: FolderId) -> Result<()> {
        self.kept.forget_beneath(&join(&self.made.path(folder)));
        let descriptor = self.folders.get(&self.made, folder)?;
        let names = tree::names(descriptor.as_fd()).map_err(|error| Error::system("cannot list a folder", error))?;
        for name in names {
            let name = name.to_bytes();
            let Some(kind) = self.child(folder, name)? else { continue };
            let made = self.made.child(folder, name).is_some_and(|child| child.made);
            match kind {
                ChildKind::Folder(id) if made => self.prune(id)?,
                ChildKind::Folder(id) if self.holds_made(id) => self.renew(folder, name, id)?,
                _ if made => {}
                _ => {
                    self.clear(folder, name)?;
                }
            }
        }
        Ok(())
    }

    /// Make a folder that was there this layer's own, which holds what the layer put into it and owes nothing to the old one.
    fn renew(&mut self, parent: FolderId, name: &[u8], folder: FolderId) -> Result<()> {
        self.prune(folder)?;
        self.forget_attributes(folder)?;
        self.made.folder_mut(folder).attributes = None;
        self.mark_made(parent, name);
        Ok(())
    }

    fn holds_made(&self, folder: FolderId) -> bool {
        let mut stack = vec![folder];
        while let Some(id) = stack.pop() {
            for child in self.made.folder(id).children.values() {
                if child.made {
                    return true;
                }
                if let ChildKind::Folder(id) = child.kind {
                    stack.push(id);
                }
            }
        }
        false
    }
}
