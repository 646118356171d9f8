//! The last stage where a helper does it: chunks are lent to it, in order, and come back when it has applied them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::chunk::{CHUNK, Pool, Shared};
use super::stage::{Incoming, State};
use super::{BLOB_CHUNKS, TAR_CHUNKS};
use crate::error::{Error, Kind, Result};
use crate::helper::{Apply, Feed, Helper, Reply, Request, ended};
use crate::layer::{Applied, WhiteoutFormat};
use crate::sys::Piece;
use crate::tar::Limits;

/// A helper, and the memory that it sees of this pipeline.
#[derive(Debug)]
pub struct Lender {
    helper: Arc<Helper>,
    memory: OwnedFd,
}

impl Lender {
    /// Make the memory, for chunks of the blob (a plain one is the archive) and of the archive.
    pub fn new(helper: Arc<Helper>) -> Result<(Self, Pool, Pool)> {
        let (memory, pieces) = Piece::make(BLOB_CHUNKS + TAR_CHUNKS, CHUNK)
            .map_err(|error| Error::system("cannot make memory that is shared with the helper", error))?;
        let mut pieces = pieces;
        let archive = pieces.split_off(BLOB_CHUNKS);
        let numbered = |first: usize, pieces: Vec<Piece>| {
            let number = move |(index, piece)| (u32::try_from(first + index).unwrap_or(u32::MAX), piece);
            pieces.into_iter().enumerate().map(number)
        };
        Ok((Self { helper, memory }, Pool::lent(numbered(0, pieces)), Pool::lent(numbered(BLOB_CHUNKS, archive))))
    }

    /// Have the archive applied.
    pub fn apply(
        self,
        mut chunks: Incoming,
        layer: PathBuf,
        format: WhiteoutFormat,
        limits: Limits,
    ) -> Result<Applied> {
        let state = Arc::clone(&chunks.state);
        let request = Request::Apply(Apply { layer, format, limits, piece: CHUNK });
        let mut connection = self.helper.open(&request, &[self.memory.as_fd()], &mut || state.check())?;
        let speaker = connection.speaker()?;
        let stopped = AtomicBool::new(false);
        let lent = Mutex::new((0..BLOB_CHUNKS + TAR_CHUNKS).map(|_| None).collect::<Vec<Option<Shared>>>());
        let take_back = |number: u32| {
            let mut lent = lent.lock().unwrap_or_else(PoisonError::into_inner);
            usize::try_from(number).ok().and_then(|number| lent.get_mut(number)?.take())
        };
        thread::scope(|scope| {
            let hear = thread::Builder::new().name("lamella-lent".to_owned()).spawn_scoped(scope, || {
                let answer = loop {
                    match connection.hear::<Reply<Applied>>(&mut || state.check()) {
                        Ok(Some(Reply::Free(number))) => {
                            let bytes = take_back(number).map_or(0, |chunk| chunk.bytes().len() as u64);
                            state.unpacked.fetch_add(bytes, Ordering::Relaxed);
                        }
                        Ok(Some(Reply::Answer(answer))) => break answer,
                        // Where feeding ended early it was this side that let go.
                        Ok(None) => {
                            break Err(if stopped.load(Ordering::Acquire) { Error::cancelled() } else { ended() });
                        }
                        Err(error) => break Err(error),
                    }
                };
                if let Err(error) = &answer {
                    // Whoever feeds is told now, not with the next chunk.
                    state.fail(error.clone());
                    connection.end();
                }
                answer
            });
            let hear = hear.map_err(|error| Error::system("cannot start a thread", error))?;
            let fed = feed(&mut chunks, &state, |chunk| {
                let number = chunk.number().ok_or_else(|| Error::new(Kind::Internal, "a chunk that is not lent"))?;
                let length = u32::try_from(chunk.bytes().len()).unwrap_or(u32::MAX);
                let mut lent = lent.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(place) = usize::try_from(number).ok().and_then(|number| lent.get_mut(number)) {
                    *place = Some(chunk);
                }
                drop(lent);
                speaker.say(&Feed::Piece { index: number, length })
            })
            .and_then(|()| speaker.say(&Feed::End));
            if let Err(error) = fed {
                // Where the helper hung up, who hears finds out why: it answered, or is gone.
                if error != ended() {
                    state.fail(error);
                    stopped.store(true, Ordering::Release);
                }
                speaker.end();
            }
            // Inflating notices that nobody takes its chunks any more when they go, which is when it is known why.
            hear.join().unwrap_or_else(|_| Err(ended()))
        })
    }
}

/// Lend every chunk. Ends early where a stage failed: the helper, or another.
fn feed(chunks: &mut Incoming, state: &State, mut lend: impl FnMut(Shared) -> Result<()>) -> Result<()> {
    while let Some(chunk) = chunks.next_chunk()? {
        if let Some(error) = state.failure() {
            return Err(error);
        }
        lend(chunk)?;
    }
    state.check()
}
