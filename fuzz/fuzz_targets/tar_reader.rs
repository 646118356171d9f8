//! The tar reader on any bytes: no panic, no endless loop, no more memory than its caps allow.
#![no_main]

use lamella_core::tar::{Limits, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data, Limits { archive: 1 << 24, entries: 10_000, ..Limits::default() });
    let mut archived = 0usize;
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.path.len() <= 4096 && !entry.path.contains(&0));
        assert!(entry.uid != u32::MAX && entry.gid != u32::MAX);
        assert!(entry.mode <= 0o7777 && entry.mtime.nanoseconds < 1_000_000_000);
        let mut end = 0;
        while let Ok(Some(piece)) = reader.data() {
            assert!(piece.offset >= end, "pieces overlap");
            end = piece.offset + piece.bytes.len() as u64;
            assert!(end <= entry.size, "a piece lies outside of its file");
            archived += piece.bytes.len();
        }
    }
    assert!(archived <= data.len(), "more content than the archive has bytes");
});
