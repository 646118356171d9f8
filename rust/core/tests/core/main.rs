//! The core as its users see it: archives in, folders out.
#![allow(missing_docs, clippy::unwrap_used)]

mod apply;
mod archive;
mod hostile;
mod merged;
mod mounts;
mod pipeline;
mod random;
mod reader;
mod resolve;
mod tree;
mod trees;
mod whiteouts;

use std::path::{Path, PathBuf};

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
        self.apply_as(archive, WhiteoutFormat::Overlay)
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
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("LAMELLA_REQUIRE_ALL").is_none(), "this test needs root");
    root
}
