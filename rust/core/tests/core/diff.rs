//! Differences of trees: what is applied to the one gives the other. The kernel, GNU tar and cp are the oracles.

use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use lamella_core::Kind;
use lamella_core::compression::{Compression, Decoder};
use lamella_core::digest::{Algorithm, Digest, Hasher};
use lamella_core::layer::diff::{ChangeKind, Form, Trees, diff, pack, tell_apart, write, write_until};
use lamella_core::layer::{Merged, WhiteoutFormat};
use lamella_core::mount::{Mount, mount, unmount};
use lamella_core::tar::{EntryKind, Limits, Reader, Timestamp, Writer};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, inotify};

use crate::{apply_to, privileged, tree};

fn layer_of(trees: &Trees<'_>) -> lamella_core::Result<Vec<u8>> {
    let changes = diff(trees, &mut || Ok(()))?;
    let mut archive = Writer::new(Vec::new());
    write(&changes, &mut archive, &mut || Ok(()))?;
    archive.finish()
}

fn pair<'a>(before: &'a Path, after: &'a Path) -> Trees<'a> {
    Trees::Pair { before: Some(before), after }
}

fn alone(after: &Path) -> Trees<'_> {
    Trees::Pair { before: None, after }
}

fn upper_of(folder: &Path) -> Trees<'_> {
    Trees::Upper { folder, opaque: false, format: WhiteoutFormat::Overlay }
}

fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) {
    let mut command = Command::new(program);
    for argument in arguments {
        command.arg(argument);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    run("cp", &[&"-aT", &"--sparse=always", &from, &to]);
}

/// Fresh folders, by name.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

#[derive(Clone, Debug)]
enum Step {
    File(usize, Vec<u8>),
    Holes(usize, u32),
    Folder(usize),
    Symlink(usize, usize),
    HardLink(usize, usize),
    Node(usize, bool),
    Remove(usize),
    Rename(usize, usize),
    Mode(usize, u32),
    Owner(usize, u32),
    Attribute(usize, Vec<u8>),
    Time(usize, i64, u32),
}

const NAMES: [&[u8]; 13] = [
    b"a",
    b"b",
    b"c",
    b"a/a",
    b"a/b",
    b"a/b/c",
    b"a/b/d",
    b"b/a",
    b"b/b",
    b"c/d/e",
    b"c/d",
    b"p\xc3\xa4th \xff\n=",
    b"b/.whx",
];

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let times = prop_oneof![Just(0i64), Just(-5), Just(1_700_000_000), Just(1 << 33)];
    prop_oneof![
        4 => (name.clone(), proptest::collection::vec(any::<u8>(), 0..900)).prop_map(|(n, c)| Step::File(n, c)),
        1 => (name.clone(), 1..200_000u32).prop_map(|(n, at)| Step::Holes(n, at)),
        3 => name.clone().prop_map(Step::Folder),
        1 => (name.clone(), name.clone()).prop_map(|(n, t)| Step::Symlink(n, t)),
        3 => (name.clone(), name.clone()).prop_map(|(n, t)| Step::HardLink(n, t)),
        1 => (name.clone(), any::<bool>()).prop_map(|(n, fifo)| Step::Node(n, fifo)),
        3 => name.clone().prop_map(Step::Remove),
        2 => (name.clone(), name.clone()).prop_map(|(n, t)| Step::Rename(n, t)),
        1 => (name.clone(), prop_oneof![Just(0o4755u32), Just(0o1777), Just(0o600)]).prop_map(|(n, m)| Step::Mode(n, m)),
        1 => (name.clone(), prop_oneof![Just(1000u32), Just(70_000), Just(3_000_000_000)]).prop_map(|(n, o)| Step::Owner(n, o)),
        1 => (name.clone(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(n, v)| Step::Attribute(n, v)),
        1 => (name, times, prop_oneof![Just(0u32), Just(999_999_999)]).prop_map(|(n, s, ns)| Step::Time(n, s, ns)),
    ]
}

/// Change a tree; steps that do not fit what is there are skipped.
fn change(root: &Path, steps: &[Step]) {
    for step in steps {
        let path = |index: &usize| root.join(std::ffi::OsStr::from_bytes(NAMES[*index]));
        let make_parents = |index: &usize| std::fs::create_dir_all(path(index).parent().unwrap());
        match step {
            Step::File(name, _) if path(name).metadata().is_ok_and(|stat| stat.file_type().is_fifo()) => {}
            Step::Holes(name, _) if path(name).metadata().is_ok_and(|stat| stat.file_type().is_fifo()) => {}
            Step::File(name, content) => {
                let _ = make_parents(name).and_then(|()| std::fs::write(path(name), content));
            }
            Step::Holes(name, at) => {
                let file = make_parents(name).and_then(|()| std::fs::File::create(path(name)));
                let _ = file.and_then(|file| {
                    file.set_len(300_000)?;
                    file.write_all_at(b"data", u64::from(*at))
                });
            }
            Step::Folder(name) => drop(std::fs::create_dir_all(path(name))),
            Step::Symlink(name, target) => {
                let _ = make_parents(name)
                    .and_then(|()| std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(NAMES[*target]), path(name)));
            }
            Step::HardLink(name, target) => {
                let _ = make_parents(name).and_then(|()| std::fs::hard_link(path(target), path(name)));
            }
            Step::Node(name, fifo) => {
                let kind = if *fifo { FileType::Fifo } else { FileType::BlockDevice };
                let _ = make_parents(name);
                let _ = rustix::fs::mknodat(CWD, path(name), kind, Mode::RUSR, rustix::fs::makedev(300, 70_000));
            }
            Step::Remove(name) => {
                if std::fs::remove_file(path(name)).is_err() {
                    let _ = std::fs::remove_dir_all(path(name));
                }
            }
            Step::Rename(name, target) => drop(std::fs::rename(path(name), path(target))),
            Step::Mode(name, mode) => {
                if path(name).symlink_metadata().is_ok_and(|stat| !stat.is_symlink()) {
                    let _ = std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(*mode));
                }
            }
            Step::Owner(name, owner) => drop(std::os::unix::fs::lchown(path(name), Some(*owner), Some(owner / 2))),
            Step::Attribute(name, value) => {
                let _ = rustix::fs::lsetxattr(path(name), "user.test", value, XattrFlags::empty());
                let _ = rustix::fs::lsetxattr(path(name), "trusted.test", value, XattrFlags::empty());
            }
            Step::Time(name, seconds, nanoseconds) => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: i64::from(*nanoseconds) };
                let times = Timestamps { last_access: time, last_modification: time };
                let _ = rustix::fs::utimensat(CWD, path(name), &times, AtFlags::SYMLINK_NOFOLLOW);
            }
        }
    }
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_of_a_whole_tree_is_that_tree_for_us_and_for_gnu_tar(steps in steps(25)) {
        if !privileged() {
            return Ok(());
        }
        let room = Room::new();
        let (source, ours, theirs) = (room.folder("source"), room.folder("ours"), room.folder("theirs"));
        change(&source, &steps);
        let layer = layer_of(&alone(&source)).unwrap();
        prop_assert_eq!(&layer, &layer_of(&alone(&source)).unwrap());
        apply_to(&ours, &layer, WhiteoutFormat::Plain).unwrap();
        prop_assert_eq!(tree::items(&ours), tree::items(&source));
        let archive = room.0.path().join("layer.tar");
        std::fs::write(&archive, &layer).unwrap();
        run("tar", &[&"-xpf", &archive, &"--numeric-owner", &"--xattrs", &"--xattrs-include=*", &"-C", &theirs]);
        prop_assert_eq!(tree::items(&theirs), tree::items(&source));
    }

    #[test]
    fn what_differs_between_two_trees_turns_the_one_into_the_other(first in steps(25), then in steps(15)) {
        if !privileged() {
            return Ok(());
        }
        let room = Room::new();
        let (before, after, applied) = (room.folder("before"), room.folder("after"), room.folder("applied"));
        change(&before, &first);
        copy(&before, &after);
        prop_assert_eq!(diff(&pair(&before, &after), &mut || Ok(())).unwrap().changes.len(), 0);
        change(&after, &then);
        let layer = layer_of(&pair(&before, &after)).unwrap();
        copy(&before, &applied);
        apply_to(&applied, &layer, WhiteoutFormat::Plain).unwrap();
        prop_assert_eq!(tree::items(&applied), tree::items(&after));
        // And as an overlay. An empty layer names not even the root, which then is as it is beneath.
        if tree::items(&before) == tree::items(&after) {
            return Ok(());
        }
        let (upper, merged) = (room.folder("upper"), room.folder("merged"));
        apply_to(&upper, &layer, WhiteoutFormat::Overlay).unwrap();
        overlay(&[&upper, &before], None, &merged);
        let seen = std::panic::catch_unwind(|| tree::items(&merged));
        unmount(&merged).unwrap();
        prop_assert_eq!(without_links(seen.unwrap()), without_links(tree::items(&after)));
    }

    #[test]
    fn what_the_kernel_wrote_to_an_upper_folder_turns_the_lower_one_into_the_merged_one(
        first in steps(25), then in steps(15)
    ) {
        if !privileged() {
            return Ok(());
        }
        let room = Room::new();
        let [before, upper, work, merged, applied] = ["before", "upper", "work", "merged", "applied"].map(|name| room.folder(name));
        change(&before, &first);
        overlay(&[&before], Some((&upper, &work)), &merged);
        let seen = std::panic::catch_unwind(|| {
            change(&merged, &then);
            tree::items(&merged)
        });
        unmount(&merged).unwrap();
        let layer = layer_of(&upper_of(&upper)).unwrap();
        copy(&before, &applied);
        apply_to(&applied, &layer, WhiteoutFormat::Plain).unwrap();
        let mut found = tree::items(&applied);
        let mut wanted = seen.unwrap();
        for items in [&mut found, &mut wanted] {
            items.remove("."); // the upper folder's own attributes are whoever's who made it
        }
        prop_assert_eq!(without_links(found), without_links(wanted));
    }
}

