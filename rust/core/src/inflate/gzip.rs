//! Reads a gzip stream in order, and takes over what helpers have of it.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use flate2::Crc;
use flate2::bufread::GzDecoder;

use super::ahead::PLACES;
use super::block::{Inflater, Output, Stop, WINDOW};
use super::pieces::{LONGEST, Pieces};
use crate::cores::Layer;

/// RFC 1952: the sum and the size of a member.
pub const TRAILER: usize = 8;
/// How much is inflated at once.
const ROOM: usize = 256 << 10;

/// See the module. Reads as [`flate2::bufread::MultiGzDecoder`] does.
#[derive(Debug)]
pub struct Gzip<R> {
    pieces: Pieces<R>,
    stage: Stage,
    /// The bit of the piece that comes next.
    position: usize,
    inflater: Inflater,
    /// The member's window, and what was inflated and not read.
    output: Output<u8>,
    taken: usize,
    /// What cells mean: bytes, and places of the window.
    meaning: Box<[u8; 1 << 16]>,
    /// Of the member.
    crc: Crc,
    /// Bytes inflated of the piece.
    inflated: usize,
    /// Bytes that helpers inflated.
    helped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Blocks,
    /// Fill in what a helper has, from this cell and from this of its members' ends on.
    Fill(usize, usize),
    Trailer,
    Next,
    End,
}

fn corrupt() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "corrupt deflate stream")
}

/// The length of the header that begins here; None if it is not whole, or wrong.
pub fn header_length(bytes: &[u8]) -> Option<usize> {
    let decoder = GzDecoder::new(bytes);
    decoder.header()?;
    Some(bytes.len() - decoder.get_ref().len())
}

impl<R: BufRead> Gzip<R> {
    /// Inflate what `reader` gives, helped by threads while `layer` has cores for them.
    pub fn new(reader: R, layer: Arc<Layer>) -> Self {
        Self::in_pieces(reader, layer, LONGEST)
    }

    /// [`Self::new`], in pieces of at most so many bytes, so that little input makes many of them.
    pub fn in_pieces(reader: R, layer: Arc<Layer>, longest: usize) -> Self {
        let mut meaning: Box<[u8; 1 << 16]> = Box::new([0; 1 << 16]);
        for (meaning, byte) in meaning.iter_mut().zip(0..=u8::MAX) {
            *meaning = byte;
        }
        Self {
            pieces: Pieces::new(reader, layer, longest),
            stage: Stage::Header,
            position: 0,
            inflater: Inflater::default(),
            output: Output { cells: vec![0; WINDOW + ROOM], at: WINDOW, oldest: WINDOW },
            taken: WINDOW,
            meaning,
            crc: Crc::new(),
            inflated: 0,
            helped: 0,
        }
    }

    /// The compressed stream. It is read some pieces ahead.
    pub fn get_ref(&self) -> &R {
        self.pieces.get_ref()
    }

    /// How many bytes helpers inflated.
    pub fn helped(&self) -> u64 {
        self.helped
    }

    /// Go on to the next piece; false at the end of all.
    fn next_piece(&mut self) -> io::Result<bool> {
        let Some(shift) = self.pieces.next(self.inflated)? else { return Ok(false) };
        self.position -= shift * 8;
        self.inflated = 0;
        Ok(true)
    }

    /// Take one step: read a header or a trailer, or inflate some.
    fn advance(&mut self) -> io::Result<()> {
        let stage = self.stage;
        match stage {
            Stage::Header => self.header()?,
            Stage::Next if Bytes(self).fill_buf()?.is_empty() => self.stage = Stage::End,
            Stage::Next => self.stage = Stage::Header,
            Stage::Trailer => {
                self.position = self.position.next_multiple_of(8);
                let mut trailer = [0; TRAILER];
                Bytes(self).read_exact(&mut trailer)?;
                self.end_member(trailer)?;
                self.stage = Stage::Next;
            }
            Stage::Blocks => self.blocks()?,
            Stage::Fill(cell, end) => self.fill(cell, end)?,
            Stage::End => {}
        }
        Ok(())
    }

    fn header(&mut self) -> io::Result<()> {
        let mut decoder = GzDecoder::new(Bytes(self));
        if decoder.header().is_none() {
            decoder.read_exact(&mut [0])?; // it has the error
        }
        self.stage = Stage::Blocks;
        self.inflater.restart();
        Ok(())
    }

