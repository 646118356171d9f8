//! Huffman codes as tables (RFC 1951, 3.2.2): the next bits are an index, what stands there says which symbol they begin
//! with and how long it is. Long codes go on in a second table behind the first.

/// The longest code.
const LONGEST: usize = 15;

/// An entry of a table.
///
/// | bits | |
/// |---|---|
/// | 0-5 | how many bits to drop: the code, with its extra bits |
/// | 8-11 | those of the code alone |
/// | 12-14 | what kind it is, where it is not the common one |
/// | 16-30 | a literal, the base of a length or distance, or where the second table begins |
/// | 31 | a literal |
#[derive(Clone, Copy, Debug)]
pub struct Entry(u32);

impl Entry {
    const SPECIAL: u32 = 1 << 14;
    const SECOND: u32 = 1 << 13;
    const END: u32 = 1 << 12;
    const LITERAL: u32 = 1 << 31;
    /// No code begins so.
    const INVALID: Self = Self(Self::SPECIAL | 1);

    const fn literal(byte: u8) -> Self {
        Self(Self::LITERAL | (byte as u32) << 16)
    }

    /// A length or distance: the smallest, and how many extra bits are added.
    const fn base(value: u16, extra: u8) -> Self {
        Self((value as u32) << 16 | extra as u32)
    }

    fn with_code(self, length: usize) -> Self {
        Self(self.0 + (length as u32 | (length as u32) << 8))
    }

    /// Of a second table: at, bits of its index.
    fn second(at: usize, bits: usize, root: usize) -> Self {
        Self((at as u32) << 16 | Self::SPECIAL | Self::SECOND | (bits as u32) << 8 | root as u32)
    }

    #[inline(always)]
    pub fn is_literal(self) -> bool {
        self.0 & Self::LITERAL != 0
    }

    #[inline(always)]
    pub fn is_special(self) -> bool {
        self.0 & Self::SPECIAL != 0
    }

    #[inline(always)]
    pub fn is_second(self) -> bool {
        self.0 & Self::SECOND != 0
    }

    #[inline(always)]
    pub fn is_end(self) -> bool {
        self.0 & Self::END != 0
    }

    /// A number whose low eight bits are [`Self::bits`].
    #[inline(always)]
    pub fn raw(self) -> u32 {
        self.0
    }

    /// Bits to drop.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0 & 63
    }

    #[inline(always)]
    fn code_bits(self) -> u32 {
        self.0 >> 8 & 15
    }

    #[inline(always)]
    pub fn byte(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The length or distance, whose extra bits stand behind the code in `buffer`.
    #[inline(always)]
    pub fn value(self, buffer: u64) -> usize {
        (self.0 >> 16) as usize + ((buffer & !(!0 << self.bits())) >> (self.0 >> 8 & 63)) as usize
    }
}

/// What the symbols mean.
type Symbols = [Entry];

/// A code of `1 << ROOT` entries, and room for second tables: `SIZE`, a power of two.
#[derive(Clone, Debug)]
pub struct Table<const ROOT: usize, const SIZE: usize>(Box<[Entry; SIZE]>);

/// Literals and lengths; at most 2342 entries.
pub type Lengths = Table<11, 4096>;
/// Distances; at most 592 entries.
pub type Distances = Table<9, 1024>;
/// Lengths of codes.
pub type CodeLengths = Table<7, 128>;

impl<const ROOT: usize, const SIZE: usize> Default for Table<ROOT, SIZE> {
    fn default() -> Self {
        Self(Box::new([Entry::INVALID; SIZE]))
    }
}

impl<const ROOT: usize, const SIZE: usize> Table<ROOT, SIZE> {
    /// The entry that `buffer` begins with, where it may be one of a second table's.
    #[inline(always)]
    pub fn first(&self, buffer: u64) -> Entry {
        self.0[buffer as usize & ((1 << ROOT) - 1)]
    }

    /// Go on in the second table that `entry` names.
    #[inline(always)]
    pub fn follow(&self, entry: Entry, buffer: u64) -> Entry {
        let index = buffer >> ROOT & !(!0 << entry.code_bits());
        self.0[((entry.0 >> 16) as usize + index as usize) & (SIZE - 1)]
    }

    /// The entry that `buffer` begins with.
    #[inline(always)]
    pub fn get(&self, buffer: u64) -> Entry {
        let entry = self.first(buffer);
        if entry.is_second() { self.follow(entry, buffer) } else { entry }
    }

