//! The container's log: what it wrote to its standard streams, one JSON object a line.
//!
//! `{"time":"<RFC 3339>","stream":"stdout"|"stderr","log":"<text with its newline>"}`; what is not UTF-8 stands as
//! base64 in `log64` instead. Text is recorded as it comes: a line that is written in pieces becomes several records,
//! and `log` and `log64` joined give back every byte.
//!
//! The file is made at the first output. Only the monitor, which holds the bundle's lock, writes it; a record is
//! written whole or taken back.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::time;

/// A record's text is cut here when it has no newline.
const LONGEST_TEXT: usize = 16 * 1024;

/// An open or future log.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Length of the file's whole records.
    length: u64,
    /// Bytes that could not be recorded: the disk is full, or the folder is gone.
    lost: u64,
    /// The start of a UTF-8 character that a read cut, for each stream.
    pending: [Vec<u8>; 2],
    buffer: Vec<u8>,
}

/// Which stream a text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Output = 0,
    Error = 1,
}

impl Log {
    pub(super) fn new(path: &str) -> Self {
        Self {
            path: path.into(),
            file: None,
            length: 0,
            lost: 0,
            pending: [Vec::new(), Vec::new()],
            buffer: Vec::new(),
        }
    }

    /// Bytes that could not be recorded.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Record what a stream gave. A log that cannot be written does not stop the container: what is lost is counted,
    /// and the next write tries again.
    pub(super) fn record(&mut self, stream: Stream, data: &[u8]) {
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        let data = if pending.is_empty() {
            data
        } else {
            pending.extend_from_slice(data);
            &pending
        };
        let whole = data.len() - cut_character(data);
        let (now, later) = data.split_at(whole);
        self.pending[stream as usize] = later.to_vec();
        self.write(stream, now);
    }

    /// Record what is pending at the end of a stream.
    pub(super) fn finish(&mut self, stream: Stream) {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        self.write(stream, &pending);
    }

    fn write(&mut self, stream: Stream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let time = time::now();
        self.buffer.clear();
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            for piece in pieces(line) {
                append(&mut self.buffer, &time, stream, piece);
            }
        }
        if self.flush().is_err() {
            self.lost += data.len() as u64;
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
                self.length = file.metadata()?.len();
                self.file.insert(file)
            }
        };
        if let Err(error) = file.write_all(&self.buffer) {
            file.set_len(self.length)?;
            return Err(error);
        }
        self.length += self.buffer.len() as u64;
        Ok(())
    }
}

/// Cut a line into records, not within a character.
fn pieces(mut line: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if line.is_empty() {
            return None;
        }
        let mut length = line.len().min(LONGEST_TEXT);
        if length < line.len() {
            length -= cut_character(line.get(..length).unwrap_or_default());
        }
        let (piece, rest) = line.split_at(length.max(1));
        line = rest;
        Some(piece)
    })
}

/// How many bytes at the end are the start of a UTF-8 character that is not whole.
fn cut_character(data: &[u8]) -> usize {
    for (back, byte) in data.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > back + 1 { back + 1 } else { 0 };
    }
    0
}

fn append(buffer: &mut Vec<u8>, time: &str, stream: Stream, text: &[u8]) {
    buffer.extend_from_slice(b"{\"time\":\"");
    buffer.extend_from_slice(time.as_bytes());
    buffer.extend_from_slice(match stream {
        Stream::Output => b"\",\"stream\":\"stdout\",",
        Stream::Error => b"\",\"stream\":\"stderr\",",
    });
    if std::str::from_utf8(text).is_ok() && !is_binary(text) {
        buffer.extend_from_slice(b"\"log\":\"");
        escape(buffer, text);
    } else {
        buffer.extend_from_slice(b"\"log64\":\"");
        base64(buffer, text);
    }
    buffer.extend_from_slice(b"\"}\n");
}

/// A shorter text is recorded as text whatever is in it: a bell alone, a key's sequence.
const SHORTEST_BINARY: usize = 64;

/// Whether most of it is bytes that JSON spells with six characters: as base64 it is a quarter of that.
fn is_binary(text: &[u8]) -> bool {
    let control = |byte: &&u8| matches!(byte, 0..=8 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f);
    text.len() >= SHORTEST_BINARY && text.iter().filter(control).count() > text.len() / 2
}

