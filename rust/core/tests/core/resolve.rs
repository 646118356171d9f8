//! Finishing a layer with the layers beneath it.

use std::path::PathBuf;

use lamella_core::layer::{Deferred, resolve};
use lamella_core::{Kind, Result};

use crate::archive::{Archive, Header};
use crate::{Place, privileged, tree};

/// Apply layers from the bottom up and resolve the top one.
struct Stack {
    lowers: Vec<Place>,
    top: Place,
    deferred: Deferred,
}

fn stack(layers: &[Archive], top: Archive) -> Stack {
    let lowers = layers
        .iter()
        .rev()
        .map(|archive| {
            let place = Place::new();
            place.apply(&archive.clone().end()).unwrap();
            place
        })
        .collect();
    let place = Place::new();
    let deferred = place.apply(&top.end()).unwrap().deferred;
    Stack { lowers, top: place, deferred }
}

impl Stack {
    fn resolve(&self) -> Result<bool> {
        let lowers: Vec<PathBuf> = self.lowers.iter().map(|place| place.layer.clone()).collect();
        let first = resolve(&self.top.layer, &lowers, &self.deferred)?;
        let before = tree::items(&self.top.layer);
        let second = resolve(&self.top.layer, &lowers, &self.deferred)?;
        assert_eq!(tree::items(&self.top.layer), before, "doing it twice is harmless");
        assert_eq!(first, second);
        Ok(first)
    }
}

#[test]
fn unnamed_folders_get_the_attributes_of_the_nearest_lower_one() {
    if !privileged() {
        return;
    }
    let header = Header { path: b"a", kind: b'5', mode: 0o1777, uid: 3, gid: 4, mtime: 99, ..Header::default() };
    let lower = Archive::new().pax(&[("SCHILY.xattr.user.x", b"y")]).entry(&header, b"").folder_of_mode("a/b", 0o700);
    let stack = stack(&[Archive::new().folder_of_mode("a", 0o600), lower], Archive::new().file("a/b/c/d", b""));
    assert!(stack.resolve().unwrap());
    let items = tree::items(&stack.top.layer);
    let folder = &items["a"];
    assert_eq!((folder.mode, folder.owner, folder.mtime), (0o1777, (3, 4), (99, 0)));
    assert_eq!(folder.xattrs, [("user.x".to_owned(), b"y".to_vec())]);
    assert_eq!(items["a/b"].mode, 0o700);
    assert_eq!((items["a/b/c"].mode, items["a/b/c"].mtime), (0o755, (0, 0)));
}

#[test]
fn a_layer_that_leaves_only_its_root_open_looks_at_the_nearest_layer_alone() {
    let stack = stack(&[Archive::new().folder_of_mode("./", 0o700)], Archive::new().folder("a"));
    let lowers = [&stack.lowers[0].layer, &PathBuf::from("/nowhere")];
    assert!(resolve(&stack.top.layer, &lowers, &stack.deferred).unwrap());
    assert_eq!(tree::items(&stack.top.layer)["."].mode, 0o700);
}

#[test]
fn the_root_counts_only_when_the_lower_one_is_unusual() {
    if !privileged() {
        return;
    }
    let usual = stack(&[Archive::new().folder("b")], Archive::new().folder("a"));
    assert!(!usual.resolve().unwrap());
    for lower in [Archive::new().folder_of_mode("./", 0o700), Archive::new().folder("./")] {
        for top in [Archive::new().folder("a"), Archive::new().folder("a").file(".wh..wh..opq", b"")] {
            let unusual = stack(std::slice::from_ref(&lower), top);
            assert!(unusual.resolve().unwrap(), "its time alone is reason enough");
            let (root, wanted) = (&tree::items(&unusual.top.layer)["."], &tree::items(&unusual.lowers[0].layer)["."]);
            assert_eq!((root.mode, root.mtime), (wanted.mode, wanted.mtime));
        }
    }
    let alone = stack(&[], Archive::new().folder("a"));
    assert!(!alone.resolve().unwrap());
}

#[test]
fn a_layer_that_names_everything_depends_on_nothing() {
    let stack = stack(&[Archive::new().folder_of_mode("a", 0o700)], Archive::new().folder("./").folder("a"));
    assert!(!stack.resolve().unwrap());
    assert_eq!(tree::items(&stack.top.layer)["a"].mode, 0o755);
}

