//! The files of a log: the present one, and those that were full before it.
//!
//! ```text
//! <path>            what is written to
//! <path>.<number>   was full: renamed, and never written to again; of two the one with the lower number is older
//! ```
//! The container's lock guards them: one monitor writes. A reader that has a file open reads it to its end, whatever it is
//! called by then, and finds by its number which one follows (lamella/containers/logs.py). A record is a line; it is
//! written whole or taken back.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// How much is kept, as docker's max-size and max-file say it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of one file; None for one file without end.
    pub(super) size: Option<u64>,
    /// Number of files, the present one among them.
    pub(super) files: u32,
}

/// The files, of which the present one is open once something was written.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    limits: Limits,
    file: Option<File>,
    /// Length of the present file.
    length: u64,
    /// It does not end with a whole record: after a power cut, or where a half one could not be taken back.
    torn: bool,
}

impl LogFile {
    pub(super) fn new(path: &str, limits: Limits) -> Self {
        Self { path: path.into(), limits, file: None, length: 0, torn: false }
    }

    /// Append records, whole lines. Fails with how many bytes of them are written, all of whole records.
    pub(super) fn append(&mut self, records: &[u8]) -> Result<(), usize> {
        let mut done = 0;
        while let Some(left) = records.get(done..).filter(|left| !left.is_empty()) {
            let fits = match self.open() {
                Ok(()) => self.fitting(left),
                Err(_) => return Err(done),
            };
            if fits == 0 {
                self.rotate().map_err(|_| done)?;
                continue;
            }
            let (written, result) = self.write(left.get(..fits).unwrap_or_default());
            done += written;
            result.map_err(|_| done)?;
        }
        Ok(())
    }

    /// How many bytes of whole records go into the present file; at least one record goes into an empty one.
    fn fitting(&self, records: &[u8]) -> usize {
        let Some(size) = self.limits.size else { return records.len() };
        let space = usize::try_from(size.saturating_sub(self.length)).unwrap_or(usize::MAX);
        if records.len() <= space {
            return records.len();
        }
        let within = end_of_last(records.get(..space).unwrap_or_default());
        if within > 0 || self.length > 0 { within } else { end_of_first(records) }
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let file = OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(&self.path)?;
            self.length = file.metadata()?.len();
            let mut last = [b'\n'];
            if let Some(position) = self.length.checked_sub(1) {
                file.read_exact_at(&mut last, position)?;
            }
            self.torn = last != [b'\n'];
            self.file = Some(file);
        }
        Ok(())
    }

    /// Write records; returns how many bytes of whole ones stay, whatever the result.
    fn write(&mut self, records: &[u8]) -> (usize, io::Result<()>) {
        let Some(file) = &mut self.file else { return (0, Err(ErrorKind::NotFound.into())) };
        if self.torn {
            // What is no record is a line of its own, which readers pass over.
            if let Err(error) = file.write_all(b"\n") {
                return (0, Err(error));
            }
            self.length += 1;
            self.torn = false;
        }
        let mut written = 0;
        let result = loop {
            match file.write(records.get(written..).unwrap_or_default()) {
                Ok(0) if written < records.len() => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if written == records.len() {
                break Ok(());
            }
        };
        let whole = if result.is_ok() { written } else { end_of_last(records.get(..written).unwrap_or_default()) };
        self.length += whole as u64;
        if whole < written {
            // Whole records stay: somebody may have read them already.
            self.torn = file.set_len(self.length).is_err();
        }
        (whole, result)
    }

    /// Begin a new file; the oldest goes when there are too many.
    fn rotate(&mut self) -> io::Result<()> {
        let mut numbers = self.numbers()?;
        if self.limits.files > 1 {
            let number = numbers.last().map_or(1, |last| last + 1);
            std::fs::rename(&self.path, self.numbered(number))?;
            numbers.push(number);
        } else {
            std::fs::remove_file(&self.path)?;
        }
        self.file = None;
        self.length = 0;
        let surplus = (numbers.len() + 1).saturating_sub(self.limits.files as usize);
        for number in numbers.iter().take(surplus) {
            let _ = std::fs::remove_file(self.numbered(*number));
        }
        Ok(())
    }

    /// The numbers of full files, in order.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(Vec::new()) };
        let name = name.to_string_lossy();
        let mut found: Vec<u64> = std::fs::read_dir(folder)?
            .flatten()
            .filter_map(|entry| {
                entry.file_name().to_string_lossy().strip_prefix(&*name)?.strip_prefix('.')?.parse().ok()
            })
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    fn numbered(&self, number: u64) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn end_of_last(records: &[u8]) -> usize {
    records.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1)
}

