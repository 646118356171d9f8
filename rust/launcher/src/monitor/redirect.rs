//! Streams that lead to paths of the caller, beside clients and the log: the FIFOs that containerd's clients make, files, or
//! programs ([`super::logger`]).
//!
//! The monitor keeps the other end of each FIFO open, too. So nothing ends when a client goes away, and another one can
//! open the FIFO again: what the process writes meanwhile stays in the FIFO until that is full, and then the process waits.
//! Its input ends when the last writer has gone after [`Monitor::close_input`]. At its end the other ends are closed: what
//! somebody reads is handed over to the last byte, and what nobody reads is dropped.

use std::collections::VecDeque;
use std::fs::DirBuilder;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::clients::LOW_WATER;
use super::frames::FrameKind;
use super::logger::{self, Begun, Logger, Owner, Program};
use super::{Monitor, Source, stdio};
use crate::error::{Failure, Step};
use crate::request::Redirections;

const CHUNK: usize = 64 * 1024;
const FILE: &str = "file:";
const FIFO: &str = "fifo:";
const BINARY: &str = "binary:";

/// The monitor's ends of a process's paths.
#[derive(Debug, Default)]
pub struct Redirected {
    input: Option<Feed>,
    outputs: [Option<Sink>; 2],
    logger: Option<Logger>,
}

/// The same, of a process that is begun once its logger is ready.
#[derive(Debug)]
pub(super) struct Awaited {
    redirected: Redirected,
    logger: Option<i32>,
    /// Ends when it is, which wakes the monitor.
    ready: OwnedFd,
    pub(super) until: Instant,
}

impl Awaited {
    /// The logger is ready, and wakes the monitor no more.
    pub(super) fn into_ready(self) -> Redirected {
        drop(self.ready);
        self.redirected
    }
}

/// A path that a process reads.
#[derive(Debug)]
pub(super) struct Feed {
    source: OwnedFd,
    /// Keeps the FIFO from ending while nobody writes to it.
    writer: Option<OwnedFd>,
    watched: bool,
}

/// A path that a process writes to.
#[derive(Debug)]
pub(super) struct Sink {
    target: OwnedFd,
    /// Keeps the FIFO from breaking while nobody reads it.
    reader: Option<OwnedFd>,
    queue: VecDeque<u8>,
    /// The process writes no more.
    finished: bool,
    watched: bool,
}

impl Redirected {
    /// Open what is named, for the processes of a container: NotFound, PermissionDenied, InvalidArgument, Unsupported for a kind
    /// of URI, Unavailable for a logger that is not ready in time, which is waited for.
    pub fn open(paths: &Redirections, owner: &Owner) -> Result<Self, Failure> {
        let (redirected, ready) = Self::begin(paths, owner)?;
        if let Some(ready) = ready {
            logger::await_ready(&ready).inspect_err(|_| redirected.logger.iter().for_each(Logger::kill))?;
        }
        Ok(redirected)
    }

    /// The same without waiting for a logger: gives what ends when it is ready.
    pub(super) fn begin(paths: &Redirections, owner: &Owner) -> Result<(Self, Option<OwnedFd>), Failure> {
        let input = (!paths.stdin.is_empty()).then(|| Feed::open(&paths.stdin)).transpose()?;
        if paths.stdout.starts_with(BINARY) {
            let Begun { logger, streams, ready } = logger::begin(&program_of(&paths.stdout)?, owner)?;
            let outputs = streams.map(|end| Some(Sink::new(end, None)));
            return Ok((Self { input, outputs, logger: Some(logger) }, Some(ready)));
        }
        // As containerd has it: a file for the output is that for errors, too.
        let errors = if paths.stdout.starts_with(FILE) { &paths.stdout } else { &paths.stderr };
        let open = |place: &str| (!place.is_empty()).then(|| Sink::open(place)).transpose();
        Ok((Self { input, outputs: [open(&paths.stdout)?, open(errors)?], logger: None }, None))
    }

