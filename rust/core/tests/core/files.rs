//! Files of a container from outside: what goes in stays in, what comes out is what is there.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use lamella_core::files::{Input, Links, Output, Packing, Root, Unpacking, pack, unpack};
use lamella_core::{Kind, Result};
use rustix::fs::{MemfdFlags, SeekFrom};

use crate::archive::{Archive, Header};
use crate::tree::items;
use crate::{Place, privileged};

fn file(content: &[u8]) -> OwnedFd {
    let file = rustix::fs::memfd_create("archive", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(rustix::io::pwrite(&file, content, 0).unwrap(), content.len());
    file
}

fn into(root: &Root, folder: &[u8], archive: Vec<u8>, unpacking: Unpacking) -> Result<Vec<String>> {
    unpack(root, folder, unpacking, Input::new(file(&archive), &mut || Ok(())))
}

const AS_IT_SAYS: Unpacking = Unpacking { owner: None, devices: true };

/// Pack what is at a path; the archive's descriptor stands at its beginning.
fn packed(root: &Root, path: &[u8], name: &[u8], follow: bool) -> Result<(OwnedFd, Vec<String>)> {
    let target = file(b"");
    let kept = target.try_clone().unwrap();
    let notes = pack(root, path, Packing { name, follow }, Output::new(target, &mut || Ok(())))?;
    rustix::fs::seek(&kept, SeekFrom::Start(0)).unwrap();
    Ok((kept, notes))
}

/// A root with a folder, beside a file that is not to be reached, and symlinks that would lead there.
fn misleading() -> Place {
    let place = Place::new();
    fs::write(place.outer.path().join("secret"), b"outside").unwrap();
    fs::create_dir(place.layer.join("folder")).unwrap();
    let outside = place.outer.path().to_str().unwrap();
    for (name, target) in [("absolute", outside), ("up", ".."), ("far", "../../../../../.."), ("in", "/folder")] {
        symlink(target, place.layer.join(name)).unwrap();
    }
    place
}

fn outside_is_untouched(place: &Place) {
    let mut names: Vec<_> = fs::read_dir(place.outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["layer", "secret"]);
    assert_eq!(fs::read(place.outer.path().join("secret")).unwrap(), b"outside");
}

#[test]
fn symlinks_lead_on_inside_the_root_and_never_out() {
    let place = misleading();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    let archive = Archive::new().file("absolute/x", b"1").file("up/y", b"2").file("in/z", b"3").end();
    // Where an absolute one leads to there is nothing in the root: the archive ends there.
    into(&root, b"/", archive, AS_IT_SAYS).unwrap_err();
    let archive = Archive::new().file("up/y", b"2").file("far/w", b"4").file("in/z", b"3").end();
    into(&root, b"/", archive, AS_IT_SAYS).unwrap();
    for (name, content) in [("y", b"2"), ("w", b"4"), ("folder/z", b"3")] {
        assert_eq!(fs::read(place.layer.join(name)).unwrap(), content);
    }
    for path in [&b"absolute/secret"[..], b"up/secret", b"far/secret", b"/../secret", b"folder/../../secret"] {
        assert_eq!(root.find(path, true).unwrap_err().kind, Kind::NotFound);
        assert_eq!(packed(&root, path, b"x", true).unwrap_err().kind, Kind::NotFound);
    }
    outside_is_untouched(&place);
}

#[test]
fn a_symlink_at_the_place_of_an_entry_is_replaced_and_not_followed() {
    let place = misleading();
    symlink("../secret", place.layer.join("link")).unwrap();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    into(&root, b"/", Archive::new().file("link", b"new").end(), AS_IT_SAYS).unwrap();
    assert!(fs::symlink_metadata(place.layer.join("link")).unwrap().is_file());
    outside_is_untouched(&place);
}

#[test]
fn without_symlinks_a_path_with_one_is_refused() {
    let place = misleading();
    let root = Root::open(&place.layer, Links::None).unwrap();
    for path in ["in/z", "up/y"] {
        into(&root, b"/", Archive::new().file(path, b"1").end(), AS_IT_SAYS).unwrap_err();
    }
    into(&root, b"in", Archive::new().file("z", b"1").end(), AS_IT_SAYS).unwrap_err();
    assert_eq!(fs::read_dir(place.layer.join("folder")).unwrap().count(), 0);
    outside_is_untouched(&place);
}

#[test]
fn a_folder_beneath_is_a_root_of_its_own_unless_it_leads_out() {
    let place = misleading();
    symlink("..", place.layer.join("folder/back")).unwrap();
    symlink("folder", place.layer.join("way")).unwrap();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    for name in [&b"folder"[..], b"way", b"folder/back/way"] {
        let inner = root.beneath(name).unwrap();
        into(&inner, b"back", Archive::new().file("x", b"1").end(), AS_IT_SAYS).unwrap();
        fs::remove_file(place.layer.join("folder/x")).unwrap();
    }
    for name in [&b"absolute"[..], b"up", b"far", b"in", b"/folder", b"..", b"absent"] {
        root.beneath(name).unwrap_err();
    }
    outside_is_untouched(&place);
}

#[test]
fn names_that_lead_out_of_the_archive_are_refused() {
    let place = misleading();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    for path in ["../x", "a/../../x", "a/.."] {
        let error = into(&root, b"/", Archive::new().file(path, b"1").end(), AS_IT_SAYS).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{path}");
    }
    for target in ["../secret", "up/secret", "/../secret", "absolute/secret"] {
        into(&root, b"/", Archive::new().hard_link("link", target).end(), AS_IT_SAYS).unwrap_err();
    }
    outside_is_untouched(&place);
}

#[test]
fn a_folder_is_replaced_by_a_folder_only_and_keeps_its_content() {
    let place = misleading();
    fs::write(place.layer.join("folder/kept"), b"kept").unwrap();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    into(&root, b"/", Archive::new().folder_of_mode("folder", 0o700).file("folder/new", b"").end(), AS_IT_SAYS)
        .unwrap();
    assert_eq!(fs::read(place.layer.join("folder/kept")).unwrap(), b"kept");
    assert_eq!(fs::metadata(place.layer.join("folder")).unwrap().permissions().mode() & 0o7777, 0o700);
    for archive in [
        Archive::new().file("folder", b""),
        Archive::new().symlink("folder", "x"),
        Archive::new().folder("folder/kept"),
    ] {
        assert_eq!(into(&root, b"/", archive.end(), AS_IT_SAYS).unwrap_err().kind, Kind::FailedPrecondition);
    }
}

#[test]
fn what_gets_another_owner_loses_the_bits_that_were_for_the_first() {
    if !privileged() {
        return;
    }
    let place = Place::new();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    let header = Header { path: b"tool", mode: 0o6755, uid: 5, gid: 6, ..Header::default() };
    for (owner, mode) in [(None, 0o6755), (Some((5, 6)), 0o6755), (Some((7, 8)), 0o755)] {
        let archive = Archive::new().entry(&header, b"#!").end();
        into(&root, b"/", archive, Unpacking { owner, devices: true }).unwrap();
        let status = fs::metadata(place.layer.join("tool")).unwrap();
        assert_eq!((status.uid(), status.gid()), owner.unwrap_or((5, 6)));
        assert_eq!(status.mode() & 0o7777, mode);
    }
}

#[test]
fn devices_are_made_or_left_out_and_named() {
    if !privileged() {
        return;
    }
    let place = Place::new();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    let archive = || {
        let device = Header { path: b"null", kind: b'3', device: (1, 3), ..Header::default() };
        Archive::new().entry(&device, b"").file("beside", b"x").end()
    };
    let notes = into(&root, b"/", archive(), Unpacking { owner: None, devices: false }).unwrap();
    assert_eq!(notes, ["'null' is a device and was left out"]);
    assert!(!place.layer.join("null").exists() && place.layer.join("beside").exists());
    assert!(into(&root, b"/", archive(), AS_IT_SAYS).unwrap().is_empty());
    assert_eq!(fs::metadata(place.layer.join("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn what_is_packed_and_unpacked_is_the_same_tree() {
    let place = Place::new();
    let top = &place.layer;
    fs::create_dir_all(top.join("a/b")).unwrap();
    for name in [&b"new\nline"[..], b"not \xff utf-8", b" ", b"-rf"] {
        fs::write(top.join("a").join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    fs::hard_link(top.join("a/-rf"), top.join("a/b/again")).unwrap();
    symlink("nowhere\n", top.join("link")).unwrap();
    let holes = fs::File::create(top.join("holes")).unwrap();
    holes.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&holes, b"middle", 4 << 20).unwrap();
    rustix::fs::setxattr(top.join("a"), "user.mark", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let root = Root::open(top, Links::InRoot).unwrap();
    let (archive, notes) = packed(&root, b"/", b"copy", false).unwrap();
    assert!(notes.is_empty());
    let other = Place::new();
    let target = Root::open(&other.layer, Links::InRoot).unwrap();
    unpack(&target, b"/", AS_IT_SAYS, Input::new(archive, &mut || Ok(()))).unwrap();
    let copy = other.layer.join("copy");
    assert_eq!(items(top), items(&copy));
    assert!(fs::metadata(copy.join("holes")).unwrap().blocks() * 512 < 1 << 20, "holes are holes again");
}

#[test]
fn sockets_are_left_out_and_named_and_a_fifo_holds_nobody_up() {
    let place = Place::new();
    let _socket = std::os::unix::net::UnixListener::bind(place.layer.join("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, place.layer.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    let (archive, notes) = packed(&root, b"/", b"", false).unwrap();
    assert_eq!(notes, ["'socket' is a socket and was left out"]);
    let other = Place::new();
    let target = Root::open(&other.layer, Links::InRoot).unwrap();
    unpack(&target, b"/", AS_IT_SAYS, Input::new(archive, &mut || Ok(()))).unwrap();
    assert_eq!(names(&other.layer), ["fifo"]);
}

#[test]
fn whoever_stops_it_stops_it() {
    let place = Place::new();
    let root = Root::open(&place.layer, Links::InRoot).unwrap();
    let (reading, _writing) = rustix::pipe::pipe().unwrap(); // nothing ever comes
    let mut asked = 0;
    let mut check = || {
        asked += 1;
        if asked > 2 { Err(lamella_core::Error::cancelled()) } else { Ok(()) }
    };
    unpack(&root, b"/", AS_IT_SAYS, Input::new(reading, &mut check)).unwrap_err();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