fn overlay(lower: &[&Path], upper: Option<(&Path, &Path)>, target: &Path) {
    let joined: Vec<&str> = lower.iter().map(|path| path.to_str().unwrap()).collect();
    let mut options = vec![format!("lowerdir={}", joined.join(":"))];
    if let Some((upper, work)) = upper {
        options.push(format!("upperdir={}", upper.display()));
        options.push(format!("workdir={}", work.display()));
    }
    mount(&[Mount { kind: "overlay".into(), source: "overlay".into(), options }], target).unwrap();
}

/// Without the index feature overlayfs shows the names of one lower inode, once one is written, as several.
fn without_links(
    mut items: std::collections::BTreeMap<String, tree::Item>,
) -> std::collections::BTreeMap<String, tree::Item> {
    for item in items.values_mut() {
        item.first_name = None;
    }
    items
}

#[test]
fn names_of_one_file_stay_together_also_where_only_one_was_changed() {
    if !privileged() {
        return;
    }
    let room = Room::new();
    let (before, after, applied) = (room.folder("before"), room.folder("after"), room.folder("applied"));
    std::fs::write(before.join("one"), b"x").unwrap();
    std::fs::write(before.join("apart"), b"y").unwrap();
    std::fs::hard_link(before.join("one"), before.join("two")).unwrap();
    copy(&before, &after);
    std::fs::hard_link(after.join("one"), after.join("three")).unwrap();
    let names = |trees: &Trees<'_>| -> Vec<String> {
        let changes = diff(trees, &mut || Ok(())).unwrap().changes;
        changes.iter().map(|change| String::from_utf8(change.path.clone()).unwrap()).collect()
    };
    assert_eq!(names(&pair(&before, &after)), ["", "one", "three", "two"]);
    copy(&before, &applied);
    apply_to(&applied, &layer_of(&pair(&before, &after)).unwrap(), WhiteoutFormat::Plain).unwrap();
    assert_eq!(tree::items(&applied), tree::items(&after));
    // Parted again, with no other difference.
    let parted = room.folder("parted");
    copy(&before, &parted);
    std::fs::remove_file(parted.join("two")).unwrap();
    run("cp", &[&"-a", &parted.join("one"), &parted.join("two")]);
    let applied = room.folder("applied-again");
    copy(&before, &applied);
    apply_to(&applied, &layer_of(&pair(&before, &parted)).unwrap(), WhiteoutFormat::Plain).unwrap();
    assert_eq!(tree::items(&applied), tree::items(&parted));
}