    /// Make the code that has these lengths. False when there is no such code: with more words than bits can tell apart, or
    /// fewer, but for one word of one bit, or none, where `sparse`.
    pub fn build(&mut self, lengths: &[u8], symbols: &Symbols, sparse: bool) -> bool {
        let mut count = [0u16; LONGEST + 1];
        for &length in lengths {
            count[length as usize & LONGEST] += 1;
        }
        count[0] = 0;
        let longest = (1..=LONGEST).rev().find(|&length| count[length] > 0).unwrap_or(0);
        let mut free = 1i32;
        for &words in &count[1..=longest] {
            free = free * 2 - i32::from(words);
            if free < 0 {
                return false;
            }
        }
        if free > 0 && !(sparse && longest <= 1) {
            return false;
        }
        // Sort by length; the order of symbols decides among equals.
        let mut start = [0u16; LONGEST + 2];
        for length in 1..=LONGEST {
            start[length + 1] = start[length] + count[length];
        }
        let mut sorted = [0u16; 320];
        let mut next = start;
        for (symbol, &length) in lengths.iter().enumerate() {
            if length > 0 {
                sorted[next[length as usize & LONGEST] as usize] = symbol as u16;
                next[length as usize & LONGEST] += 1;
            }
        }
        let table = &mut self.0[..];
        table[..2].fill(Entry::INVALID);
        let mut code = 0u32;
        let mut words = sorted.iter();
        for length in 1..=ROOT {
            if length > 1 {
                table.copy_within(..1 << (length - 1), 1 << (length - 1));
            }
            for &symbol in words.by_ref().take(count[length] as usize) {
                table[reversed(code, length)] = symbols[symbol as usize].with_code(length);
                code += 1;
            }
            code <<= 1;
        }
        let mut end = 1 << ROOT;
        let (mut at, mut bits, mut prefix) = (0, 0, usize::MAX);
        for length in ROOT + 1..=longest {
            for left in (1..=count[length]).rev() {
                let Some(&symbol) = words.next() else { return false };
                let word = reversed(code, length);
                if word & ((1 << ROOT) - 1) != prefix {
                    prefix = word & ((1 << ROOT) - 1);
                    // As many bits as the words that begin so take.
                    bits = length - ROOT;
                    let mut room = (1i32 << bits) - i32::from(left);
                    while room > 0 && bits + ROOT < longest {
                        bits += 1;
                        room = room * 2 - i32::from(count[bits + ROOT]);
                    }
                    at = end;
                    end += 1 << bits;
                    if end > SIZE {
                        return false;
                    }
                    table[prefix] = Entry::second(at, bits, ROOT);
                }
                let entry = symbols[symbol as usize].with_code(length);
                for index in (word >> ROOT..1 << bits).step_by(1 << (length - ROOT)) {
                    table[at + index] = entry;
                }
                code += 1;
            }
            code <<= 1;
        }
        true
    }
}

fn reversed(code: u32, length: usize) -> usize {
    (code.reverse_bits() >> (32 - length)) as usize
}

/// RFC 1951, 3.2.5. The two last ones have a code and no meaning.
pub static LENGTHS: [Entry; 288] = {
    let mut symbols = [Entry::INVALID; 288];
    let mut symbol = 0;
    while symbol < 256 {
        symbols[symbol] = Entry::literal(symbol as u8);
        symbol += 1;
    }
    symbols[256] = Entry(Entry::SPECIAL | Entry::END);
    symbols[286] = Entry(Entry::SPECIAL);
    symbols[287] = Entry(Entry::SPECIAL);
    let mut base = 3;
    while symbol < 284 {
        symbol += 1;
        let extra = if symbol < 265 { 0 } else { (symbol - 261) / 4 };
        symbols[symbol] = Entry::base(base, extra as u8);
        base += 1 << extra;
    }
    symbols[285] = Entry::base(258, 0);
    symbols
};

/// RFC 1951, 3.2.5. The two last ones have a code and no meaning.
pub static DISTANCES: [Entry; 32] = {
    let mut symbols = [Entry(Entry::SPECIAL); 32];
    let mut symbol = 0;
    let mut base = 1;
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { (symbol - 2) / 2 };
        symbols[symbol] = Entry::base(base as u16, extra as u8);
        base += 1 << extra;
        symbol += 1;
    }
    symbols
};

/// RFC 1951, 3.2.7: the symbols are numbers.
pub static CODE_LENGTHS: [Entry; 19] = {
    let mut symbols = [Entry(0); 19];
    let mut symbol = 0;
    while symbol < 19 {
        symbols[symbol] = Entry::literal(symbol as u8);
        symbol += 1;
    }
    symbols
};
