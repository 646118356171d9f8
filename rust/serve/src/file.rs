//! Bytes of a file on their way to a client: messages of an offset (field 1) and bytes (field 2), read piece by piece.
//!
//! A message is as large as containerd's, but is never in memory as a whole: a piece is read into a buffer that an earlier one was
//! in, which is still in the processor's caches, and the next one is read while it is sent. What the page cache has is read at once
//! by the thread of input and output, in 20 us, where handing it to another took as long; only what has to come from the disk is.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::message::{prefix, varint};
use crate::sys::read_cached;

/// Bytes of the file in one message.
const MESSAGE: u64 = 1 << 20;
/// Bytes that are read at once, with the head of the message that they begin: eight frames of what a client takes at least.
const PIECE: usize = 128 << 10;
/// Pieces of one file in memory: one is sent while the next one is read.
const AHEAD: usize = 2;
/// Buffers that are kept for what is read next.
const KEPT: usize = 16;

/// Buffers of a piece each, which are used again.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.lock().pop().unwrap_or_else(|| vec![0; PIECE])
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.lock();
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a framed message; its buffer goes back when nobody has any of it any more.
struct Piece {
    buffer: Vec<u8>,
    size: usize,
    buffers: Arc<Buffers>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.size]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.buffer));
    }
}

/// Reads them.
pub struct Pieces {
    file: Arc<File>,
    at: u64,
    end: u64,
    /// Bytes that are left of the message under way.
    left: u64,
    room: Arc<Semaphore>,
    buffers: Arc<Buffers>,
}

impl Pieces {
    /// Begin to read `size` bytes from `offset`.
    ///
    /// # Errors
    /// UnexpectedEof: the file has fewer.
    pub fn new(file: File, offset: u64, size: u64, buffers: Arc<Buffers>) -> io::Result<Self> {
        let end = offset.saturating_add(size);
        let length = file.metadata()?.len();
        if size > 0 && length < end {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it has {length} bytes")));
        }
        let room = Arc::new(Semaphore::new(AHEAD));
        Ok(Self { file: Arc::new(file), at: offset, end, left: 0, room, buffers })
    }

    /// Where the next one begins in the file.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Read the next one; None: there is none. Waits until there is room for it, as far as earlier ones have been sent.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.at == self.end {
            return Ok(None);
        }
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(io::Error::other)?;
        let mut buffer = self.buffers.take();
        let begin = if self.left == 0 {
            self.left = MESSAGE.min(self.end - self.at);
            head(self.at, self.left, &mut buffer)
        } else {
            0
        };
        let wanted = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE - begin);
        let (at, size) = (self.at, begin + wanted);
        let cached = read_cached(self.file.as_fd(), &mut buffer[begin..size], at);
        if cached < wanted {
            let file = Arc::clone(&self.file);
            let rest = move || {
                let read = file.read_exact_at(&mut buffer[begin + cached..size], at + cached as u64);
                read.map(|()| buffer)
            };
            buffer = spawn_blocking(rest).await.map_err(io::Error::other)??;
        }
        self.at += wanted as u64;
        self.left -= wanted as u64;
        let piece = Piece { buffer, size, buffers: Arc::clone(&self.buffers), _room: room };
        Ok(Some(Bytes::from_owner(piece)))
    }
}

/// Write the head of a framed message with `size` bytes from `offset` to the beginning of a buffer; give its length.
fn head(offset: u64, size: u64, buffer: &mut [u8]) -> usize {
    const OFFSET: u8 = 0x08;
    const DATA: u8 = 0x12;
    let mut fields = Vec::with_capacity(24);
    fields.put_u8(OFFSET);
    varint(offset, &mut fields);
    fields.put_u8(DATA);
    varint(size, &mut fields);
    let prefix = prefix(fields.len() + usize::try_from(size).unwrap_or(usize::MAX));
    let head = [&prefix[..], &fields].concat();
    buffer[..head.len()].copy_from_slice(&head);
    head.len()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SIZE: usize = (2 << 20) + 12_345;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    fn file(name: &str) -> (File, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("lamella-serve-{name}-{}", std::process::id()));
        let content: Vec<u8> = (0..SIZE).map(|number| (number % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (file, content)
    }

    #[test]
    fn pieces_are_whole_messages_one_after_the_other() {
        run(async {
            let (file, content) = file("whole");
            let mut pieces = Pieces::new(file, 5, (SIZE - 5) as u64, Arc::default()).unwrap();
            let mut sent = Vec::new();
            while let Some(piece) = pieces.next().await.unwrap() {
                assert!(piece.len() <= PIECE);
                sent.extend_from_slice(&piece);
            }
            let mut expected = Vec::new();
            for at in (5..SIZE).step_by(1 << 20) {
                let data = &content[at..SIZE.min(at + (1 << 20))];
                let mut head = vec![0; 64];
                let length = super::head(at as u64, data.len() as u64, &mut head);
                expected.extend_from_slice(&head[..length]);
                expected.extend_from_slice(data);
            }
            assert!(sent == expected);
        });
    }

    #[test]
    fn no_more_is_read_than_two_pieces_that_nobody_has_sent() {
        run(async {
            let buffers: Arc<Buffers> = Arc::default();
            let mut pieces = Pieces::new(file("bounded").0, 0, SIZE as u64, Arc::clone(&buffers)).unwrap();
            let mut held = vec![pieces.next().await.unwrap(), pieces.next().await.unwrap()];
            assert!(tokio::time::timeout(Duration::from_millis(20), pieces.next()).await.is_err());
            held.pop();
            held.push(pieces.next().await.unwrap());
            drop(held);
            drop(pieces);
            assert_eq!(buffers.lock().len(), 2); // the third was read into what the second left
        });
    }

    #[test]
    fn a_file_that_is_shorter_is_refused_before_a_message_begins() {
        let error = Pieces::new(file("short").0, 1, SIZE as u64, Arc::default()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
