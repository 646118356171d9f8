//! Deletions of what lower layers have.

use lamella_core::layer::WhiteoutFormat;

use crate::archive::Archive;
use crate::{Place, apply_to, privileged, tree};

#[test]
fn a_whiteout_becomes_the_device_that_overlayfs_knows() {
    let place = Place::new();
    place.apply(&Archive::new().file("d/.wh.gone", b"").file("d/stays", b"").end()).unwrap();
    assert_eq!(place.listing(), ["d d", "d/gone w", "d/stays f"]);
}

#[test]
fn a_whiteout_speaks_of_lower_layers_only_wherever_it_stands() {
    for archive in
        [Archive::new().file("a", b"new").file(".wh.a", b""), Archive::new().file(".wh.a", b"").file("a", b"new")]
    {
        let place = Place::new();
        place.apply(&archive.end()).unwrap();
        assert_eq!(place.listing(), ["a f"]);
    }
}

#[test]
fn names_of_every_length_can_be_deleted() {
    let name = "n".repeat(255);
    let archive = Archive::new().pax(&[("path", format!(".wh.{name}").as_bytes())]).file("short", b"").end();
    let place = Place::new();
    place.apply(&archive).unwrap();
    assert_eq!(place.listing(), [format!("{name} w")]);
    std::fs::remove_file(place.layer.join(&name)).unwrap();
    std::fs::write(place.layer.join(&name), b"").unwrap();
    place.apply_as(&archive, WhiteoutFormat::Plain).unwrap();
    assert!(place.listing().is_empty());
}

#[test]
fn a_folder_and_a_whiteout_of_its_name_hide_the_lower_folder_in_either_order() {
    for archive in [
        Archive::new().folder("a").file("a/f", b"").file(".wh.a", b""),
        Archive::new().file(".wh.a", b"").folder("a").file("a/f", b""),
        Archive::new().file(".wh.a", b"").file("a/f", b""),
        Archive::new().file("a/f", b"").file(".wh.a", b""),
    ] {
        let place = Place::new();
        let deferred = place.apply(&archive.end()).unwrap().deferred;
        assert_eq!(place.listing(), ["a d!", "a/f f"]);
        assert!(deferred.folders.is_empty(), "its attributes owe nothing to the lower folder");
    }
}

#[test]
fn an_opaque_marker_works_before_and_after_its_siblings() {
    for archive in [
        Archive::new().folder("a").file("a/.wh..wh..opq", b"").file("a/f", b""),
        Archive::new().folder("a").file("a/f", b"").file("a/.wh..wh..opq", b""),
        Archive::new().file("a/.wh..wh..opq", b"").folder("a").file("a/f", b""),
    ] {
        let place = Place::new();
        place.apply(&archive.end()).unwrap();
        assert_eq!(place.listing(), ["a d!", "a/f f"]);
    }
}

#[test]
fn an_opaque_folder_that_the_tar_does_not_name_keeps_the_lower_attributes() {
    let place = Place::new();
    let deferred = place.apply(&Archive::new().file("a/.wh..wh..opq", b"").file("a/b/c", b"").end()).unwrap().deferred;
    // The marker hides what is in `a`, not `a` itself; nothing lower can show in `a/b`.
    assert_eq!(deferred.folders, [b"a".to_vec()]);
}

#[test]
fn an_opaque_root_is_reported() {
    for archive in [
        Archive::new().file(".wh..wh..opq", b"").file("a", b""),
        Archive::new().file("a", b"").file("./.wh..wh..opq", b""),
    ] {
        let place = Place::new();
        let applied = place.apply(&archive.end()).unwrap();
        assert!(applied.opaque_root);
        assert!(applied.deferred.root, "the marker hides what is in the root, not the root itself");
    }
    assert!(!Place::new().apply(&Archive::new().file("a", b"").end()).unwrap().opaque_root);
}

#[test]
fn whiteouts_that_hide_nothing_are_not_kept() {
    let archive = Archive::new().file("a/.wh.x", b"").file("b/.wh.x", b"").file("a/.wh..wh..opq", b"").end();
    let place = Place::new();
    let applied = place.apply(&archive).unwrap();
    assert_eq!(place.listing(), ["a d!", "b d", "b/x w"]);
    assert_eq!(applied.inodes, 4);
}

#[test]
fn a_folder_in_the_place_of_a_file_hides_what_was_below() {
    let place = Place::new();
    place.apply(&Archive::new().file("a", b"").folder("a").end()).unwrap();
    assert_eq!(place.listing(), ["a d!"]);
}

