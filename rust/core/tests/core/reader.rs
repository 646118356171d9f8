//! The tar reader.

use lamella_core::Kind;
use lamella_core::tar::{Entry, EntryKind, Limits, Reader, Source, Timestamp};

use crate::archive::{Archive, Header, block, seal};

/// Entries with their content; holes read as zeros.
fn read_with(archive: &[u8], limits: Limits) -> lamella_core::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(archive, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = vec![0u8; usize::try_from(entry.size).unwrap()];
        while let Some(piece) = reader.data()? {
            let start = usize::try_from(piece.offset).unwrap();
            content[start..start + piece.bytes.len()].copy_from_slice(piece.bytes);
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

fn read(archive: &[u8]) -> lamella_core::Result<Vec<(Entry, Vec<u8>)>> {
    read_with(archive, Limits::default())
}

fn kind_of(archive: &[u8]) -> Kind {
    read(archive).unwrap_err().kind
}

#[test]
fn pax_records_override_the_header() {
    let archive = Archive::new()
        .pax(&[
            ("path", b"long/name"),
            ("size", b"5"),
            ("uid", b"70000"),
            ("gid", b"4294967294"),
            ("mtime", b"-1.25"),
            ("atime", b"12.000000001"),
            ("SCHILY.xattr.user.a", b"\0b"),
        ])
        .entry(&Header { path: b"short", size: Some(0), ..Header::default() }, b"hello")
        .end();
    let entries = read(&archive).unwrap();
    let (entry, content) = &entries[0];
    assert_eq!(entry.path, b"long/name");
    assert_eq!(content, b"hello");
    assert_eq!((entry.uid, entry.gid), (70000, 4_294_967_294));
    assert_eq!(entry.mtime, Timestamp { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(entry.atime, Some(Timestamp { seconds: 12, nanoseconds: 1 }));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"\0b".to_vec())]);
}

#[test]
fn pax_records_hold_for_one_entry_and_global_ones_for_the_rest() {
    let archive = Archive::new()
        .extension(b'g', &crate::archive::pax_records(&[("uid", b"5")]))
        .pax(&[("uid", b"6")])
        .file("a", b"")
        .file("b", b"")
        .end();
    let owners: Vec<u32> = read(&archive).unwrap().iter().map(|(entry, _)| entry.uid).collect();
    assert_eq!(owners, [6, 5]);
}

#[test]
fn a_global_name_or_size_is_refused() {
    for key in ["path", "linkpath", "size", "GNU.sparse.realsize"] {
        let body = crate::archive::pax_records(&[(key, b"1")]);
        assert_eq!(kind_of(&Archive::new().extension(b'g', &body).file("a", b"").end()), Kind::InvalidArgument);
    }
}

#[test]
fn gnu_long_names_and_links_are_read() {
    let long = "n/".repeat(150);
    let archive = Archive::new()
        .extension(b'L', format!("{long}\0").as_bytes())
        .extension(b'K', format!("{long}t\0").as_bytes())
        .symlink("short", "short")
        .end();
    let entries = read(&archive).unwrap();
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!(entries[0].0.kind, EntryKind::Symlink(format!("{long}t").into_bytes()));
}

#[test]
fn fields_may_be_full_without_a_terminator() {
    let path = [b'p'; 100];
    let archive = Archive::new().entry(&Header { path: &path, ..Header::default() }, b"").end();
    assert_eq!(read(&archive).unwrap()[0].0.path, path);
}

#[test]
fn the_prefix_of_a_ustar_header_comes_first() {
    let mut header = block(&Header { path: b"name", ..Header::default() }, 0);
    header[345..351].copy_from_slice(b"prefix");
    seal(&mut header);
    assert_eq!(read(&header).unwrap()[0].0.path, b"prefix/name");
}

#[test]
fn an_archive_may_end_at_a_block_without_an_end_mark() {
    let whole = Archive::new().file("a", b"x").file("b", b"y");
    assert_eq!(read(&whole.0).unwrap().len(), 2);
    let mut one_zero_block = whole.0.clone();
    one_zero_block.extend_from_slice(&[0; 512]);
    assert_eq!(read(&one_zero_block).unwrap().len(), 2);
}

#[test]
fn a_truncated_archive_is_damaged_wherever_it_is_cut() {
    let whole = Archive::new().pax(&[("path", b"a")]).file("a", &[7; 700]).0;
    for length in 1..whole.len() {
        // Nothing is read at all, or the cut is found.
        let result = read(&whole[..length]);
        assert_eq!(result.unwrap_err().kind, Kind::DataLoss, "cut at {length}");
    }
}

#[test]
fn bytes_behind_the_end_mark_are_consumed() {
    let mut archive = Archive::new().file("a", b"").end();
    archive.extend_from_slice(&[1; 5000]);
    let mut reader = Reader::new(&archive[..], Limits::default());
    assert!(reader.next_entry().unwrap().is_some());
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.source().fill().unwrap().is_empty());
}

