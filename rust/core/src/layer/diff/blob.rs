//! A layer's blob: packed, hashed, compressed, hashed again and written, in one pass over the tree.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::{Changes, write};
use crate::compress::Encoder;
use crate::compression::Compression;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::tar::Writer;
use crate::tree::Check;

/// How a blob is compressed.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// With what.
    pub compression: Compression,
    /// How much; None for the usual level.
    pub level: Option<u32>,
    /// By how many threads, which has no part in the result.
    pub threads: usize,
}

/// A blob that was written.
#[derive(Debug)]
pub struct Blob {
    /// Digest of the file.
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    /// Digest of the archive in it.
    pub diff_id: Digest,
    /// Bytes of the archive.
    pub tar_size: u64,
}

/// Counts and hashes what passes through.
struct Measured<W> {
    out: W,
    hasher: Hasher,
    length: u64,
}

impl<W> Measured<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Hasher::new(Algorithm::Sha256), length: 0 }
    }
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Write what was found ([`super::diff`]) as a blob to the file `target`, over what is in it.
///
/// Errors: those of [`write`], and of the disk. The file is not complete after one.
pub fn pack(changes: &Changes, target: &Path, form: Form, check: Check<'_>) -> Result<Blob> {
    let failed = |error: io::Error| Error::system(format!("cannot write {}", target.display()), error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat(CWD, target, flags, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
    let file = Measured::new(File::from(opened));
    let encoder = Encoder::new(file, form.compression, form.level, form.threads)?;
    // The archive comes in headers and small files: the hash and the encoder get larger pieces.
    let buffered = io::BufWriter::with_capacity(256 * 1024, Measured::new(encoder));
    let mut archive = Writer::new(buffered);
    write(changes, &mut archive, check)?;
    let tar = archive.finish()?.into_inner().map_err(|error| failed(error.into_error()))?;
    let blob = tar.out.finish().map_err(failed)?;
    Ok(Blob { digest: blob.hasher.finish(), size: blob.length, diff_id: tar.hasher.finish(), tar_size: tar.length })
}
