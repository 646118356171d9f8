//! Sparse files: one map, told in GNU's old format and in the three of PAX, held against what a map is.

use lamella_core::Kind;
use lamella_core::tar::{Limits, Reader};

use crate::archive::{Archive, Header, block, seal};
use crate::input::Input;

/// Above every map that an input can state: the cap is the reader's own tests' concern.
const SEGMENTS: usize = 1 << 12;

/// A sparse file, as an archive may state it.
#[derive(Debug)]
struct Stated {
    /// What is stored of it.
    content: Vec<u8>,
    real_size: u64,
    /// Offset and length of the stretches that are stored, or so it says.
    map: Vec<(u64, u64)>,
}

pub fn run(data: &[u8]) {
    let stated = Stated::new(&mut Input(data));
    let expected = stated.meaning();
    for (form, archive) in [
        ("gnu", stated.as_gnu()),
        ("0.0", stated.as_pax_0(false)),
        ("0.1", stated.as_pax_0(true)),
        ("1.0", stated.as_pax_1()),
    ] {
        let told = read(&archive);
        // Whether a map is refused for its numbers or for where they lie is the form's own affair.
        assert_eq!(told.as_ref().ok(), expected.as_ref(), "form {form}: {:?} of {stated:?}", told.as_ref().err());
    }
}

impl Stated {
    fn new(input: &mut Input<'_>) -> Self {
        let honest = !input.byte().is_multiple_of(4);
        let count = input.below(40);
        let mut map = Vec::new();
        let mut end = 0u64;
        for _ in 0..count {
            let (gap, length) = (input.number(), input.number());
            // As a map should be, or two numbers of no meaning.
            let offset = if honest { end.saturating_add(gap) } else { gap };
            map.push((offset, length));
            end = offset.saturating_add(length);
        }
        let total = map.iter().fold(0u64, |sum, (_, length)| sum.saturating_add(*length));
        let stored = if honest { total } else { input.number() }.min(1 << 14);
        let real_size = if honest { end.saturating_add(input.number()) } else { input.number() };
        let content = (0..stored).map(|at| at as u8 | 1).collect();
        Self { content, real_size, map }
    }

    /// The file's size and its stretches; None where there is no such file.
    fn meaning(&self) -> Option<Told> {
        let mut left = &self.content[..];
        let mut end = 0;
        let mut stretches: Vec<(u64, Vec<u8>)> = Vec::new();
        for (offset, length) in &self.map {
            let stop = offset.checked_add(*length).filter(|stop| *stop <= self.real_size)?;
            if *offset < end {
                return None;
            }
            let bytes;
            (bytes, left) = left.split_at_checked(usize::try_from(*length).ok()?)?;
            add(&mut stretches, *offset, bytes);
            end = stop;
        }
        (left.is_empty() && i64::try_from(self.real_size).is_ok()).then_some((self.real_size, stretches))
    }

    fn header(&self, kind: u8, more: usize) -> Header<'static> {
        Header { path: b"file", kind, size: Some((self.content.len() + more) as u64), ..Header::default() }
    }

    fn as_gnu(&self) -> Vec<u8> {
        let mut entries = self.map.iter().map(|(offset, length)| [number(*offset), number(*length)].concat());
        let mut header = block(&self.header(b'S', 0), 0);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[345..500].fill(0);
        for slot in header[386..482].chunks_exact_mut(24) {
            slot.copy_from_slice(&entries.next().unwrap_or_else(|| vec![0; 24]));
        }
        let mut rest: Vec<Vec<u8>> = entries.collect();
        header[482] = u8::from(!rest.is_empty());
        header[483..495].copy_from_slice(&number(self.real_size));
        seal(&mut header);
        let mut archive = header.to_vec();
        while !rest.is_empty() {
            let more = rest.split_off(rest.len().min(21));
            let mut block = rest.concat();
            block.resize(504, 0);
            block.push(u8::from(!more.is_empty()));
            block.resize(512, 0);
            archive.extend_from_slice(&block);
            rest = more;
        }
        archive.extend_from_slice(&self.content);
        Archive(archive).pad().end()
    }

    fn as_pax_0(&self, one_record: bool) -> Vec<u8> {
        let size = self.real_size.to_string();
        let numbers: Vec<(String, String)> =
            self.map.iter().map(|(offset, length)| (offset.to_string(), length.to_string())).collect();
        let joined = numbers.iter().map(|(offset, length)| format!("{offset},{length}")).collect::<Vec<_>>().join(",");
        let mut records: Vec<(&str, &[u8])> = vec![("GNU.sparse.size", size.as_bytes())];
        if one_record {
            records.push(("GNU.sparse.map", joined.as_bytes()));
        } else {
            for (offset, length) in &numbers {
                records.push(("GNU.sparse.offset", offset.as_bytes()));
                records.push(("GNU.sparse.numbytes", length.as_bytes()));
            }
        }
        Archive::new().pax(&records).entry(&self.header(b'0', 0), &self.content).end()
    }

    fn as_pax_1(&self) -> Vec<u8> {
        let mut map = format!("{}\n", self.map.len());
        for (offset, length) in &self.map {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut content = map.into_bytes();
        content.resize(content.len().next_multiple_of(512), 0);
        let more = content.len();
        content.extend_from_slice(&self.content);
        let size = self.real_size.to_string();
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"file"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        Archive::new().pax(&records).entry(&self.header(b'0', more), &content).end()
    }
}

/// A field of twelve bytes: octal where it fits, else base-256.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

/// Note some content; what touches is one stretch.
fn add(stretches: &mut Vec<(u64, Vec<u8>)>, offset: u64, bytes: &[u8]) {
    match stretches.last_mut() {
        _ if bytes.is_empty() => {}
        Some((start, known)) if *start + known.len() as u64 == offset => known.extend_from_slice(bytes),
        _ => stretches.push((offset, bytes.to_vec())),
    }
}

type Told = (u64, Vec<(u64, Vec<u8>)>);

fn read(archive: &[u8]) -> Result<Told, Kind> {
    let limits = Limits { sparse_segments: SEGMENTS, ..Limits::default() };
    let mut reader = Reader::new(archive, limits);
    let entry = reader.next_entry().map_err(|error| error.kind)?.ok_or(Kind::NotFound)?;
    assert!(entry.sparse && entry.path == b"file");
    let mut stretches = Vec::new();
    while let Some(piece) = reader.data().map_err(|error| error.kind)? {
        add(&mut stretches, piece.offset, piece.bytes);
    }
    assert!(reader.next_entry().map_err(|error| error.kind)?.is_none(), "something follows the file");
    Ok((entry.size, stretches))
}
