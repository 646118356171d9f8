//! The applier on any entries, layer upon layer: whatever they say, nothing outside of the layer folders changes, nor does a
//! lower layer.
//!
//! The first line is the format of whiteouts. Then comes an entry a line, and an empty line where the next layer begins:
//!
//! ```text
//! overlay
//! d|etc||m755 u1000 t1500000000
//! f|etc/passwd|content|m4755 xuser.a=b
//! l|out|{outside}
//! h|second/name|etc/passwd
//! c|null|1:3
//! ```
//! Kinds: `f`ile, `d` for a folder, `l` for a symlink, `h`ard link, `c`haracter or `b`lock device, FIFO (`p`). Fields: `m`ode
//! in octal, `u`ser, `g`roup, `t` and `a` for times, `z` for a size that the header states, `@` for where the content stands in a
//! sparse file, `x` for an attribute.

use std::path::PathBuf;

use lamella_core::Kind;
use lamella_core::layer::diff::{Trees, diff, write};
use lamella_core::layer::{Applier, WhiteoutFormat, read_file, resolve};
use lamella_core::tar::{Device, Entry, EntryKind, Timestamp, Writer};

use crate::ground::{Ground, LAYERS, check, is_misleading, watch};
use crate::host::{MARK, look};

pub fn run(data: &[u8]) {
    if is_misleading(data) {
        return;
    }
    let mut lines = data.split(|byte| *byte == b'\n');
    let format = match lines.next().and_then(|line| line.first()) {
        Some(b'p') => WhiteoutFormat::Plain,
        Some(b'u') => WhiteoutFormat::OverlayUserXattr,
        _ => WhiteoutFormat::Overlay,
    };
    let lines: Vec<&[u8]> = lines.take(200).collect();
    let layers: Vec<&[&[u8]]> = lines.split(|line| line.is_empty()).take(LAYERS).collect();
    watch(|ground| match format {
        WhiteoutFormat::Plain => {
            for layer in layers {
                if apply(ground, 0, layer, format).is_err() {
                    break;
                }
            }
        }
        _ => stack(ground, &layers, format),
    });
}

/// Layer upon layer, each resolved with those beneath it.
fn stack(ground: &Ground<'_>, layers: &[&[&[u8]]], format: WhiteoutFormat) {
    let mut stack: Vec<PathBuf> = Vec::new();
    for (number, lines) in layers.iter().enumerate() {
        let layer = ground.layer(number);
        let Ok(applied) = apply(ground, number, lines, format) else { return };
        let beneath: Vec<_> = stack.iter().map(|lower| look(lower)).collect();
        let resolved = resolve(&layer, &stack, &applied.deferred);
        for (lower, before) in stack.iter().zip(&beneath) {
            assert_eq!(look(lower), *before, "a lower layer was changed");
        }
        if resolved.is_err() {
            return;
        }
        stack.insert(0, layer);
        for line in *lines {
            // What a reader of the image gets is the image's.
            if let Ok(Some(content)) = read_file(&stack, format, &line_parts(line, ground).1, 1 << 20) {
                assert!(!content.starts_with(MARK), "a file of the host shows in the image");
            }
        }
    }
}

fn apply(
    ground: &Ground<'_>,
    number: usize,
    lines: &[&[u8]],
    format: WhiteoutFormat,
) -> lamella_core::Result<lamella_core::layer::Applied> {
    let layer = ground.layer(number);
    let result = Applier::new(&layer, format).and_then(|mut applier| {
        for line in lines {
            let (entry, offset, content) = entry(line, ground);
            if applier.begin(&entry)? && entry.kind == EntryKind::File && !content.is_empty() {
                applier.data(offset, &content)?;
            }
            applier.end()?;
        }
        applier.finish(&mut || Ok(()))
    });
    match &result {
        Ok(applied) => {
            check(&layer, applied);
            // What was made can be packed again, unless a name in it means something else.
            let upper = Trees::Upper { folder: &layer, opaque: applied.opaque_root, format };
            let changes = diff(&upper, &mut || Ok(()));
            let packed = changes.and_then(|changes| write(&changes, &mut Writer::new(Vec::new()), &mut || Ok(())));
            assert!(packed.as_ref().err().is_none_or(|error| error.kind != Kind::Internal), "{packed:?}");
        }
        Err(error) => assert_ne!(error.kind, Kind::Internal, "{error}"),
    }
    result
}

