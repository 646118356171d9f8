//! Copies of trees, with cp -a as the oracle.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use lamella_core::layer::copy_tree;
use lamella_core::{Error, Kind};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags, makedev};

use crate::random::{build_tree, step};
use crate::{privileged, tree};

/// Two folders in a third: a tree, and an empty one for its copy.
struct Pair {
    outer: tempfile::TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Pair {
    fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    fn within(folder: &Path) -> Self {
        let outer = tempfile::tempdir_in(folder).unwrap();
        let (source, target) = (outer.path().join("source"), outer.path().join("target"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        Self { outer, source, target }
    }

    fn copy(&self) -> Vec<String> {
        copy_tree(&self.source, &self.target, &mut || Ok(())).unwrap()
    }

    fn copy_with_cp(&self) -> PathBuf {
        let theirs = self.outer.path().join("theirs");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).args([&self.source, &theirs]));
        theirs
    }
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let at = |extra| Timespec { tv_sec: seconds + extra, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: at(1), last_modification: at(0) };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// An access control list as the kernel has it (`linux/posix_acl_xattr.h`): tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Every kind of inode, and every attribute that cp keeps.
fn build(root: &Path) {
    let path = |name: &str| root.join(name);
    let xattr = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path(name), key, value, XattrFlags::empty()).unwrap();
    };
    std::fs::create_dir_all(path("folder/inner/empty")).unwrap();
    std::fs::write(path("folder/file"), b"content").unwrap();
    std::fs::write(path("folder/large"), vec![7; 3_000_000]).unwrap();
    std::fs::write(path("empty"), b"").unwrap();
    std::fs::hard_link(path("folder/file"), path("linked")).unwrap();
    std::fs::hard_link(path("folder/file"), path("folder/inner/linked too")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", path("absolute")).unwrap();
    std::os::unix::fs::symlink("../folder", path("folder/up")).unwrap();
    std::fs::hard_link(path("absolute"), path("folder/same symlink")).unwrap();
    std::fs::write(path("program"), b"#!/bin/sh\n").unwrap();
    std::fs::write(path("secret"), b"x").unwrap();
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, path(name), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("like a whiteout", FileType::CharacterDevice, makedev(0, 0));
    node("folder/disk", FileType::BlockDevice, makedev(7, 300));
    for (number, name) in ["folder", "folder/inner", "folder/file", "program", "absolute", "fifo", "null", "empty"]
        .into_iter()
        .enumerate()
    {
        let id = u32::try_from(number).unwrap();
        std::os::unix::fs::lchown(path(name), Some(id * 30_000), Some(70_000 + id)).unwrap();
    }
    for (name, mode) in [
        ("program", 0o6755),
        ("secret", 0o000),
        ("folder", 0o3771),
        ("folder/inner", 0o1700),
        ("folder/inner/empty", 0o000),
        ("fifo", 0o620),
        ("null", 0o666),
    ] {
        std::fs::set_permissions(path(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    xattr("program", "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    xattr("secret", "user.note", b"");
    xattr("folder", "user.large", &[b'v'; 2000]);
    xattr("folder/inner", "trusted.overlay.opaque", b"y");
    xattr("absolute", "trusted.of.a.symlink", b"\0\xff");
    xattr(
        "folder/large",
        "system.posix_acl_access",
        &acl(&[(1, 6, !0), (2, 6, 12), (4, 4, !0), (0x10, 5, !0), (0x20, 0, !0)]),
    );
    xattr(
        "folder/inner",
        "system.posix_acl_default",
        &acl(&[(1, 7, !0), (4, 5, !0), (8, 7, 13), (0x10, 7, !0), (0x20, 0, !0)]),
    );
    for (name, seconds, nanoseconds) in [
        ("folder/file", 1, 999_999_999),
        ("absolute", -1, 1),
        ("null", 1 << 31, 5),
        ("folder/inner/empty", 1_000, 7),
        ("folder/inner", 2_000, 8),
        ("folder", 3_000, 9),
        (".", 4_000, 10),
    ] {
        set_time(&path(name), seconds, nanoseconds);
    }
}

fn access_times(root: &Path) -> Vec<(i64, i64)> {
    let time = |name: &String| {
        let stat = std::fs::symlink_metadata(root.join(name)).unwrap();
        (stat.atime(), stat.atime_nsec())
    };
    ["folder/file", "absolute", "folder/inner/empty"].map(str::to_owned).iter().map(time).collect()
}

#[test]
fn a_copy_is_what_cp_makes_of_every_kind_of_inode_and_attribute() {
    if !privileged() {
        return;
    }
    let pair = Pair::new();
    build(&pair.source);
    let accessed = access_times(&pair.source); // before anybody reads
    assert_eq!(pair.copy(), Vec::<String>::new());
    assert_eq!(access_times(&pair.target), accessed);
    assert_eq!(tree::items(&pair.target), tree::items(&pair.source));
    assert_eq!(tree::items(&pair.target), tree::items(&pair.copy_with_cp()));
}

#[test]
fn the_umask_does_not_matter() {
    if !privileged() {
        return;
    }
    let pair = Pair::new();
    build(&pair.source);
    // Of a thread of its own: the other tests keep theirs.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(lamella_core::sys::own_zero_umask());
            rustix::process::umask(Mode::from_raw_mode(0o777));
            pair.copy();
        });
    });
    assert_eq!(tree::items(&pair.target), tree::items(&pair.source));
}

#[test]
fn sockets_are_left_out_with_a_note() {
    let pair = Pair::new();
    std::fs::create_dir(pair.source.join("run")).unwrap();
    let _listener = UnixListener::bind(pair.source.join("run/socket")).unwrap();
    assert_eq!(pair.copy(), ["'run/socket' is a socket and was left out"]);
    assert_eq!(tree::listing(&pair.target), ["run d"]);
}

#[test]
fn only_an_empty_folder_is_copied_to_and_a_missing_one_is_not_found() {
    let pair = Pair::new();
    std::fs::write(pair.target.join("file"), b"x").unwrap();
    let copy = |from: &Path, to: &Path| copy_tree(from, to, &mut || Ok(())).unwrap_err().kind;
    assert_eq!(copy(&pair.source, &pair.target), Kind::FailedPrecondition);
    assert_eq!(copy(&pair.outer.path().join("none"), &pair.source), Kind::NotFound);
    assert_eq!(copy(&pair.target, &pair.outer.path().join("none")), Kind::NotFound);
}

#[test]
fn symlinks_are_not_followed_neither_as_the_tree_nor_in_it() {
    let pair = Pair::new();
    let link = pair.outer.path().join("link");
    std::os::unix::fs::symlink(&pair.source, &link).unwrap();
    assert!(copy_tree(&link, &pair.target, &mut || Ok(())).is_err());
    std::os::unix::fs::symlink("/", pair.source.join("root")).unwrap();
    pair.copy();
    assert_eq!(tree::listing(&pair.target), ["root l"]);
}

#[test]
fn a_copy_stops_when_it_is_told_to_also_within_a_file() {
    let pair = Pair::new();
    File::create(pair.source.join("file")).unwrap().write_all_at(b"x", 0).unwrap();
    for allowed in 0..3 {
        let target = pair.outer.path().join(format!("target-{allowed}"));
        std::fs::create_dir(&target).unwrap();
        let mut left = allowed;
        let mut check = || {
            left -= 1;
            if left < 0 { Err(Error::cancelled()) } else { Ok(()) }
        };
        assert_eq!(copy_tree(&pair.source, &target, &mut check).unwrap_err().kind, Kind::Cancelled);
    }
}

#[test]
fn deep_trees_take_few_descriptors() {
    let pair = Pair::new();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let open = |folder: &File| File::from(rustix::fs::openat(folder, "d", flags, Mode::empty()).unwrap());
    let mut folder = File::open(&pair.source).unwrap();
    for _ in 0..2000 {
        rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
        folder = open(&folder);
    }
    let mut most = 0;
    let mut watch = || {
        most = most.max(std::fs::read_dir("/proc/self/fd").unwrap().count());
        Ok(())
    };
    copy_tree(&pair.source, &pair.target, &mut watch).unwrap();
    assert!(most < 1000, "{most} descriptors were open");
    let mut folder = File::open(&pair.target).unwrap();
    for _ in 0..2000 {
        folder = open(&folder);
    }
    for root in [&pair.source, &pair.target] {
        lamella_core::tree::remove(root, &mut || Ok(())).unwrap();
    }
}

/// Where data lies in a file: pairs of start and end.
fn segments(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let (mut at, mut found) = (0, Vec::new());
    while at < size {
        let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
    }
    found
}

fn make_sparse(folder: &Path) {
    for (name, size, data) in [
        ("hole at the end", 1 << 30, &[(0, 5), (1 << 20, 70_000)][..]),
        ("hole at the start", 3_000_000, &[(2_999_990, 10)]),
        ("nothing but a hole", 1 << 40, &[]),
        ("whole", 200_000, &[(0, 200_000)]),
    ] {
        let file = File::create(folder.join(name)).unwrap();
        for (at, length) in data {
            file.write_all_at(&vec![b'x'; *length], *at).unwrap();
        }
        file.set_len(size).unwrap();
    }
}

fn check_sparse(pair: &Pair) {
    for entry in std::fs::read_dir(&pair.source).unwrap() {
        let name = entry.unwrap().file_name();
        let (from, to) = (pair.source.join(&name), pair.target.join(&name));
        assert_eq!(from.metadata().unwrap().len(), to.metadata().unwrap().len(), "{}", name.display());
        assert_eq!(segments(&from), segments(&to), "{}", name.display());
        for (start, end) in segments(&from) {
            let (mut one, mut other) = (vec![0; usize::try_from(end - start).unwrap()], Vec::new());
            other.resize(one.len(), 1);
            File::open(&from).unwrap().read_exact_at(&mut one, start).unwrap();
            File::open(&to).unwrap().read_exact_at(&mut other, start).unwrap();
            assert!(one == other, "{}", name.display());
        }
    }
}

#[test]
fn holes_stay_holes() {
    let pair = Pair::new();
    make_sparse(&pair.source);
    pair.copy();
    check_sparse(&pair);
}

/// A file system of a test's own, in a file.
struct Disk {
    point: tempfile::TempDir,
    _image: tempfile::NamedTempFile,
}

impl Disk {
    fn new(make: &mut Command) -> Self {
        let (image, point) = (tempfile::NamedTempFile::new().unwrap(), tempfile::tempdir().unwrap());
        image.as_file().set_len(320 << 20).unwrap();
        run(make.arg(image.path()));
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(point.path()));
        Self { point, _image: image }
    }

