//! Lookups in a stack of layers.

use std::path::PathBuf;

use lamella_core::Kind;
use lamella_core::layer::{Follow, Merged, read_file};

use crate::archive::Archive;
use crate::{Place, format};

struct Stack(Vec<Place>);

/// Layers from the bottom up.
fn stack(layers: &[Vec<u8>]) -> Stack {
    let places = layers.iter().map(|archive| {
        let place = Place::new();
        place.apply(archive).unwrap();
        place
    });
    Stack(places.collect())
}

impl Stack {
    fn read(&self, path: &str) -> Option<String> {
        let layers: Vec<PathBuf> = self.0.iter().rev().map(|place| place.layer.clone()).collect();
        read_file(&layers, format(), path.as_bytes(), 1000).unwrap().map(|content| String::from_utf8(content).unwrap())
    }
}

#[test]
fn the_nearest_layer_wins_and_folders_merge() {
    let stack = stack(&[
        Archive::new().file("etc/passwd", b"1").file("etc/group", b"1").end(),
        Archive::new().file("etc/passwd", b"2").end(),
    ]);
    assert_eq!(stack.read("/etc/passwd").unwrap(), "2");
    assert_eq!(stack.read("etc/group").unwrap(), "1");
    assert_eq!(stack.read("etc/none"), None);
    assert_eq!(stack.read("etc"), None);
    assert_eq!(stack.read("/"), None);
    assert_eq!(stack.read("etc/passwd/x"), None);
}

#[test]
fn whiteouts_and_opaque_folders_hide() {
    let stack = stack(&[
        Archive::new().file("a/x", b"1").file("b/x", b"1").file("c", b"1").file("d/x", b"1").end(),
        Archive::new().file("a/.wh..wh..opq", b"").file("b/.wh.x", b"").file(".wh.c", b"").file(".wh.d", b"").end(),
        Archive::new().file("a/y", b"3").file("d/y", b"3").end(),
    ]);
    for path in ["a/x", "b/x", "c", "d/x"] {
        assert_eq!(stack.read(path), None, "{path}");
    }
    assert_eq!(stack.read("a/y").unwrap(), "3");
    assert_eq!(stack.read("d/y").unwrap(), "3");
}

#[test]
fn a_file_between_two_folders_parts_them() {
    let stack = stack(&[
        Archive::new().file("a/x", b"1").end(),
        Archive::new().file("a", b"file").end(),
        Archive::new().file("a/y", b"3").end(),
    ]);
    assert_eq!(stack.read("a/x"), None);
    assert_eq!(stack.read("a/y").unwrap(), "3");
}

#[test]
fn symlinks_resolve_inside_the_merged_root() {
    let stack = stack(&[
        Archive::new().file("usr/lib/x", b"x").symlink("lib", "/usr/lib").file("etc/passwd", b"image").end(),
        Archive::new()
            .symlink("up", "../../../../../../etc/passwd")
            .symlink("usr/lib/y", "../../lib/./x")
            .symlink("usr/lib/z", "/etc/passwd")
            .symlink("loop", "loop")
            .symlink("root", "/")
            .end(),
    ]);
    assert_eq!(stack.read("lib/x").unwrap(), "x");
    assert_eq!(stack.read("lib/y").unwrap(), "x");
    assert_eq!(stack.read("up").unwrap(), "image");
    assert_eq!(stack.read("lib/z").unwrap(), "image");
    assert_eq!(stack.read("root/root/etc/passwd").unwrap(), "image");
    assert_eq!(stack.read("root"), None);
    assert_eq!(stack.read("usr/../etc/passwd").unwrap(), "image");
    let layers: Vec<PathBuf> = stack.0.iter().rev().map(|place| place.layer.clone()).collect();
    assert_eq!(read_file(&layers, format(), b"loop", 10).unwrap_err().kind, Kind::InvalidArgument);
}

#[test]
fn a_file_longer_than_the_limit_is_an_error() {
    let stack = stack(&[Archive::new().file("f", &[b'x'; 1001]).file("g", &[b'x'; 1000]).end()]);
    let layers: Vec<PathBuf> = stack.0.iter().map(|place| place.layer.clone()).collect();
    assert_eq!(read_file(&layers, format(), b"f", 1000).unwrap_err().kind, Kind::ResourceExhausted);
    assert_eq!(read_file(&layers, format(), b"g", 1000).unwrap().unwrap().len(), 1000);
}

#[test]
fn one_lookup_after_another_finds_what_a_first_one_finds() {
    let stack = stack(&[
        Archive::new().file("a/b/c", b"1").file("a/d/c", b"1").symlink("l", "a/b").symlink("a/up", "../a/d").end(),
        Archive::new().file("a/b/x", b"2").file("a/d/.wh..wh..opq", b"").file("e/b/c", b"2").end(),
    ]);
    let layers: Vec<PathBuf> = stack.0.iter().rev().map(|place| place.layer.clone()).collect();
    let paths =
        ["a/b/c", "a/d/c", "a/d", "l/x", "l", "a/up/c", "e/b/c", "a", "a/b/../d", "e/../a/b/x", "", "a/b/c/x", "b/c"];
    let known = Merged::open(&layers, format()).unwrap();
    for (first, second, follow) in paths.iter().flat_map(|first| {
        paths.iter().flat_map(move |second| [Follow::All, Follow::Parents, Follow::Never].map(|f| (first, second, f)))
    }) {
        let seen = |merged: &Merged, path: &str| {
            let found = merged.lookup(path.as_bytes(), follow).unwrap();
            found.map(|found| (found.path, found.name, found.stat.st_ino))
        };
        seen(&known, first);
        let fresh = Merged::open(&layers, format()).unwrap();
        assert_eq!(seen(&known, second), seen(&fresh, second), "{second} after {first}, {follow:?}");
        assert_eq!(known.canonical(second.as_bytes()).unwrap(), fresh.canonical(second.as_bytes()).unwrap());
    }
}
