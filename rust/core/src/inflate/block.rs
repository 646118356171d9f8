//! Inflates deflate blocks (RFC 1951), from any bit on, with a window that need not be known.

use super::huffman::{self, CODE_LENGTHS, DISTANCES, Distances, LENGTHS, Lengths};

/// How far back a copy may reach.
pub const WINDOW: usize = 32 * 1024;
/// The longest copy.
const LONGEST: usize = 258;
/// Copies are made in strides, which may write beyond their end.
const STRIDE: usize = 16;
/// The fast loop's needs: input that can be read eight bytes at a time, and room for its literals and a copy.
const INPUT_AHEAD: usize = 32;
const OUTPUT_AHEAD: usize = LONGEST + 2 * STRIDE;

/// What is written: bytes, or bytes and names of bytes of a window that is not known yet.
pub trait Cell: Copy + From<u8> + PartialEq + std::fmt::Debug {}

impl Cell for u8 {}
impl Cell for u16 {}

/// Where it is written, with the window in front.
#[derive(Debug)]
pub struct Output<T> {
    pub cells: Vec<T>,
    /// The end of what was written.
    pub at: usize,
    /// The first cell that a copy may reach.
    pub oldest: usize,
}

/// Why inflating stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The input ends.
    Starved,
    /// The output is full, or nearly: a copy did not fit.
    Full,
    /// A block begins, where the caller wanted to stop or behind that.
    Boundary,
    /// The last block ended.
    Ended,
}

/// This is not a deflate stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Stored { left: usize },
    Symbols,
    Ended,
}

/// A deflate stream in work: what is to be remembered between two pieces of input. It knows nothing of the output.
#[derive(Debug)]
pub struct Inflater {
    state: State,
    last: bool,
    lengths: Lengths,
    distances: Distances,
    code_lengths: huffman::CodeLengths,
}

impl Default for Inflater {
    fn default() -> Self {
        Self {
            state: State::Header,
            last: false,
            lengths: Lengths::default(),
            distances: Distances::default(),
            code_lengths: huffman::CodeLengths::default(),
        }
    }
}

/// The bits from a position on, at least 57 of them; behind the end there are zeros.
#[inline(always)]
pub fn peek(input: &[u8], position: usize) -> u64 {
    let bytes = input.get(position / 8..).unwrap_or_default();
    let word = match bytes.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        }
    };
    word >> (position % 8)
}

impl Inflater {
    /// Begin a stream, or a block of one.
    pub fn restart(&mut self) {
        self.state = State::Header;
        self.last = false;
    }

    /// Whether a block with codes of its own begins here, as far as its header says.
    pub fn is_header(&mut self, input: &[u8], position: usize) -> bool {
        matches!(self.codes(input, position + 3), Ok(Some(_)))
    }