fn end_of_first(records: &[u8]) -> usize {
    records.iter().position(|byte| *byte == b'\n').map_or(records.len(), |position| position + 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn log(folder: &Path, size: Option<u64>, files: u32) -> LogFile {
        LogFile::new(&folder.join("log").to_string_lossy(), Limits { size, files })
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("readable")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn read(folder: &Path, name: &str) -> String {
        std::fs::read_to_string(folder.join(name)).expect("readable")
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path(), Some(10), 3);
        for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddd\n", "eeee\n", "ffff\n", "gggg\n"] {
            log.append(line.as_bytes()).expect("written");
        }
        assert_eq!(names(folder.path()), ["log", "log.2", "log.3"]);
        let texts = ["log.2", "log.3", "log"].map(|name| read(folder.path(), name));
        assert_eq!(texts, ["cccc\ndddd\n", "eeee\nffff\n", "gggg\n"]);
    }

    #[test]
    fn many_records_at_once_are_spread_over_files_and_none_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path(), Some(12), 100);
        let lines: Vec<String> = (0..50).map(|number| format!("{number:05}\n")).collect();
        log.append(lines.concat().as_bytes()).expect("written");
        log.append(b"longer than a file may be\nz\n").expect("written");
        let mut numbers = log.numbers().expect("listed");
        assert_eq!(numbers, (1..=26).collect::<Vec<u64>>());
        let texts: Vec<String> =
            numbers.drain(..).map(|number| read(folder.path(), &format!("log.{number}"))).collect();
        assert!(texts[..25].iter().all(|text| text.len() == 12));
        assert_eq!(texts.concat() + &read(folder.path(), "log"), lines.concat() + "longer than a file may be\nz\n");
    }

    #[test]
    fn another_monitor_goes_on_where_the_last_one_stood() {
        let folder = tempfile::tempdir().expect("a folder");
        for line in ["one\n", "two\n", "three\n"] {
            log(folder.path(), Some(8), 3).append(line.as_bytes()).expect("written");
        }
        assert_eq!((read(folder.path(), "log.1"), read(folder.path(), "log")), ("one\ntwo\n".into(), "three\n".into()));
    }

    #[test]
    fn one_file_alone_begins_anew_and_without_a_size_it_has_no_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut one = log(folder.path(), Some(8), 1);
        one.append(b"one\ntwo\nthree\n").expect("written");
        assert_eq!((names(folder.path()), read(folder.path(), "log")), (vec!["log".to_owned()], "three\n".into()));
        log(folder.path(), None, 1).append(b"four\nfive\nsix\n").expect("written");
        assert_eq!(read(folder.path(), "log"), "three\nfour\nfive\nsix\n");
    }

    #[test]
    fn what_a_power_cut_has_torn_spoils_no_record() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("log"), "one\n{\"ti").expect("written");
        log(folder.path(), None, 1).append(b"two\n").expect("written");
        assert_eq!(read(folder.path(), "log"), "one\n{\"ti\ntwo\n");
    }

    #[test]
    fn what_does_not_fit_on_the_disk_is_told_and_the_next_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path(), None, 1);
        log.append(b"one\n").expect("written");
        log.file = Some(File::options().write(true).open("/dev/full").expect("opened"));
        assert_eq!(log.append(b"two\n"), Err(0));
        log.file = None;
        log.append(b"three\n").expect("written");
        assert_eq!(read(folder.path(), "log"), "one\nthree\n");
    }
}