    /// The container was not made: a logger has nothing to wait for.
    pub fn give_up(self) {
        if let Some(logger) = &self.logger {
            logger.end();
        }
    }
}

impl Feed {
    fn open(place: &str) -> Result<Self, Failure> {
        let (handle, kind) = find(path_of(place, FIFO)?.as_ref())?;
        if kind != FileType::Fifo {
            return Err(Failure::invalid("stdin", format!("{place:?} is no FIFO")));
        }
        let step = || format!("open the FIFO {place}");
        let source = reopen(&handle, OFlags::RDONLY).step(step)?;
        let writer = Some(reopen(&handle, OFlags::WRONLY).step(step)?);
        Ok(Self { source, writer, watched: false })
    }
}

impl Sink {
    fn open(place: &str) -> Result<Self, Failure> {
        let path = if place.starts_with(FILE) { make_file(place)? } else { path_of(place, FIFO)? };
        let (handle, kind) = find(&path)?;
        let step = || format!("open {place} for output");
        let reader = (kind == FileType::Fifo).then(|| reopen(&handle, OFlags::RDONLY)).transpose().step(step)?;
        let target = reopen(&handle, OFlags::WRONLY | OFlags::APPEND).step(step)?;
        Ok(Self::new(target, reader))
    }

    fn new(target: OwnedFd, reader: Option<OwnedFd>) -> Self {
        Self { target, reader, queue: VecDeque::new(), finished: false, watched: false }
    }

    /// Bytes that are not handed over yet.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    fn push(&mut self, data: &[u8]) {
        let mut data = data;
        while self.queue.is_empty() && !data.is_empty() {
            match rustix::io::write(&self.target, data) {
                Ok(written) => data = data.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return, // a full disk, a logger that has ended: the process goes on
            }
        }
        self.queue.extend(data);
    }

    /// Hand over what is taken now; false when the path is to be closed.
    fn flush(&mut self) -> bool {
        while !self.queue.is_empty() {
            match rustix::io::write(&self.target, self.queue.as_slices().0) {
                Ok(written) => drop(self.queue.drain(..written)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => self.queue.clear(),
            }
        }
        self.queue = VecDeque::new();
        !self.finished
    }
}

/// Find what a path names, whatever it is replaced by later.
fn find(path: &Path) -> Result<(OwnedFd, FileType), Failure> {
    let step = || format!("open {}", path.display());
    let handle = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    let status = rustix::fs::fstat(&handle).step(step)?;
    Ok((handle, FileType::from_raw_mode(status.st_mode)))
}

fn reopen(handle: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::fs::openat(CWD, path, flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

/// The path that a place names, which may be a URI of one scheme.
fn path_of(place: &str, scheme: &str) -> Result<PathBuf, Failure> {
    let unsupported = |why: &str| {
        Failure::unsupported(format!("the output {place:?}"))
            .with_hint(format!("{why}; give the path of a FIFO, file:///PATH or binary:///PROGRAM"))
    };
    let path = match place.strip_prefix(scheme) {
        Some(rest) => decode(rest.strip_prefix("//").unwrap_or(rest))
            .ok_or_else(|| Failure::invalid("stdio", format!("{place:?} is no URI")))?,
        None if place.split_once(':').is_some_and(|(start, _)| is_scheme(start)) => {
            return Err(unsupported("this is no place that a stream can lead to"));
        }
        None => place.to_owned(),
    };
    if !path.starts_with('/') {
        return Err(Failure::invalid("stdio", format!("{place:?} is not absolute")));
    }
    Ok(path.into())
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|each| each.is_ascii_alphanumeric() || "+-.".contains(each))
}

/// The program that a URI of the scheme `binary` names. Of a key that comes twice the first value counts, as containerd has it.
fn program_of(place: &str) -> Result<Program, Failure> {
    let path = path_of(place, BINARY)?.to_string_lossy().into_owned();
    let query = place.split('#').next().and_then(|text| text.split_once('?')).map_or("", |(_, query)| query);
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| {
            unescape(&text.replace('+', " ")).ok_or_else(|| Failure::invalid("stdio", format!("{place:?} is no URI")))
        };
        let (key, value) = (plain(key)?, plain(value)?);
        if pairs.iter().all(|(known, _)| *known != key) {
            pairs.push((key, value));
        }
    }
    Ok(Program { path, arguments: pairs.into_iter().flat_map(|(key, value)| [key, value]).collect() })
}