/// Write text as the inside of a JSON string.
fn escape(buffer: &mut Vec<u8>, text: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut plain = 0;
    for (position, byte) in text.iter().enumerate() {
        let short = match byte {
            b'"' => b'"',
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1f | 0x7f => 0,
            _ => continue,
        };
        buffer.extend_from_slice(text.get(plain..position).unwrap_or_default());
        plain = position + 1;
        if short == 0 {
            let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
            buffer.extend_from_slice(b"\\u00");
            buffer.extend_from_slice(&digits);
        } else {
            buffer.extend_from_slice(&[b'\\', short]);
        }
    }
    buffer.extend_from_slice(text.get(plain..).unwrap_or_default());
}

fn base64(buffer: &mut Vec<u8>, data: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in data.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|index| u32::from(chunk.get(index).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for (index, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let letter = ALPHABET[(bits >> shift & 63) as usize];
            buffer.push(if index > chunk.len() { b'=' } else { letter });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn records(feed: &[(Stream, &[u8])]) -> Vec<Value> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let mut log = Log::new(&path.to_string_lossy());
        for (stream, data) in feed {
            log.record(*stream, data);
        }
        log.finish(Stream::Output);
        log.finish(Stream::Error);
        assert_eq!(log.lost(), 0);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    fn texts(records: &[Value]) -> Vec<&str> {
        records.iter().map(|record| record["log"].as_str().expect("text")).collect()
    }

    #[test]
    fn a_line_is_a_record_with_time_and_stream() {
        let records = records(&[(Stream::Output, b"one\ntwo\n"), (Stream::Error, b"three")]);
        assert_eq!(texts(&records), ["one\n", "two\n", "three"]);
        assert_eq!(records[0]["stream"], "stdout");
        assert_eq!(records[2]["stream"], "stderr");
        assert_eq!(records[0]["time"].as_str().map(str::len), Some(30));
    }

    #[test]
    fn every_byte_comes_back() {
        let text: Vec<u8> = (0..=127).collect();
        let parsed = records(&[(Stream::Output, &text)]);
        assert_eq!(texts(&parsed).concat().as_bytes(), text);
        let parsed = records(&[(Stream::Output, b"\xff\xfe\x00")]);
        assert_eq!(parsed[0]["log64"], "//4A");
        let parsed = records(&[(Stream::Output, b"\xff")]);
        assert_eq!(parsed[0]["log64"], "/w==");
    }

    #[test]
    fn bytes_that_are_no_text_take_little_more_than_their_size() {
        let mut buffer = Vec::new();
        append(&mut buffer, "", Stream::Output, &[0; 3000]);
        assert!(buffer.len() < 4100, "{}", buffer.len());
        assert_eq!(records(&[(Stream::Output, &[0; 66])])[0]["log64"], "AAAA".repeat(22));
    }

    #[test]
    fn a_character_that_a_read_cut_is_not_broken() {
        let text = "aé€𝄞\n".as_bytes();
        for cut in 0..text.len() {
            let (one, other) = text.split_at(cut);
            let parsed = records(&[(Stream::Output, one), (Stream::Output, other)]);
            assert_eq!(texts(&parsed).concat().as_bytes(), text, "cut at {cut}");
        }
        let parsed = records(&[(Stream::Output, b"a\xe2\x82")]);
        assert_eq!((parsed[0]["log"].as_str(), parsed[1]["log64"].as_str()), (Some("a"), Some("4oI=")));
    }

    #[test]
    fn a_long_line_is_cut() {
        let line = "é".repeat(20_000);
        let parsed = records(&[(Stream::Output, line.as_bytes())]);
        assert_eq!(parsed.len(), 3);
        assert_eq!(texts(&parsed).concat(), line);
    }

    #[test]
    fn a_log_that_cannot_be_written_counts_what_is_lost() {
        let mut log = Log::new("/proc/nonexistent/log");
        log.record(Stream::Output, b"hello\n");
        assert_eq!(log.lost(), 6);
    }
}
