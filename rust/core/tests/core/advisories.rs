//! Published weaknesses of other unpackers, each as the promise that it does not hold here.
//!
//! tests/security/test_advisories.py has those that take a whole pull or a container.

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lamella_core::compression::Compression;
use lamella_core::cores::Cores;
use lamella_core::digest::{Algorithm, Hasher};
use lamella_core::layer::{Applier, WhiteoutFormat, resolve, unpack};
use lamella_core::pipeline::{Options, Pipeline};
use lamella_core::tar::{Limits, Reader, Source};
use lamella_core::{Kind, Result};

use crate::archive::{Archive, Header, block, pax_records, seal};
use crate::host::Host;
use crate::{apply_to, format, tree};

fn formats() -> [WhiteoutFormat; 3] {
    [format(), WhiteoutFormat::OverlayUserXattr, WhiteoutFormat::Plain]
}

/// The text of a path.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An entry of any kind whose mode must not come to anything outside.
fn wide_open<'a>(path: &'a str, kind: u8, link: &'a str) -> Header<'a> {
    Header { path: path.as_bytes(), kind, link: link.as_bytes(), mode: 0o7777, ..Header::default() }
}

/// CVE-2025-47290, containerd: between the check of a path and its use, a folder of it became a symlink.
#[test]
fn a_folder_that_somebody_exchanges_for_a_symlink_between_two_entries_leads_nowhere() {
    let first = Archive::new().folder("a").file("a/one", b"1").folder("a/folder").end();
    // More folders than stay open: "a" is then looked up again, by its name.
    let many = (0..100).fold(Archive::new(), |archive, number| archive.file(&format!("{number}/x"), b"")).end();
    let entries = [
        Archive::new().file("a/secret", b"evil"),
        Archive::new().entry(&wide_open("a/folder", b'5', ""), b"").file("a/folder/inner", b"evil"),
        Archive::new().symlink("a/etc/new", "/"),
        Archive::new().file("mine", b"evil").hard_link("a/mine", "mine"),
        Archive::new().hard_link("mine", "a/secret"),
        Archive::new().hard_link("mine", "a/one"),
        Archive::new().file("a/.wh.secret", b""),
        Archive::new().file("a/.wh..wh..opq", b""),
        Archive::new().entry(&wide_open("a/fifo", b'6', ""), b""),
        Archive::new().symlink("a", "elsewhere"),
        Archive::new(),
    ];
    for format in formats() {
        for entry in &entries {
            for forgotten in [false, true] {
                let host = Host::new(1);
                let mut applier = Applier::new(&host.layer(0), format).unwrap();
                unpack(&mut Reader::new(&first[..], Limits::default()), &mut applier).unwrap();
                if forgotten {
                    unpack(&mut Reader::new(&many[..], Limits::default()), &mut applier).unwrap();
                }
                std::fs::rename(host.layer(0).join("a"), host.layer(0).join("was-a")).unwrap();
                std::os::unix::fs::symlink(host.outside(), host.layer(0).join("a")).unwrap();
                let entry = entry.clone().end();
                let result = unpack(&mut Reader::new(&entry[..], Limits::default()), &mut applier)
                    .and_then(|()| applier.finish(&mut || Ok(())));
                assert_eq!(host.differences(), [""; 0], "{format:?}, {result:?}");
                // Who opens it anew sees that it is no folder.
                let exchanged = std::fs::read_link(host.layer(0).join("a")).is_ok_and(|link| link == host.outside());
                assert!(!(forgotten && exchanged) || result.is_err(), "{format:?}");
            }
        }
    }
}

