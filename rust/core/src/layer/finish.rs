//! Completes a layer when its last entry was applied.

use std::os::fd::AsFd;

use rustix::fs::AtFlags;

use super::apply::Applier;
use super::attributes::Attributes;
use super::made::{ChildKind, FolderId};
use super::name::{c_name, join};
use super::{Applied, Deferred, DeferredLink, WhiteoutFormat, whiteout};
use crate::error::{Error, Result, show};
use crate::tar::Timestamp;
use crate::tree::{self, Check};

impl Applier {
    /// Complete folders and whiteouts and sum up.
    pub fn finish(mut self, check: Check<'_>) -> Result<Applied> {
        self.link_late()?;
        self.prune_whiteouts()?;
        let deferred = self.deferred();
        let ids: Vec<FolderId> = self.made.ids().collect();
        // Children first: a mode may lock us out of a folder, and every change in it touches its time.
        for id in ids.into_iter().rev() {
            check()?;
            self.complete_folder(id).map_err(|error| {
                let path = join(&self.made.path(id));
                error.context(format!("folder '{}'", show(&path)))
            })?;
        }
        let usage = if self.recount { tree::usage(&self.path, check)? } else { self.usage };
        Ok(Applied {
            deferred,
            disk_bytes: usage.bytes,
            inodes: usage.inodes,
            opaque_root: self.format == WhiteoutFormat::Plain || self.made.folder(FolderId::ROOT).opaque,
            notes: self.notes,
            kept: self.kept.archive()?,
        })
    }

    /// Remove whiteouts under an opaque folder: they hide nothing, and would show where the layer is mounted alone.
    fn prune_whiteouts(&mut self) -> Result<()> {
        for (parent, name) in std::mem::take(&mut self.whiteouts) {
            let stands = matches!(self.made.child(parent, &name), Some(child) if child.kind == ChildKind::Whiteout);
            if !stands || self.made.folder(parent).gone || !self.made.is_hidden(parent) {
                continue;
            }
            let folder = self.folders.get(&self.made, parent)?;
            rustix::fs::unlinkat(&folder, c_name(&name)?, AtFlags::empty())
                .map_err(|error| Error::system(format!("cannot remove '{}'", show(&name)), error))?;
            self.usage.inodes = self.usage.inodes.saturating_sub(1);
        }
        Ok(())
    }

    fn complete_folder(&mut self, id: FolderId) -> Result<()> {
        let descriptor = self.folders.get(&self.made, id)?;
        let here = self.made.folder(id);
        let opaque = here.opaque && id != FolderId::ROOT;
        let attributes = here.attributes.clone().unwrap_or_else(unnamed_folder);
        if opaque {
            whiteout::set_opaque(descriptor.as_fd(), self.format)?;
        }
        self.complete(descriptor.as_fd(), &attributes)
    }

    fn deferred(&self) -> Deferred {
        if self.format == WhiteoutFormat::Plain {
            return Deferred { format: Some(self.format), ..Deferred::default() };
        }
        let root = self.made.folder(FolderId::ROOT);
        let mut deferred =
            Deferred { root: root.attributes.is_none(), format: Some(self.format), ..Deferred::default() };
        for id in self.made.ids() {
            let folder = self.made.folder(id);
            let open = folder.attributes.is_none() && !folder.fresh && id != FolderId::ROOT;
            if open && !self.made.is_hidden(folder.parent) {
                deferred.folders.push(join(&self.made.path(id)));
            }
            if !self.deferred_links {
                continue;
            }
            for (name, child) in &folder.children {
                if let ChildKind::DeferredLink(target) = &child.kind {
                    let mut path = self.made.path(id);
                    path.push(name);
                    deferred.links.push(DeferredLink { path: join(&path), target: target.to_vec() });
                }
            }
        }
        deferred.links.sort_by(|left, right| left.path.cmp(&right.path));
        deferred
    }
}

/// What a folder is like that no tar names and no lower layer has. Its time is fixed, so that a tar gives one result.
pub(super) fn unnamed_folder() -> Attributes {
    Attributes {
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Timestamp::default(),
        atime: Timestamp::default(),
        xattrs: Vec::new(),
    }
}
