//! Random trees and random bytes: GNU tar is the oracle for the first, survival for the second.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use lamella_core::layer::WhiteoutFormat;
use lamella_core::tar::{Limits, Reader};
use proptest::prelude::*;

use crate::archive::{Archive, Header};
use crate::{Place, apply_to, privileged, tree};

#[derive(Clone, Debug)]
pub enum Step {
    File(u8, Vec<u8>, u32),
    Folder(u8, u32),
    Symlink(u8, u8),
    HardLink(u8, u8),
    Fifo(u8),
    Whiteout(u8),
}

const NAMES: [&str; 12] =
    ["a", "b", "c", "a/a", "a/b", "a/c", "b/a", "b/b", "a/b/c", "a/b/d", "c/d/e", "päth with ünïcode"];

pub fn step() -> impl Strategy<Value = Step> {
    let name = 0..u8::try_from(NAMES.len()).unwrap();
    let content = proptest::collection::vec(any::<u8>(), 0..2000);
    let mode = prop_oneof![Just(0o644u32), Just(0o755), Just(0o4711), Just(0o2755), Just(0o1777), Just(0o600)];
    prop_oneof![
        3 => (name.clone(), content, mode.clone()).prop_map(|(n, c, m)| Step::File(n, c, m)),
        3 => (name.clone(), mode).prop_map(|(n, m)| Step::Folder(n, m)),
        2 => (name.clone(), name.clone()).prop_map(|(n, t)| Step::Symlink(n, t)),
        2 => (name.clone(), name.clone()).prop_map(|(n, t)| Step::HardLink(n, t)),
        1 => name.clone().prop_map(Step::Fifo),
        1 => name.prop_map(Step::Whiteout),
    ]
}

fn build(steps: &[Step]) -> Vec<u8> {
    let mut archive = Archive::new();
    for (number, step) in steps.iter().enumerate() {
        let name = |index: u8| NAMES[usize::from(index)];
        let mtime = 1_000_000 + number as u64;
        archive = match step {
            Step::File(path, content, mode) => {
                let header = Header { path: name(*path).as_bytes(), mode: *mode, uid: 1, mtime, ..Header::default() };
                archive.entry(&header, content)
            }
            Step::Folder(path, mode) => {
                let path = name(*path).as_bytes();
                archive.entry(&Header { path, kind: b'5', mode: *mode, gid: 2, mtime, ..Header::default() }, b"")
            }
            Step::Symlink(path, target) => archive.symlink(name(*path), name(*target)),
            Step::HardLink(path, target) => archive.hard_link(name(*path), name(*target)),
            Step::Fifo(path) => {
                archive.entry(&Header { path: name(*path).as_bytes(), kind: b'6', mtime, ..Header::default() }, b"")
            }
            Step::Whiteout(path) => {
                let (folder, name) = name(*path).rsplit_once('/').unwrap_or((".", name(*path)));
                archive.file(&format!("{folder}/.wh.{name}"), b"")
            }
        };
    }
    archive.end()
}

/// A tree first made on disk, so that it makes sense, then packed by GNU tar.
pub fn build_tree(root: &Path, steps: &[Step]) {
    for (number, step) in steps.iter().enumerate() {
        let path = |index: u8| root.join(NAMES[usize::from(index)]);
        let parents = |index: u8| std::fs::create_dir_all(path(index).parent().unwrap()).is_ok();
        // Steps that do not fit what is there are skipped.
        match step {
            Step::File(name, content, mode) if parents(*name) && std::fs::write(path(*name), content).is_ok() => {
                let _ = std::os::unix::fs::chown(path(*name), u32::try_from(number).ok(), None);
                let _ = std::fs::set_permissions(path(*name), std::fs::Permissions::from_mode(*mode));
            }
            Step::Folder(name, _) => drop(std::fs::create_dir_all(path(*name))),
            Step::Symlink(name, target) if parents(*name) => {
                drop(std::os::unix::fs::symlink(NAMES[usize::from(*target)], path(*name)));
            }
            Step::HardLink(name, target) if parents(*name) => drop(std::fs::hard_link(path(*target), path(*name))),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// What GNU tar packs unpacks to the same tree with it and with the applier, in each of its formats.
    #[test]
    fn trees_unpack_as_gnu_tar_unpacks_them(steps in proptest::collection::vec(step(), 0..25), format in 0..3usize) {
        if !privileged() {
            return Ok(());
        }
        let format = ["gnu", "posix", "ustar"][format];
        let outer = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = outer.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (source, theirs, ours) = (folder("source"), folder("theirs"), folder("ours"));
        build_tree(&source, &steps);
        let archive = outer.path().join("archive.tar");
        let tar = |arguments: &[&str], folder: &Path| {
            let mut command = Command::new("tar");
            command.args(arguments).arg("-C").arg(folder).arg("-f").arg(&archive);
            let output = command.arg(if arguments[0] == "-c" { "." } else { "--same-owner" }).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let sparse = if format == "ustar" { "--no-xattrs" } else { "--sparse" };
        tar(&["-c", "--format", format, "--sort=name", sparse], &source);
        tar(&["-x", "--same-permissions", "--numeric-owner"], &theirs);
        apply_to(&ours, &std::fs::read(&archive).unwrap(), crate::format()).unwrap();
        prop_assert_eq!(tree::items(&ours), tree::items(&theirs));
    }

    /// Entries in any order either make a tree or fail with an error; twice gives the same; nothing leaves the folder.
    #[test]
    fn any_sequence_of_entries_is_deterministic(steps in proptest::collection::vec(step(), 0..30)) {
        let archive = build(&steps);
        for format in [crate::format(), WhiteoutFormat::Plain] {
            let run = || {
                let place = Place::new();
                let result = apply_to(&place.layer, &archive, format).map(|applied| {
                    let usage = lamella_core::tree::usage(&place.layer, &mut || Ok(())).unwrap();
                    assert_eq!((applied.disk_bytes, applied.inodes), (usage.bytes, usage.inodes));
                    let mut items = tree::items(&place.layer);
                    // A plain folder's own attributes are not the layer's.
                    items.remove(".");
                    (applied.deferred, applied.opaque_root, items)
                });
                assert_eq!(std::fs::read_dir(place.outer.path()).unwrap().count(), 1);
                result.map_err(|error| error.kind)
            };
            prop_assert_eq!(run(), run());
        }
    }

    /// Bytes that are wrong anywhere never panic, and are never taken for more entries than there are blocks.
    #[test]
    fn damaged_archives_are_survived(
        steps in proptest::collection::vec(step(), 1..10),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut archive = build(&steps);
        for (index, byte) in &damage {
            let at = index.index(archive.len());
            archive[at] = *byte;
            // Mend the checksum, or nothing but it would be tested.
            let start = at / 512 * 512;
            let mut block: [u8; 512] = archive[start..start + 512].try_into().unwrap();
            crate::archive::seal(&mut block);
            archive[start..start + 512].copy_from_slice(&block);
        }
        let mut reader = Reader::new(&archive[..], Limits::default());
        let mut entries = 0;
        while let Ok(Some(_)) = reader.next_entry() {
            while let Ok(Some(_)) = reader.data() {}
            entries += 1;
        }
        prop_assert!(entries <= archive.len() / 512);
        let place = Place::new();
        let _ = apply_to(&place.layer, &archive, crate::format());
        prop_assert_eq!(std::fs::read_dir(place.outer.path()).unwrap().count(), 1);
    }
}