/// CVE-2025-47290 again, for symlinks that somebody puts where the archive has something to come.
#[test]
fn a_symlink_that_somebody_puts_into_the_layer_folder_is_not_written_through() {
    for format in formats() {
        for kind in [b'0', b'2', b'5', b'6'] {
            let host = Host::new(1);
            let mut applier = Applier::new(&host.layer(0), format).unwrap();
            for (name, target) in [("file", "secret"), ("folder", "folder"), ("new", "etc/new")] {
                std::os::unix::fs::symlink(host.outside().join(target), host.layer(0).join(name)).unwrap();
                let entry = Archive::new().entry(&wide_open(name, kind, "target"), b"").end();
                let _ = unpack(&mut Reader::new(&entry[..], Limits::default()), &mut applier);
            }
            let _ = applier.finish(&mut || Ok(()));
            assert_eq!(host.differences(), [""; 0], "{format:?} {}", char::from(kind));
        }
    }
}

/// CVE-2025-47290 again, for the layer folder itself.
#[test]
fn a_layer_folder_that_somebody_exchanges_for_a_symlink_leads_nowhere() {
    for format in formats() {
        let host = Host::new(1);
        let mut applier = Applier::new(&host.layer(0), format).unwrap();
        let first = Archive::new().file("secret", b"1").folder("folder").end();
        unpack(&mut Reader::new(&first[..], Limits::default()), &mut applier).unwrap();
        std::fs::rename(host.layer(0), host.layer(1)).unwrap();
        std::os::unix::fs::symlink(host.outside(), host.layer(0)).unwrap();
        let second = Archive::new().file("secret", b"evil").entry(&wide_open("folder", b'5', ""), b"").end();
        unpack(&mut Reader::new(&second[..], Limits::default()), &mut applier).unwrap();
        // Something was replaced, so that the folder is counted again.
        applier.finish(&mut || Ok(())).unwrap_err();
        assert_eq!(std::fs::read(host.layer(1).join("secret")).unwrap(), b"evil");
        assert_eq!(host.differences(), [""; 0], "{format:?}");
    }
}

/// CVE-2025-47290 again, for what is done when all entries were applied.
#[test]
fn a_folder_that_somebody_exchanges_before_it_is_finished_with_the_lower_layers_leads_nowhere() {
    let host = Host::new(2);
    let lower = Archive::new().entry(&wide_open("a", b'5', ""), b"").file("a/secret", b"low").symlink("s", "a");
    apply_to(&host.layer(1), &lower.end(), format()).unwrap();
    let top = Archive::new().file("a/folder/x", b"").hard_link("a/new", "a/secret").file("s/etc/passwd", b"evil");
    let deferred = apply_to(&host.layer(0), &top.end(), format()).unwrap().deferred;
    assert!(!deferred.folders.is_empty() && !deferred.links.is_empty());
    std::fs::rename(host.layer(0).join("a"), host.layer(0).join("was-a")).unwrap();
    std::os::unix::fs::symlink(host.outside(), host.layer(0).join("a")).unwrap();
    resolve(&host.layer(0), &[host.layer(1)], &deferred).unwrap_err();
    assert_eq!(host.differences(), [""; 0]);
}

/// CVE-2021-32760, containerd: the mode of a hard link to a symlink was set on what the symlink points to.
#[test]
fn a_hard_link_to_a_symlink_changes_no_mode_of_what_that_points_to() {
    for format in formats() {
        let host = Host::new(1);
        let secret = host.outside().join("secret");
        let archive = Archive::new().symlink("s", text(&secret)).entry(&wide_open("h", b'1', "s"), b"");
        apply_to(&host.layer(0), &archive.end(), format).unwrap();
        assert_eq!(std::fs::read_link(host.layer(0).join("h")).unwrap(), secret);
        assert_eq!(host.differences(), [""; 0]);
    }
    // The symlink of a lower layer is copied up.
    let host = Host::new(2);
    let secret = host.outside().join("secret");
    apply_to(&host.layer(1), &Archive::new().symlink("s", text(&secret)).end(), format()).unwrap();
    let top = Archive::new().entry(&wide_open("h", b'1', "s"), b"").end();
    let deferred = apply_to(&host.layer(0), &top, format()).unwrap().deferred;
    resolve(&host.layer(0), &[host.layer(1)], &deferred).unwrap();
    assert_eq!(std::fs::read_link(host.layer(0).join("h")).unwrap(), secret);
    assert_eq!(host.differences(), [""; 0]);
}