    /// Inflate from the bit `position` of `input` on, which is moved to where the work stopped; stop at the first block
    /// that begins at `until` or behind it.
    pub fn run<T: Cell>(
        &mut self,
        input: &[u8],
        position: &mut usize,
        output: &mut Output<T>,
        until: usize,
    ) -> Result<Stop, Corrupt> {
        loop {
            let stop = match self.state {
                State::Ended => Some(Stop::Ended),
                State::Header if *position >= until => Some(Stop::Boundary),
                State::Header => self.header(input, position)?,
                State::Stored { left } => self.stored(left, input, position, output),
                State::Symbols => self.symbols(input, position, output)?,
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    fn end_block(&mut self) {
        self.state = if self.last { State::Ended } else { State::Header };
    }

    /// Read a block's header, all of it or nothing.
    fn header(&mut self, input: &[u8], position: &mut usize) -> Result<Option<Stop>, Corrupt> {
        let bits = peek(input, *position);
        let total = input.len() * 8;
        if *position + 3 > total {
            return Ok(Some(Stop::Starved));
        }
        self.last = bits & 1 == 1;
        match bits >> 1 & 3 {
            0 => {
                let at = (*position + 3).div_ceil(8);
                let Some(head) = input.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
                    return Ok(Some(Stop::Starved));
                };
                let (length, check) = (u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]]));
                if length != !check {
                    return Err(Corrupt);
                }
                *position = (at + 4) * 8;
                self.state = State::Stored { left: length as usize };
            }
            1 => {
                *position += 3;
                self.fixed();
                self.state = State::Symbols;
            }
            2 => match self.codes(input, *position + 3)? {
                Some(end) => {
                    *position = end;
                    self.state = State::Symbols;
                }
                None => return Ok(Some(Stop::Starved)),
            },
            _ => return Err(Corrupt),
        }
        Ok(None)
    }

    /// RFC 1951, 3.2.6.
    fn fixed(&mut self) {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.lengths.build(&lengths, &LENGTHS, false);
        self.distances.build(&[5; 32], &DISTANCES, false);
    }

    /// Read the codes of a block (RFC 1951, 3.2.7); where they end.
    fn codes(&mut self, input: &[u8], mut position: usize) -> Result<Option<usize>, Corrupt> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let total = input.len() * 8;
        let bits = peek(input, position);
        let lengths = (bits & 31) as usize + 257;
        let distances = (bits >> 5 & 31) as usize + 1;
        let count = (bits >> 10 & 15) as usize + 4;
        position += 14;
        if position + 3 * count > total {
            return Ok(None);
        }
        if lengths > 286 || distances > 30 {
            return Err(Corrupt);
        }
        let mut bits = peek(input, position);
        let mut code = [0; 19];
        for &symbol in &ORDER[..count] {
            code[symbol] = (bits & 7) as u8;
            bits >>= 3;
        }
        position += 3 * count;
        if !self.code_lengths.build(&code, &CODE_LENGTHS, false) {
            return Err(Corrupt);
        }
        let mut found = [0u8; 320];
        let mut at = 0;
        while at < lengths + distances {
            let bits = peek(input, position);
            let entry = self.code_lengths.first(bits);
            let bits = bits >> entry.bits();
            position += entry.bits() as usize;
            let (value, repeat, extra) = match entry.byte() {
                16 if at == 0 => return if position > total { Ok(None) } else { Err(Corrupt) },
                16 => (found[at - 1], 3 + (bits & 3), 2),
                17 => (0, 3 + (bits & 7), 3),
                18 => (0, 11 + (bits & 127), 7),
                length => (length, 1, 0),
            };
            position += extra;
            if position > total {
                return Ok(None);
            }
            let end = at + repeat as usize;
            if end > lengths + distances {
                return Err(Corrupt);
            }
            found[at..end].fill(value);
            at = end;
        }
        // Without a word for its end a block has none.
        let sound = found[256] != 0
            && self.lengths.build(&found[..lengths], &LENGTHS, true)
            && self.distances.build(&found[lengths..lengths + distances], &DISTANCES, true);
        if sound { Ok(Some(position)) } else { Err(Corrupt) }
    }

    fn stored<T: Cell>(
        &mut self,
        left: usize,
        input: &[u8],
        position: &mut usize,
        output: &mut Output<T>,
    ) -> Option<Stop> {
        let bytes = input.get(*position / 8..).unwrap_or_default();
        let room = &mut output.cells[output.at..];
        let count = left.min(bytes.len()).min(room.len());
        for (cell, &byte) in room.iter_mut().zip(&bytes[..count]) {
            *cell = byte.into();
        }
        output.at += count;
        *position += count * 8;
        let left = left - count;
        self.state = State::Stored { left };
        if left == 0 {
            self.end_block();
            None
        } else if count == bytes.len() {
            Some(Stop::Starved)
        } else {
            Some(Stop::Full)
        }
    }

    fn symbols<T: Cell>(
        &mut self,
        input: &[u8],
        position: &mut usize,
        output: &mut Output<T>,
    ) -> Result<Option<Stop>, Corrupt> {
        if self.fast(input, position, output)? {
            self.end_block();
            return Ok(None);
        }
        let total = input.len() * 8;
        // A symbol is taken whole or not at all: 48 bits at most.
        loop {
            let bits = peek(input, *position);
            let entry = self.lengths.get(bits);
            let mut end = *position + entry.bits() as usize;
            if end > total {
                return Ok(Some(Stop::Starved));
            }
            if entry.is_literal() {
                let Some(cell) = output.cells.get_mut(output.at) else { return Ok(Some(Stop::Full)) };
                *cell = entry.byte().into();
                output.at += 1;
            } else if entry.is_end() {
                *position = end;
                self.end_block();
                return Ok(None);
            } else if entry.is_special() {
                return Err(Corrupt);
            } else {
                let length = entry.value(bits);
                let bits = peek(input, end);
                let entry = self.distances.get(bits);
                end += entry.bits() as usize;
                if end > total {
                    return Ok(Some(Stop::Starved));
                }
                let distance = entry.value(bits);
                if entry.is_special() || distance > output.at - output.oldest {
                    return Err(Corrupt);
                }
                if length > output.cells.len() - output.at {
                    return Ok(Some(Stop::Full));
                }
                for at in output.at..output.at + length {
                    output.cells[at] = output.cells[at - distance];
                }
                output.at += length;
            }
            *position = end;
            if input.len() > *position / 8 + INPUT_AHEAD && output.cells.len() > output.at + OUTPUT_AHEAD {
                return Ok(None);
            }
        }
    }

    /// Inflate symbols while there is plenty of input and of room; true when the block ended.
    fn fast<T: Cell>(&self, input: &[u8], position: &mut usize, output: &mut Output<T>) -> Result<bool, Corrupt> {
        let Output { cells, at: written, oldest } = output;
        let oldest = *oldest;
        let cells = &mut cells[..];
        let mut at = *written;
        let mut byte = *position / 8;
        if input.len() <= byte + INPUT_AHEAD {
            return Ok(false);
        }
        // The next bits, and how many of them count.
        let mut buffer = u64::from(input[byte]) >> (*position % 8);
        let mut bits = 8 - (*position % 8) as u32;
        byte += 1;
        macro_rules! refill {
            () => {
                if let Some(word) = input.get(byte..byte + 8).and_then(|word| word.first_chunk::<8>()) {
                    buffer |= u64::from_le_bytes(*word) << (bits & 63);
                    byte += (63 - (bits & 63)) as usize / 8;
                    bits |= 56;
                }
            };
        }
        macro_rules! drop_bits {
            ($entry:expr) => {
                buffer >>= $entry.bits();
                bits = bits.wrapping_sub($entry.raw());
            };
        }
        macro_rules! literal {
            ($entry:expr) => {
                drop_bits!($entry);
                cells[at] = $entry.byte().into();
                at += 1;
            };
        }
        let mut ended = false;
        refill!();
        let mut entry = self.lengths.first(buffer);
        while input.len() > byte + INPUT_AHEAD && cells.len() > at + OUTPUT_AHEAD {
            if entry.is_literal() {
                literal!(entry);
                entry = self.lengths.first(buffer);
                if entry.is_literal() {
                    literal!(entry);
                    entry = self.lengths.first(buffer);
                    if entry.is_literal() {
                        literal!(entry);
                        refill!();
                        entry = self.lengths.first(buffer);
                        continue;
                    }
                }
            }
            if entry.is_special() {
                if entry.is_second() {
                    entry = self.lengths.follow(entry, buffer);
                }
                if entry.is_literal() {
                    literal!(entry);
                    refill!();
                    entry = self.lengths.first(buffer);
                    continue;
                }
                if entry.is_end() {
                    bits = bits.wrapping_sub(entry.raw());
                    ended = true;
                    break;
                }
                if entry.is_special() {
                    return Err(Corrupt);
                }
            }
            let length = entry.value(buffer);
            drop_bits!(entry);
            refill!();
            let mut far = self.distances.first(buffer);
            if far.is_special() {
                if far.is_second() {
                    far = self.distances.follow(far, buffer);
                }
                if far.is_special() {
                    return Err(Corrupt);
                }
            }
            let distance = far.value(buffer);
            drop_bits!(far);
            if distance > at - oldest {
                return Err(Corrupt);
            }
            // The next entry is on its way while the copy is made.
            refill!();
            entry = self.lengths.first(buffer);
            copy(cells, at, distance, length);
            at += length;
        }
        *written = at;
        *position = byte * 8 - (bits & 63) as usize;
        Ok(ended)
    }
}

/// Copy `length` cells from `distance` cells back; up to two strides more are written.
#[inline(always)]
fn copy<T: Cell>(cells: &mut [T], at: usize, mut distance: usize, length: usize) {
    let end = at + length;
    let mut to = at;
    if distance < STRIDE {
        if distance == 1 {
            let cell = cells[at - 1];
            cells[at..end].fill(cell);
            return;
        }
        // Repeat it until a stride does not overlap itself.
        while distance < STRIDE {
            for index in to..to + distance {
                cells[index] = cells[index - distance];
            }
            to += distance;
            distance *= 2;
        }
    }
    loop {
        let (done, rest) = cells.split_at_mut(to);
        rest[..STRIDE].copy_from_slice(&done[to - distance..to - distance + STRIDE]);
        to += STRIDE;
        if to >= end {
            return;
        }
    }
}
