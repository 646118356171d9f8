//! A connection's socket, whose writes are gathered.
//!
//! h2 flushes after every frame, and a client takes frames of 16 KiB: a blob would be a system call for each of them, and its reader
//! woken as often. Here a flush does nothing; who drives the connection writes out what there is before it goes to sleep.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::authority::Authorities;

/// Bytes that are gathered at most, but for one write that has more by itself.
const GATHERED: usize = 128 << 10;

/// The socket as h2 has it.
pub struct Gathered {
    shared: Arc<Shared>,
    authorities: Authorities,
}

/// What writes out what was gathered.
#[derive(Clone)]
pub struct Out(Arc<Shared>);

struct Shared {
    stream: UnixStream,
    gathered: Mutex<Vec<u8>>,
}

impl Gathered {
    pub fn new(stream: UnixStream) -> (Self, Out) {
        let shared = Arc::new(Shared { stream, gathered: Mutex::default() });
        (Self { shared: Arc::clone(&shared), authorities: Authorities::new() }, Out(shared))
    }
}

impl Out {
    /// Write out what was gathered; pending while the peer takes nothing, and the task is woken when it does.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.write_out(&mut self.0.lock(), context)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, gathered: &mut Vec<u8>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let result = loop {
            if written == gathered.len() {
                break Poll::Ready(Ok(()));
            }
            match self.stream.try_write(&gathered[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.stream.poll_write_ready(context) {
                        Poll::Ready(Ok(())) => {}
                        other => break other,
                    }
                }
                Err(error) => break Poll::Ready(Err(error)),
            }
        };
        gathered.drain(..written);
        result
    }
}

impl AsyncRead for Gathered {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.shared.stream.poll_read_ready(context))?;
            match self.shared.stream.try_read(into.initialize_unfilled()) {
                Ok(count) => {
                    self.authorities.mend(&mut into.initialize_unfilled()[..count]);
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.shared.lock();
        let size = parts.iter().map(|part| part.len()).sum();
        if gathered.len() + size > GATHERED {
            ready!(self.shared.write_out(&mut gathered, context))?;
        }
        parts.iter().for_each(|part| gathered.extend_from_slice(part));
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.write_out(&mut self.shared.lock(), context) // the end of the connection closes it
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn what_is_flushed_is_written_when_the_driver_says_so() {
        run(async {
            let (mut peer, stream) = UnixStream::pair().unwrap();
            let (mut gathered, out) = Gathered::new(stream);
            for word in [b"one ", b"two "] {
                gathered.write_all(word).await.unwrap();
                gathered.flush().await.unwrap();
            }
            assert!(peer.try_read(&mut [0; 8]).is_err());
            poll_fn(|context| out.poll(context)).await.unwrap();
            let mut read = [0; 8];
            peer.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"one two ");
            peer.write_all(b"back").await.unwrap();
            gathered.read_exact(&mut read[..4]).await.unwrap();
            assert_eq!(&read[..4], b"back");
        });
    }

    #[test]
    fn more_than_a_peer_takes_waits_for_it_and_comes_whole() {
        run(async {
            let (mut peer, stream) = UnixStream::pair().unwrap();
            let (mut gathered, out) = Gathered::new(stream);
            let bytes: Vec<u8> = (0..3 << 20u32).map(|number| number as u8).collect();
            let write = async {
                for piece in bytes.chunks(16 << 10) {
                    gathered.write_all(piece).await.unwrap();
                }
                poll_fn(|context| out.poll(context)).await.unwrap();
                drop((gathered, out));
            };
            let read = async {
                let mut read = Vec::new();
                peer.read_to_end(&mut read).await.unwrap();
                assert!(read == bytes);
            };
            tokio::join!(write, read);
        });
    }

    #[test]
    fn a_peer_that_has_gone_is_an_error() {
        run(async {
            let (peer, stream) = UnixStream::pair().unwrap();
            let (mut gathered, out) = Gathered::new(stream);
            drop(peer);
            gathered.write_all(b"nobody").await.unwrap();
            assert!(poll_fn(|context| out.poll(context)).await.is_err());
        });
    }
}
