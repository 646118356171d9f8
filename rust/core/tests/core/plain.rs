//! The plain format: a layer is applied to a copy of what lies beneath it.

use lamella_core::Kind;
use lamella_core::layer::WhiteoutFormat;

use crate::archive::{Archive, Header};
use crate::{Place, tree};

fn place(lower: &[u8]) -> Place {
    let place = Place::new();
    place.apply_as(lower, WhiteoutFormat::Plain).unwrap();
    place
}

fn folder(path: &'static [u8], mode: u32) -> Header<'static> {
    Header { path, kind: b'5', mode, mtime: 7, ..Header::default() }
}

#[test]
fn nothing_shows_through_a_plain_folder_and_nothing_is_deferred() {
    let place = place(&Archive::new().file("a", b"1").end());
    let applied = place.apply_as(&Archive::new().file("b", b"2").end(), WhiteoutFormat::Plain).unwrap();
    assert!(applied.opaque_root && applied.deferred.is_empty());
    assert_eq!(place.listing(), ["a f", "b f"]);
}

#[test]
fn a_hard_link_may_stand_before_its_target_or_lead_to_such_a_link() {
    let place = place(&Archive::new().file("x", b"1").end());
    let upper = Archive::new().hard_link("d/one", "three").hard_link("two", "d/one").file("three", b"3").end();
    place.apply_as(&upper, WhiteoutFormat::Plain).unwrap();
    let items = tree::items(&place.layer);
    for name in ["d/one", "two", "three"] {
        assert_eq!((items[name].first_name.as_deref(), &items[name].content[..]), (Some("d/one"), &b"3"[..]));
    }
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    let place = place(&Archive::new().file("x", b"1").end());
    let error = place.apply_as(&Archive::new().hard_link("a", "none").end(), WhiteoutFormat::Plain).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    assert!(error.message.contains("'none'"), "{error}");
}

#[test]
fn a_folder_that_a_layer_does_not_name_takes_the_place_of_a_file() {
    let place = place(&Archive::new().file("a", b"1").symlink("link", "a").end());
    place.apply_as(&Archive::new().file("a/b", b"2").end(), WhiteoutFormat::Plain).unwrap();
    assert_eq!(place.listing(), ["a d", "a/b f", "link l"]);
    // Not where a symlink leads to a file.
    let place = self::place(&Archive::new().file("a", b"1").symlink("link", "a").end());
    assert!(place.apply_as(&Archive::new().file("link/b", b"2").end(), WhiteoutFormat::Plain).is_err());
}

#[test]
fn a_folder_whose_whiteout_comes_after_what_is_put_into_it_is_a_new_one() {
    let lower = Archive::new().entry(&folder(b"d", 0o2700), b"").file("d/old", b"1");
    for upper in
        [Archive::new().file("d/new", b"2").file(".wh.d", b""), Archive::new().file(".wh.d", b"").file("d/new", b"2")]
    {
        let place = place(&Archive::new().entry(&folder(b"d", 0o2700), b"").file("d/old", b"1").end());
        place.apply_as(&upper.end(), WhiteoutFormat::Plain).unwrap();
        let items = tree::items(&place.layer);
        assert_eq!(place.listing(), ["d d", "d/new f"]);
        assert_eq!((items["d"].mode, items["d"].mtime), (0o755, (0, 0)));
    }
    // One that the tar names keeps what the tar says.
    let place = place(&lower.end());
    let upper = Archive::new().entry(&folder(b"d", 0o711), b"").file("d/new", b"2").file(".wh.d", b"").end();
    place.apply_as(&upper, WhiteoutFormat::Plain).unwrap();
    assert_eq!(tree::items(&place.layer)["d"].mode, 0o711);
    assert_eq!(place.listing(), ["d d", "d/new f"]);
}