#[test]
fn linked_files_are_copied_up_under_their_own_name_too_and_stay_one_inode() {
    if !privileged() {
        return;
    }
    let header = Header { path: b"d/f", mode: 0o4755, uid: 9, mtime: 77, ..Header::default() };
    let lower = Archive::new()
        .folder_of_mode("d", 0o711)
        .pax(&[("SCHILY.xattr.user.x", b"y")])
        .entry(&header, b"content")
        .hard_link("g", "d/f");
    let top = Archive::new().folder("./").folder("new").hard_link("new/a", "d/f").hard_link("new/b", "g");
    let stack = stack(&[lower], top);
    assert!(stack.resolve().unwrap());
    assert_eq!(stack.top.listing(), ["d d", "d/f f", "new d", "new/a f", "new/b f"]);
    let items = tree::items(&stack.top.layer);
    let file = &items["new/a"];
    assert_eq!((file.mode, file.owner.0, file.mtime, file.content.as_slice()), (0o4755, 9, (77, 0), &b"content"[..]));
    assert_eq!(file.xattrs.len(), 1);
    assert!(items.values().filter(|item| item.kind == 'f').all(|item| item.first_name.as_deref() == Some("d/f")));
    assert_eq!((items["d"].mode, items["d"].mtime.0), (0o711, 1_500_000_000));
    assert_eq!(items["new"].mtime.0, 1_500_000_000);
}

#[test]
fn a_link_keeps_its_place_when_that_is_another_ones_target_or_on_the_way_to_one() {
    let lower = || Archive::new().file("f", b"f").file("g", b"g").file("s/x", b"x").symlink("l", "/");
    let content = |stack: &Stack| -> Vec<(String, String)> {
        let items = tree::items(&stack.top.layer).into_iter().filter(|(_, item)| item.kind == 'f');
        items.map(|(name, item)| (name, String::from_utf8(item.content).unwrap())).collect()
    };
    let expect = |top: Archive, expected: &[(&str, &str)]| {
        let stack = stack(&[lower()], top);
        assert!(stack.resolve().unwrap());
        let expected: Vec<_> = expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        assert_eq!(content(&stack), expected);
    };
    let top = || Archive::new().folder("./");
    expect(top().hard_link("f", "f"), &[("f", "f")]);
    expect(top().hard_link("a", "f").hard_link("f", "g"), &[("a", "f"), ("f", "g"), ("g", "g")]);
    expect(top().hard_link("f", "g").hard_link("g", "f"), &[("f", "g"), ("g", "g")]);
    expect(top().hard_link("s", "s/x"), &[("s", "x")]);
    expect(top().hard_link("a", "s/x").hard_link("s", "g"), &[("a", "x"), ("g", "g"), ("s", "g")]);
    // By way of a lower layer's symlink, too.
    expect(top().hard_link("a", "f").hard_link("l/f", "g"), &[("a", "f"), ("f", "g"), ("g", "g")]);
}

#[test]
fn a_deleted_target_is_linked_but_not_shown_again() {
    let lower = || Archive::new().file("old", b"content").file("d/old", b"content");
    let renamed = stack(&[lower()], Archive::new().folder("./").hard_link("new", "old").file(".wh.old", b""));
    assert!(renamed.resolve().unwrap());
    assert_eq!(renamed.top.listing(), ["new f", "old w"]);
    let opaque = stack(
        &[lower()],
        Archive::new().folder("./").hard_link("new", "d/old").folder("d").file("d/.wh..wh..opq", b""),
    );
    assert!(opaque.resolve().unwrap());
    assert_eq!(opaque.top.listing(), ["d d!", "new f"]);
}

#[test]
fn symlinks_of_lower_layers_are_followed_to_a_target() {
    let lower = Archive::new().file("usr/bin/tool", b"t").symlink("bin", "usr/bin");
    let stack = stack(&[lower], Archive::new().folder("./").hard_link("alias", "bin/tool"));
    assert!(stack.resolve().unwrap());
    assert_eq!(stack.top.listing(), ["alias f", "usr d", "usr/bin d", "usr/bin/tool f"]);
}

#[test]
fn links_to_symlinks_and_devices_copy_those() {
    if !privileged() {
        return;
    }
    let device = Header { path: b"null", kind: b'3', device: (1, 3), mode: 0o666, ..Header::default() };
    let lower = Archive::new().symlink("s", "nowhere").entry(&device, b"");
    let stack = stack(&[lower], Archive::new().folder("./").hard_link("a", "s").hard_link("b", "null"));
    stack.resolve().unwrap();
    let items = tree::items(&stack.top.layer);
    assert_eq!((items["a"].kind, items["a"].content.as_slice()), ('l', &b"nowhere"[..]));
    assert_eq!((items["b"].kind, items["b"].device, items["b"].mode), ('c', 0x103, 0o666));
}

