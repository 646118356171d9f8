//! Pieces of a stream that several stages read at once. Their memory is recycled, which also bounds it: who fills a
//! chunk waits until one is free, so the slowest stage sets the pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::queue::{Receiver, Sender, bounded};

/// Fits the second-level cache together with what a stage needs beside it.
pub const CHUNK: usize = 256 * 1024;

/// A filled piece of a stream.
#[derive(Debug)]
pub struct Chunk {
    memory: Box<[u8]>,
    length: usize,
    /// How many of its first bytes the blob's file holds already.
    pub stored: usize,
    home: Sender<Box<[u8]>>,
}

/// A chunk that stages share.
pub type Shared = Arc<Chunk>;

impl Chunk {
    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.length]
    }

    /// The part that is not filled.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.length..]
    }

    /// Declare more of it filled.
    pub fn advance(&mut self, count: usize) {
        self.length = (self.length + count).min(self.memory.len());
    }

    pub fn is_full(&self) -> bool {
        self.length == self.memory.len()
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // The queue has room for every piece of memory that was made; or the pool is gone.
        let _ = self.home.send(std::mem::take(&mut self.memory));
    }
}

/// A fixed number of chunks.
#[derive(Debug)]
pub struct Pool {
    free: Receiver<Box<[u8]>>,
    home: Sender<Box<[u8]>>,
    unmade: AtomicUsize,
}

impl Pool {
    pub fn new(chunks: usize) -> Self {
        let (home, free) = bounded(chunks);
        Self { free, home, unmade: AtomicUsize::new(chunks) }
    }

    /// An empty chunk; None when none got free in time.
    pub fn take(&self, patience: Duration) -> Option<Chunk> {
        let memory = match self.free.try_recv() {
            Ok(memory) => memory,
            Err(_) => {
                let made = self.unmade.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                if made.is_ok() { vec![0; CHUNK].into_boxed_slice() } else { self.free.recv_timeout(patience).ok()? }
            }
        };
        Some(Chunk { memory, length: 0, stored: 0, home: self.home.clone() })
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