#[test]
fn a_lone_zero_block_between_entries_is_damage() {
    let mut archive = Archive::new().file("a", b"").0;
    archive.extend_from_slice(&[0; 512]);
    archive.extend_from_slice(&Archive::new().file("b", b"").end());
    assert_eq!(kind_of(&archive), Kind::DataLoss);
}

#[test]
fn a_wrong_checksum_is_damage() {
    let mut archive = Archive::new().file("a", b"").end();
    archive[0] = b'b';
    assert_eq!(kind_of(&archive), Kind::DataLoss);
}

#[test]
fn owners_and_devices_that_do_not_fit_are_errors() {
    let too_large = 1u64 << 32;
    let header = Header { path: b"a", ..Header::default() };
    for header in [
        Header { uid: too_large, ..header.clone() },
        Header { gid: too_large, ..header.clone() },
        Header { uid: too_large - 1, ..header.clone() },
        Header { kind: b'3', device: (4096, 0), ..header.clone() },
        Header { kind: b'4', device: (0, 1 << 20), ..header.clone() },
    ] {
        assert_eq!(kind_of(&Archive::new().entry(&header, b"").end()), Kind::InvalidArgument);
    }
    for (key, value) in [("uid", "4294967296"), ("gid", "-1"), ("uid", "99999999999999999999"), ("mtime", "1e9")] {
        let archive = Archive::new().pax(&[(key, value.as_bytes())]).file("a", b"").end();
        assert_eq!(kind_of(&archive), Kind::InvalidArgument, "{key}={value}");
    }
}

#[test]
fn negative_and_huge_sizes_are_errors() {
    let mut negative = block(&Header { path: b"a", ..Header::default() }, 0);
    negative[124..136].fill(0xff);
    seal(&mut negative);
    assert_eq!(kind_of(&negative), Kind::InvalidArgument);
    for size in ["-1", "9223372036854775807", "9223372036854775808"] {
        let archive = Archive::new().pax(&[("size", size.as_bytes())]).file("a", b"").end();
        let kind = kind_of(&archive);
        assert!(matches!(kind, Kind::InvalidArgument | Kind::ResourceExhausted), "{size}: {kind:?}");
    }
}

#[test]
fn sizes_of_what_has_no_content_are_ignored() {
    let link = Header { path: b"l", kind: b'2', link: b"t", size: Some(100), ..Header::default() };
    let archive = Archive::new().entry(&link, b"").file("b", b"x").end();
    assert_eq!(read(&archive).unwrap().len(), 2);
}

#[test]
fn every_cap_holds() {
    let limits = Limits { archive: 4096, entries: 2, extension: 100, extensions: 2, sparse_segments: 2 };
    let exhausted = |archive: Vec<u8>| read_with(&archive, limits.clone()).unwrap_err().kind == Kind::ResourceExhausted;
    assert!(exhausted(Archive::new().file("a", b"").file("b", b"").file("c", b"").end()));
    assert!(exhausted(Archive::new().file("a", &[0; 5000]).end()));
    assert!(exhausted(Archive::new().entry(&Header { path: b"a", size: Some(1 << 40), ..Header::default() }, b"").0));
    assert!(exhausted(Archive::new().pax(&[("comment", &[b'x'; 101])]).file("a", b"").end()));
    assert!(exhausted(Archive::new().extension(b'L', &[b'x'; 101]).file("a", b"").end()));
    let header = |archive: Archive| archive.pax(&[("uid", b"1")]);
    assert!(read_with(&header(header(Archive::new())).file("a", b"").0, limits.clone()).is_ok());
    assert!(exhausted(header(header(header(Archive::new()))).file("a", b"").0));
    let map = [("GNU.sparse.realsize", &b"9"[..]), ("GNU.sparse.map", b"0,0,1,0,2,0")];
    assert!(exhausted(Archive::new().pax(&map).file("a", b"").end()));
    let mut behind = Archive::new().file("a", b"").end();
    behind.resize(5000, 1);
    assert!(exhausted(behind));
}