#[test]
fn a_target_that_is_nowhere_is_an_error() {
    for top in [Archive::new().hard_link("a", "missing"), Archive::new().hard_link("a", "../etc/passwd/../x")] {
        let place = Place::new();
        let Ok(applied) = place.apply(&top.end()) else { continue };
        let error = resolve::<PathBuf>(&place.layer, &[], &applied.deferred).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
        assert!(error.message.contains("missing"), "{error}");
    }
    let folder = stack(&[Archive::new().folder("d")], Archive::new().hard_link("a", "d"));
    assert_eq!(folder.resolve().unwrap_err().kind, Kind::InvalidArgument);
    let deleted =
        stack(&[Archive::new().file("f", b""), Archive::new().file(".wh.f", b"")], Archive::new().hard_link("a", "f"));
    assert_eq!(deleted.resolve().unwrap_err().kind, Kind::InvalidArgument);
}

#[test]
fn a_target_that_the_layer_names_after_its_link_is_found() {
    let stack = stack(&[], Archive::new().folder("./").hard_link("a", "b").file("b", b"late"));
    stack.resolve().unwrap();
    assert_eq!(tree::items(&stack.top.layer)["a"].content, b"late");
}

#[test]
fn unnamed_folders_that_are_symlinks_below_lead_where_those_lead() {
    let lower = Archive::new().folder_of_mode("usr/lib", 0o711).file("usr/lib/old", b"").symlink("lib", "usr/lib");
    let top = Archive::new().folder("./").file("lib/new", b"n").file("lib/sub/deep", b"d").file("lib/.wh.old", b"");
    let stack = stack(&[lower], top);
    assert!(stack.resolve().unwrap());
    let expected = ["usr d", "usr/lib d", "usr/lib/new f", "usr/lib/old w", "usr/lib/sub d", "usr/lib/sub/deep f"];
    assert_eq!(stack.top.listing(), expected);
    assert_eq!(tree::items(&stack.top.layer)["usr/lib"].mode, 0o711);
}

#[test]
fn what_moves_merges_with_what_is_there() {
    let lower = Archive::new().folder("usr/lib/d").symlink("lib", "/usr/lib");
    let top = Archive::new()
        .folder("./")
        .folder("usr/lib")
        .file("usr/lib/same", b"own")
        .folder("usr/lib/d")
        .file("usr/lib/d/one", b"")
        .file("lib/same", b"moved")
        .file("lib/d/two", b"")
        .file("lib/three", b"");
    let stack = stack(&[lower], top);
    assert!(stack.resolve().unwrap());
    let items = tree::items(&stack.top.layer);
    let names: Vec<&str> = items.keys().map(String::as_str).collect();
    let expected =
        [".", "usr", "usr/lib", "usr/lib/d", "usr/lib/d/one", "usr/lib/d/two", "usr/lib/same", "usr/lib/three"];
    assert_eq!(names, expected);
    assert_eq!(items["usr/lib/same"].content, b"own");
    assert_eq!(items["usr/lib"].mtime.0, 1_500_000_000);
}

#[test]
fn a_folder_by_two_names_is_what_the_tar_says_of_either() {
    if !privileged() {
        return;
    }
    let lower = || {
        let folder = Archive::new().folder("usr/lib").folder_of_mode("usr/lib/d", 0o711).file("usr/lib/d/old", b"");
        folder.symlink("lib", "/usr/lib")
    };
    let expect = |top: Archive, mode: u32, listing: &[&str]| {
        let stack = stack(&[lower()], top);
        assert!(stack.resolve().unwrap());
        assert_eq!(tree::items(&stack.top.layer)["usr/lib/d"].mode, mode);
        assert_eq!(stack.top.listing(), [&["usr d", "usr/lib d"], listing].concat());
    };
    let files = ["usr/lib/d d", "usr/lib/d/one f", "usr/lib/d/two f"];
    let one = || Archive::new().folder("./").file("usr/lib/d/one", b"");
    expect(one().file("lib/d/two", b""), 0o711, &files);
    expect(one().folder_of_mode("usr/lib/d", 0o700).file("lib/d/two", b""), 0o700, &files);
    expect(one().folder_of_mode("lib/d", 0o700).file("lib/d/two", b""), 0o700, &files);
    expect(one().file("lib/d/.wh..wh..opq", b""), 0o711, &["usr/lib/d d!", "usr/lib/d/one f"]);
    expect(Archive::new().folder("./").folder_of_mode("lib/d", 0o700), 0o700, &["usr/lib/d d"]);
}

#[test]
fn what_moves_may_belong_where_it_stood() {
    let lower = Archive::new().symlink("root", "/").folder("d");
    let top = Archive::new().folder("./").file("root/root/root/f", b"f").file("root/d/g", b"g").file("root/.wh.h", b"");
    let stack = stack(&[lower], top);
    let root = tree::items(&stack.top.layer)["."].mtime;
    assert!(stack.resolve().unwrap());
    assert_eq!(stack.top.listing(), ["d d", "d/g f", "f f", "h w"]);
    assert_eq!(tree::items(&stack.top.layer)["."].mtime, root);
}

