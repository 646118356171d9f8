//! The container's log: what it wrote to its standard streams, one JSON object a line.
//!
//! `{"time":"<RFC 3339>","stream":"stdout"|"stderr","log":"<text with its newline>"}`; what is not UTF-8 stands as
//! base64 in `log64` instead. A record is a line of the container, or a piece of one that is long or was not finished in
//! a while; `log` and `log64` joined give back every byte. `{"time":...,"stream":"lamella","lost":N}` stands where N bytes
//! could not be recorded, and `{"time":...,"stream":"lamella","note":"<text>"}` for what failed without stopping anything.
//!
//! The file is made at the first output ([`super::log_file`]).

use std::time::{Duration, Instant};

use super::log_file::{Limits, LogFile};
use crate::time;

/// A record's text is cut here when it has no newline.
const LONGEST_TEXT: usize = 16 * 1024;
/// How long the rest of a line is waited for: a read cuts lines anywhere, and a prompt has no newline at all.
const PATIENCE: Duration = Duration::from_millis(200);

/// An open or future log.
#[derive(Debug)]
pub(super) struct Log {
    file: LogFile,
    /// Bytes that could not be recorded: the disk is full, or the folder is gone.
    lost: u64,
    /// Those of them that no record tells of yet.
    unsaid: u64,
    /// The start of a line, for each stream.
    unfinished: [Unfinished; 2],
    buffer: Vec<u8>,
    /// Where each record of the buffer ends, and how many bytes of the container it holds.
    ends: Vec<(usize, usize)>,
}

#[derive(Debug, Default)]
struct Unfinished {
    text: Vec<u8>,
    /// When to record it as it is; None for the start of a character, which waits for the rest or the end.
    due: Option<Instant>,
}

/// Which stream a text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Output = 0,
    Error = 1,
}

impl Log {
    pub(super) fn new(path: &str, limits: Limits) -> Self {
        Self {
            file: LogFile::new(path, limits),
            lost: 0,
            unsaid: 0,
            unfinished: Default::default(),
            buffer: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Bytes that could not be recorded.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// How long the monitor may sleep.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let due = self.unfinished.iter().filter_map(|unfinished| unfinished.due).min();
        due.map(|moment| moment.saturating_duration_since(Instant::now()))
    }

    /// Record what a stream gave, but for a line that is not finished. A log that cannot be written does not stop the
    /// container: what is lost is counted, and the next write tries again.
    pub(super) fn record(&mut self, stream: Stream, data: &[u8]) {
        let Unfinished { mut text, due } = std::mem::take(&mut self.unfinished[stream as usize]);
        let data = if text.is_empty() {
            data
        } else {
            text.extend_from_slice(data);
            &text
        };
        let mut whole = data.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
        whole += pieces(data.get(whole..).unwrap_or_default())
            .map(<[u8]>::len)
            .filter(|length| *length > LONGEST_TEXT - 4)
            .sum::<usize>();
        let (now, later) = data.split_at(whole.min(data.len()));
        self.write(stream, now); // which may take a while, in which the rest of the line cannot be read
        if !later.is_empty() {
            let due = due.filter(|_| now.is_empty()).unwrap_or_else(|| Instant::now() + PATIENCE);
            self.unfinished[stream as usize] = Unfinished { text: later.to_vec(), due: Some(due) };
        }
    }

    /// Record the lines that were waited for long enough.
    pub(super) fn record_unfinished(&mut self) {
        let now = Instant::now();
        for stream in [Stream::Output, Stream::Error] {
            let unfinished = &mut self.unfinished[stream as usize];
            if unfinished.due.is_some_and(|due| due <= now) {
                unfinished.due = None;
                let mut text = std::mem::take(&mut unfinished.text);
                unfinished.text = text.split_off(text.len() - cut_character(&text));
                self.write(stream, &text);
            }
        }
    }

    /// Record what is left at the end of a stream.
    pub(super) fn finish(&mut self, stream: Stream) {
        let unfinished = std::mem::take(&mut self.unfinished[stream as usize]);
        self.write(stream, &unfinished.text);
        if self.unsaid > 0 {
            self.buffer.clear();
            self.ends.clear();
            self.append();
        }
    }

    /// Record what the monitor itself has to say.
    pub(super) fn note(&mut self, text: &str) {
        self.buffer.clear();
        self.ends.clear();
        self.buffer.extend_from_slice(format!("{{\"time\":\"{}\",\"stream\":\"lamella\",", time::now()).as_bytes());
        self.buffer.extend_from_slice(b"\"note\":\"");
        escape(&mut self.buffer, text.as_bytes());
        self.buffer.extend_from_slice(b"\"}\n");
        self.append();
    }

    fn write(&mut self, stream: Stream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let time = time::now();
        self.buffer.clear();
        self.ends.clear();
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            for piece in pieces(line) {
                append(&mut self.buffer, &time, stream, piece);
                self.ends.push((self.buffer.len(), piece.len()));
            }
        }
        self.append();
    }

