//! Archives that try to get out of the layer's folder, or to confuse the applier. Nothing outside may change.

use std::path::Path;

use lamella_core::Kind;
use lamella_core::layer::WhiteoutFormat;
use lamella_core::tar::Limits;

use crate::archive::{Archive, Header};
use crate::{Place, apply_to, tree};

fn formats() -> [WhiteoutFormat; 3] {
    [crate::format(), WhiteoutFormat::OverlayUserXattr, WhiteoutFormat::Plain]
}

/// Apply beside a victim folder; the victim must stay as it was. Returns the result and what the layer then holds.
fn attack(archive: &[u8]) -> Vec<(lamella_core::Result<()>, Vec<String>)> {
    formats()
        .iter()
        .map(|format| {
            let place = Place::new();
            let victim = place.outer.path().join("victim");
            std::fs::create_dir(&victim).unwrap();
            std::fs::write(victim.join("file"), b"untouched").unwrap();
            std::os::unix::fs::symlink("file", victim.join("link")).unwrap();
            let before = tree::items(&victim);
            let result = apply_to(&place.layer, archive, *format).map(|_| ());
            assert_eq!(tree::items(&victim), before, "{format:?} changed what lies outside");
            let names: Vec<_> =
                std::fs::read_dir(place.outer.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{format:?} made something outside: {names:?}");
            (result, place.listing())
        })
        .collect()
}

fn refused(archive: &[u8], kind: Kind) {
    for (result, _) in attack(archive) {
        assert_eq!(result.unwrap_err().kind, kind);
    }
}

fn harmless(archive: &[u8], expected: &[&str]) {
    for (result, listing) in attack(archive) {
        result.unwrap();
        assert_eq!(listing, expected);
    }
}

#[test]
fn absolute_names_are_taken_as_relative() {
    harmless(&Archive::new().file("/etc/passwd", b"x").end(), &["etc d", "etc/passwd f"]);
}

#[test]
fn dot_dot_is_refused_wherever_it_stands() {
    for path in ["../victim/file", "a/../../victim/file", "/../victim/file", "a/..", "..", "./../x"] {
        refused(&Archive::new().file(path, b"x").end(), Kind::InvalidArgument);
        refused(&Archive::new().folder(path).end(), Kind::InvalidArgument);
        refused(&Archive::new().file("t", b"").hard_link("l", path).end(), Kind::InvalidArgument);
    }
    refused(&Archive::new().file("../victim/.wh.file", b"").end(), Kind::InvalidArgument);
}

#[test]
fn a_symlinked_parent_leads_inside_the_layer_only() {
    for target in ["../victim", "/victim", "../../../../../../victim", "x/../../victim"] {
        for (result, listing) in attack(&Archive::new().symlink("out", target).file("out/file", b"evil").end()) {
            result.unwrap();
            assert!(listing.contains(&"victim/file f".to_owned()), "{listing:?}");
        }
    }
}

#[test]
fn a_parent_that_becomes_a_symlink_midway_leads_inside_too() {
    let archive = Archive::new()
        .folder("a")
        .file("a/one", b"1")
        .symlink("a", "../victim")
        .file("a/file", b"evil")
        .folder("a/link")
        .end();
    harmless(&archive, &["a l", "victim d", "victim/file f", "victim/link d"]);
}

#[test]
fn a_symlink_that_becomes_a_folder_later_is_replaced_by_one() {
    let archive = Archive::new().symlink("a", "../victim").folder("a").file("a/file", b"x").end();
    for (result, listing) in attack(&archive) {
        result.unwrap();
        assert!(listing.iter().any(|line| line.starts_with("a d")), "{listing:?}");
        assert!(listing.contains(&"a/file f".to_owned()));
    }
}

#[test]
fn files_do_not_write_through_symlinks() {
    harmless(&Archive::new().symlink("a", "../victim/file").file("a", b"evil").end(), &["a f"]);
    harmless(&Archive::new().symlink("a", "/etc/passwd").file("a", b"evil").end(), &["a f"]);
}

#[test]
fn hard_links_neither_reach_nor_follow_anything_outside() {
    // The target is looked for inside the layer; to the plain format it is missing, to the others it lies beneath.
    for (result, listing) in attack(&Archive::new().hard_link("a", "/victim/file").end()) {
        assert!(result.is_err() || listing.is_empty(), "{listing:?}");
    }
    // A link to a symlink is a link to the symlink.
    let archive = Archive::new().symlink("s", "../victim/file").hard_link("h", "s").file("h", b"evil").end();
    harmless(&archive, &["h f", "s l"]);
    for (result, listing) in attack(&Archive::new().symlink("s", "../victim").hard_link("h", "s/file").end()) {
        assert!(result.is_err() || listing == ["s l"], "{listing:?}");
    }
}

#[test]
fn a_hard_link_to_a_folder_or_the_root_is_refused() {
    refused(&Archive::new().folder("d").hard_link("h", "d").end(), Kind::InvalidArgument);
    refused(&Archive::new().hard_link("h", "/").end(), Kind::InvalidArgument);
    refused(&Archive::new().hard_link("h", "").end(), Kind::InvalidArgument);
}

#[test]
fn the_root_stays_a_folder() {
    for path in [".", "./", "/", ""] {
        refused(&Archive::new().symlink(path, "../victim").end(), Kind::InvalidArgument);
        refused(&Archive::new().file(path, b"x").end(), Kind::InvalidArgument);
        refused(&Archive::new().hard_link(path, "x").end(), Kind::InvalidArgument);
    }
}

#[test]
fn whiteouts_that_name_nothing_or_a_way_out_are_refused() {
    for path in [".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh.b/c"] {
        refused(&Archive::new().file(path, b"").end(), Kind::InvalidArgument);
    }
}

#[test]
fn whiteouts_through_a_symlink_stay_inside() {
    for (result, _) in attack(&Archive::new().symlink("out", "../victim").file("out/.wh.file", b"").end()) {
        result.unwrap();
    }
    for (result, _) in attack(&Archive::new().symlink("out", "../victim").file("out/.wh..wh..opq", b"").end()) {
        result.unwrap();
    }
}

#[test]
fn folders_do_not_change_attributes_through_symlinks() {
    // The root of the layer is named after a symlink to the victim exists under several names.
    let archive = Archive::new()
        .symlink("victim", "../victim")
        .folder_of_mode("./", 0o700)
        .folder_of_mode("sub", 0o711)
        .symlink("sub", "../victim")
        .end();
    for (result, listing) in attack(&archive) {
        result.unwrap();
        assert_eq!(listing, ["sub l", "victim l"]);
    }
}

#[test]
fn a_file_on_the_way_is_an_error() {
    refused(&Archive::new().file("a", b"").file("a/b", b"").end(), Kind::InvalidArgument);
}

#[test]
fn symlinks_that_loop_are_an_error() {
    let archive = Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end();
    refused(&archive, Kind::InvalidArgument);
}

#[test]
fn long_components_and_deep_paths_are_refused() {
    let long = "x".repeat(256);
    refused(&Archive::new().pax(&[("path", long.as_bytes())]).file("a", b"").end(), Kind::InvalidArgument);
    let deep = "d/".repeat(600);
    refused(&Archive::new().pax(&[("path", deep.as_bytes())]).file("a", b"").end(), Kind::ResourceExhausted);
    // A symlink to oneself's child deepens without a long name.
    let mut archive = Archive::new().symlink("s", "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d");
    for level in 0..40 {
        archive = archive.symlink(&format!("{}s", "s/".repeat(level + 1)), "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d");
    }
    for (result, _) in attack(&archive.end()) {
        result.unwrap_err();
    }
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