#[test]
fn no_sparse_file_gets_past_the_cap_on_the_archive() {
    // One stretch of an exbibyte: the map is right, and the archive goes on for as long as somebody feeds it.
    let size = (1u64 << 60).to_string();
    let map = format!("0,{size}");
    let header = Header { path: b"f", size: Some(0), ..Header::default() };
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes()), ("size", size.as_bytes())];
    let archive = Archive::new().pax(&records).entry(&header, b"").end();
    let limits = Limits { archive: 4096, ..Limits::default() };
    let error = Reader::new(&archive[..], limits).next_entry().unwrap_err();
    assert_eq!(error.kind, Kind::ResourceExhausted);
}

#[test]
fn attributes_of_global_headers_do_not_add_up_without_end() {
    let value = [b'x'; 700];
    let global = |name: &str| crate::archive::pax_records(&[(&format!("SCHILY.xattr.user.{name}"), &value)]);
    let archive = |last: &str| {
        let archive = Archive::new().extension(b'g', &global("a")).file("one", b"");
        archive.extension(b'g', &global(last)).file("two", b"").end()
    };
    let limits = Limits { extension: 1024, ..Limits::default() };
    assert_eq!(read_with(&archive("a"), limits.clone()).unwrap().len(), 2);
    assert_eq!(read_with(&archive("b"), limits).unwrap_err().kind, Kind::ResourceExhausted);
}

#[test]
fn a_name_of_more_than_4096_bytes_is_refused() {
    let long = vec![b'x'; 5000];
    assert_eq!(kind_of(&Archive::new().pax(&[("path", &long)]).file("a", b"").end()), Kind::InvalidArgument);
}

#[test]
fn unknown_types_are_named() {
    let error = read(&Archive::new().entry(&Header { path: b"a", kind: b'M', ..Header::default() }, b"").end());
    let error = error.unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("'M'"), "{error}");
}

#[test]
fn old_folders_have_a_slash_at_the_end() {
    let header = Header { path: b"d/", kind: 0, ..Header::default() };
    assert_eq!(read(&Archive::new().entry(&header, b"").end()).unwrap()[0].0.kind, EntryKind::Directory);
}

#[test]
fn sparse_files_of_every_format_read_alike() {
    let expected = [&[0u8; 512][..], &[1; 512], &[0; 1024], &[2; 100]].concat();
    let data = [&[1u8; 512][..], &[2; 100]].concat();
    let size = b"2148";
    let v00 = Archive::new()
        .pax(&[
            ("GNU.sparse.size", size),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"512"),
            ("GNU.sparse.numbytes", b"512"),
            ("GNU.sparse.offset", b"2048"),
            ("GNU.sparse.numbytes", b"100"),
        ])
        .file("s", &data);
    let v01 = Archive::new()
        .pax(&[("GNU.sparse.size", size), ("GNU.sparse.name", b"s"), ("GNU.sparse.map", b"512,512,2048,100")])
        .file("GNUSparseFile.0/s", &data);
    let mut map = b"2\n512\n512\n2048\n100\n".to_vec();
    map.resize(512, 0);
    let v10 = Archive::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", size),
        ])
        .file("GNUSparseFile.0/s", &[&map[..], &data].concat());
    let mut header = block(&Header { path: b"s", kind: b'S', ..Header::default() }, 612);
    header[257..265].copy_from_slice(b"ustar  \0");
    header[345..].fill(0);
    for (index, value) in [512, 512, 2048, 100].into_iter().enumerate() {
        header[386 + 12 * index..386 + 12 * index + 11].copy_from_slice(format!("{value:011o}").as_bytes());
    }
    header[483..494].copy_from_slice(format!("{:011o}", 2148).as_bytes());
    seal(&mut header);
    let mut old = Archive::new();
    old.0.extend_from_slice(&header);
    old.0.extend_from_slice(&data);
    for (name, archive) in [("0.0", v00), ("0.1", v01), ("1.0", v10), ("old", old.pad())] {
        let entries = read(&archive.file("after", b"!").end()).unwrap();
        assert_eq!(entries[0].0.path, b"s", "{name}");
        assert!(entries[0].0.sparse, "{name}");
        assert_eq!(entries[0].1, expected, "{name}");
        assert_eq!(entries[1].1, b"!", "{name}");
    }
}

#[test]
fn sparse_maps_that_lie_are_errors() {
    for (map, size) in [("0,5,3,5", "100"), ("5,5,0,5", "100"), ("95,10", "100"), ("0,9", "100"), ("0", "100")] {
        let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        assert_eq!(kind_of(&Archive::new().pax(&records).file("s", &[1; 10]).end()), Kind::InvalidArgument, "{map}");
    }
}
