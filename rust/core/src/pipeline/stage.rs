//! The stages, each the body of one thread.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::chunk::{self, Pool};
use super::queue::{Receiver, Sender};
use crate::compression::{Compression, Decoder, check_growth, damaged};
use crate::cores;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::layer::{self, Applied, WhiteoutFormat};
use crate::tar::{Limits, Source};

/// How long a wait lasts before it looks whether to go on.
pub const POLL: Duration = Duration::from_millis(50);

/// How long a stage may take from letting go of its input to saying why: microseconds, on a machine that has time.
const GONE: Duration = Duration::from_secs(5);

/// What all stages and the caller see.
#[derive(Debug, Default)]
pub struct State {
    cancelled: AtomicBool,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
    /// Bytes of the tar that were applied.
    pub unpacked: AtomicU64,
}

impl State {
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Stop when the work was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Acquire) { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// The first failure of a stage.
    pub fn failure(&self) -> Option<Error> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why a stage is gone. It lets go of what it was fed before its error is remembered, so that this may take a moment.
    pub fn why_gone(&self) -> Error {
        let deadline = Instant::now() + GONE;
        loop {
            if let Some(error) = self.failure() {
                return error;
            }
            if self.check().is_err() || Instant::now() > deadline {
                return Error::cancelled();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Remember a failure, unless one is remembered already or it is only that the work was stopped.
    pub fn fail(&self, error: Error) {
        if error.kind == Kind::Cancelled {
            return;
        }
        let mut slot = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// Run a stage; its failure, or panic, becomes the pipeline's.
    pub fn run<T>(&self, stage: impl FnOnce() -> Result<T>) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(stage)) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => self.fail(error),
            Err(panic) => self.fail(Error::new(Kind::Internal, panic_text(&*panic))),
        }
        None
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a defect of lamella: {}", text.unwrap_or("unknown panic"))
}

/// A stage behind this one is gone: it failed and said why, or was cancelled.
fn gone() -> Error {
    Error::cancelled()
}

/// Chunks of a stream, read as one.
#[derive(Debug)]
pub struct Incoming {
    chunks: Receiver<chunk::Shared>,
    current: Option<chunk::Shared>,
    position: usize,
    pub(super) state: Arc<State>,
    /// Bytes consumed.
    consumed: u64,
}

impl Incoming {
    pub fn new(chunks: Receiver<chunk::Shared>, state: Arc<State>) -> Self {
        Self { chunks, current: None, position: 0, state, consumed: 0 }
    }

    /// The next whole chunk; None at the end.
    pub(super) fn next_chunk(&mut self) -> Result<Option<chunk::Shared>> {
        let next = self.chunks.recv().ok();
        self.state.check()?;
        Ok(next)
    }

    fn available(&mut self) -> Result<&[u8]> {
        while self.current.as_ref().is_none_or(|chunk| self.position >= chunk.bytes().len()) {
            self.current = None;
            self.position = 0;
            match self.next_chunk()? {
                Some(chunk) => self.current = Some(chunk),
                None => return Ok(&[]),
            }
        }
        Ok(self.current.as_ref().map_or(&[], |chunk| &chunk.bytes()[self.position..]))
    }

    fn drop_bytes(&mut self, count: usize) {
        self.position += count;
        self.consumed += count as u64;
    }
}

/// The tar as its reader sees it.
pub struct TarSource(pub Incoming);

impl Source for TarSource {
    fn fill(&mut self) -> Result<&[u8]> {
        self.0.available()
    }

    fn consume(&mut self, count: usize) {
        self.0.drop_bytes(count);
        self.0.state.unpacked.store(self.0.consumed, Ordering::Relaxed);
    }
}

/// The blob as the decoders see it.
struct BlobSource<'a>(&'a mut Incoming);

impl Read for BlobSource<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for BlobSource<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.available().map_err(io::Error::other)
    }

    fn consume(&mut self, count: usize) {
        self.0.drop_bytes(count);
    }
}

/// The blob's file, open where its next bytes belong, and its path for messages.
pub type BlobFile = (File, PathBuf);

