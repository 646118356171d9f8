//! A layer's blob, packed in one pass over the tree.

use std::path::Path;

use super::{Changes, write_until};
pub use crate::blob::{Blob, Form};
use crate::digest::Algorithm;
use crate::error::Result;
use crate::tar::{Timestamp, Writer};
use crate::tree::Check;

/// Write what was found ([`super::diff`]) as a blob to the file `target`, over what is in it; nothing is younger than `latest`.
///
/// Errors: those of [`write_until`], and of [`Blob::write`].
pub fn pack(changes: &Changes, target: &Path, form: Form, latest: Option<Timestamp>, check: Check<'_>) -> Result<Blob> {
    Blob::write(target, form, Algorithm::Sha256, |out| {
        let mut archive = Writer::new(out);
        write_until(changes, &mut archive, latest, check)?;
        archive.finish().map(|_| ())
    })
}
