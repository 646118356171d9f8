//! Finds where a deflate block may begin, in the midst of a stream, at any bit.
//!
//! Of blocks, only those with codes of their own that are not the last one are looked for: their headers say so much that must be
//! right that hardly anything else looks like one. Others are rare, or inflated faster than found, or begin a member.

use super::block::peek;

/// How many positions one look at 57 bits tells about: each needs 17 bits.
const AT_ONCE: usize = 40;

/// By four lengths of codes, three bits each: what part of all words they take, in 128ths.
static TAKEN: [u16; 4096] = {
    let mut taken = [0; 4096];
    let mut lengths = 0;
    while lengths < 4096 {
        let mut shift = 0;
        while shift < 12 {
            let length = lengths >> shift & 7;
            if length > 0 {
                taken[lengths] += 128 >> length;
            }
            shift += 3;
        }
        lengths += 1;
    }
    taken
};

/// The first byte from `position` on where a member may begin (RFC 1952): with gzip's magic number and flags that are known.
pub fn member(input: &[u8], position: usize) -> Option<usize> {
    let head = |head: &[u8]| matches!(head, [0x1f, 0x8b, 8, ..0x20]);
    Some(position + input.get(position..)?.windows(4).position(head)?)
}

/// The first bit from `position` on, before `end`, where a block may begin: header and first code are sound.
pub fn block(input: &[u8], mut position: usize, end: usize) -> Option<usize> {
    while position < end {
        let bits = peek(input, position);
        let mut found = plausible(bits) & ((1 << AT_ONCE) - 1);
        while found != 0 {
            let ahead = found.trailing_zeros() as usize;
            let lengths = (bits >> (ahead + 13) & 15) as usize + 4;
            if is_code(peek(input, position + ahead + 17) & ((1 << (3 * lengths)) - 1)) {
                return Some(position + ahead);
            }
            found &= found - 1;
        }
        position += AT_ONCE;
    }
    None
}

/// One bit for each position: a block that is not the last one (0) with codes of its own (0, 1), of at most 286 lengths and
/// 30 distances (not 30 or 31 in five bits each).
fn plausible(bits: u64) -> u64 {
    let high = bits & bits >> 1 & bits >> 2 & bits >> 3;
    !bits & !(bits >> 1) & bits >> 2 & !(high >> 4) & !(high >> 9)
}

/// Whether words of these lengths, up to 19 of three bits, are a code: none is left over, none too many.
fn is_code(lengths: u64) -> bool {
    let taken = |group: u32| TAKEN[(lengths >> (12 * group)) as usize & 4095];
    taken(0) + taken(1) + taken(2) + taken(3) + taken(4) == 128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plausible_follows_from_each_field() {
        for header in 0..1u64 << 13 {
            let (last, kind) = (header & 1, header >> 1 & 3);
            let (lengths, distances) = (header >> 3 & 31, header >> 8 & 31);
            let expected = last == 0 && kind == 2 && lengths < 30 && distances < 30;
            assert_eq!(plausible(header) & 1 == 1, expected, "{header:b}");
            assert_eq!(plausible(header << 39) >> 39 & 1 == 1, expected, "{header:b}");
        }
    }

    #[test]
    fn a_code_leaves_no_word_over() {
        assert!(is_code(0o11));
        assert!(is_code(0o100_0000_0000_0000_0001));
        assert!(is_code(0o7_0000_7650_4321));
        assert!(!is_code(0o1));
        assert!(!is_code(0o111));
        assert!(!is_code(0));
    }
}