/// The path of a URI, without what follows `?` or `#`.
fn decode(text: &str) -> Option<String> {
    unescape(text.split(['?', '#']).next().unwrap_or_default())
}

/// Undo the percent-encoding of a part of a URI (RFC 3986, section 2.1).
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))
}

/// Make the file of a `file:` URI and the folders above, as containerd does.
fn make_file(place: &str) -> Result<PathBuf, Failure> {
    let path = path_of(place, FILE)?;
    if let Some(folder) = path.parent() {
        let step = || format!("make the folder {}", folder.display());
        DirBuilder::new().recursive(true).mode(0o755).create(folder).step(step)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, &path, flags, Mode::from_raw_mode(0o644)).step(|| format!("make {}", path.display()))?;
    Ok(path)
}

/// Where a stream stands among a process's outputs.
fn index_of(kind: FrameKind) -> u8 {
    u8::from(kind == FrameKind::Error)
}

impl Monitor {
    /// Wait for the logger of a process that has not begun: the monitor is woken as [`Source::Logger`] of `id` when it is ready.
    pub(super) fn await_logger(
        &mut self,
        id: u32,
        mut redirected: Redirected,
        ready: OwnedFd,
    ) -> Result<Awaited, Failure> {
        let logger = redirected.logger.take();
        let pid = logger.as_ref().map(Logger::pid);
        self.loggers.extend(logger);
        self.watch(ready.as_fd(), Source::Logger(id), epoll::EventFlags::IN).step(|| "watch the logger")?;
        Ok(Awaited { redirected, logger: pid, ready, until: Instant::now() + logger::PATIENCE })
    }

    /// Wait for it no more, and end it: it was late, or its process will not begin.
    pub(super) fn give_up_logger(&mut self, awaited: &Awaited) {
        // One that has ended was reaped, and is not in the list any more.
        for logger in self.loggers.extract_if(.., |logger| Some(logger.pid()) == awaited.logger) {
            logger.kill();
        }
    }

    /// Let a process have its paths.
    pub(super) fn redirect(&mut self, id: u32, redirected: Redirected) {
        let Redirected { input, outputs, logger } = redirected;
        self.loggers.extend(logger);
        if let Some(feed) = input {
            self.feeds.insert(id, feed);
        }
        for (index, sink) in (0..).zip(outputs) {
            if let Some(sink) = sink {
                self.sinks.insert((id, index), sink);
            }
        }
    }

    /// Hand output over to its path.
    pub(super) fn write_to_path(&mut self, id: u32, kind: FrameKind, data: &[u8]) {
        let key = (id, index_of(kind));
        if let Some(sink) = self.sinks.get_mut(&key) {
            sink.push(data);
            self.watch_sink(key);
        }
    }

    /// Close a process's path when all is handed over: it writes no more to it.
    pub(super) fn finish_path(&mut self, id: u32, kind: FrameKind) {
        let key = (id, index_of(kind));
        if let Some(sink) = self.sinks.get_mut(&key) {
            sink.finished = true;
            sink.reader = None;
            self.take_up(key);
        }
    }

    /// Go on with a path that takes more, or that nobody reads any more.
    pub(super) fn take_up(&mut self, key: (u32, u8)) {
        let Some(sink) = self.sinks.get_mut(&key) else { return };
        if sink.flush() {
            self.watch_sink(key);
        } else {
            self.drop_sink(key);
        }
        if !self.behind(key.0, LOW_WATER) {
            self.go_on_reading(key.0);
        }
    }