#[test]
fn the_user_format_marks_with_user_attributes() {
    let place = Place::new();
    let archive = Archive::new().file("a/.wh..wh..opq", b"").file(".wh.b", b"").end();
    place.apply_as(&archive, WhiteoutFormat::OverlayUserXattr).unwrap();
    assert_eq!(tree::items(&place.layer)["a"].xattrs, [("user.overlay.opaque".to_owned(), b"y".to_vec())]);
    assert_eq!(place.listing(), ["a d!", "b w"]);
}

#[test]
fn bookkeeping_of_aufs_is_left_out() {
    let place = Place::new();
    let archive = Archive::new().folder(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"").file(".wh..wh.aufs", b"").end();
    let applied = place.apply(&archive).unwrap();
    assert!(place.listing().is_empty());
    assert_eq!(applied.notes.len(), 3);
}

/// A copy of a lower layer to apply to.
fn copy() -> Place {
    let place = Place::new();
    let lower = Archive::new()
        .folder_of_mode("d", 0o711)
        .file("d/old", b"")
        .folder("d/sub")
        .file("d/sub/deep", b"")
        .file("file", b"old")
        .symlink("link", "d")
        .end();
    place.apply(&lower).unwrap();
    place
}

#[test]
fn plain_whiteouts_delete_in_place() {
    let cases: [(Archive, &[&str]); 8] = [
        (Archive::new().file(".wh.d", b""), &["file f", "link l"]),
        (
            Archive::new().file(".wh.file", b"").file(".wh.nothing", b""),
            &["d d", "d/old f", "d/sub d", "d/sub/deep f", "link l"],
        ),
        (Archive::new().file("d/new", b"").file("d/.wh..wh..opq", b""), &["d d", "d/new f", "file f", "link l"]),
        (Archive::new().file("d/.wh..wh..opq", b"").file("d/new", b""), &["d d", "d/new f", "file f", "link l"]),
        (
            Archive::new().file("d/sub/new", b"").file(".wh.d", b""),
            &["d d", "d/sub d", "d/sub/new f", "file f", "link l"],
        ),
        (Archive::new().file(".wh.d", b"").folder("d").file("d/x", b""), &["d d", "d/x f", "file f", "link l"]),
        (
            Archive::new().file("file", b"new").file(".wh.file", b"").file("link/new", b""),
            &["d d", "d/new f", "d/old f", "d/sub d", "d/sub/deep f", "file f", "link l"],
        ),
        (Archive::new().file(".wh..wh..opq", b"").file("only", b""), &["only f"]),
    ];
    for (number, (archive, expected)) in cases.into_iter().enumerate() {
        let place = copy();
        let applied = apply_to(&place.layer, &archive.end(), WhiteoutFormat::Plain).unwrap();
        assert_eq!(place.listing(), expected, "case {number}");
        assert!(applied.deferred.is_empty());
        let usage = lamella_core::tree::usage(&place.layer, &mut || Ok(())).unwrap();
        assert_eq!((applied.disk_bytes, applied.inodes), (usage.bytes, usage.inodes));
    }
}

#[test]
fn plain_layers_link_to_lower_files_and_keep_attributes_of_unnamed_folders() {
    let place = copy();
    let before = tree::items(&place.layer)["d"].clone();
    apply_to(&place.layer, &Archive::new().hard_link("d/h", "file").end(), WhiteoutFormat::Plain).unwrap();
    let items = tree::items(&place.layer);
    assert_eq!(items["d/h"].content, b"old");
    assert_eq!(items["d/h"].first_name, items["file"].first_name);
    assert_eq!((items["d"].mode, items["d"].mtime), (before.mode, before.mtime));
}

#[test]
fn a_mount_of_the_layers_shows_what_the_rules_say() {
    if !privileged() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let path = outer.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, point) = (folder("lower"), folder("upper"), folder("point"));
    let below = Archive::new()
        .file("kept", b"")
        .file("gone", b"")
        .file("d/old", b"")
        .file("o/old", b"")
        .file("swap/x", b"")
        .end();
    apply_to(&lower, &below, WhiteoutFormat::Overlay).unwrap();
    let above = Archive::new()
        .file(".wh.gone", b"")
        .file("d/new", b"")
        .file("o/new", b"")
        .file("o/.wh..wh..opq", b"")
        .file("swap", b"now a file")
        .folder("swap")
        .end();
    apply_to(&upper, &above, WhiteoutFormat::Overlay).unwrap();
    let option = format!("lowerdir={}:{}", upper.display(), lower.display());
    let mount = lamella_core::mount::Mount { kind: "overlay".into(), source: "overlay".into(), options: vec![option] };
    lamella_core::mount::mount(&[mount], &point).unwrap();
    let listing = tree::listing(&point);
    lamella_core::mount::unmount(&point).unwrap();
    assert_eq!(listing, ["d d", "d/new f", "d/old f", "kept f", "o d", "o/new f", "swap d"]);
}