/// CVE-2026-33056, tar-rs: the mode of a folder entry was set on what a symlink of that name points to.
#[test]
fn a_folder_entry_on_a_symlink_changes_no_mode_of_what_that_points_to() {
    for format in formats() {
        for name in ["foo", "foo/", "foo/.", "./foo//./"] {
            let host = Host::new(1);
            let target = host.outside().join("folder");
            let archive = Archive::new().symlink("foo", text(&target)).entry(&wide_open(name, b'5', ""), b"");
            apply_to(&host.layer(0), &archive.end(), format).unwrap();
            let items = tree::items(&host.layer(0));
            assert_eq!((items["foo"].kind, items["foo"].mode), ('d', 0o7777), "{format:?} {name}");
            assert_eq!(host.differences(), [""; 0], "{format:?} {name}");
        }
    }
}

/// A header that says one size after a PAX header that says another.
fn sized(archive: Archive, path: &str, header: u64, pax: usize, content: &[u8]) -> Archive {
    let header = Header { path: path.as_bytes(), size: Some(header), ..Header::default() };
    archive.pax(&[("size", pax.to_string().as_bytes())]).entry(&header, content)
}

fn listing(archive: Archive) -> Vec<String> {
    let host = Host::new(1);
    apply_to(&host.layer(0), &archive.end(), WhiteoutFormat::Plain).unwrap();
    tree::listing(&host.layer(0))
}

/// CVE-2026-33055, tar-rs: a PAX size was ignored where the header's own was not zero.
#[test]
fn a_pax_size_counts_also_where_the_header_states_another() {
    let smuggled = Archive::new().file("smuggled", b"").0;
    assert_eq!(smuggled.len(), 512);
    let longer = [&[b'x'; 512][..], &smuggled].concat();
    assert_eq!(listing(sized(Archive::new(), "a", 512, 1024, &longer).file("b", b"")), ["a f", "b f"]);
    // To who believes the header, "b" is a part of "a".
    assert_eq!(listing(sized(Archive::new(), "a", 1024, 512, &[b'x'; 512]).file("b", b"")), ["a f", "b f"]);
}

/// CVE-2025-62518, async-tar and its descendants: where the header says 0, the content was read as further entries.
#[test]
fn an_archive_in_a_file_stays_content_when_the_header_says_that_the_file_is_empty() {
    let inner = Archive::new().symlink("smuggled", "/").file("smuggled/x", b"evil").end();
    assert_eq!(
        listing(sized(Archive::new(), "inner.tar", 0, inner.len(), &inner).file("b", b"")),
        ["b f", "inner.tar f"]
    );
    // The size is that of the file, also when another extension header stands between.
    let size = inner.len().to_string();
    let header = Header { path: b"x", size: Some(0), ..Header::default() };
    let between = Archive::new()
        .pax(&[("size", size.as_bytes())])
        .extension(b'L', b"inner.tar\0")
        .entry(&header, &inner)
        .file("b", b"");
    assert_eq!(listing(between), ["b f", "inner.tar f"]);
    let before = Archive::new()
        .extension(b'L', b"inner.tar\0")
        .pax(&[("size", size.as_bytes())])
        .entry(&header, &inner)
        .file("b", b"");
    assert_eq!(listing(before), ["b f", "inner.tar f"]);
}