    fn used(&self) -> u64 {
        rustix::fs::syncfs(File::open(self.point.path()).unwrap()).unwrap();
        let stat = rustix::fs::statvfs(self.point.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.point.path()).status();
        if !done.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("--lazy").arg(self.point.path()).status();
        }
    }
}

#[test]
fn where_the_file_system_can_share_blocks_a_copy_takes_none() {
    if !privileged() || !has_program("mkfs.xfs") {
        return;
    }
    let disk = Disk::new(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]));
    let pair = Pair::within(disk.point.path());
    std::fs::write(pair.source.join("large"), vec![7; 50_000_000]).unwrap();
    make_sparse(&pair.source);
    let before = disk.used();
    pair.copy();
    let after = disk.used();
    check_sparse(&pair);
    assert!(after - before < 5_000_000, "the copy took {} bytes", after - before);
    std::fs::OpenOptions::new().write(true).open(pair.target.join("large")).unwrap().write_all_at(b"new", 0).unwrap();
    assert_eq!(std::fs::read(pair.source.join("large")).unwrap()[..3], [7; 3]);
}

/// From one file system to another the kernel refuses to share (EXDEV), within most others too (EOPNOTSUPP).
#[test]
fn a_copy_to_another_file_system_is_whole() {
    let (Ok(memory), pair) = (tempfile::tempdir_in("/dev/shm"), Pair::new()) else { return };
    make_sparse(&pair.source);
    let other =
        Pair { source: pair.source.clone(), target: memory.path().to_owned(), outer: tempfile::tempdir().unwrap() };
    std::fs::remove_file(pair.source.join("nothing but a hole")).unwrap();
    other.copy();
    for name in ["whole", "hole at the start", "hole at the end"] {
        let size = |root: &Path| std::fs::metadata(root.join(name)).unwrap().len();
        assert_eq!(size(&other.source), size(&other.target));
    }
    assert_eq!(
        std::fs::read(other.source.join("hole at the start")).unwrap(),
        std::fs::read(other.target.join("hole at the start")).unwrap()
    );
    assert!(std::fs::metadata(other.target.join("hole at the end")).unwrap().blocks() * 512 < 1 << 20);
}

fn has_program(name: &str) -> bool {
    let found = Command::new(name).arg("-V").output().is_ok();
    assert!(found || std::env::var_os("LAMELLA_REQUIRE_ALL").is_none(), "this test needs {name}");
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_copied_as_cp_copies_it(steps in proptest::collection::vec(step(), 0..40)) {
        if !privileged() {
            return Ok(());
        }
        let pair = Pair::new();
        build_tree(&pair.source, &steps);
        pair.copy();
        prop_assert_eq!(tree::items(&pair.target), tree::items(&pair.copy_with_cp()));
    }
}
