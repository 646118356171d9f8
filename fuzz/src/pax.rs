//! The records of an extended header, held against a parser that is written anew from POSIX's words.

use std::collections::BTreeMap;

use lamella_core::tar::{Entry, EntryKind, Limits, Reader, Timestamp};

use crate::archive::{Archive, Header};

pub fn run(data: &[u8]) {
    let header = Header { path: b"name", kind: b'2', link: b"target", uid: 1, gid: 2, mtime: 3, ..Header::default() };
    let archive = Archive::new().extension(b'x', data).entry(&header, b"").end();
    let told = Reader::new(&archive[..], Limits::default()).next_entry();
    if data.windows(11).any(|window| window == b"GNU.sparse.") {
        return; // left to the target for sparse files
    }
    match (expected(data), told) {
        (Some(expected), Ok(Some(mut entry))) => {
            entry.xattrs.sort();
            assert_eq!(entry, expected);
        }
        (None, Err(_)) => {}
        (expected, told) => panic!("expected {expected:?}, told {told:?}"),
    }
}

/// What the entry has to be; None where it has to be refused.
fn expected(data: &[u8]) -> Option<Entry> {
    let mut entry = Entry {
        path: b"name".to_vec(),
        kind: EntryKind::Symlink(b"target".to_vec()),
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp { seconds: 3, nanoseconds: 0 },
        atime: None,
        size: 0,
        sparse: false,
        xattrs: Vec::new(),
    };
    let records = records(data)?;
    let mut xattrs = BTreeMap::new();
    let mut last = BTreeMap::new();
    for (key, value) in &records {
        let well_formed = match key.as_slice() {
            b"path" | b"linkpath" => !value.contains(&0),
            b"size" => value.is_empty() || integer(value).is_some_and(|size| size >= 0 && value[0] != b'-'),
            b"uid" | b"gid" => value.is_empty() || integer(value).is_some(),
            b"mtime" | b"atime" => value.is_empty() || time(value).is_some(),
            _ => true,
        };
        if !well_formed {
            return None;
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.len() > 255 || name.contains(&0) {
                return None;
            }
            xattrs.insert(name.to_vec(), value.clone());
        }
        last.insert(key.as_slice(), value.as_slice());
    }
    // An empty value takes a record back.
    last.retain(|_, value| !value.is_empty());
    if let Some(path) = last.get(&b"path"[..]) {
        entry.path = path.to_vec();
    }
    if let Some(link) = last.get(&b"linkpath"[..]) {
        entry.kind = EntryKind::Symlink(link.to_vec());
    }
    for (key, id) in [(&b"uid"[..], &mut entry.uid), (b"gid", &mut entry.gid)] {
        if let Some(value) = last.get(key) {
            *id = integer(value).and_then(|value| u32::try_from(value).ok()).filter(|id| *id != u32::MAX)?;
        }
    }
    if let Some(value) = last.get(&b"mtime"[..]) {
        entry.mtime = time(value)?;
    }
    entry.atime = last.get(&b"atime"[..]).and_then(|value| time(value));
    entry.xattrs = xattrs.into_iter().collect();
    let longest = last.iter().filter(|(key, _)| key.ends_with(b"path")).map(|(_, value)| value.len()).max();
    (longest <= Some(4096)).then_some(entry)
}

/// "%d %s=%s\n", <length>, <keyword>, <value>
fn records(mut data: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let digits = data.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let length: usize = std::str::from_utf8(&data[..digits]).ok()?.parse().ok()?;
        if digits > 19 {
            return None; // zeros in front: the reader has a cap on the digits
        }
        let record = data.get(..length)?;
        let body = record.get(digits..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
        records.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Some(records)
}

fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value != i64::MIN).then_some(value) // symmetric, as the header's sizes
}

/// Decimal seconds, rounded down to nanoseconds by whole numbers of these.
fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, magnitude) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = i128::from(integer(whole.as_bytes()).filter(|_| !whole.starts_with('-'))?);
    let kept: i128 = format!("{fraction:0<9}")[..9].parse().ok()?;
    let mut nanoseconds = seconds * 1_000_000_000 + kept;
    if negative {
        let more = fraction.bytes().skip(9).any(|digit| digit != b'0');
        nanoseconds = -nanoseconds - i128::from(more);
    }
    Some(Timestamp {
        seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).ok()?,
        nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).ok()?,
    })
}
