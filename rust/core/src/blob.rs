//! A layer's blob on its way into a file: hashed, compressed, and hashed again, in one pass.
//!
//! What comes out depends on the archive and on the [`Form`] alone, not on the number of threads.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::compress::Encoder;
use crate::compression::{Compression, Decoder, check_growth, damaged};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::tar::Limits;
use crate::tree::Check;

const PIECE: usize = 256 * 1024;

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

impl Blob {
    /// Write what `fill` writes as a blob to the file `target`, over what is in it; `algorithm` is that of the diffID.
    ///
    /// Errors: those of `fill`, and of the disk. The file is not complete after one.
    pub fn write(
        target: &Path,
        form: Form,
        algorithm: Algorithm,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<Self> {
        let failed = |error: io::Error| Error::system(format!("cannot write {}", target.display()), error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            rustix::fs::openat(CWD, target, flags, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        let file = Measured::new(File::from(opened), Algorithm::Sha256);
        let encoder = Encoder::new(file, form.compression, form.level, form.threads)?;
        // An archive that is packed comes in headers and small files: the hash and the encoder get larger pieces.
        let mut buffered = io::BufWriter::with_capacity(PIECE, Measured::new(encoder, algorithm));
        fill(&mut buffered)?;
        let tar = buffered.into_inner().map_err(|error| failed(error.into_error()))?;
        let blob = tar.out.finish().map_err(failed)?;
        Ok(Self { digest: blob.hasher.finish(), size: blob.length, diff_id: tar.hasher.finish(), tar_size: tar.length })
    }
}

/// Write the layer in the file `source` in another form to the file `target`, over what is in it.
///
/// `FailedPrecondition` when its diffID is another, `DataLoss` when it is damaged, `ResourceExhausted` for one that is larger, or
/// unpacks to more, than the pipeline would take; otherwise as [`Blob::write`].
pub fn recompress(source: &Path, target: &Path, diff_id: &Digest, form: Form, check: Check<'_>) -> Result<Blob> {
    let failed = |error: io::Error| Error::system(format!("cannot read {}", source.display()), error);
    let mut reader = BufReader::with_capacity(PIECE, Counted { file: File::open(source).map_err(failed)?, length: 0 });
    let compression = Compression::detect(reader.fill_buf().map_err(failed)?);
    let mut decoder = Decoder::new(compression, reader).map_err(failed)?;
    let blob = Blob::write(target, form, diff_id.algorithm(), |out| {
        let mut buffer = vec![0; PIECE];
        let mut tar_size = 0;
        loop {
            check()?;
            let count = match decoder.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if compression == Compression::None => return Err(failed(error)),
                Err(error) => return Err(damaged(compression, &error)),
            };
            tar_size += count as u64;
            check_growth(tar_size, decoder.get_ref().get_ref().length, Limits::default().archive)?;
            out.write_all(&buffer[..count])
                .map_err(|error| Error::system(format!("cannot write {}", target.display()), error))?;
        }
    })?;
    if blob.diff_id == *diff_id {
        return Ok(blob);
    }
    let text = format!("the layer has the diffID {}, {diff_id} was expected", blob.diff_id);
    Err(Error::new(Kind::FailedPrecondition, text))
}

/// Counts and hashes what passes through.
struct Measured<W> {
    out: W,
    hasher: Hasher,
    length: u64,
}

impl<W> Measured<W> {
    fn new(out: W, algorithm: Algorithm) -> Self {
        Self { out, hasher: Hasher::new(algorithm), length: 0 }
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

/// Counts what was read.
struct Counted {
    file: File,
    length: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.length += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        (0u32..3_000_000).map(|at| if at / 50_000 % 2 == 0 { b'a' } else { (at.wrapping_mul(at) >> 7) as u8 }).collect()
    }

    fn digest_of(data: &[u8], algorithm: Algorithm) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }

    fn forms() -> impl Iterator<Item = Form> {
        [Compression::None, Compression::Gzip, Compression::Zstd]
            .into_iter()
            .flat_map(|compression| [1, 3].map(|threads| Form { compression, level: None, threads }))
    }

    #[test]
    fn a_layer_keeps_its_archive_in_every_form_and_the_bytes_do_not_depend_on_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let [plain, one, two] = ["plain", "one", "two"].map(|name| folder.path().join(name));
        let data = sample();
        std::fs::write(&plain, &data).unwrap();
        let diff_id = digest_of(&data, Algorithm::Sha512);
        let mut digests = std::collections::HashMap::new();
        for form in forms() {
            let blob = recompress(&plain, &one, &diff_id, form, &mut || Ok(())).unwrap();
            let written = std::fs::read(&one).unwrap();
            assert_eq!((blob.size, blob.tar_size), (written.len() as u64, data.len() as u64));
            assert_eq!(blob.digest, digest_of(&written, Algorithm::Sha256));
            let known = digests.entry(form.compression.to_string()).or_insert_with(|| blob.digest.clone());
            assert_eq!(*known, blob.digest);
            // And from there into every other form, with the same result as from the plain one.
            for other in forms() {
                let again = recompress(&one, &two, &diff_id, other, &mut || Ok(())).unwrap();
                assert!(digests.get(&other.compression.to_string()).is_none_or(|known| *known == again.digest));
            }
        }
    }

    #[test]
    fn a_layer_that_is_damaged_or_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [plain, packed, out] = ["plain", "packed", "out"].map(|name| folder.path().join(name));
        let data = sample();
        std::fs::write(&plain, &data).unwrap();
        let diff_id = digest_of(&data, Algorithm::Sha256);
        let other = digest_of(b"other", Algorithm::Sha256);
        for form in forms() {
            let error = recompress(&plain, &out, &other, form, &mut || Ok(())).unwrap_err();
            assert_eq!(error.kind, Kind::FailedPrecondition);
            if form.compression == Compression::None {
                continue;
            }
            recompress(&plain, &packed, &diff_id, form, &mut || Ok(())).unwrap();
            let whole = std::fs::read(&packed).unwrap();
            std::fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
            let error = recompress(&packed, &out, &diff_id, form, &mut || Ok(())).unwrap_err();
            assert_eq!(error.kind, Kind::DataLoss, "{error}");
        }
    }
}
