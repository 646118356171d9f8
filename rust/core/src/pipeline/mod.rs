//! One pass over one blob: hash it and write it, and, for a layer, inflate, hash the tar and apply it.
//!
//! ```text
//!            ┌─> store: hash, write the file
//! write() ───┤                          ┌─> hash the tar (diffID)
//!            └─> inflate ───────────────┤
//!                                       └─> parse, apply to the layer folder
//! ```
//! Each stage is a thread. They share chunks of memory that are recycled; about 6 MiB a pipeline. Where this process may not
//! apply, a helper does ([`crate::helper`]): the chunks are of memory that it sees, and the last stage lends them to it. Where there are cores to
//! spare, inflating has helpers ([`crate::inflate`]), with 4 MiB more for each. What a stage fails with surfaces at the
//! caller's next call. After an error of any call the stages have stopped, and later calls give the same error. Nothing is
//! synced to disk: that is one step for a whole image.

mod chunk;
mod lend;
mod queue;
mod stage;
mod threads;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chunk::{CHUNK, Chunk, Pool};
use lend::Lender;
use queue::{Receiver, Sender, bounded};
pub use stage::panic_text;
use stage::{Incoming, POLL, State};
use threads::{Threads, join, spawn, start_layer};

use crate::compression::Compression;
use crate::cores::Cores;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::helper::Helper;
use crate::layer::{Applied, WhiteoutFormat, store_kept};
use crate::tar::Limits;
use crate::tree::Check;

const BLOB_CHUNKS: usize = 8;
const TAR_CHUNKS: usize = 16;

/// What a pipeline is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// The file to write.
    pub blob: Option<PathBuf>,
    /// Bytes that the file holds already.
    pub offset: u64,
    /// What the media type says.
    pub compression: Compression,
    /// The folder to apply to.
    pub layer: Option<PathBuf>,
    /// The tar's digest, where it is known.
    pub diff_id: Option<Digest>,
    /// How deletions are recorded.
    pub whiteouts: WhiteoutFormat,
    /// Caps.
    pub limits: Limits,
    /// The cores to share with other pipelines.
    pub cores: Arc<Cores>,
    /// Who applies, where this process may not.
    pub helper: Option<Arc<Helper>>,
}

/// What a pipeline found.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size.
    pub size: u64,
    /// The tar's digest; None without a layer.
    pub diff_id: Option<Digest>,
    /// The tar's size.
    pub tar_size: u64,
    /// The layer folder.
    pub layer: Applied,
}

/// See the module.
#[derive(Debug)]
pub struct Pipeline {
    // Taken out by drop: a forked child must not touch what its parent's threads may have locked.
    inner: Option<Inner>,
    process: u32,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    state: Arc<State>,
    received: AtomicU64,
    feed: Mutex<Feed>,
    pool: Pool,
}

/// The caller's end.
#[derive(Debug)]
struct Feed {
    outputs: Vec<Sender<chunk::Shared>>,
    current: Option<Chunk>,
    resume: Option<File>,
    threads: Option<Threads>,
    ended: Receiver<()>,
}

impl Pipeline {
    /// Start the stages.
    pub fn new(options: Options) -> Result<Self> {
        if options.offset > options.size {
            return Err(Error::invalid(format!(
                "the file holds {} bytes, the blob {} only",
                options.offset, options.size
            )));
        }
        let (file, resume) = open_blob(&options)?;
        let (lender, pool, archive_pool) = match options.helper.clone().filter(|_| options.layer.is_some()) {
            None => (None, Pool::new(BLOB_CHUNKS), Pool::new(TAR_CHUNKS)),
            Some(helper) => {
                let (lender, pool, archive_pool) = Lender::new(helper)?;
                (Some(lender), pool, archive_pool)
            }
        };
        let state = Arc::new(State::default());
        let (end_mark, ended) = bounded::<()>(0);
        let mut outputs = Vec::new();
        let mut input = |state: &Arc<State>| {
            let (sender, receiver) = bounded(BLOB_CHUNKS + 1);
            outputs.push(sender);
            Incoming::new(receiver, Arc::clone(state))
        };
        let algorithm = options.digest.algorithm();
        let chunks = input(&state);
        let store = spawn("lamella-store", &state, &end_mark, move || stage::store(chunks, algorithm, file))?;
        let layer = match options.layer.clone() {
            None => None,
            Some(layer) => {
                let chunks = input(&state);
                let started = start_layer(&options, layer, lender, archive_pool, chunks, &state, &end_mark);
                if started.is_err() {
                    state.cancel();
                }
                Some(started?)
            }
        };
        let feed = Feed { outputs, current: None, resume, threads: Some(Threads { store, layer }), ended };
        let received = AtomicU64::new(options.offset);
        let inner = Inner { options, state, received, feed: Mutex::new(feed), pool };
        Ok(Self { inner: Some(inner), process: std::process::id() })
    }

    fn inner(&self) -> Result<&Inner> {
        match &self.inner {
            Some(inner) if self.process == std::process::id() => Ok(inner),
            _ => Err(Error::new(Kind::FailedPrecondition, "the pipeline belongs to the process that made it")
                .hint("Do not fork while a pull runs; make a new one in the child.")),
        }
    }

