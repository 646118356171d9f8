//! Mounts; each needs root.

use std::path::Path;

use lamella_core::Kind;
use lamella_core::mount::{Mount, mount, unmount};

use crate::privileged;

fn a_mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount { kind: kind.into(), source: source.into(), options: options.iter().map(ToString::to_string).collect() }
}

fn options_of(point: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().rev().find(|line| line.split(' ').nth(4) == point.to_str())?;
    Some(line.split(' ').nth(5).unwrap().to_owned())
}

#[test]
fn a_read_only_bind_mount_refuses_writes() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let (source, point) = (outer.path().join("source"), outer.path().join("point"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&point).unwrap();
    std::fs::write(source.join("f"), b"x").unwrap();
    let bind = a_mount("bind", source.to_str().unwrap(), &["rbind", "ro", "nodev", "rprivate"]);
    mount(&[bind], &point).unwrap();
    let options = options_of(&point).unwrap();
    let write = std::fs::write(point.join("g"), b"");
    unmount(&point).unwrap();
    assert!(options.starts_with("ro,nodev"), "{options}");
    assert!(write.is_err());
    assert!(options_of(&point).is_none());
    unmount(&point).unwrap();
    unmount(&outer.path().join("none")).unwrap();
}

#[test]
fn an_overlay_of_128_layers_with_long_paths_works() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let stem = outer.path().join("x".repeat(100));
    std::fs::create_dir(&stem).unwrap();
    let mut lower = Vec::new();
    for number in 0..128 {
        let layer = stem.join(format!("{number}"));
        std::fs::create_dir(&layer).unwrap();
        std::fs::write(layer.join(format!("f{number}")), b"").unwrap();
        lower.push(layer.to_str().unwrap().to_owned());
    }
    for name in ["upper", "work", "point"] {
        std::fs::create_dir(outer.path().join(name)).unwrap();
    }
    let option = |key: &str, name: &str| format!("{key}={}", outer.path().join(name).display());
    let lower = format!("lowerdir={}", lower.join(":"));
    let overlay = a_mount("overlay", "overlay", &[&option("workdir", "work"), &option("upperdir", "upper"), &lower]);
    let point = outer.path().join("point");
    mount(&[overlay], &point).unwrap();
    let count = std::fs::read_dir(&point).unwrap().count();
    let write = std::fs::write(point.join("new"), b"");
    unmount(&point).unwrap();
    assert_eq!(count, 128);
    write.unwrap();
    assert!(outer.path().join("upper/new").exists());
}

#[test]
fn a_mount_that_the_kernel_refuses_names_source_and_options_and_what_the_kernel_says() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let overlay = a_mount("overlay", "overlay", &["lowerdir=/nonexistent/layer"]);
    let error = mount(&[overlay], outer.path()).unwrap_err();
    assert!(error.message.contains("/nonexistent/layer"), "{error}");
    assert!(error.message.contains(outer.path().to_str().unwrap()), "{error}");
    let error = mount(&[a_mount("tmpfs", "tmpfs", &["size=nonsense"])], outer.path()).unwrap_err();
    assert!(error.message.contains("size") && error.message.contains("kernel"), "{error}");
    let error = mount(&[a_mount("nosuchfs", "x", &[])], outer.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(options_of(outer.path()).is_none());
}

#[test]
fn when_one_of_several_mounts_fails_none_stays() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let good = a_mount("tmpfs", "tmpfs", &["mode=700"]);
    let bad = a_mount("bind", "/nonexistent", &["rbind"]);
    assert!(mount(&[good.clone(), bad], outer.path()).is_err());
    assert!(options_of(outer.path()).is_none());
    mount(&[good.clone(), good], outer.path()).unwrap();
    unmount(outer.path()).unwrap();
    assert!(options_of(outer.path()).is_none(), "all that was stacked is gone");
}

#[test]
fn a_busy_mount_is_detached() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    mount(&[a_mount("tmpfs", "tmpfs", &[])], outer.path()).unwrap();
    let file = std::fs::File::create(outer.path().join("open")).unwrap();
    unmount(outer.path()).unwrap();
    assert!(options_of(outer.path()).is_none());
    drop(file);
}
