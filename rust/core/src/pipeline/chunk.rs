//! Pieces of a stream that several stages read at once. Their memory is recycled, which also bounds it: who fills a
//! chunk waits until one is free, so the slowest stage sets the pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::queue::{Receiver, Sender, bounded};
use crate::sys::Piece;

/// Fits the second-level cache together with what a stage needs beside it.
pub const CHUNK: usize = 256 * 1024;

/// Where a chunk's bytes are.
#[derive(Debug)]
pub enum Memory {
    /// In this process alone.
    Own(Box<[u8]>),
    /// Where a helper sees them, by this number.
    Lent(u32, Piece),
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Lent(_, piece) => piece,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Lent(_, piece) => piece,
        }
    }
}

/// A filled piece of a stream.
#[derive(Debug)]
pub struct Chunk {
    /// None while it is dropped only.
    memory: Option<Memory>,
    capacity: usize,
    length: usize,
    /// How many of its first bytes the blob's file holds already.
    pub stored: usize,
    home: Sender<Memory>,
}

/// A chunk that stages share.
pub type Shared = Arc<Chunk>;

impl Chunk {
    pub fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory.bytes()[..self.length])
    }

    /// By which number a helper knows its memory.
    pub fn number(&self) -> Option<u32> {
        match self.memory {
            Some(Memory::Lent(number, _)) => Some(number),
            _ => None,
        }
    }

    /// The part that is not filled.
    pub fn room(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.bytes_mut()[self.length..])
    }

    /// Declare more of it filled.
    pub fn advance(&mut self, count: usize) {
        self.length = (self.length + count).min(self.capacity);
    }

    pub fn is_full(&self) -> bool {
        self.length == self.capacity
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // The queue has room for every piece of memory that was made; or the pool is gone.
        if let Some(memory) = self.memory.take() {
            let _ = self.home.send(memory);
        }
    }
}

/// A fixed number of chunks.
#[derive(Debug)]
pub struct Pool {
    free: Receiver<Memory>,
    home: Sender<Memory>,
    unmade: AtomicUsize,
}

impl Pool {
    pub fn new(chunks: usize) -> Self {
        let (home, free) = bounded(chunks);
        Self { free, home, unmade: AtomicUsize::new(chunks) }
    }

    /// Of memory that a helper sees.
    pub fn lent(pieces: impl ExactSizeIterator<Item = (u32, Piece)>) -> Self {
        let (home, free) = bounded(pieces.len());
        for (number, piece) in pieces {
            let _ = home.send(Memory::Lent(number, piece)); // there is room for each
        }
        Self { free, home, unmade: AtomicUsize::new(0) }
    }

    /// An empty chunk; None when none got free in time.
    pub fn take(&self, patience: Duration) -> Option<Chunk> {
        let memory = match self.free.try_recv() {
            Ok(memory) => memory,
            Err(_) => {
                let made = self.unmade.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                if made.is_ok() {
                    Memory::Own(vec![0; CHUNK].into_boxed_slice())
                } else {
                    self.free.recv_timeout(patience).ok()?
                }
            }
        };
        let capacity = memory.bytes().len();
        Some(Chunk { memory: Some(memory), capacity, length: 0, stored: 0, home: self.home.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_lends_no_more_than_it_has_and_takes_back() {
        let pool = Pool::new(2);
        let first = pool.take(Duration::ZERO).unwrap();
        let second = pool.take(Duration::ZERO).unwrap();
        assert!(pool.take(Duration::ZERO).is_none());
        drop(first);
        let mut third = pool.take(Duration::ZERO).unwrap();
        third.room()[..3].copy_from_slice(b"abc");
        third.advance(3);
        assert_eq!(third.bytes(), b"abc");
        drop((second, third));
        assert!(pool.take(Duration::ZERO).unwrap().is_empty());
    }
}
