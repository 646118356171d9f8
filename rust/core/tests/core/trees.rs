//! Usage and removal of trees.

use std::os::unix::fs::{PermissionsExt, symlink};

use lamella_core::Kind;
use lamella_core::tree::{remove, set_top_directory, usage};

use crate::privileged;

#[test]
fn removal_takes_a_tree_and_nothing_that_it_points_to() {
    let outer = tempfile::tempdir().unwrap();
    let (root, victim) = (outer.path().join("root"), outer.path().join("victim"));
    std::fs::create_dir_all(root.join("a/b/c")).unwrap();
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), b"x").unwrap();
    symlink(&victim, root.join("a/link")).unwrap();
    std::fs::write(root.join("a/b/c/f"), b"x").unwrap();
    std::fs::set_permissions(root.join("a/b"), std::fs::Permissions::from_mode(0o000)).unwrap();
    remove(&root, &mut || Ok(())).unwrap();
    assert!(!root.exists());
    assert!(victim.join("file").exists());
    remove(&root, &mut || Ok(())).unwrap();
    remove(&outer.path().join("none/none"), &mut || Ok(())).unwrap();
}

#[test]
fn removal_of_a_symlink_or_file_removes_it_alone() {
    let outer = tempfile::tempdir().unwrap();
    let (link, folder) = (outer.path().join("link"), outer.path().join("folder"));
    std::fs::create_dir(&folder).unwrap();
    symlink(&folder, &link).unwrap();
    remove(&link, &mut || Ok(())).unwrap();
    assert!(folder.exists() && std::fs::symlink_metadata(&link).is_err());
}

#[test]
fn removal_stops_at_what_is_mounted() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let (root, other) = (outer.path().join("root"), outer.path().join("other"));
    std::fs::create_dir_all(root.join("point")).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("file"), b"x").unwrap();
    let bind = lamella_core::mount::Mount {
        kind: "bind".into(),
        source: other.to_str().unwrap().into(),
        options: vec!["rbind".into()],
    };
    lamella_core::mount::mount(&[bind], &root.join("point")).unwrap();
    let result = remove(&root, &mut || Ok(()));
    lamella_core::mount::unmount(&root.join("point")).unwrap();
    assert_eq!(result.unwrap_err().kind, Kind::FailedPrecondition);
    assert!(other.join("file").exists());
}

#[test]
fn deep_trees_take_few_descriptors() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir(&root).unwrap();
    // Made and counted through descriptors of parts: the whole path is longer than PATH_MAX.
    let mut folder = std::fs::File::open(&root).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&folder, "d", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        folder = rustix::fs::openat(&folder, "d", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    drop(folder);
    let (mut most, mut calls) = (0, 0);
    let mut watch = || {
        calls += 1;
        if calls % 100 == 0 {
            most = most.max(std::fs::read_dir("/proc/self/fd").unwrap().count());
        }
        Ok(())
    };
    assert_eq!(usage(&root, &mut watch).unwrap().inodes, 3001);
    remove(&root, &mut watch).unwrap();
    assert!(!root.exists());
    assert!(most < 1000, "{most} descriptors were open");
}

#[test]
fn work_stops_when_it_is_told_to() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(outer.path().join("a/b")).unwrap();
    let mut stop = || Err(lamella_core::Error::cancelled());
    assert_eq!(usage(outer.path(), &mut stop).unwrap_err().kind, Kind::Cancelled);
    assert_eq!(remove(&outer.path().join("a"), &mut stop).unwrap_err().kind, Kind::Cancelled);
}

#[test]
fn usage_counts_hard_links_once_and_does_not_follow() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("a"), [1; 8192]).unwrap();
    std::fs::hard_link(outer.path().join("a"), outer.path().join("b")).unwrap();
    symlink("/", outer.path().join("root")).unwrap();
    let usage = usage(outer.path(), &mut || Ok(())).unwrap();
    assert_eq!(usage.inodes, 3);
    assert!(usage.bytes >= 8192 && usage.bytes < 65536);
}

#[test]
fn the_top_directory_flag_is_set_where_the_file_system_has_it() {
    let outer = tempfile::tempdir().unwrap();
    let first = set_top_directory(outer.path()).unwrap();
    assert_eq!(set_top_directory(outer.path()).unwrap(), first);
}