#[test]
fn changes_are_sorted_and_say_what_happened() {
    let room = Room::new();
    let (before, after) = (room.folder("before"), room.folder("after"));
    for path in [&before, &after] {
        std::fs::create_dir_all(path.join("folder/sub")).unwrap();
        std::fs::write(path.join("folder/same"), b"same").unwrap();
    }
    std::fs::write(before.join("folder/gone"), b"").unwrap();
    std::fs::write(after.join("folder/new"), b"").unwrap();
    std::fs::write(after.join("folder!"), b"").unwrap();
    std::fs::write(before.join("folder/kind"), b"").unwrap();
    std::fs::create_dir(after.join("folder/kind")).unwrap();
    copy_times(&before, &after);
    let changes = diff(&pair(&before, &after), &mut || Ok(())).unwrap().changes;
    let seen: Vec<(&str, ChangeKind)> =
        changes.iter().map(|change| (str::from_utf8(&change.path).unwrap(), change.kind)).collect();
    let expected = [
        ("", ChangeKind::Modified),
        ("folder", ChangeKind::Modified),
        ("folder/gone", ChangeKind::Deleted),
        ("folder/kind", ChangeKind::Modified),
        ("folder/new", ChangeKind::Added),
        ("folder!", ChangeKind::Added),
    ];
    assert_eq!(seen, expected);
}

fn copy_times(from: &Path, to: &Path) {
    for name in ["folder/same", "folder/sub", "folder", ""] {
        run("touch", &[&"-r", &from.join(name), &to.join(name)]);
    }
}

#[test]
fn files_of_one_size_and_whole_second_are_told_apart_by_their_content() {
    let room = Room::new();
    let (before, after) = (room.folder("before"), room.folder("after"));
    std::fs::write(before.join("file"), b"one").unwrap();
    std::fs::write(after.join("file"), b"two").unwrap();
    for path in [before.join("file"), after.join("file"), before.clone(), after.clone()] {
        run("touch", &[&"-d", &"@1000000000", &path]);
    }
    let changes = diff(&pair(&before, &after), &mut || Ok(())).unwrap().changes;
    assert_eq!(changes.iter().map(|change| &change.path[..]).collect::<Vec<_>>(), [&b""[..], b"file"]);
    std::fs::write(after.join("file"), b"one").unwrap();
    run("touch", &[&"-d", &"@1000000000", &after.join("file")]);
    assert_eq!(diff(&pair(&before, &after), &mut || Ok(())).unwrap().changes.len(), 0);
}

#[test]
fn holes_take_no_room_in_a_layer_and_depend_on_the_content_alone() {
    let room = Room::new();
    let (one, other, applied) = (room.folder("one"), room.folder("other"), room.folder("applied"));
    let write_at = |folder: &Path, dense: bool| {
        let file = std::fs::File::create(folder.join("sparse")).unwrap();
        file.set_len(5 << 30).unwrap();
        file.write_all_at(b"data", 1 << 20).unwrap();
        file.write_all_at(b"end", (5 << 30) - 3).unwrap();
        if dense {
            file.write_all_at(&vec![0; 1 << 20], 3 << 20).unwrap();
        }
    };
    write_at(&one, false);
    write_at(&other, true);
    for path in [one.join("sparse"), other.join("sparse"), one.clone(), other.clone()] {
        run("touch", &[&"-d", &"@1000000000", &path]);
    }
    let layer = layer_of(&alone(&one)).unwrap();
    assert!(layer.len() < 64 << 10, "{}", layer.len());
    assert_eq!(layer, layer_of(&alone(&other)).unwrap());
    apply_to(&applied, &layer, WhiteoutFormat::Plain).unwrap();
    let file = std::fs::File::open(applied.join("sparse")).unwrap();
    let mut read = [0; 4];
    file.read_exact_at(&mut read, 1 << 20).unwrap();
    assert_eq!(&read, b"data");
    assert_eq!(file.metadata().unwrap().len(), 5 << 30);
}

