//! Layer folders: one layer's own part of a root file system, in the form that overlayfs stacks.
//!
//! [`Applier`] turns entries of a tar into a layer folder. Its interface is narrow on purpose (entries and pieces of
//! content go in, a summary comes out), so that it can run in a confined process of its own. It makes, changes and
//! removes things through descriptors of folders inside the layer and single names only; no path that a tar states
//! ever reaches the kernel.
//!
//! A layer folder depends on its own tar only. Where it cannot (a parent folder that the tar does not name, a hard
//! link to a file of a lower layer) the applier says so in [`Deferred`], and [`resolve`] finishes the folder with the
//! layers beneath it. [`Merged`] is the view that both a mount and `resolve` give of a stack of layers.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod apply;
mod attributes;
mod compare;
mod copy;
mod copy_tree;
pub mod diff;
mod finish;
mod folders;
mod kept;
mod made;
mod merged;
mod name;
mod plain;
mod resolve;
mod walk;
mod whiteout;

use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;

pub use apply::Applier;
pub(crate) use attributes::{Attributes, Target, mode_bits, read_xattrs};
pub(crate) use attributes::{set_attributes, set_times};
pub use compare::first_difference;
pub(crate) use copy::set_attributes_at;
pub use copy_tree::copy_tree;
pub use kept::{Kept, store as store_kept};
pub use merged::{Follow, Found, Merged, read_file};
pub use resolve::resolve;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, show};
use crate::tar::{EntryKind, Limits, Reader, Source};
use crate::tree::Check;

/// How a deletion is recorded on disk. A parameter, never inferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhiteoutFormat {
    /// overlayfs: character device 0:0, `trusted.overlay.opaque`.
    Overlay,
    /// overlayfs mounted with `userxattr` (in a user namespace): character device 0:0, `user.overlay.opaque`.
    OverlayUserXattr,
    /// No record: the folder holds a copy of the lower layers, and deletions happen in it.
    Plain,
}

impl FromStr for WhiteoutFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "overlay" => Ok(Self::Overlay),
            "overlay-userxattr" => Ok(Self::OverlayUserXattr),
            "plain" => Ok(Self::Plain),
            _ => Err(Error::invalid(format!("'{}' is not a whiteout format", show(text.as_bytes())))
                .hint("It is overlay, overlay-userxattr or plain.")),
        }
    }
}

/// What a layer needs from the layers beneath it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    /// Whether the tar left the root folder's attributes open.
    pub root: bool,
    /// Folders that the tar did not name, parents first.
    pub folders: Vec<Vec<u8>>,
    /// Hard links whose target the tar does not hold.
    pub links: Vec<DeferredLink>,
    /// How the layer records deletions.
    pub format: Option<WhiteoutFormat>,
}

impl Deferred {
    /// Whether there is nothing to resolve.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.root && self.folders.is_empty() && self.links.is_empty()
    }
}

/// A hard link into a lower layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeferredLink {
    /// Where the link belongs, in the layer.
    pub path: Vec<u8>,
    /// The file that it names, in the merged view of the lower layers.
    pub target: Vec<u8>,
}

/// A layer folder that was made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    /// What is still missing.
    pub deferred: Deferred,
    /// Bytes the folder takes, in 512-byte blocks.
    pub disk_bytes: u64,
    /// Inodes of the folder, itself included.
    pub inodes: u64,
    /// The layer hides everything beneath it, as each does in the plain format. overlayfs has no mark for that at a
    /// layer's root.
    pub opaque_root: bool,
    /// What was left out on purpose.
    pub notes: Vec<String>,
    /// An archive of what the folder cannot hold here, to be put beside it ([`store_kept`]). Empty where there is nothing.
    pub kept: Vec<u8>,
}

/// Make a layer folder of an archive: the folder is there, and empty unless the format is plain; `beneath` is what is kept beside
/// it then.
///
/// After an error it is half done and must be thrown away.
pub fn make<S: Source>(
    archive: S,
    folder: &Path,
    format: WhiteoutFormat,
    limits: Limits,
    beneath: Kept,
    check: Check<'_>,
) -> Result<Applied> {
    let mut reader = Reader::new(archive, limits);
    let mut applier = Applier::new(folder, format)?.on(beneath);
    unpack(&mut reader, &mut applier)?;
    applier.finish(check)
}

/// Give a folder the owner and the mode of another.
pub fn copy_owner(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (folders::open_tree(from)?, folders::open_tree(to)?);
    let failed = |error| Error::system(format!("cannot give {} the owner of {}", to.display(), from.display()), error);
    let stat = rustix::fs::fstat(&source).map_err(failed)?;
    let whose = Attributes::read(&stat, read_xattrs(&Target::Descriptor(source.as_fd()))?);
    attributes::set_owner(target.as_fd(), whose.uid, whose.gid, &mut |_| {})?;
    // After the owner, whose change clears the set-id bits.
    rustix::fs::fchmod(&target, mode_bits(whose.mode)).map_err(failed)
}

/// Apply a whole archive.
pub fn unpack<S: Source>(reader: &mut Reader<S>, applier: &mut Applier) -> Result<()> {
    while let Some(entry) = reader.next_entry()? {
        let named = |error: Error| error.context(format!("'{}'", show(&entry.path)));
        let wants_content = applier.begin(&entry).map_err(named)?;
        if wants_content && entry.kind == EntryKind::File {
            while let Some(piece) = reader.data()? {
                applier.data(piece.offset, piece.bytes).map_err(named)?;
            }
        }
        applier.end().map_err(named)?;
    }
    Ok(())
}
