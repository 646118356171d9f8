//! Writes an archive in one fixed form, so that the same entries always give the same bytes: POSIX headers without the names
//! of owners, and an extended header (PAX) only for what such a header cannot hold. Its records are sorted by key.

use std::io::Write;

use super::header::BLOCK;
use super::sparse::Segment;
use super::{Entry, EntryKind, Timestamp};
use crate::error::{Error, Kind, Result, show};

/// Largest values of the octal fields of 8 and of 12 bytes.
const SHORT_MAX: u64 = 0o777_7777;
const LONG_MAX: u64 = 0o777_7777_7777;
const NAME: usize = 100;

/// Writes entries, each followed by the content of its file.
pub struct Writer<W> {
    out: W,
    /// Bytes of content that the last entry still has to get.
    owed: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Write to `out`, in pieces as they come.
    pub fn new(out: W) -> Self {
        Self { out, owed: 0, padding: 0 }
    }

    /// Begin an entry. A regular file's `size` bytes have to follow by [`Writer::data`].
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
        self.header(entry, size, Vec::new())
    }

    /// Begin a regular file of which only `segments` are written, in order; the rest are holes (GNU's format 1.0 in PAX).
    pub fn sparse_file(&mut self, entry: &Entry, segments: &[Segment]) -> Result<()> {
        // GNU tar takes the end of the last segment for the end of the file; an empty one states it.
        let end = segments.last().map_or(0, |last| last.offset + last.length);
        let last = (end < entry.size).then_some([entry.size, 0]);
        let numbers = segments.iter().map(|segment| [segment.offset, segment.length]).chain(last).flatten();
        let mut map = format!("{}\n", segments.len() + usize::from(last.is_some()));
        map.extend(numbers.map(|number| format!("{number}\n")));
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let stored = segments.iter().map(|segment| segment.length).sum::<u64>() + map.len() as u64;
        let records = vec![
            ("GNU.sparse.major".into(), b"1".to_vec()),
            ("GNU.sparse.minor".into(), b"0".to_vec()),
            ("GNU.sparse.name".into(), entry.path.clone()),
            ("GNU.sparse.realsize".into(), entry.size.to_string().into_bytes()),
        ];
        let stand_in = [b"GNUSparseFile.0/", base(&entry.path)].concat();
        self.header(&Entry { path: stand_in, ..entry.clone() }, stored, records)?;
        self.data(&map)
    }

    /// Write content of the file that was begun.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.owed = self
            .owed
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| Error::new(Kind::Internal, "a file got more content than its header says"))?;
        self.put(bytes)?;
        if self.owed == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.put(&[0; BLOCK][..padding])?;
        }
        Ok(())
    }

    /// End the archive; give back what it was written to.
    pub fn finish(mut self) -> Result<W> {
        self.check_complete()?;
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn check_complete(&self) -> Result<()> {
        if self.owed == 0 {
            return Ok(());
        }
        Err(Error::new(Kind::Internal, format!("a file got {} bytes less than its header says", self.owed)))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| Error::system("cannot write the archive", error))
    }

    fn header(&mut self, entry: &Entry, size: u64, mut records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        self.check_complete()?;
        let mut block = [0u8; BLOCK];
        let (flag, link, device) = match &entry.kind {
            EntryKind::File => (b'0', &[][..], None),
            EntryKind::HardLink(target) => (b'1', &target[..], None),
            EntryKind::Symlink(target) => (b'2', &target[..], None),
            EntryKind::Character(device) => (b'3', &[][..], Some(*device)),
            EntryKind::Block(device) => (b'4', &[][..], Some(*device)),
            EntryKind::Directory => (b'5', &[][..], None),
            EntryKind::Fifo => (b'6', &[][..], None),
        };
        text(&mut block[..NAME], &entry.path, "path", &mut records);
        text(&mut block[157..157 + NAME], link, "linkpath", &mut records);
        octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
        number(&mut block[108..116], entry.uid.into(), SHORT_MAX, "uid", &mut records);
        number(&mut block[116..124], entry.gid.into(), SHORT_MAX, "gid", &mut records);
        number(&mut block[124..136], size, LONG_MAX, "size", &mut records);
        time(&mut block[136..148], entry.mtime, &mut records);
        block[156] = flag;
        if let Some(device) = device {
            octal(&mut block[329..337], device.major.into());
            octal(&mut block[337..345], device.minor.into());
        }
        for (name, value) in &entry.xattrs {
            if name.contains(&b'=') {
                return Err(Error::invalid(format!("the attribute {} cannot be in an archive", show(name))));
            }
            records.push(([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
        }
        if !records.is_empty() {
            self.extended(&entry.path, records)?;
        }
        seal(&mut block);
        self.put(&block)?;
        self.owed = size;
        self.padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or_default();
        Ok(())
    }

    /// The extended header before an entry.
    fn extended(&mut self, path: &[u8], mut records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        let is_text = |(key, value): &(Vec<u8>, Vec<u8>)| key.starts_with(b"SCHILY.") || str::from_utf8(value).is_ok();
        let binary = !records.iter().all(is_text);
        records.sort();
        let mut data = if binary { record(b"hdrcharset", b"BINARY") } else { Vec::new() };
        for (key, value) in records {
            data.extend(record(&key, &value));
        }
        let mut block = [0u8; BLOCK];
        let name = [b"PaxHeaders.0/", base(path)].concat();
        block[..name.len().min(NAME)].copy_from_slice(&name[..name.len().min(NAME)]);
        octal(&mut block[100..108], 0o644);
        for field in [108..116, 116..124, 136..148] {
            octal(&mut block[field], 0);
        }
        octal(&mut block[124..136], data.len() as u64);
        block[156] = b'x';
        seal(&mut block);
        self.put(&block)?;
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        self.put(&data)
    }
}

/// The last component of a path.
fn base(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()).unwrap_or(b".")
}

/// A name goes into its field as it is, or, if it is too long, into a record.
fn text(field: &mut [u8], value: &[u8], key: &str, records: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    let fits = value.len().min(field.len());
    field[..fits].copy_from_slice(&value[..fits]);
    if fits < value.len() {
        records.push((key.into(), value.to_vec()));
    }
}

fn number(field: &mut [u8], value: u64, max: u64, key: &str, records: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    let fits = value <= max;
    octal(field, if fits { value } else { 0 });
    if !fits {
        records.push((key.into(), value.to_string().into_bytes()));
    }
}

fn time(field: &mut [u8], time: Timestamp, records: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    let whole = u64::try_from(time.seconds).ok().filter(|seconds| *seconds <= LONG_MAX);
    octal(field, whole.unwrap_or(0));
    if whole.is_none() || time.nanoseconds != 0 {
        records.push((b"mtime".to_vec(), decimal(time).into_bytes()));
    }
}

/// Seconds with a fraction. The nanoseconds count up from the second also before 1970, the fraction goes away from 0.
fn decimal(time: Timestamp) -> String {
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let (seconds, fraction) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    let text = format!("{sign}{seconds}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    field[..digits.len()].copy_from_slice(digits.as_bytes());
}

/// A record states its own length, the digits of that included.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn seal(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Limits, Reader};

    #[test]
    fn records_count_their_own_digits() {
        assert_eq!(record(b"a", b""), b"5 a=\n");
        assert_eq!(record(b"key", b"12"), b"9 key=12\n");
        assert_eq!(record(b"key", b"123"), b"11 key=123\n");
        assert_eq!(record(b"k", &[b'v'; 93]).len(), 99);
        assert_eq!(record(b"k", &[b'v'; 94]).len(), 101);
    }

    #[test]
    fn times_are_read_as_they_were_written() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (12, 500_000_000, "12.5"),
            (-1, 500_000_000, "-0.5"),
            (-2, 500_000_000, "-1.5"),
            (-2, 0, "-2"),
            (1, 1, "1.000000001"),
            (-1, 999_999_999, "-0.000000001"),
        ] {
            let mtime = Timestamp { seconds, nanoseconds };
            assert_eq!(decimal(mtime), text);
            let entry = Entry { mtime, ..entry(b"file", EntryKind::Fifo) };
            assert_eq!(round_trip(&entry), entry);
        }
    }

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        Entry {
            path: path.to_vec(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            atime: None,
            size: 0,
            sparse: false,
            xattrs: Vec::new(),
        }
    }

    fn round_trip(entry: &Entry) -> Entry {
        let mut writer = Writer::new(Vec::new());
        writer.entry(entry).unwrap();
        let archive = writer.finish().unwrap();
        let mut reader = Reader::new(&archive[..], Limits::default());
        let read = reader.next_entry().unwrap().unwrap();
        assert!(reader.next_entry().unwrap().is_none());
        read
    }

    #[test]
    fn what_no_header_holds_goes_into_records() {
        let path = [b"folder/".repeat(40), b"na\xffme".to_vec()].concat();
        let entry = Entry {
            uid: 3_000_000,
            gid: u32::MAX - 1,
            mode: 0o6755,
            xattrs: vec![(b"user.a".to_vec(), b"x\0\n=".to_vec()), (b"user.b".to_vec(), Vec::new())],
            ..entry(&path, EntryKind::Symlink([b'x'; 300].to_vec()))
        };
        assert_eq!(round_trip(&entry), entry);
        let too_much = Entry { xattrs: vec![(b"user.a=b".to_vec(), Vec::new())], ..entry };
        assert_eq!(Writer::new(Vec::new()).entry(&too_much).unwrap_err().kind, Kind::InvalidArgument);
    }

    #[test]
    fn content_is_held_against_the_header() {
        let file = Entry { size: 3, ..entry(b"file", EntryKind::File) };
        let mut writer = Writer::new(Vec::new());
        writer.entry(&file).unwrap();
        assert!(writer.entry(&file).is_err());
        writer.data(b"ab").unwrap();
        assert!(writer.data(b"cd").is_err());
        writer.data(b"c").unwrap();
        assert_eq!(writer.finish().unwrap().len(), 4 * BLOCK);
    }
}
