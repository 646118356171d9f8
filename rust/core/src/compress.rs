//! Compresses a stream with several threads. What comes out depends on the stream and the level alone, not on their number.
//!
//! gzip: blocks of 1 MiB are deflated by themselves and end on a byte (RFC 1951, "Compressed blocks": a flush), so that they
//! form one stream, as pigz has it; one member, which every reader understands. zstd does the like by itself.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use flate2::{Compress, Compression as Level, Crc, FlushCompress};

use crate::compression::Compression;
use crate::error::{Error, Result};

const BLOCK: usize = 1 << 20;
/// gzip (RFC 1952): magic number, deflate, no flags, no time, no word on the level, system unknown.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// An empty block that is the last one.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// gzip's level where nobody says another, as docker and pigz have it; zstd's likewise.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// Compresses what is written to it, and writes that to `W`.
pub enum Encoder<W: Write> {
    /// See [`Compression::None`].
    None(W),
    /// See [`Compression::Gzip`].
    Gzip(Gzip<W>),
    /// See [`Compression::Zstd`].
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Begin. `level`: gzip 1 to 9, zstd 1 to 19; None for the usual one. `InvalidArgument` for another.
    pub fn new(out: W, compression: Compression, level: Option<u32>, threads: usize) -> Result<Self> {
        let threads = threads.clamp(1, 64);
        let check = |most: u32| match level {
            Some(level) if level == 0 || level > most => {
                Err(Error::invalid(format!("there is no level {level} of {compression}"))
                    .hint(format!("The levels are 1 to {most}.")))
            }
            _ => Ok(()),
        };
        let failed = |error: io::Error| Error::system("cannot compress", error);
        Ok(match compression {
            Compression::None => Self::None(out),
            Compression::Gzip => {
                check(9)?;
                Self::Gzip(Gzip::new(out, level.unwrap_or(GZIP_LEVEL), threads).map_err(failed)?)
            }
            Compression::Zstd => {
                check(19)?;
                let level = level.and_then(|level| i32::try_from(level).ok()).unwrap_or(ZSTD_LEVEL);
                let mut encoder = zstd::stream::write::Encoder::new(out, level).map_err(failed)?;
                // One worker too: without any the result is another one.
                encoder.multithread(u32::try_from(threads).unwrap_or(1)).map_err(failed)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Write the end; give back what was written to.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A block to deflate, and where its result goes.
struct Job {
    data: Vec<u8>,
    done: Sender<Deflated>,
}

struct Deflated {
    data: Vec<u8>,
    crc: Crc,
}

/// gzip by several threads.
pub struct Gzip<W: Write> {
    out: W,
    block: Vec<u8>,
    jobs: Sender<Job>,
    /// Blocks in work, in order.
    pending: VecDeque<Receiver<Deflated>>,
    most: usize,
    crc: Crc,
}

impl<W: Write> Gzip<W> {
    fn new(mut out: W, level: u32, threads: usize) -> io::Result<Self> {
        let (jobs, queue) = bounded::<Job>(threads);
        for number in 0..threads {
            let queue = queue.clone();
            // They end when the last job is gone with its sender.
            thread::Builder::new().name(format!("lamella-gzip-{number}")).spawn(move || {
                for job in queue {
                    let _ = job.done.send(deflate(&job.data, level)); // nobody waits after an error
                }
            })?;
        }
        out.write_all(&HEADER)?;
        let block = Vec::with_capacity(BLOCK);
        Ok(Self { out, block, jobs, pending: VecDeque::new(), most: threads * 2, crc: Crc::new() })
    }

    fn send(&mut self) -> io::Result<()> {
        if self.pending.len() >= self.most {
            self.receive()?;
        }
        let data = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let (done, result) = bounded(1);
        self.jobs.send(Job { data, done }).map_err(|_| died())?;
        self.pending.push_back(result);
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let Some(result) = self.pending.pop_front() else { return Ok(()) };
        let deflated = result.recv().map_err(|_| died())?;
        self.crc.combine(&deflated.crc);
        self.out.write_all(&deflated.data)
    }

    fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.send()?;
        }
        while !self.pending.is_empty() {
            self.receive()?;
        }
        self.out.write_all(&LAST_BLOCK)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn died() -> io::Error {
    io::Error::other("a compressing thread died")
}

fn deflate(block: &[u8], level: u32) -> Deflated {
    let mut crc = Crc::new();
    crc.update(block);
    let mut compress = Compress::new(Level::new(level), false);
    let mut data = Vec::with_capacity(block.len() / 2 + 1024);
    let mut at = 0;
    loop {
        let before = compress.total_in();
        let _ = compress.compress_vec(&block[at..], &mut data, FlushCompress::Sync); // it says what the lengths say
        at += usize::try_from(compress.total_in() - before).unwrap_or_default();
        // Room is left: all is written, the flush too.
        if at == block.len() && data.len() < data.capacity() {
            return Deflated { data, crc };
        }
        data.reserve(block.len() / 4 + 1024);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::compression::Decoder;

    fn compress(data: &[u8], compression: Compression, level: Option<u32>, threads: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression, level, threads).unwrap();
        for piece in data.chunks(70_000) {
            encoder.write_all(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        (0..length).map(|at| if at / 50_000 % 2 == 0 { b'a' + (at % 7) as u8 } else { next() as u8 }).collect()
    }

    #[test]
    fn the_result_inflates_to_what_was_written_and_does_not_depend_on_the_threads() {
        for length in [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 12345] {
            let data = sample(length);
            for (compression, level) in [
                (Compression::Gzip, None),
                (Compression::Gzip, Some(1)),
                (Compression::Gzip, Some(9)),
                (Compression::Zstd, None),
                (Compression::None, None),
            ] {
                let one = compress(&data, compression, level, 1);
                assert!(one == compress(&data, compression, level, 3), "{compression} {length}");
                let mut decoder = Decoder::new(compression, &one[..]).unwrap();
                let mut read = Vec::new();
                decoder.read_to_end(&mut read).unwrap();
                assert!(read == data, "{compression} {length}");
            }
        }
    }

    #[test]
    fn levels_that_do_not_exist_are_refused() {
        for (compression, level) in [(Compression::Gzip, 0), (Compression::Gzip, 10), (Compression::Zstd, 20)] {
            assert!(Encoder::new(Vec::new(), compression, Some(level), 1).is_err());
        }
    }

    #[test]
    fn an_error_of_the_disk_ends_the_work() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
            let result = Encoder::new(Full, compression, None, 2)
                .map(|mut encoder| encoder.write_all(&sample(8 * BLOCK)).and_then(|()| encoder.finish().map(|_| ())));
            assert!(!matches!(result, Ok(Ok(()))), "{compression}");
        }
    }
}
