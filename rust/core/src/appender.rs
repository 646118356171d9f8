//! A file that grows at its end, and the digest of what is in it.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{pwritev, retry_on_intr};

use crate::digest::{Algorithm, Digest, Hasher};

/// Parts that the kernel takes at once (`IOV_MAX`).
const PARTS: usize = 1024;
const CHUNK: usize = 1 << 20;

/// An open file, how much of it counts, and the digest of that. Of what somebody else wrote it is read back when it is needed.
pub struct Appender {
    file: File,
    offset: u64,
    algorithm: Algorithm,
    hasher: Option<Hasher>,
}

impl Appender {
    /// Open a file, or make it (mode 0600); a symlink is refused. All that is in it counts.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(retry_on_intr(|| open(path, flags, Mode::RUSR | Mode::WUSR))?);
        let offset = file.metadata()?.len();
        Ok(Self { file, offset, algorithm: Algorithm::Sha256, hasher: None })
    }

    /// How many bytes count.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes the file has, written by whomever.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Hash with this algorithm.
    pub fn hash_with(&mut self, algorithm: Algorithm) {
        if algorithm != self.algorithm {
            self.algorithm = algorithm;
            self.hasher = None;
        }
    }

    /// Append what is in these parts. After an error that much counts which was written.
    ///
    /// # Errors
    /// Those of pwrite(2), and of reading back what is there.
    pub fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut hasher = self.hashed()?;
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0); // drops empty ones at the beginning
        let result = loop {
            if rest.is_empty() {
                break Ok(());
            }
            let next = &rest[..rest.len().min(PARTS)];
            match retry_on_intr(|| pwritev(&self.file, next, self.offset)) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let mut left = written;
                    for part in next {
                        let (taken, _) = part.split_at(left.min(part.len()));
                        hasher.update(taken);
                        left -= taken.len();
                    }
                    self.offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(error) => break Err(error.into()),
            }
        };
        self.hasher = Some(hasher);
        result
    }

    /// The digest of what counts.
    ///
    /// # Errors
    /// Those of reading what was written by somebody else; `UnexpectedEof` where the file has become shorter.
    pub fn digest(&mut self) -> io::Result<Digest> {
        let hasher = self.hashed()?;
        Ok(self.hasher.insert(hasher).clone().finish())
    }

    /// The digest of what counts, if nothing has to be read for it.
    #[must_use]
    pub fn known_digest(&self) -> Option<Digest> {
        self.hasher.clone().map(Hasher::finish)
    }

    /// Cut the file to so many bytes, which count then.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub fn cut(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)?;
        self.count(size);
        Ok(())
    }

    /// Let so many bytes count, which somebody else wrote.
    pub fn count(&mut self, size: u64) {
        self.offset = size;
        self.hasher = None;
    }

    /// Take the hasher, up to date.
    fn hashed(&mut self) -> io::Result<Hasher> {
        if let Some(hasher) = self.hasher.take() {
            return Ok(hasher);
        }
        let mut hasher = Hasher::new(self.algorithm);
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.offset).unwrap_or(CHUNK))];
        let mut at = 0;
        while at < self.offset {
            let size = chunk.len().min(usize::try_from(self.offset - at).unwrap_or(CHUNK));
            self.file.read_exact_at(&mut chunk[..size], at)?;
            hasher.update(&chunk[..size]);
            at += size as u64;
        }
        Ok(hasher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, bytes)
    }

    #[test]
    fn what_is_appended_in_parts_is_one_text_with_one_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let mut appender = Appender::open(&path).unwrap();
        assert_eq!(appender.digest().unwrap(), of(b""));
        let whole: Vec<u8> = (0..3000u32).map(|number| number as u8).collect();
        let parts: Vec<&[u8]> = whole.chunks(1).collect(); // more than the kernel takes at once
        appender.append(&parts).unwrap();
        appender.append(&[b"", b"", b"x", b""]).unwrap();
        appender.append(&[]).unwrap();
        let text = [&whole[..], b"x"].concat();
        assert_eq!(appender.offset(), 3001);
        assert_eq!(appender.digest().unwrap(), of(&text));
        assert_eq!(std::fs::read(&path).unwrap(), text);
    }

    #[test]
    fn what_was_there_before_counts_and_can_be_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, "before").unwrap();
        let mut appender = Appender::open(&path).unwrap();
        appender.append(&[b" and after"]).unwrap();
        assert_eq!(appender.digest().unwrap(), of(b"before and after"));
        appender.hash_with(Algorithm::Sha512);
        assert_eq!(appender.digest().unwrap(), Digest::of(Algorithm::Sha512, b"before and after"));
        appender.cut(3).unwrap();
        appender.append(&[b"k"]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"befk");
        assert_eq!(appender.digest().unwrap(), Digest::of(Algorithm::Sha512, b"befk"));
    }

    #[test]
    fn what_others_write_counts_when_it_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let mut appender = Appender::open(&path).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert_eq!((appender.offset(), appender.length().unwrap()), (0, 6));
        appender.count(6);
        assert_eq!(appender.digest().unwrap(), of(b"theirs"));
        appender.count(7);
        assert_eq!(appender.digest().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", folder.path().join("data")).unwrap();
        assert!(Appender::open(&folder.path().join("data")).is_err());
    }
}
