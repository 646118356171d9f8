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

/// Make so many layers, each with a file, below a folder; give the overlay of them.
fn an_overlay(top: &Path, layers: usize) -> Mount {
    let folder = |name: String| {
        std::fs::create_dir_all(top.join(&name)).unwrap();
        top.join(name).to_str().unwrap().to_owned()
    };
    let lower: Vec<String> = (0..layers).map(|number| folder(format!("{number}/fs"))).collect();
    for (number, layer) in lower.iter().enumerate() {
        std::fs::write(format!("{layer}/f{number}"), b"").unwrap();
    }
    let (work, upper) = (folder("work".into()), folder("upper".into()));
    let options = [format!("workdir={work}"), format!("upperdir={upper}"), format!("lowerdir={}", lower.join(":"))];
    a_mount("overlay", "overlay", &options.each_ref().map(String::as_str))
}

#[test]
fn an_overlay_has_as_many_layers_as_the_kernel_stacks_however_long_their_paths_are() {
    if !privileged() {
        return;
    }
    // Beyond 255 bytes a path takes a descriptor, which the kernel has since 6.13.
    let outer = tempfile::tempdir().unwrap();
    for (layers, length) in [(128, 200), (500, 600)] {
        let names: Vec<String> = (0..length / 100).map(|_| "x".repeat(99)).collect();
        let top = outer.path().join(format!("{layers}-{}", names.join("/")));
        let (overlay, point) = (an_overlay(&top, layers), top.join("point"));
        std::fs::create_dir(&point).unwrap();
        mount(&[overlay], &point).unwrap();
        let count = std::fs::read_dir(&point).unwrap().count();
        let write = std::fs::write(point.join("new"), b"");
        unmount(&point).unwrap();
        assert_eq!(count, layers);
        write.unwrap();
        assert!(top.join("upper/new").exists());
    }
    let error = mount(&[an_overlay(&outer.path().join("more"), 501)], outer.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("501 lower folders; the kernel stacks 500"), "{error}");
    assert!(error.message.len() < 2000, "{error}");
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