/// Hash the blob and write it.
pub fn store(mut chunks: Incoming, algorithm: Algorithm, file: Option<BlobFile>) -> Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    while let Some(chunk) = chunks.next_chunk()? {
        if let Some((file, path)) = &file {
            let mut file = file;
            file.write_all(&chunk.bytes()[chunk.stored..])
                .map_err(|error| Error::system(format!("cannot write {}", path.display()), error))?;
        }
        hasher.update(chunk.bytes());
    }
    Ok(hasher.finish())
}

/// Where the tar goes.
pub struct Outgoing {
    pub pool: Pool,
    pub hash: Sender<chunk::Shared>,
    pub apply: Sender<chunk::Shared>,
}

/// What inflating found.
#[derive(Clone, Copy, Debug)]
pub struct Inflated {
    pub tar_size: u64,
    /// The blob is the tar itself, and its hash was left to the blob's stage.
    pub is_blob: bool,
}

/// Inflate. `same_algorithm`: the blob's digest would serve as the tar's.
pub fn inflate(
    mut chunks: Incoming,
    declared: Compression,
    same_algorithm: bool,
    to: &Outgoing,
    max_size: u64,
    layer: &Arc<cores::Layer>,
) -> Result<Inflated> {
    // Chunks are filled before they are sent, so the first one holds the magic number.
    let compression = Compression::detect(chunks.available()?);
    if compression == Compression::None {
        return pass(chunks, same_algorithm, to);
    }
    let state = Arc::clone(&chunks.state);
    let broken = |error: io::Error| {
        if let Err(cancelled) = state.check() {
            return cancelled;
        }
        damaged(compression, &error).hint(if compression == declared {
            "The layer is damaged; pull it again."
        } else {
            "The layer's media type names another compression; its bytes decided."
        })
    };
    // The decoder borrows the stream, so count what it took by what the stream says afterwards.
    let mut decoder = Decoder::helped(compression, BlobSource(&mut chunks), layer).map_err(broken)?;
    let mut tar_size = 0u64;
    let mut ended = false;
    while !ended {
        let mut chunk = loop {
            state.check()?;
            if let Some(chunk) = to.pool.take(POLL) {
                break chunk;
            }
        };
        while !chunk.is_full() {
            match decoder.read(chunk.room()) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(count) => chunk.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        tar_size += chunk.bytes().len() as u64;
        check_growth(tar_size, decoder.get_ref().0.consumed, max_size)?;
        if !chunk.is_empty() {
            let chunk = Arc::new(chunk);
            to.hash.send(Arc::clone(&chunk)).map_err(|_| gone())?;
            to.apply.send(chunk).map_err(|_| gone())?;
        }
    }
    Ok(Inflated { tar_size, is_blob: false })
}

/// A blob that is not compressed: hand its chunks on as they are. The tar reader holds the cap on their number.
fn pass(mut chunks: Incoming, same_algorithm: bool, to: &Outgoing) -> Result<Inflated> {
    let mut tar_size = 0;
    let mut next = chunks.current.take();
    while let Some(chunk) = next {
        tar_size += chunk.bytes().len() as u64;
        if !same_algorithm {
            to.hash.send(Arc::clone(&chunk)).map_err(|_| gone())?;
        }
        to.apply.send(chunk).map_err(|_| gone())?;
        next = chunks.next_chunk()?;
    }
    Ok(Inflated { tar_size, is_blob: same_algorithm })
}

/// Hash the tar.
pub fn hash(mut chunks: Incoming, algorithm: Algorithm) -> Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    while let Some(chunk) = chunks.next_chunk()? {
        hasher.update(chunk.bytes());
    }
    Ok(hasher.finish())
}

/// Apply the tar.
pub fn apply(chunks: Incoming, folder: &Path, format: WhiteoutFormat, limits: Limits) -> Result<Applied> {
    let state = Arc::clone(&chunks.state);
    let beneath = layer::Kept::beside(folder)?;
    layer::make(TarSource(chunks), folder, format, limits, beneath, &mut || state.check())
}