/// CVE-2026-50163, oras-go: the target of a hard link was checked in the folder and then looked for in the process's own.
#[test]
fn the_target_of_a_hard_link_is_not_looked_for_in_the_working_folder() {
    let seen = |path: &str| -> (u64, i64, i64) {
        let stat: Metadata = std::fs::metadata(path).unwrap();
        (stat.nlink(), stat.ctime(), stat.ctime_nsec())
    };
    for target in ["Cargo.toml", "./Cargo.toml", "src/lib.rs"] {
        let before = seen(target);
        let alone = Archive::new().folder("src").hard_link("link", target).end();
        for format in formats() {
            let host = Host::new(1);
            let result = apply_to(&host.layer(0), &alone, format)
                .and_then(|applied| resolve::<PathBuf>(&host.layer(0), &[], &applied.deferred));
            assert_eq!(result.unwrap_err().kind, Kind::InvalidArgument);
            assert_eq!(tree::listing(&host.layer(0)), ["src d"]);
            let host = Host::new(1);
            let archive = Archive::new().file(target, b"the layer's").hard_link("link", target).end();
            apply_to(&host.layer(0), &archive, format).unwrap();
            assert_eq!(std::fs::read(host.layer(0).join("link")).unwrap(), b"the layer's");
        }
        assert_eq!(seen(target), before);
    }
}

/// CVE-2021-29136, umoci: an entry "." that is a symlink took the place of the layer folder itself.
#[test]
fn no_entry_takes_the_place_of_the_layer_folder() {
    for name in [".", "./", "./.", "/", "//", "/./", ""] {
        for kind in [b'0', b'1', b'2', b'6'] {
            for format in formats() {
                let host = Host::new(1);
                let root = std::fs::metadata(host.layer(0)).unwrap().ino();
                let outside = host.outside();
                let archive = Archive::new().entry(&wide_open(name, kind, text(&outside)), b"").file("secret", b"evil");
                let error = apply_to(&host.layer(0), &archive.end(), format).unwrap_err();
                assert_eq!(error.kind, Kind::InvalidArgument, "{name:?}");
                assert_eq!(std::fs::symlink_metadata(host.layer(0)).unwrap().ino(), root, "{name:?}");
                assert_eq!(host.differences(), [""; 0], "{name:?}");
            }
        }
    }
}

/// An archive that begins in some way and goes on with the same bytes for ever.
struct Endless {
    head: Vec<u8>,
    rest: Vec<u8>,
    position: usize,
    served: u64,
}

impl Endless {
    fn new(head: Vec<u8>, rest: Vec<u8>) -> Self {
        Self { head, rest, position: 0, served: 0 }
    }

    fn current(&self) -> &[u8] {
        if self.served < self.head.len() as u64 { &self.head } else { &self.rest }
    }
}

impl Source for Endless {
    fn fill(&mut self) -> Result<&[u8]> {
        Ok(&self.current()[self.position..])
    }

    fn consume(&mut self, count: usize) {
        let length = self.current().len();
        self.position = (self.position + count) % length;
        self.served += count as u64;
    }
}

/// Read an archive without an end; the error that ends it, and how many bytes behind its head that took.
fn read_endless(source: Endless, limits: Limits) -> (Kind, u64) {
    let head = source.head.len() as u64;
    let mut reader = Reader::new(source, limits);
    let error = loop {
        match reader.next_entry() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended"),
            Err(error) => break error,
        }
    };
    (error.kind, reader.source().served - head)
}

/// A sparse file in GNU's old format whose map goes on in further blocks.
fn old_gnu_header() -> Vec<u8> {
    let mut header = block(&Header { path: b"s", kind: b'S', ..Header::default() }, 512);
    header[257..265].copy_from_slice(b"ustar  \0");
    header[345..].fill(0);
    header[482] = 1;
    header[483..494].copy_from_slice(b"77777777777");
    seal(&mut header);
    header.to_vec()
}

/// CVE-2026-32288, Go's archive/tar: a map in GNU's old format was taken into memory however long it was.
#[test]
fn a_sparse_map_in_gnus_old_format_that_never_ends_is_refused() {
    let limit = Limits::default().sparse_segments as u64;
    let mut full = [b'0'; 512];
    full[504] = 1;
    let (kind, read) = read_endless(Endless::new(old_gnu_header(), full.to_vec()), Limits::default());
    assert_eq!(kind, Kind::ResourceExhausted);
    assert!(read <= (limit / 21 + 1) * 512, "{read}");
    let mut empty = [0; 512];
    empty[504] = 1;
    let (kind, read) = read_endless(Endless::new(old_gnu_header(), empty.to_vec()), Limits::default());
    assert_eq!(kind, Kind::ResourceExhausted);
    assert!(read <= (limit + 1) * 512, "{read}");
}