    /// Do one call's work; when it fails, stop everything.
    fn guarded<T>(&self, work: impl FnOnce(&Inner) -> Result<T>) -> Result<T> {
        let inner = self.inner()?;
        let result = work(inner);
        if let Err(error) = &result {
            inner.state.fail(error.clone());
            inner.stop();
        }
        result
    }

    /// Hand over bytes. Blocks while the stages are behind, and calls `check` meanwhile.
    pub fn write(&self, data: &[u8], check: Check<'_>) -> Result<()> {
        self.write_with(data.len(), check, &mut |start, target| {
            target.copy_from_slice(&data[start..start + target.len()]);
        })
    }

    /// [`Self::write`] of `length` bytes that `copy` gives: from a position, into a slice.
    pub fn write_with(&self, length: usize, check: Check<'_>, copy: &mut dyn FnMut(usize, &mut [u8])) -> Result<()> {
        self.guarded(|inner| {
            let mut feed = inner.lock(check)?;
            inner.resume(&mut feed, check)?;
            inner.admit(length as u64)?;
            let mut start = 0;
            while start < length {
                let chunk = inner.chunk(&mut feed, check)?;
                let room = chunk.room();
                let count = room.len().min(length - start);
                copy(start, &mut room[..count]);
                chunk.advance(count);
                start += count;
                inner.received.fetch_add(count as u64, Ordering::Relaxed);
                inner.send_if_full(&mut feed)?;
            }
            Ok(())
        })
    }

    /// Feed a whole file.
    pub fn read_from(&self, path: &std::path::Path, check: Check<'_>) -> Result<()> {
        self.guarded(|inner| {
            let mut feed = inner.lock(check)?;
            inner.resume(&mut feed, check)?;
            let file =
                File::open(path).map_err(|error| Error::system(format!("cannot open {}", path.display()), error))?;
            inner.feed_file(&mut feed, file, None, false, check)
        })
    }

    /// Wait for all stages and check size, digest and diffID.
    pub fn finish(&self, check: Check<'_>) -> Result<Unpacked> {
        self.guarded(|inner| {
            let mut feed = inner.lock(check)?;
            inner.resume(&mut feed, check)?;
            if let Some(chunk) = feed.current.take().filter(|chunk| !chunk.is_empty()) {
                inner.send(&mut feed, chunk)?;
            }
            feed.outputs.clear();
            while let Err(RecvTimeoutError::Timeout) = feed.ended.recv_timeout(POLL) {
                check()?;
                inner.state.check()?;
            }
            let ended = || Error::new(Kind::FailedPrecondition, "the pipeline has ended");
            inner.conclude(feed.threads.take().ok_or_else(ended)?)
        })
    }

    /// Stop all stages and wait for them. Harmless twice, and after `finish`.
    pub fn abort(&self) {
        if let Ok(inner) = self.inner() {
            inner.stop();
        }
    }

    /// Bytes of the blob taken so far, the resumed ones included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.received.load(Ordering::Relaxed))
    }

    /// Bytes of the tar applied so far.
    #[must_use]
    pub fn unpacked(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.state.unpacked.load(Ordering::Relaxed))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if self.process == std::process::id() {
            inner.stop();
        } else {
            // After a fork the threads are not here, and their locks may be held for ever.
            std::mem::forget(inner);
        }
    }
}