/// Kind, path, argument and fields of a line.
fn line_parts(line: &[u8], ground: &Ground<'_>) -> (u8, Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut parts = line.splitn(4, |byte| *byte == b'|').map(|part| ground.placed(part));
    let kind = parts.next().unwrap_or_default().first().copied().unwrap_or(b'f');
    let mut next = || parts.next().unwrap_or_default();
    (kind, next(), next(), next())
}

/// The entry of a line, and where which content stands.
fn entry(line: &[u8], ground: &Ground<'_>) -> (Entry, u64, Vec<u8>) {
    let (kind, path, argument, fields) = line_parts(line, ground);
    let device = || {
        let (major, minor) = split_once(&argument, b':').unwrap_or((&argument, b""));
        Device {
            major: number(major).unsigned_abs() as u32 % 4096,
            minor: number(minor).unsigned_abs() as u32 % (1 << 20),
        }
    };
    let kind = match kind {
        b'd' => EntryKind::Directory,
        b'l' => EntryKind::Symlink(argument.clone()),
        b'h' => EntryKind::HardLink(argument.clone()),
        b'c' => EntryKind::Character(device()),
        b'b' => EntryKind::Block(device()),
        b'p' => EntryKind::Fifo,
        _ => EntryKind::File,
    };
    let mut entry = Entry {
        path: path.into_iter().filter(|byte| *byte != 0).take(4096).collect(),
        kind,
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Timestamp { seconds: 1_500_000_000, nanoseconds: 0 },
        atime: None,
        size: 0,
        sparse: false,
        xattrs: Vec::new(),
    };
    let (mut offset, mut size) = (0, argument.len() as u64);
    for field in fields.split(|byte| *byte == b' ') {
        let Some((letter, value)) = field.split_first() else { continue };
        match letter {
            b'm' => entry.mode = octal(value),
            b'u' => entry.uid = id(value),
            b'g' => entry.gid = id(value),
            b't' => entry.mtime = time(value),
            b'a' => entry.atime = Some(time(value)),
            b'z' => size = number(value).unsigned_abs(),
            b'@' => (offset, entry.sparse) = (number(value).unsigned_abs(), true),
            b'x' => {
                let (name, value) = split_once(value, b'=').unwrap_or((value, b""));
                if !name.is_empty() && name.len() < 256 && !name.contains(&0) {
                    entry.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
            _ => {}
        }
    }
    let content = if entry.kind == EntryKind::File { argument } else { Vec::new() };
    if entry.kind == EntryKind::File {
        // As the reader promises: no piece lies outside of its file.
        let largest = i64::MAX as u64 - content.len() as u64;
        offset = offset.min(largest);
        entry.size = size.min(i64::MAX as u64).max(offset + content.len() as u64);
    }
    (entry, offset, content)
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|byte| *byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

fn number(text: &[u8]) -> i64 {
    String::from_utf8_lossy(text).parse().unwrap_or(0)
}

fn octal(text: &[u8]) -> u32 {
    u32::from_str_radix(&String::from_utf8_lossy(text), 8).unwrap_or(0) & 0o7777
}

fn id(text: &[u8]) -> u32 {
    u32::try_from(number(text)).unwrap_or(0).min(u32::MAX - 1)
}

fn time(text: &[u8]) -> Timestamp {
    let (seconds, rest) = split_once(text, b'.').unwrap_or((text, b""));
    Timestamp { seconds: number(seconds), nanoseconds: u32::try_from(number(rest)).unwrap_or(0).min(999_999_999) }
}