/// CVE-2025-58183, Go's archive/tar: a map in front of the data was taken into memory however long it was.
#[test]
fn a_sparse_map_in_front_of_the_data_that_never_ends_is_refused() {
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", b"999999999999"),
    ];
    let header = Header { path: b"s", size: Some(1 << 39), ..Header::default() };
    let head = Archive::new().pax(&records).entry(&header, b"").0;
    let refused = |start: &[u8], rest: &[u8]| {
        let mut first = start.to_vec();
        first.extend(rest.iter().cycle().take(512 - start.len()));
        let source = Endless::new([&head[..], &first].concat(), rest.repeat(512));
        read_endless(source, Limits::default())
    };
    // A count beyond the cap is refused when it is read, and so is a number that does not end.
    assert_eq!(refused(b"1000000000\n", b"0\n"), (Kind::ResourceExhausted, 0));
    assert_eq!(refused(b"99999999999999999999\n", b"0\n").1, 0);
    assert_eq!(refused(b"", b"1").1, 0);
    // A count below it is the end of the map, whatever follows.
    let limit = Limits::default().sparse_segments;
    let (kind, read) = refused(format!("{limit}\n").as_bytes(), b"0\n");
    assert_eq!(kind, Kind::InvalidArgument);
    assert!(read <= 4 * limit as u64 + 512, "{read}");
    // The maps that stand in PAX records have the cap of those.
    let long = pax_records(&[("GNU.sparse.map", "0,0,".repeat(1 << 19).as_bytes())]);
    let source = Endless::new(Archive::new().entry(&Header { kind: b'x', ..Header::default() }, &long).0, vec![0; 512]);
    let mut reader = Reader::new(source, Limits::default());
    assert_eq!(reader.next_entry().unwrap_err().kind, Kind::ResourceExhausted);
    assert_eq!(reader.source().served, 512);
}

/// CVE-2017-14992, docker and tar-split: zeros behind an archive, which compress to nothing, were kept in memory.
#[test]
fn zeros_behind_an_archive_that_never_end_are_refused() {
    let limits = Limits::default();
    let zeros = vec![0; 1 << 26];
    let source = Endless::new(Archive::new().file("a", b"x").end(), zeros);
    let (kind, read) = read_endless(source, limits.clone());
    assert_eq!(kind, Kind::ResourceExhausted);
    assert!(read <= limits.archive + (1 << 26), "{read}");
}

/// CVE-2017-14992 again: a blob of some kilobytes that unpacks to gigabytes.
#[test]
fn a_blob_that_unpacks_to_thousands_of_times_its_size_is_refused() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&Archive::new().file("a", b"x").end()).unwrap();
    let piece = vec![0; 1 << 24];
    for _ in 0..72 {
        encoder.write_all(&piece).unwrap();
    }
    let blob = encoder.finish().unwrap();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&blob);
    let host = Host::new(1);
    let options = Options {
        digest: hasher.finish(),
        size: blob.len() as u64,
        blob: None,
        offset: 0,
        compression: Compression::Zstd,
        layer: Some(host.layer(0)),
        diff_id: None,
        whiteouts: format(),
        limits: Limits::default(),
        cores: Cores::new(4),
        helper: None,
    };
    let pipeline = Pipeline::new(options).unwrap();
    let result = pipeline.write(&blob, &mut || Ok(())).and_then(|()| pipeline.finish(&mut || Ok(())));
    let error = result.unwrap_err();
    assert_eq!(error.kind, Kind::ResourceExhausted, "{error}");
    assert!(error.message.contains("times its size"), "{error}");
}