    fn drop_sink(&mut self, key: (u32, u8)) {
        if let Some(sink) = self.sinks.remove(&key)
            && sink.watched
        {
            let _ = epoll::delete(&self.epoll, &sink.target);
        }
    }

    fn watch_sink(&mut self, key: (u32, u8)) {
        let Some(sink) = self.sinks.get_mut(&key) else { return };
        let wanted = !sink.queue.is_empty();
        if wanted == sink.watched {
            return;
        }
        sink.watched = wanted;
        if wanted {
            let data = Source::Sink(key.0, key.1).encode();
            let _ = epoll::add(&self.epoll, &sink.target, data, epoll::EventFlags::OUT);
        } else {
            let _ = epoll::delete(&self.epoll, &sink.target);
        }
    }

    /// A process has ended, or will not begin: close what it has left open.
    pub(super) fn finish_paths(&mut self, id: u32) {
        self.drop_feed(id);
        for kind in [FrameKind::Output, FrameKind::Error] {
            self.finish_path(id, kind);
        }
    }

    /// Give up what nobody has taken of a process's output, and its input.
    pub(super) fn drop_paths(&mut self, id: u32) {
        self.drop_feed(id);
        for index in 0..2 {
            self.drop_sink((id, index));
        }
    }

    /// Read what comes for a process, as long as it takes it.
    pub(super) fn watch_feed(&mut self, id: u32) {
        let Some(process) = self.processes.get(&id) else { return };
        let started = process.channel.is_none();
        let input = process.stdio.input.as_ref();
        if started && input.is_none() {
            return self.drop_feed(id);
        }
        let wanted = started && input.is_some_and(|input| input.queued() <= stdio::INPUT_LIMIT);
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        if wanted == feed.watched {
            return;
        }
        feed.watched = wanted;
        if wanted {
            let _ = epoll::add(&self.epoll, &feed.source, Source::Feed(id).encode(), epoll::EventFlags::IN);
        } else {
            let _ = epoll::delete(&self.epoll, &feed.source);
        }
    }

    /// Take what has come for a process.
    pub(super) fn take_fed(&mut self, id: u32) {
        let Some(feed) = self.feeds.get(&id) else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.reserve_exact(CHUNK);
        let read = rustix::io::read(feed.source.as_fd(), spare_capacity(&mut buffer));
        match read {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(length) if length > 0 => {
                if let Some(input) = self.processes.get_mut(&id).and_then(|process| process.stdio.input.as_mut()) {
                    input.push(&buffer);
                }
                self.feed(id, false);
            }
            _ => {
                self.drop_feed(id);
                self.end_input(id);
            }
        }
        self.buffer = buffer;
    }

    pub(super) fn drop_feed(&mut self, id: u32) {
        if let Some(feed) = self.feeds.remove(&id)
            && feed.watched
        {
            let _ = epoll::delete(&self.epoll, &feed.source);
        }
    }

    /// End a process's input: that from a path when its last writer has gone. Harmless twice.
    pub(super) fn close_input(&mut self, id: u32) {
        match self.feeds.get_mut(&id) {
            Some(feed) => feed.writer = None,
            None => self.end_input(id),
        }
    }

