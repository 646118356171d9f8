//! Archives, and folders to apply to, that would confuse the applier. Ways out of the layer folder: breakouts.rs.

use std::path::Path;

use lamella_core::Kind;
use lamella_core::layer::WhiteoutFormat;
use lamella_core::tar::Limits;

use crate::archive::{Archive, Header};
use crate::{Place, apply_to, tree};

fn formats() -> [WhiteoutFormat; 3] {
    [crate::format(), WhiteoutFormat::OverlayUserXattr, WhiteoutFormat::Plain]
}

/// The kind of the error, the same in every format.
fn refused(archive: Archive) -> Kind {
    let archive = archive.end();
    let kinds = formats().map(|format| Place::new().apply_as(&archive, format).unwrap_err().kind);
    assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{kinds:?}");
    kinds[0]
}

#[test]
fn long_components_and_deep_paths_are_refused() {
    let long = "x".repeat(256);
    assert_eq!(refused(Archive::new().pax(&[("path", long.as_bytes())]).file("a", b"")), Kind::InvalidArgument);
    let deep = "d/".repeat(600);
    assert_eq!(refused(Archive::new().pax(&[("path", deep.as_bytes())]).file("a", b"")), Kind::ResourceExhausted);
    // A symlink to oneself's child deepens without a long name.
    let mut archive = Archive::new().symlink("s", "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d");
    for level in 0..40 {
        archive = archive.symlink(&format!("{}s", "s/".repeat(level + 1)), "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d");
    }
    refused(archive);
}

#[test]
fn attributes_of_overlayfs_do_not_pass() {
    let archive = Archive::new()
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/victim"), ("SCHILY.xattr.user.overlay.metacopy", b"")])
        .folder("d")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .file("f", b"x")
        .end();
    for format in formats() {
        let place = Place::new();
        let applied = place.apply_as(&archive, format).unwrap();
        assert_eq!(applied.notes.len(), 3, "{:?}", applied.notes);
        assert!(tree::items(&place.layer).values().all(|item| item.xattrs.is_empty()));
    }
}

#[test]
fn a_forged_whiteout_device_is_refused() {
    let header = Header { path: b"x", kind: b'3', ..Header::default() };
    let place = Place::new();
    assert_eq!(place.apply(&Archive::new().entry(&header, b"").end()).unwrap_err().kind, Kind::Unsupported);
}

#[test]
fn a_folder_that_is_not_empty_is_not_applied_to() {
    let place = Place::new();
    std::fs::write(place.layer.join("x"), b"").unwrap();
    let error = place.apply(&Archive::new().file("a", b"").end()).unwrap_err();
    assert_eq!(error.kind, Kind::FailedPrecondition);
}

#[test]
fn a_layer_folder_that_is_a_symlink_is_not_followed() {
    let place = Place::new();
    let link = place.outer.path().join("link");
    std::os::unix::fs::symlink(&place.layer, &link).unwrap();
    assert!(apply_to(Path::new(&link), &Archive::new().file("a", b"").end(), crate::format()).is_err());
}

#[test]
fn limits_have_defaults() {
    let limits = Limits::default();
    assert!(limits.extension <= 1 << 20 && limits.entries > 1_000_000);
}
