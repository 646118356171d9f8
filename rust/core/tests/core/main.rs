//! The core as its users see it: archives in, folders out.
#![allow(missing_docs, clippy::unwrap_used)]

mod advisories;
mod apply;
mod archive;
mod breakouts;
mod copies;
mod counters;
mod diff;
mod files;
mod host;
mod hostile;
mod inflate;
mod merged;
mod mounts;
mod pipeline;
mod plain;
mod random;
mod reader;
mod resolve;
mod tree;
mod trees;
mod whiteouts;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lamella_core::Result;
use lamella_core::layer::{Applied, Applier, WhiteoutFormat, unpack};
use lamella_core::tar::{Limits, Reader};

/// A fresh folder for a layer, in a fresh folder that shows whether anything got out of it.
pub struct Place {
    pub outer: tempfile::TempDir,
    pub layer: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    pub fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let layer = outer.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        Self { outer, layer }
    }

    pub fn apply(&self, archive: &[u8]) -> Result<Applied> {
        self.apply_as(archive, format())
    }

    pub fn apply_as(&self, archive: &[u8], format: WhiteoutFormat) -> Result<Applied> {
        apply_to(&self.layer, archive, format)
    }

    pub fn listing(&self) -> Vec<String> {
        tree::listing(&self.layer)
    }
}

pub fn apply_to(layer: &Path, archive: &[u8], format: WhiteoutFormat) -> Result<Applied> {
    let mut reader = Reader::new(archive, Limits::default());
    let mut applier = Applier::new(layer, format)?;
    unpack(&mut reader, &mut applier)?;
    applier.finish(&mut || Ok(()))
}

/// Whether tests that need root can run. With `LAMELLA_REQUIRE_ALL` they must.
pub fn privileged() -> bool {
    let root = is_privileged();
    assert!(root || std::env::var_os("LAMELLA_REQUIRE_ALL").is_none(), "this test needs root");
    root
}

/// Root of a user namespace is not root enough: most ids are not mapped, and trusted attributes are the machine's.
fn is_privileged() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let file = tempfile::tempfile().unwrap();
        let (uid, gid) = (rustix::fs::Uid::from_raw(70_000), rustix::fs::Gid::from_raw(70_000));
        rustix::fs::fchown(&file, Some(uid), Some(gid)).is_ok()
            && rustix::fs::fsetxattr(&file, "trusted.test", b"", rustix::fs::XattrFlags::empty()).is_ok()
    })
}

/// The overlay format that can be written here.
pub fn format() -> WhiteoutFormat {
    if is_privileged() { WhiteoutFormat::Overlay } else { WhiteoutFormat::OverlayUserXattr }
}