    /// Close a process's input once it has taken what there is; a terminal stays open.
    fn end_input(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if process.stdio.terminal.is_some() {
            return;
        }
        if let Some(input) = process.stdio.input.as_mut() {
            input.push(b"");
        }
        self.feed(id, false);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::error::Kind;

    fn fifo(folder: &tempfile::TempDir, name: &str) -> String {
        let path = folder.path().join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("made");
        path.to_string_lossy().into_owned()
    }

    #[test]
    fn what_nobody_reads_yet_waits_in_the_fifo_and_in_the_queue() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = fifo(&folder, "out");
        let mut sink = Sink::open(&path).expect("opened");
        let sent: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
        sink.push(&sent);
        assert!(sink.queued() > 0, "more than a pipe holds");
        sink.finished = true;
        let reader = reopen(&find(path.as_ref()).expect("found").0, OFlags::RDONLY).expect("opened");
        rustix::io::ioctl_fionbio(&reader, false).expect("set");
        sink.reader = None;
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut all).expect("read");
            all
        });
        while sink.flush() {
            std::thread::yield_now();
        }
        drop(sink);
        assert!(thread.join().expect("joined") == sent);
    }

    #[test]
    fn what_nobody_will_read_is_dropped_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut sink = Sink::open(&fifo(&folder, "out")).expect("opened");
        sink.push(&vec![7; 100_000]);
        assert!(sink.queued() > 0 && sink.flush(), "somebody may come");
        (sink.finished, sink.reader) = (true, None);
        assert!(!sink.flush());
    }

    #[test]
    fn a_logger_gets_both_streams_its_arguments_and_whom_it_serves() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = r#"printf '%s\n' "$@" "$CONTAINER_NAMESPACE/$CONTAINER_ID" > seen; ls /proc/$$/fd > descriptors
            exec 5>&-; cat <&3 > out; cat <&4 > err"#;
        crate::write_program(&folder.path().join("logger"), &format!("#!/bin/sh\ncd \"$2\"\n{script}\n"));
        let place = folder.path().display();
        let stdout = format!("binary://{place}/logger?folder={place}&a%20b=c+d&flag&folder=twice");
        let owner = Owner { container: "box".into(), namespace: "tests".into() };
        let paths = Redirections { stdout, ..Redirections::default() };
        let Redirected { outputs, logger, .. } = Redirected::open(&paths, &owner).expect("started");
        let [Some(mut output), Some(mut errors)] = outputs else { panic!("both streams go there") };
        output.push(b"words");
        errors.push(b"complaints");
        drop((output, errors));
        let pid = rustix::process::Pid::from_raw(logger.expect("it runs").pid());
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).expect("ended");
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("written");
        assert_eq!(read("seen"), format!("folder\n{place}\na b\nc d\nflag\n\ntests/box\n"));
        let descriptors = read("descriptors");
        let beside_the_script = descriptors.split_whitespace().filter(|number| number.len() == 1);
        assert!(beside_the_script.eq(["0", "1", "2", "3", "4", "5"]), "{descriptors}");
        assert_eq!((read("out"), read("err")), ("words".into(), "complaints".into()));
    }

    #[test]
    fn a_file_is_made_with_its_folders_and_written_at_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = format!("file://{}/a%20b/log?x=y", folder.path().display());
        for text in ["one\n", "two\n"] {
            let paths = Redirections { stdout: place.clone(), ..Redirections::default() };
            let Redirected { outputs, .. } = Redirected::open(&paths, &Owner::default()).expect("opened");
            let [Some(mut output), Some(_)] = outputs else { panic!("errors go there, too") };
            output.push(text.as_bytes());
        }
        assert_eq!(std::fs::read_to_string(folder.path().join("a b/log")).expect("read"), "one\ntwo\n");
    }

    #[test]
    fn what_is_no_fifo_or_file_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |stdin: &str, stdout: &str| {
            let paths = Redirections { stdin: stdin.into(), stdout: stdout.into(), stderr: String::new() };
            Redirected::open(&paths, &Owner::default()).expect_err("refused")
        };
        assert_eq!(open("", "syslog://host").kind, Kind::Unsupported);
        assert!(open("", "syslog://host").message.contains("syslog://host"));
        assert_eq!(open("", "binary:///bin/no-such-logger?a=b").kind, Kind::NotFound);
        assert_eq!(open("", "binary://logger").kind, Kind::InvalidArgument);
        assert_eq!(open("", "relative").kind, Kind::InvalidArgument);
        assert_eq!(open("", "file:///a%zz").kind, Kind::InvalidArgument);
        assert_eq!(open("", &format!("{}/none", folder.path().display())).kind, Kind::NotFound);
        assert_eq!(open("/dev/null", "").kind, Kind::InvalidArgument);
    }
}
