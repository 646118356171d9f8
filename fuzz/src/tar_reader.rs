//! The reader on any bytes: it ends, within its caps, says nothing that its types promise not to, and says the same
//! however the bytes are cut.

use lamella_core::tar::{Entry, Limits, Reader, Source};
use lamella_core::{Kind, Result};

use crate::archive::seal;

const LIMITS: Limits =
    Limits { archive: 1 << 20, entries: 1000, extension: 1 << 16, extensions: 16, sparse_segments: 1000 };

pub fn run(data: &[u8]) {
    for archive in [data.to_vec(), sealed(data)] {
        let whole = read(&archive[..]);
        let step = 1 + archive.len() % 700;
        assert_eq!(whole, read(Pieces { rest: &archive, step }), "what is read depends on how the archive is cut");
    }
}

/// The archive with the right checksum in each block that says it is a header: mutations would seldom find it.
pub fn sealed(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if let Ok(block) = <&mut [u8; 512]>::try_from(block)
            && &block[257..262] == b"ustar"
        {
            seal(block);
        }
    }
    archive
}

/// All that a reader tells: the entries with the stretches of their content, and how it ended.
type Told = (Vec<(Entry, Vec<(u64, Vec<u8>)>)>, Option<Kind>);

fn read(source: impl Source) -> Told {
    let mut reader = Reader::new(source, LIMITS);
    let (mut entries, mut archived) = (Vec::new(), 0);
    let end = loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break None,
            Err(error) => break Some(error.kind),
        };
        check(&entry);
        let mut stretches: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut end = 0;
        let failed = loop {
            let piece = match reader.data() {
                Ok(Some(piece)) => piece,
                Ok(None) => break None,
                Err(error) => break Some(error.kind),
            };
            assert!(!piece.bytes.is_empty() && piece.offset >= end, "pieces overlap, or are empty");
            archived += piece.bytes.len() as u64;
            match stretches.last_mut() {
                Some((_, bytes)) if end == piece.offset => bytes.extend_from_slice(piece.bytes),
                _ => stretches.push((piece.offset, piece.bytes.to_vec())),
            }
            end = piece.offset + piece.bytes.len() as u64;
            assert!(end <= entry.size, "a piece lies outside of its file");
        };
        assert!(entry.sparse || failed.is_some() || end == entry.size, "a file has less content than it says");
        entries.push((entry, stretches));
        if failed.is_some() {
            break failed;
        }
    };
    assert!(archived <= LIMITS.archive && entries.len() as u64 <= LIMITS.entries);
    assert!(end != Some(Kind::Internal), "the reader contradicts itself");
    (entries, end)
}

fn check(entry: &Entry) {
    assert!(entry.path.len() <= 4096 && !entry.path.contains(&0));
    assert!(entry.uid != u32::MAX && entry.gid != u32::MAX);
    assert!(entry.mode <= 0o7777 && entry.mtime.nanoseconds < 1_000_000_000);
    assert!(entry.size <= i64::MAX as u64);
    let held: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(held as u64 <= LIMITS.extension, "more attributes than an extended header may have");
}

/// The archive in pieces of one size.
struct Pieces<'a> {
    rest: &'a [u8],
    step: usize,
}

impl Source for Pieces<'_> {
    fn fill(&mut self) -> Result<&[u8]> {
        Ok(&self.rest[..self.step.min(self.rest.len())])
    }

    fn consume(&mut self, count: usize) {
        self.rest = &self.rest[count..];
    }
}
