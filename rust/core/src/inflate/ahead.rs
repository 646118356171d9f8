//! What a helper does: inflate a piece of a stream ahead of its turn, without its window.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::block::{Inflater, Output, Stop, WINDOW};
use super::find;
use super::gzip::{TRAILER, header_length};

/// How many bytes a helper writes at most. With more to come the reader goes on by itself, so that no ratio fills the memory.
const MOST: usize = 3 << 19;
/// From here on a cell is not a byte but the place of one in the window.
pub const PLACES: u16 = 1 << 15;
/// How often a helper may be wrong on where a block begins: in an honest piece about 100 times by the header, once by the
/// block itself. Bytes made to deceive must not keep it busy.
const PATIENCE: u32 = 2000;
/// What inflating the wrong block, or reading the wrong header, takes of it.
const WRONG_BLOCK: u32 = 200;

/// Consecutive bytes of the stream.
#[derive(Debug, Default)]
pub struct Piece {
    pub bytes: Vec<u8>,
    /// How many of them end the piece before.
    pub overlap: usize,
}

/// Members may be small and of a last block each. So a stretch is searched for members before it is for blocks, which takes
/// ten times as long.
const STRETCH: usize = 4096;

/// A piece that is inflated from its first block on.
#[derive(Debug)]
pub struct Ahead {
    /// The bit where that began.
    pub start: usize,
    /// The bit where it stopped.
    pub end: usize,
    /// How `end` is to be gone on from.
    pub inflater: Inflater,
    /// The window's places, then what was inflated.
    pub output: Output<u16>,
    /// Where members of the stream ended, and what their trailers say.
    pub ends: Vec<(usize, [u8; TRAILER])>,
}

impl Default for Ahead {
    fn default() -> Self {
        let mut cells = vec![0; WINDOW + MOST];
        for (cell, place) in cells[..WINDOW].iter_mut().zip(PLACES..=u16::MAX) {
            *cell = place;
        }
        let output = Output { cells, at: WINDOW, oldest: 0 };
        Self { start: 0, end: 0, inflater: Inflater::default(), output, ends: Vec::new() }
    }
}

impl Ahead {
    /// Inflate `piece`; false if nothing in it looks like a block's start, or a member's.
    fn inflate(&mut self, piece: &Piece) -> bool {
        let bytes = &piece.bytes[..];
        let mut from = piece.overlap * 8;
        let mut patience = PATIENCE;
        while from < bytes.len() * 8 && patience > 0 {
            let end = bytes.len().min(from / 8 + STRETCH);
            let member = find::member(&bytes[..end], from.div_ceil(8));
            let end = member.unwrap_or(end) * 8;
            while let Some(start) = find::block(bytes, from, end).filter(|_| patience > 0) {
                if self.inflater.is_header(bytes, start) {
                    if self.begin(bytes, start, 0) {
                        return true;
                    }
                    patience = patience.saturating_sub(WRONG_BLOCK);
                }
                patience = patience.saturating_sub(1);
                from = start + 1;
            }
            from = end;
            if let Some(at) = member {
                let length = header_length(&bytes[at..]);
                if length.is_some_and(|length| self.begin(bytes, (at + length) * 8, WINDOW)) {
                    return true;
                }
                patience = patience.saturating_sub(WRONG_BLOCK);
                from = (at + 1) * 8;
            }
        }
        false
    }

    /// Inflate from `start` to the piece's end, with the window from `oldest` on; false where it is not deflate.
    fn begin(&mut self, bytes: &[u8], start: usize, oldest: usize) -> bool {
        (self.start, self.end) = (start, start);
        (self.output.at, self.output.oldest) = (WINDOW, oldest);
        self.ends.clear();
        self.inflater.restart();
        loop {
            match self.inflater.run(bytes, &mut self.end, &mut self.output, usize::MAX) {
                Ok(Stop::Ended) if self.next_member(bytes) => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Begin the next member, if all of this one's trailer and of its header is here.
    fn next_member(&mut self, bytes: &[u8]) -> bool {
        let at = self.end.div_ceil(8);
        let Some((trailer, rest)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk) else { return false };
        let Some(length) = header_length(rest) else { return false };
        self.ends.push((self.output.at, *trailer));
        self.output.oldest = self.output.at;
        self.end = (at + TRAILER + length) * 8;
        self.inflater.restart();
        true
    }
}

/// A piece to inflate, and where the result goes: also whether a block was found in it.
#[derive(Debug)]
pub struct Job {
    pub number: u64,
    pub piece: Arc<Piece>,
    /// Memory for the result.
    pub ahead: Ahead,
    pub done: Sender<Done>,
}

/// What came of a job.
pub type Done = (bool, Ahead);

impl Job {
    /// Do it.
    pub fn work(mut self) {
        let found = self.ahead.inflate(&self.piece);
        let _ = self.done.send((found, self.ahead)); // the reader may be gone
    }
}