#[test]
fn what_no_layer_can_hold_is_left_out_or_refused_by_name() {
    let room = Room::new();
    let folder = room.folder("folder");
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    let changes = diff(&alone(&folder), &mut || Ok(())).unwrap();
    assert_eq!((changes.changes.len(), changes.notes.len()), (1, 1));
    assert!(changes.notes[0].contains("'socket'"), "{:?}", changes.notes);
    std::fs::write(folder.join(".wh.name"), b"").unwrap();
    let error = diff(&alone(&folder), &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    assert!(error.message.contains(".wh.name"), "{error}");
}

#[test]
fn the_longest_path_that_a_layer_can_hold_comes_back_and_a_longer_one_is_refused() {
    let room = Room::new();
    let (tree, applied) = (room.folder("tree"), room.folder("applied"));
    // 4092 bytes: a name and 16 folders. Made through descriptors, for the whole path is longer than PATH_MAX.
    let mut folder = std::fs::File::open(&tree).unwrap();
    for _ in 0..16 {
        let name = "n".repeat(240);
        rustix::fs::mkdirat(&folder, &name, Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap().into();
    }
    let make = |length: usize| {
        let flags = OFlags::WRONLY | OFlags::CREATE;
        drop(rustix::fs::openat(&folder, "f".repeat(length), flags, Mode::RUSR).unwrap());
    };
    make(4092 - 16 * 241);
    let layer = layer_of(&alone(&tree)).unwrap();
    apply_to(&applied, &layer, WhiteoutFormat::Plain).unwrap();
    assert_eq!(diff(&pair(&tree, &applied), &mut || Ok(())).unwrap().changes.len(), 0);
    assert_eq!(layer_of(&alone(&applied)).unwrap(), layer);
    make(4093 - 16 * 241);
    let error = diff(&alone(&tree), &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    assert!(error.message.contains("longer than 4092 bytes"), "{error}");
    for path in [tree, applied] {
        lamella_core::tree::remove(&path, &mut || Ok(())).unwrap();
    }
}

#[test]
fn a_file_that_becomes_shorter_or_a_link_meanwhile_is_an_error_and_leads_nowhere() {
    let room = Room::new();
    let folder = room.folder("folder");
    std::fs::create_dir(folder.join("sub")).unwrap();
    std::fs::write(folder.join("sub/file"), b"content").unwrap();
    let changes = diff(&alone(&folder), &mut || Ok(())).unwrap();
    let written = || write(&changes, &mut Writer::new(Vec::new()), &mut || Ok(())).unwrap_err().kind;
    std::fs::write(folder.join("sub/file"), b"short").unwrap();
    assert_eq!(written(), Kind::Unavailable);
    std::fs::remove_dir_all(folder.join("sub")).unwrap();
    let elsewhere = room.folder("elsewhere");
    std::fs::write(elsewhere.join("file"), b"content").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.join("sub")).unwrap();
    assert_eq!(written(), Kind::Unavailable);
}

#[test]
fn work_on_a_layer_stops_when_it_is_told_to() {
    let room = Room::new();
    let folder = room.folder("folder");
    std::fs::write(folder.join("file"), b"x").unwrap();
    let mut stop = || Err(lamella_core::Error::cancelled());
    assert_eq!(diff(&alone(&folder), &mut stop).unwrap_err().kind, Kind::Cancelled);
    let changes = diff(&alone(&folder), &mut || Ok(())).unwrap();
    let mut archive = Writer::new(Vec::new());
    assert_eq!(write(&changes, &mut archive, &mut stop).unwrap_err().kind, Kind::Cancelled);
}

#[test]
fn what_is_new_in_an_upper_folder_is_told_from_what_was_beneath() {
    if !privileged() {
        return;
    }
    let room = Room::new();
    let (lower, upper) = (room.folder("lower"), room.folder("upper"));
    for folder in [&lower, &upper] {
        std::fs::create_dir(folder.join("folder")).unwrap();
        std::fs::write(folder.join("folder/file"), b"x").unwrap();
    }
    std::fs::write(upper.join("new"), b"x").unwrap();
    rustix::fs::mknodat(CWD, upper.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let trees = Trees::Upper { folder: &upper, opaque: true, format: WhiteoutFormat::Overlay };
    let mut changes = diff(&trees, &mut || Ok(())).unwrap();
    tell_apart(&mut changes, &Merged::open(&[&lower], WhiteoutFormat::Overlay).unwrap()).unwrap();
    let kinds: Vec<_> = changes.changes.iter().map(|change| (&change.path[..], change.kind)).collect();
    let expected = [
        (&b""[..], ChangeKind::Modified),
        (b"folder", ChangeKind::Modified),
        (b"folder/file", ChangeKind::Modified),
        (b"gone", ChangeKind::Deleted),
        (b"new", ChangeKind::Added),
    ];
    assert_eq!(kinds, expected);
    assert!(layer_of(&trees).unwrap().windows(13).any(|bytes| bytes == b".wh..wh..opq\0"));
}

#[test]
fn whiteouts_stand_in_a_layer_as_the_spec_names_them() {
    if !privileged() {
        return;
    }
    let room = Room::new();
    let upper = room.folder("upper");
    std::fs::create_dir(upper.join("opaque")).unwrap();
    rustix::fs::setxattr(upper.join("opaque"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    rustix::fs::mknodat(CWD, upper.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let layer = layer_of(&upper_of(&upper)).unwrap();
    let mut reader = Reader::new(&layer[..], Limits::default());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        assert!(matches!(entry.kind, EntryKind::File | EntryKind::Directory));
        assert!(entry.xattrs.is_empty());
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(names, ["./", ".wh.gone", "opaque/", "opaque/.wh..wh..opq"]);
}

#[test]
fn a_blob_says_what_is_in_it_whatever_its_form() {
    let room = Room::new();
    let (folder, applied) = (room.folder("folder"), room.folder("applied"));
    std::fs::write(folder.join("file"), vec![7; 3 << 20]).unwrap();
    let trees = alone(&folder);
    let changes = diff(&trees, &mut || Ok(())).unwrap();
    let target = room.0.path().join("blob");
    let plain = layer_of(&trees).unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let form = Form { compression, level: None, threads: 2 };
        let blob = pack(&changes, &target, form, None, &mut || Ok(())).unwrap();
        let written = std::fs::read(&target).unwrap();
        assert_eq!((blob.size, blob.digest), (written.len() as u64, hashed(&written)));
        assert_eq!((blob.tar_size, blob.diff_id), (plain.len() as u64, hashed(&plain)));
        assert_eq!(Compression::detect(&written), compression);
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut Decoder::new(compression, &written[..]).unwrap(), &mut tar).unwrap();
        assert!(tar == plain);
    }
    apply_to(&applied, &plain, WhiteoutFormat::Plain).unwrap();
    assert_eq!(tree::items(&applied), tree::items(&folder));
}

#[test]
fn nothing_is_younger_than_what_was_asked_for() {
    let room = Room::new();
    let folder = room.folder("folder");
    for (name, seconds) in [("old", 1_000), ("young", 3_000)] {
        std::fs::write(folder.join(name), name).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(seconds, 5);
        std::fs::File::open(folder.join(name)).unwrap().set_modified(time).unwrap();
    }
    let changes = diff(&alone(&folder), &mut || Ok(())).unwrap();
    let latest = Some(Timestamp { seconds: 2_000, nanoseconds: 0 });
    let mut archive = Writer::new(Vec::new());
    write_until(&changes, &mut archive, latest, &mut || Ok(())).unwrap();
    let tar = archive.finish().unwrap();
    let mut reader = Reader::new(&tar[..], Limits::default());
    let mut times = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        times.push((entry.mtime.seconds, entry.mtime.nanoseconds));
    }
    assert_eq!(times, [(2_000, 0), (1_000, 5), (2_000, 0)]);
}

fn hashed(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

#[test]
fn what_took_a_files_place_before_it_is_written_is_not_opened() {
    let room = Room::new();
    let folder = room.folder("tree");
    std::fs::write(folder.join("file"), "text").unwrap();
    let changes = diff(&alone(&folder), &mut || Ok(())).unwrap();
    std::fs::remove_file(folder.join("file")).unwrap();
    rustix::fs::mknodat(CWD, folder.join("file"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &folder, inotify::WatchFlags::OPEN).unwrap();
    let error = write(&changes, &mut Writer::new(Vec::new()), &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    while let Ok(event) = events.next() {
        assert_eq!(event.file_name(), None, "only the folder itself is opened");
    }
}