impl Inner {
    fn lock(&self, check: Check<'_>) -> Result<MutexGuard<'_, Feed>> {
        check()?;
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        match self.state.failure() {
            Some(error) => Err(error),
            None => self.state.check().map(|()| feed),
        }
    }

    /// Refuse bytes beyond the declared size at once.
    fn admit(&self, count: u64) -> Result<()> {
        let total = self.received.load(Ordering::Relaxed).saturating_add(count);
        if total > self.options.size {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("blob {}: {} bytes expected, more came", self.options.digest, self.options.size),
            )
            .hint("The server sends something else than the manifest names."));
        }
        Ok(())
    }

    /// The chunk being filled.
    fn chunk<'a>(&self, feed: &'a mut Feed, check: Check<'_>) -> Result<&'a mut Chunk> {
        if feed.outputs.is_empty() {
            return Err(Error::new(Kind::FailedPrecondition, "the pipeline has ended"));
        }
        let chunk = match feed.current.take() {
            Some(chunk) => chunk,
            None => loop {
                check()?;
                self.state.check()?;
                if let Some(error) = self.state.failure() {
                    return Err(error);
                }
                if let Some(chunk) = self.pool.take(POLL) {
                    break chunk;
                }
            },
        };
        Ok(feed.current.insert(chunk))
    }

    fn send_if_full(&self, feed: &mut Feed) -> Result<()> {
        match feed.current.take() {
            Some(chunk) if chunk.is_full() => self.send(feed, chunk),
            other => {
                feed.current = other;
                Ok(())
            }
        }
    }

    fn send(&self, feed: &mut Feed, chunk: Chunk) -> Result<()> {
        let chunk = Arc::new(chunk);
        for output in &feed.outputs {
            if output.send(Arc::clone(&chunk)).is_err() {
                return Err(self.state.why_gone());
            }
        }
        Ok(())
    }

    /// Feed what the blob's file holds already.
    fn resume(&self, feed: &mut Feed, check: Check<'_>) -> Result<()> {
        let Some(file) = feed.resume.take() else { return Ok(()) };
        self.feed_file(feed, file, Some(self.options.offset), true, check)
    }

    /// Feed a file, `length` bytes of it or all.
    fn feed_file(
        &self,
        feed: &mut Feed,
        mut file: File,
        length: Option<u64>,
        stored: bool,
        check: Check<'_>,
    ) -> Result<()> {
        let mut left = length;
        while left != Some(0) {
            check()?;
            let chunk = self.chunk(feed, check)?;
            let room = chunk.room();
            let most = left.map_or(room.len(), |left| room.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            let count = match file.read(&mut room[..most]) {
                Ok(0) if left.is_some() => return Err(Error::data_loss("the partial blob became shorter")),
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::system("cannot read the blob", error)),
            };
            if !stored {
                self.admit(count as u64)?;
                self.received.fetch_add(count as u64, Ordering::Relaxed);
            }
            if let Some(chunk) = &mut feed.current {
                chunk.advance(count);
                chunk.stored += if stored { count } else { 0 };
            }
            left = left.map(|left| left - count as u64);
            self.send_if_full(feed)?;
        }
        Ok(())
    }

    /// All threads have ended: what came of it?
    fn conclude(&self, threads: Threads) -> Result<Unpacked> {
        let digest = join(threads.store);
        let layer = threads.layer.map(|layer| (join(layer.inflate), join(layer.hash), join(layer.apply)));
        let options = &self.options;
        let received = self.received.load(Ordering::Relaxed);
        let mismatch = |message: String| {
            Error::new(Kind::FailedPrecondition, message).hint("The download is damaged or incomplete; pull it again.")
        };
        if received != options.size {
            return Err(mismatch(format!("blob {}: {} bytes expected, {received} came", options.digest, options.size)));
        }
        // A wrong digest explains whatever else a stage stumbled over.
        if let Some(digest) = digest.as_ref().filter(|digest| **digest != options.digest) {
            return Err(mismatch(format!("blob {}: its content has the digest {digest}", options.digest)));
        }
        if let Some(error) = self.state.failure() {
            return Err(error);
        }
        let lost = || Error::new(Kind::Internal, "a stage ended without a result");
        let digest = digest.ok_or_else(lost)?;
        let Some((inflated, hashed, applied)) = layer else {
            return Ok(Unpacked { digest, size: received, diff_id: None, tar_size: 0, layer: Applied::default() });
        };
        let (inflated, hashed) = (inflated.ok_or_else(lost)?, hashed.ok_or_else(lost)?);
        let diff_id = if inflated.is_blob { digest.clone() } else { hashed };
        if let Some(expected) = options.diff_id.as_ref().filter(|expected| **expected != diff_id) {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("blob {}: its tar has the digest {diff_id}, the image config says {expected}", options.digest),
            )
            .hint("The image's config and layers do not belong together."));
        }
        let layer = applied.ok_or_else(lost)?;
        if let Some(folder) = &options.layer {
            store_kept(folder, &layer.kept)?;
        }
        Ok(Unpacked { digest, size: received, diff_id: Some(diff_id), tar_size: inflated.tar_size, layer })
    }

    fn stop(&self) {
        self.state.cancel();
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        feed.outputs.clear();
        feed.current = None;
        feed.resume = None;
        if let Some(threads) = feed.threads.take() {
            let _ = join(threads.store);
            if let Some(layer) = threads.layer {
                let _ = (join(layer.inflate), join(layer.hash), join(layer.apply));
            }
        }
    }
}

/// Open the blob's file at its offset, and once more to read back what it holds.
fn open_blob(options: &Options) -> Result<(Option<stage::BlobFile>, Option<File>)> {
    let Some(path) = &options.blob else {
        if options.offset > 0 {
            return Err(Error::invalid("an offset without a file"));
        }
        return Ok((None, None));
    };
    let failed = |error| Error::system(format!("cannot open {}", path.display()), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length < options.offset {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("{} holds {length} bytes, not {}", path.display(), options.offset),
        ));
    }
    // Not where there is nothing to cut: what was ever cut to nothing is written back when ext4 closes it, and closing
    // then takes as long as the disk does (ext4(5), auto_da_alloc).
    if length > options.offset {
        file.set_len(options.offset).map_err(failed)?;
    }
    file.seek(SeekFrom::Start(options.offset)).map_err(failed)?;
    let resume = match options.offset {
        0 => None,
        _ => Some(File::open(path).map_err(failed)?),
    };
    Ok((Some((file, path.clone())), resume))
}

const _: () = assert!((BLOB_CHUNKS + TAR_CHUNKS) * CHUNK <= 8 << 20);
