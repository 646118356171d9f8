//! Any tree, and any changes to it: the difference between the two, packed and applied to the one, gives the other.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use lamella_core::layer::diff::{Trees, diff, write};
use lamella_core::layer::{Applier, WhiteoutFormat, unpack};
use lamella_core::tar::{Limits, Reader, Writer};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::ground::watch;
use crate::input::Input;
use crate::tree::items;

const NAMES: [&str; 10] = ["a", "b", "a/a", "a/b", "a/b/c", "b/a", "c", "c/d", "c/d/e", "a!"];

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let first = input.below(32) * 4;
    let first = input.take(first);
    watch(|ground| {
        let [before, after, applied] = [0, 1, 2].map(|number| ground.layer(number));
        change(&before, 0, first);
        let whole = layer_of(&Trees::Pair { before: None, after: &before });
        for copy in [&after, &applied] {
            apply(copy, &whole);
            assert_eq!(items(copy), items(&before), "a tree that was packed and applied");
        }
        change(&after, 1, input.0);
        let layer = layer_of(&Trees::Pair { before: Some(&before), after: &after });
        apply(&applied, &layer);
        assert_eq!(items(&applied), items(&after), "a difference that was packed and applied");
    });
}

fn layer_of(trees: &Trees<'_>) -> Vec<u8> {
    let changes = diff(trees, &mut || Ok(())).unwrap();
    let mut archive = Writer::new(Vec::new());
    write(&changes, &mut archive, &mut || Ok(())).unwrap();
    archive.finish().unwrap()
}

fn apply(folder: &Path, layer: &[u8]) {
    let mut applier = Applier::new(folder, WhiteoutFormat::Plain).unwrap();
    unpack(&mut Reader::new(layer, Limits::default()), &mut applier).unwrap();
    applier.finish(&mut || Ok(())).unwrap();
}

/// Change a tree, four bytes a step; what does not fit is left out. No two steps, of both rounds, give a file the same time: that is
/// how its change is seen, where the size is as it was.
fn change(root: &Path, round: u32, steps: &[u8]) {
    for (number, step) in steps.chunks_exact(4).take(64).enumerate() {
        let at = |byte: u8| root.join(NAMES[usize::from(byte) % NAMES.len()]);
        let (path, other, value) = (at(step[1]), at(step[2]), step[3]);
        let nanoseconds = round * 100_000 + number as u32 * 1_000 + u32::from(value);
        let known = path.symlink_metadata().ok();
        let is_file = known.as_ref().is_some_and(fs::Metadata::is_file);
        match step[0] % 11 {
            0 | 1 if is_file || known.is_none() => {
                let _ = make_parents(&path).and_then(|()| fs::write(&path, vec![value; usize::from(step[2])]));
                set_time(&path, 1_600_000_000 + number as i64, nanoseconds);
            }
            2 => drop(fs::create_dir_all(&path)),
            3 => {
                let target = NAMES[usize::from(value) % NAMES.len()];
                let _ = make_parents(&path).and_then(|()| symlink(target, &path));
            }
            4 => drop(make_parents(&path).and_then(|()| fs::hard_link(&other, &path))),
            5 => {
                let kind = if value % 2 == 0 { FileType::Fifo } else { FileType::BlockDevice };
                let _ = make_parents(&path);
                let _ = rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, rustix::fs::makedev(300, value.into()));
            }
            6 => drop(fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))),
            7 => drop(fs::rename(&path, &other)),
            8 if known.is_some_and(|known| !known.is_symlink()) => {
                let mode = u32::from(value) << 4 | 0o700;
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777));
                let _ = lchown(&path, Some(u32::from(step[2]) << 12), Some(value.into()));
            }
            9 => {
                let _ = rustix::fs::lsetxattr(&path, "user.test", &step[2..], XattrFlags::empty());
                let _ = rustix::fs::lsetxattr(&path, "trusted.test", &step[3..], XattrFlags::empty());
            }
            10 if is_file => {
                let _ = fs::File::options().write(true).open(&path).and_then(|file| {
                    file.set_len(u64::from(step[2]) << 10)?;
                    file.write_all_at(b"data", u64::from(value) << 9)
                });
                set_time(&path, i64::from(step[2]) - 100, nanoseconds);
            }
            _ => {}
        }
    }
}

fn make_parents(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap())
}

fn set_time(path: &Path, seconds: i64, nanoseconds: u32) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}
