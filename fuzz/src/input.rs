//! Takes an input apart. Whatever is asked for is there: beyond the end come zeros.

pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `end`, of one byte.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number: mostly a small one, sometimes one of those at which arithmetic goes wrong.
    pub fn number(&mut self) -> u64 {
        let width = match self.byte() {
            0..=159 => 1,
            160..=223 => 2,
            224..=239 => 8,
            edge => {
                const EDGES: [u64; 8] = [511, 512, 513, 1 << 31, u32::MAX as u64, 1 << 62, i64::MAX as u64, u64::MAX];
                return EDGES[usize::from(edge % 8)];
            }
        };
        self.take(width).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
