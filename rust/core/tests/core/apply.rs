//! Entries become inodes with the attributes that the tar gives them.

use std::os::unix::fs::MetadataExt;

use lamella_core::Kind;
use lamella_core::layer::{Applier, WhiteoutFormat, resolve};
use lamella_core::tar::{Limits, Reader};

use crate::archive::{Archive, Header};
use crate::{Place, privileged, tree};

#[test]
fn files_folders_and_links_are_made_with_their_attributes() {
    if !privileged() {
        return;
    }
    let header = Header { path: b"d/f", mode: 0o4751, uid: 70_000, gid: 3_000_000_000, ..Header::default() };
    let archive = Archive::new()
        .folder_of_mode("d", 0o2750)
        .pax(&[("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.test", b"value")])
        .entry(&header, b"content")
        .hard_link("h", "d/f")
        .entry(&Header { path: b"s", kind: b'2', link: b"d/f", uid: 5, gid: 6, ..Header::default() }, b"")
        .entry(&Header { path: b"p", kind: b'6', mode: 0o622, ..Header::default() }, b"")
        .entry(&Header { path: b"c", kind: b'3', mode: 0o666, device: (1, 3), ..Header::default() }, b"")
        .end();
    let place = Place::new();
    let applied = place.apply(&archive).unwrap();
    assert!(applied.notes.is_empty(), "{:?}", applied.notes);
    let items = tree::items(&place.layer);
    let file = &items["d/f"];
    assert_eq!((file.kind, file.mode, file.owner), ('f', 0o4751, (70_000, 3_000_000_000)));
    assert_eq!(file.mtime, (1_234_567_890, 123_456_789));
    assert_eq!(file.xattrs, [("user.test".to_owned(), b"value".to_vec())]);
    assert_eq!(items["h"].first_name.as_deref(), Some("d/f"));
    let folder = &items["d"];
    assert_eq!((folder.mode, folder.mtime), (0o2750, (1_500_000_000, 0)));
    let link = &items["s"];
    assert_eq!((link.content.as_slice(), link.owner, link.mtime.0), (&b"d/f"[..], (5, 6), 1_500_000_000));
    assert_eq!((items["p"].kind, items["p"].mode), ('p', 0o622));
    assert_eq!((items["c"].kind, items["c"].mode, items["c"].device), ('c', 0o666, 0x103));
}

#[test]
fn capabilities_survive_the_change_of_owner() {
    if !privileged() {
        return;
    }
    let capability = b"\x01\0\0\x02\x00\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = Archive::new()
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .entry(&Header { path: b"ping", mode: 0o755, uid: 7, gid: 7, ..Header::default() }, b"elf")
        .end();
    let place = Place::new();
    place.apply(&archive).unwrap();
    let items = tree::items(&place.layer);
    assert_eq!(items["ping"].xattrs, [("security.capability".to_owned(), capability.to_vec())]);
    assert_eq!((items["ping"].owner, items["ping"].mode), ((7, 7), 0o755));
}

/// A POSIX ACL (linux/posix_acl_xattr.h): the group's bits of a mode are its mask.
fn acl(owner: u8, user: u8, mask: u8) -> Vec<u8> {
    let entry = |tag: u8, permissions: u8, id: u32| [&[tag, 0, permissions, 0][..], &id.to_le_bytes()].concat();
    let rest = [entry(4, 0, u32::MAX), entry(16, mask, u32::MAX), entry(32, 0, u32::MAX)].concat();
    [&[2, 0, 0, 0][..], &entry(1, owner, u32::MAX), &entry(2, user, 1234), &rest].concat()
}

