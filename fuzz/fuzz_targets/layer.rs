//! The applier on any entries: whatever the archive says, nothing is made outside the layer's folder.
//!
//! The input is a list of short entries rather than a tar, so that mutations reach the applier; see `entries`.
#![no_main]

use lamella_core::layer::{Applier, WhiteoutFormat};
use lamella_core::tar::{Entry, EntryKind, Timestamp};
use libfuzzer_sys::fuzz_target;

/// Kind, name, target: one byte for the kind, then two texts that end in a newline.
fn entries(data: &[u8]) -> Vec<Entry> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut entries = Vec::new();
    while let (Some(name), Some(target)) = (lines.next(), lines.next()) {
        let Some((kind, name)) = name.split_first() else { continue };
        let kind = match kind % 6 {
            0 | 1 => EntryKind::File,
            2 => EntryKind::Directory,
            3 => EntryKind::Symlink(target.to_vec()),
            4 => EntryKind::HardLink(target.to_vec()),
            _ => EntryKind::Fifo,
        };
        entries.push(Entry {
            path: name.to_vec(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            atime: None,
            size: 0,
            sparse: false,
            xattrs: Vec::new(),
        });
    }
    entries
}

fuzz_target!(|data: &[u8]| {
    let (first, data) = data.split_first().unwrap_or((&0, &[]));
    let format =
        [WhiteoutFormat::Overlay, WhiteoutFormat::OverlayUserXattr, WhiteoutFormat::Plain][usize::from(first % 3)];
    let outer = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let layer = outer.path().join("layer");
    std::fs::create_dir(&layer).expect("a folder");
    std::fs::write(outer.path().join("victim"), b"untouched").expect("a file");
    let mut applier = Applier::new(&layer, format).expect("an applier");
    let done = entries(data).iter().all(|entry| applier.begin(entry).is_ok() && applier.end().is_ok());
    if done {
        let _ = applier.finish(&mut || Ok(()));
    }
    assert_eq!(std::fs::read(outer.path().join("victim")).expect("it is there"), b"untouched");
    assert_eq!(std::fs::read_dir(outer.path()).expect("it is there").count(), 2);
});