#[test]
fn links_and_their_targets_may_be_named_by_way_of_lower_symlinks() {
    let lower = || Archive::new().file("usr/lib/f", b"old").symlink("lib", "usr/lib");
    let content = |top: Archive, path: &str| {
        let stack = stack(&[lower()], top);
        assert!(stack.resolve().unwrap());
        let items = tree::items(&stack.top.layer);
        assert_eq!(items["h"].first_name.as_deref(), Some("h"));
        assert_eq!(items[path].first_name.as_deref(), Some("h"), "{path}");
        String::from_utf8(items["h"].content.clone()).unwrap()
    };
    let top = || Archive::new().folder("./");
    assert_eq!(content(top().file("usr/lib/f", b"new").hard_link("h", "lib/f"), "usr/lib/f"), "new");
    assert_eq!(content(top().file("lib/f", b"new").hard_link("h", "usr/lib/f"), "usr/lib/f"), "new");
    assert_eq!(content(top().file("usr/lib/g", b"new").hard_link("h", "lib/g"), "usr/lib/g"), "new");
    assert_eq!(content(top().hard_link("h", "lib/f"), "usr/lib/f"), "old");
    assert_eq!(content(top().hard_link("lib/h", "lib/f").hard_link("h", "usr/lib/f"), "usr/lib/h"), "old");
    // To the symlink itself, through which the tar goes besides.
    let stack = stack(&[lower()], top().file("lib/new", b"").hard_link("h", "lib"));
    assert!(stack.resolve().unwrap());
    assert_eq!(stack.top.listing(), ["h l", "lib l", "usr d", "usr/lib d", "usr/lib/new f"]);
}

#[test]
fn a_target_in_a_folder_that_takes_the_place_of_a_lower_symlink_is_found() {
    let lower = Archive::new().symlink("root", "/").symlink("s", "nowhere");
    let top = Archive::new().folder("./").folder("root/s").file("root/s/t", b"new").hard_link("h", "s/t");
    let stack = stack(&[lower], top);
    assert!(stack.resolve().unwrap());
    assert_eq!(stack.top.listing(), ["h f", "s d", "s/t f"]);
    assert_eq!(tree::items(&stack.top.layer)["s/t"].first_name.as_deref(), Some("h"));
}

#[test]
fn a_folder_by_two_names_is_what_the_tar_says_also_where_nothing_beneath_is_seen() {
    let lower = Archive::new().symlink("root", "/").folder("d");
    let top =
        Archive::new().folder("./").file("d/.wh..wh..opq", b"").folder_of_mode("root/d/n", 0o700).file("d/n/f", b"");
    let stack = stack(&[lower], top);
    assert!(stack.resolve().unwrap());
    assert_eq!(stack.top.listing(), ["d d!", "d/n d", "d/n/f f"]);
    assert_eq!(tree::items(&stack.top.layer)["d/n"].mode & 0o7777, 0o700);
}

#[test]
fn a_named_folder_takes_the_place_of_a_lower_symlink() {
    let lower = Archive::new().file("usr/lib/old", b"").symlink("lib", "usr/lib");
    let stack = stack(&[lower], Archive::new().folder("./").folder("lib").file("lib/x/new", b""));
    stack.resolve().unwrap();
    assert_eq!(stack.top.listing(), ["lib d", "lib/x d", "lib/x/new f"]);
}

#[test]
fn lower_symlinks_never_lead_out_of_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let target = outside.path().to_str().unwrap();
    let lower = || Archive::new().symlink("out", target).symlink("up", &format!("../../../../../../..{target}"));
    for name in ["out", "up"] {
        let linked = stack(&[lower()], Archive::new().hard_link("a", &format!("{name}/secret")));
        assert_eq!(linked.resolve().unwrap_err().kind, Kind::InvalidArgument);
        let moved = stack(&[lower()], Archive::new().file(&format!("{name}/secret"), b"evil"));
        moved.resolve().unwrap();
    }
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_lower_symlink_to_a_file_or_to_itself_is_no_parent() {
    let file = stack(&[Archive::new().file("f", b"").symlink("l", "f")], Archive::new().file("l/x", b""));
    assert_eq!(file.resolve().unwrap_err().kind, Kind::InvalidArgument);
    let own = stack(&[Archive::new().symlink("l", "l/sub")], Archive::new().file("l/x", b""));
    assert_eq!(own.resolve().unwrap_err().kind, Kind::InvalidArgument);
}