#[test]
fn acls_are_kept_and_what_is_made_in_a_folder_does_not_inherit_its() {
    if !privileged() {
        return;
    }
    let (access, default) = (acl(7, 5, 5), acl(7, 7, 7));
    let acls =
        [("SCHILY.xattr.system.posix_acl_access", &access[..]), ("SCHILY.xattr.system.posix_acl_default", &default)];
    let both = [
        ("system.posix_acl_access".to_owned(), access.clone()),
        ("system.posix_acl_default".to_owned(), default.clone()),
    ];
    let lower = Archive::new()
        .pax(&acls)
        .folder_of_mode("d", 0o2750)
        .pax(&acls[..1])
        .entry(&Header { path: b"f", mode: 0o750, ..Header::default() }, b"")
        .end();
    let upper = Archive::new()
        .file("d/f", b"x")
        .folder("d/sub")
        .file("d/sub/g", b"")
        .hard_link("d/h", "f")
        .file("d/unnamed/k", b"")
        .end();
    // All in one folder, and in one folder a layer.
    let (plain, below, above) = (Place::new(), Place::new(), Place::new());
    below.apply(&lower).unwrap();
    let deferred = above.apply(&upper).unwrap().deferred;
    resolve(&above.layer, &[&below.layer], &deferred).unwrap();
    for archive in [&lower, &upper] {
        plain.apply_as(archive, WhiteoutFormat::Plain).unwrap();
    }
    for place in [&plain, &above] {
        let items = tree::items(&place.layer);
        assert_eq!((items["d"].mode, items["d"].xattrs.as_slice()), (0o2750, &both[..]));
        assert_eq!((items["f"].mode, items["f"].xattrs.as_slice()), (0o750, &both[..1]));
        assert_eq!(items["d/h"].xattrs, items["f"].xattrs);
        for (path, mode) in
            [("d/f", 0o644), ("d/sub", 0o755), ("d/sub/g", 0o644), ("d/unnamed", 0o755), ("d/unnamed/k", 0o644)]
        {
            assert_eq!(
                (items[path].mode, items[path].xattrs.as_slice(), items[path].owner),
                (mode, &[][..], (0, 0)),
                "{path}"
            );
        }
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let archive = Archive::new()
        .folder("a")
        .file("a/x", b"1")
        .file("a/y", b"1")
        .folder_of_mode("a", 0o700)
        .file("a/x", b"2")
        .file("b", b"file")
        .folder("b")
        .file("b/in", b"")
        .folder("c")
        .file("c/in", b"")
        .symlink("c", "a")
        .end();
    let place = Place::new();
    place.apply(&archive).unwrap();
    assert_eq!(place.listing(), ["a d", "a/x f", "a/y f", "b d!", "b/in f", "c l"]);
    let items = tree::items(&place.layer);
    assert_eq!(items["a/x"].content, b"2");
    assert_eq!(items["a"].mode, 0o700);
}

#[test]
fn a_replaced_file_leaves_its_other_names_alone() {
    let archive = Archive::new().file("a", b"1").hard_link("b", "a").file("a", b"2").end();
    let place = Place::new();
    place.apply(&archive).unwrap();
    let items = tree::items(&place.layer);
    assert_eq!((items["a"].content.as_slice(), items["b"].content.as_slice()), (&b"2"[..], &b"1"[..]));
}

#[test]
fn a_link_to_itself_changes_nothing() {
    let place = Place::new();
    place.apply(&Archive::new().file("a", b"1").hard_link("a", "a").hard_link("./a", "/a").end()).unwrap();
    assert_eq!(tree::items(&place.layer)["a"].content, b"1");
}

#[test]
fn symlinked_parents_lead_as_they_would_with_the_layer_as_the_root() {
    let archive = Archive::new()
        .folder("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("usr/up", "../lib/./deep")
        .symlink("usr/absolute", "/usr/lib")
        .file("lib/a", b"a")
        .file("usr/up/b", b"b")
        .file("usr/absolute/c", b"c")
        .hard_link("h", "lib/a")
        .end();
    let place = Place::new();
    place.apply(&archive).unwrap();
    let expected = [
        "h f",
        "lib l",
        "usr d",
        "usr/absolute l",
        "usr/lib d",
        "usr/lib/a f",
        "usr/lib/c f",
        "usr/lib/deep d",
        "usr/lib/deep/b f",
        "usr/up l",
    ];
    assert_eq!(place.listing(), expected);
}

#[test]
fn symlinks_may_lead_to_paths_beyond_path_max() {
    let folders = |letter: &str| vec![letter.repeat(200); 15].join("/");
    let archive = Archive::new()
        .pax(&[("path", folders("a").as_bytes())])
        .folder("long")
        .pax(&[("linkpath", folders("a").as_bytes())])
        .symlink("s", "long")
        .pax(&[("path", format!("s/{}/f", folders("b")).as_bytes())])
        .file("long", b"deep")
        .end();
    for format in [crate::format(), WhiteoutFormat::Plain] {
        let place = Place::new();
        place.apply_as(&archive, format).unwrap();
        let usage = lamella_core::tree::usage(&place.layer, &mut || Ok(())).unwrap();
        assert_eq!(usage.inodes, 1 + 15 + 1 + 15 + 1);
        lamella_core::tree::remove(&place.layer, &mut || Ok(())).unwrap();
    }
}

#[test]
fn folders_keep_their_times_whatever_is_made_in_them_later() {
    let archive = Archive::new().folder("a/b").file("a/b/c", b"").folder("a").file("a/d", b"").end();
    let place = Place::new();
    place.apply(&archive).unwrap();
    let items = tree::items(&place.layer);
    assert_eq!(items["a"].mtime, (1_500_000_000, 0));
    assert_eq!(items["a/b"].mtime, (1_500_000_000, 0));
}

#[test]
fn the_umask_of_the_process_does_not_matter() {
    let place = Place::new();
    let archive = Archive::new()
        .folder_of_mode("d", 0o777)
        .entry(&Header { path: b"f", mode: 0o666, ..Header::default() }, b"")
        .end();
    // In a thread of its own, because the applier changes the thread's umask.
    let layer = place.layer.clone();
    std::thread::spawn(move || {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        crate::apply_to(&layer, &archive, crate::format()).unwrap();
    })
    .join()
    .unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let items = tree::items(&place.layer);
    assert_eq!((items["d"].mode, items["f"].mode), (0o777, 0o666));
}

#[test]
fn modes_that_keep_their_owner_out_are_no_obstacle() {
    let archive = Archive::new()
        .folder_of_mode("locked", 0o000)
        .folder_of_mode("locked/inner", 0o000)
        .entry(&Header { path: b"locked/inner/f", mode: 0, ..Header::default() }, b"x")
        .end();
    let place = Place::new();
    let applied = place.apply(&archive).unwrap();
    assert_eq!(applied.inodes, 4);
    if !privileged() {
        // Whoever is kept out cannot look either; removal lets itself in.
        lamella_core::tree::remove(&place.layer, &mut || Ok(())).unwrap();
        return;
    }
    let items = tree::items(&place.layer);
    assert_eq!((items["locked"].mode, items["locked/inner"].mode, items["locked/inner/f"].mode), (0, 0, 0));
}

#[test]
fn holes_stay_holes() {
    let records = [("GNU.sparse.size", &b"10485760"[..]), ("GNU.sparse.map", b"5242880,4096")];
    let place = Place::new();
    let applied = place.apply(&Archive::new().pax(&records).file("s", &[1; 4096]).end()).unwrap();
    let content = std::fs::read(place.layer.join("s")).unwrap();
    assert_eq!(content.len(), 10_485_760);
    assert!(content[5_242_880..5_246_976].iter().all(|byte| *byte == 1));
    assert_eq!(content.iter().filter(|byte| **byte != 0).count(), 4096);
    assert!(applied.disk_bytes < 100_000, "{}", applied.disk_bytes);
}

#[test]
fn zeros_become_holes_and_files_keep_their_content() {
    let mut mixed = vec![0; 3 << 20];
    mixed[1_000_000] = 1;
    mixed[2_000_000..2_300_000].fill(2);
    let files = [
        ("all", vec![0; 5 << 20]),
        ("mixed", mixed),
        ("short", vec![0; 700]),
        ("tail", [&[1][..], &[0; 300_000]].concat()),
    ];
    // However the content is cut into pieces.
    for piece in [512, 40_000, 65_536, 262_144, usize::MAX] {
        let place = Place::new();
        let mut applier = Applier::new(&place.layer, crate::format()).unwrap();
        for (name, content) in &files {
            let archive = Archive::new().file(name, content).end();
            let entry = Reader::new(&archive[..], Limits::default()).next_entry().unwrap().unwrap();
            assert!(applier.begin(&entry).unwrap());
            let mut offset = 0;
            for piece in content.chunks(piece) {
                applier.data(offset, piece).unwrap();
                offset += piece.len() as u64;
            }
            applier.end().unwrap();
        }
        let applied = applier.finish(&mut || Ok(())).unwrap();
        let items = tree::items(&place.layer);
        for (name, content) in &files {
            assert!(items[*name].content == *content, "{name} in pieces of {piece}");
        }
        assert!(applied.disk_bytes < 600_000, "{} bytes in pieces of {piece}", applied.disk_bytes);
    }
}

#[test]
fn usage_counts_what_du_counts() {
    let archive = Archive::new()
        .folder("a")
        .file("a/f", &[1; 10_000])
        .hard_link("a/g", "a/f")
        .symlink("a/s", &"long/".repeat(19))
        .file("gone", &[1; 50_000])
        .file("a/.wh.x", b"")
        .end();
    for archive in [archive.clone(), Archive(archive).0] {
        let place = Place::new();
        let applied = place.apply(&archive).unwrap();
        let usage = lamella_core::tree::usage(&place.layer, &mut || Ok(())).unwrap();
        assert_eq!((applied.disk_bytes, applied.inodes), (usage.bytes, usage.inodes));
    }
}

#[test]
fn usage_is_right_after_replacements() {
    let place = Place::new();
    let archive = Archive::new().file("a", &[1; 90_000]).folder("a").file("a/b", b"x").end();
    let applied = place.apply(&archive).unwrap();
    let usage = lamella_core::tree::usage(&place.layer, &mut || Ok(())).unwrap();
    assert_eq!((applied.disk_bytes, applied.inodes), (usage.bytes, usage.inodes));
}

#[test]
fn a_time_that_the_file_system_cannot_hold_is_an_error() {
    // ext4 ends in 2446; file systems that hold this one are fine with it.
    for time in ["mtime", "atime"] {
        let archive = Archive::new().pax(&[(time, b"99999999999")]).file("f", b"").symlink("s", "f").end();
        let place = Place::new();
        match place.apply(&archive) {
            Ok(_) => {
                let stat = std::fs::symlink_metadata(place.layer.join("f")).unwrap();
                assert_eq!(if time == "mtime" { stat.mtime() } else { stat.atime() }, 99_999_999_999);
            }
            Err(error) => assert_eq!(error.kind, Kind::InvalidArgument),
        }
    }
}

#[test]
fn unnamed_folders_are_deferred_and_named_ones_are_not() {
    let archive = Archive::new().file("a/b/c", b"").folder("a").file("x/.wh.y", b"").end();
    let place = Place::new();
    let deferred = place.apply(&archive).unwrap().deferred;
    assert_eq!(deferred.folders, [b"a/b".to_vec(), b"x".to_vec()]);
    assert!(deferred.root && deferred.links.is_empty() && !deferred.is_empty());
    let place = Place::new();
    assert!(place.apply(&Archive::new().folder("./").folder("a").file("a/f", b"").end()).unwrap().deferred.is_empty());
}

#[test]
fn hard_links_into_lower_layers_are_deferred_along_with_links_to_them() {
    let archive = Archive::new()
        .hard_link("a", "lower/file")
        .hard_link("b", "a")
        .hard_link("c", "other")
        .file("c", b"replaced")
        .end();
    let place = Place::new();
    let deferred = place.apply(&archive).unwrap().deferred;
    let links: Vec<_> = deferred.links.iter().map(|link| (link.path.as_slice(), link.target.as_slice())).collect();
    assert_eq!(links, [(&b"a"[..], &b"lower/file"[..]), (b"b", b"lower/file")]);
    assert_eq!(place.listing(), ["c f"]);
}

#[test]
fn a_file_of_many_folders_needs_few_descriptors() {
    let mut archive = Archive::new();
    for round in 0..3 {
        for folder in 0..200 {
            archive = archive.file(&format!("d{folder}/e/f{round}"), b"x");
        }
    }
    let place = Place::new();
    let applied = place.apply(&archive.end()).unwrap();
    assert_eq!(applied.inodes, 1 + 200 * 2 + 600);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 500, "{open} descriptors are open");
}