    /// Append the buffer to the file, behind a word on what was lost before.
    fn append(&mut self) {
        if self.unsaid > 0 {
            let note = format!("{{\"time\":\"{}\",\"stream\":\"lamella\",\"lost\":{}}}\n", time::now(), self.unsaid);
            if self.file.append(note.as_bytes()).is_ok() {
                self.unsaid = 0;
            }
        }
        let done = match self.file.append(&self.buffer) {
            Ok(()) => return,
            Err(done) => done,
        };
        let lost: usize = self.ends.iter().filter(|(end, _)| *end > done).map(|(_, length)| length).sum();
        self.lost += lost as u64;
        self.unsaid += lost as u64;
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

    const ENDLESS: Limits = Limits { size: None, files: 1 };

    fn records(feed: &[(Stream, &[u8])]) -> Vec<Value> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let mut log = Log::new(&path.to_string_lossy(), ENDLESS);
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
        assert_eq!((parsed.len(), parsed[0]["log64"].as_str()), (1, Some("YeKC")));
    }

    #[test]
    fn a_long_line_is_cut() {
        let line = "é".repeat(20_000);
        let parsed = records(&[(Stream::Output, line.as_bytes())]);
        assert_eq!(parsed.len(), 3);
        assert_eq!(texts(&parsed).concat(), line);
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_record_and_the_other_stream_does_not_wait_for_it() {
        let records = records(&[
            (Stream::Output, b"one\ntw"),
            (Stream::Error, b"err\n"),
            (Stream::Output, b"o\nthr"),
            (Stream::Output, b"ee"),
        ]);
        assert_eq!(texts(&records), ["one\n", "err\n", "two\n", "three"]);
    }

    #[test]
    fn a_line_that_is_not_finished_in_a_while_is_recorded_as_it_is() {
        let (_folder, path, mut log) = loop {
            let began = Instant::now();
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("log.jsonl");
            let mut log = Log::new(&path.to_string_lossy(), ENDLESS);
            log.record(Stream::Output, "continue? é".as_bytes());
            log.record(Stream::Error, b"\xc3");
            assert!(log.timeout().is_some_and(|time| time <= PATIENCE));
            log.record_unfinished();
            if began.elapsed() < PATIENCE {
                assert!(!path.exists());
                break (folder, path, log);
            } // else this thread was held up for that long
        };
        std::thread::sleep(PATIENCE);
        log.record_unfinished();
        assert!(log.timeout().is_none());
        assert!(std::fs::read_to_string(&path).expect("read").ends_with("\"log\":\"continue? é\"}\n"));
        log.record(Stream::Error, b"\xa9\n");
        assert!(std::fs::read_to_string(&path).expect("read").ends_with("\"log\":\"é\\n\"}\n"));
    }

    #[test]
    fn an_endless_line_is_recorded_in_pieces_and_little_of_it_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let mut log = Log::new(&path.to_string_lossy(), ENDLESS);
        for _ in 0..100 {
            log.record(Stream::Output, &[b'x'; 5000]);
            assert!(log.unfinished[0].text.len() < LONGEST_TEXT);
        }
        log.finish(Stream::Output);
        let text = std::fs::read_to_string(&path).expect("read");
        let lengths: Vec<usize> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["log"].as_str().expect("text").len())
            .collect();
        assert_eq!(lengths.iter().sum::<usize>(), 500_000);
        assert!(lengths.iter().rev().skip(1).all(|length| *length == LONGEST_TEXT));
    }

    #[test]
    fn a_log_that_cannot_be_written_counts_what_is_lost_and_says_so_when_it_can_be_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sub/log.jsonl");
        let mut log = Log::new(&path.to_string_lossy(), ENDLESS);
        log.record(Stream::Output, b"hello\nyou\n");
        assert_eq!(log.lost(), 10);
        std::fs::create_dir(folder.path().join("sub")).expect("made");
        log.record(Stream::Output, b"again\n");
        log.finish(Stream::Output);
        let text = std::fs::read_to_string(&path).expect("read");
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((&records[0]["stream"], &records[0]["lost"]), (&"lamella".into(), &10.into()));
        assert_eq!((records.len(), &records[1]["log"]), (2, &"again\n".into()));
        assert_eq!(log.lost(), 10);
    }
}