    /// Check a member's trailer, and be ready for the next one.
    fn end_member(&mut self, trailer: [u8; TRAILER]) -> io::Result<()> {
        let [a, b, c, d, size @ ..] = trailer;
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() || u32::from_le_bytes(size) != self.crc.amount() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "corrupt gzip stream does not have a matching checksum",
            ));
        }
        self.crc.reset();
        self.output.oldest = self.output.at;
        Ok(())
    }

    /// Inflate in order, up to where a helper began.
    fn blocks(&mut self) -> io::Result<()> {
        let until = self.pieces.ahead().map_or(usize::MAX, |ahead| ahead.start);
        let from = self.output.at;
        let stop = self.inflater.run(self.pieces.bytes(), &mut self.position, &mut self.output, until);
        let stop = stop.map_err(|_| corrupt())?;
        self.add_up(from);
        match stop {
            Stop::Full => {}
            Stop::Ended => self.stage = Stage::Trailer,
            Stop::Boundary if self.position == until => self.take_over()?,
            // No block begins there.
            Stop::Boundary => self.pieces.give_back(),
            Stop::Starved => {
                if !self.next_piece()? {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete deflate stream"));
                }
            }
        }
        Ok(())
    }

    /// Count what was inflated from `from` on.
    fn add_up(&mut self, from: usize) {
        let bytes = &self.output.cells[from..self.output.at];
        self.crc.update(bytes);
        self.inflated += bytes.len();
    }

    /// A helper began where this block begins.
    fn take_over(&mut self) -> io::Result<()> {
        let Some(ahead) = self.pieces.ahead_mut() else { return Ok(()) };
        let at = self.output.at;
        self.meaning[PLACES as usize..].copy_from_slice(&self.output.cells[at - WINDOW..at]);
        // A member that began less than a window ago has no bytes before that.
        let missing = WINDOW.saturating_sub(at - self.output.oldest);
        if missing > 0 {
            let end = ahead.ends.first().map_or(ahead.output.at, |end| end.0);
            let too_far = |&cell: &u16| cell >= PLACES && usize::from(cell - PLACES) < missing;
            if ahead.output.cells[WINDOW..end].iter().any(too_far) {
                return Err(corrupt());
            }
        }
        std::mem::swap(&mut self.inflater, &mut ahead.inflater);
        self.position = ahead.end;
        self.stage = Stage::Fill(WINDOW, 0);
        Ok(())
    }

    /// Turn a helper's cells into bytes.
    fn fill(&mut self, cell: usize, end: usize) -> io::Result<()> {
        let Some(ahead) = self.pieces.ahead() else { return Ok(()) };
        let member = ahead.ends.get(end).copied();
        let cells = &ahead.output.cells[cell..member.map_or(ahead.output.at, |member| member.0)];
        let from = self.output.at;
        let room = &mut self.output.cells[from..];
        let count = cells.len().min(room.len());
        resolve(&cells[..count], &self.meaning, &mut room[..count]);
        let all = count == cells.len();
        self.output.at += count;
        self.helped += count as u64;
        self.add_up(from);
        match member {
            _ if !all => self.stage = Stage::Fill(cell + count, end),
            Some((_, trailer)) => {
                self.end_member(trailer)?;
                self.stage = Stage::Fill(cell + count, end + 1);
            }
            None => {
                self.pieces.give_back();
                self.stage = Stage::Blocks;
            }
        }
        Ok(())
    }
}

/// Most cells are bytes already.
fn resolve(cells: &[u16], meaning: &[u8; 1 << 16], bytes: &mut [u8]) {
    for (cells, bytes) in cells.chunks(64).zip(bytes.chunks_mut(64)) {
        if cells.iter().fold(0, |all, cell| all | cell) < 256 {
            for (byte, cell) in bytes.iter_mut().zip(cells) {
                *byte = *cell as u8;
            }
        } else {
            for (byte, cell) in bytes.iter_mut().zip(cells) {
                *byte = meaning[*cell as usize];
            }
        }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.output.at && self.stage != Stage::End && !buffer.is_empty() {
            // Keep the window.
            let slid = self.output.at - WINDOW;
            self.output.cells.copy_within(slid..self.output.at, 0);
            self.output.at = WINDOW;
            self.output.oldest = self.output.oldest.saturating_sub(slid);
            self.taken = WINDOW;
            self.advance()?;
        }
        let ready = &self.output.cells[self.taken..self.output.at];
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// The stream between members, byte by byte.
struct Bytes<'a, R>(&'a mut Gzip<R>);

impl<R: BufRead> Read for Bytes<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Bytes<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.0.position / 8 == self.0.pieces.bytes().len() && self.0.next_piece()? {}
        Ok(&self.0.pieces.bytes()[self.0.position / 8..])
    }

    fn consume(&mut self, count: usize) {
        self.0.position += count * 8;
    }
}
