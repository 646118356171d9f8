//! gzip, inflated in small pieces with the help of threads, held against flate2 by itself: the same bytes, or an error from both.
//!
//! As for [`crate::decoders`] the first bytes say how the rest becomes a blob: how it is compressed, how often it is repeated (pieces are of
//! kilobytes), and what is damaged.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use lamella_core::cores::Cores;
use lamella_core::inflate::Gzip;

use crate::input::Input;

/// More than the largest input unpacks to, unless it is a bomb.
const LARGEST: u64 = 1 << 22;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (level, repeats, damage) = (u32::from(input.byte()) % 12, 1 + input.below(64), input.number());
    let longest = 1 << (11 + input.below(6));
    let mut blob = input.0.to_vec();
    if level < 10 {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        for _ in 0..repeats {
            encoder.write_all(input.0).unwrap();
        }
        blob = encoder.finish().unwrap();
    }
    if let Some(byte) = usize::try_from(damage).ok().and_then(|at| blob.get_mut(at)) {
        *byte ^= 1 << (damage % 8);
    }
    let (mut alone, mut helped) = (Vec::new(), Vec::new());
    let first = MultiGzDecoder::new(&blob[..]).take(LARGEST).read_to_end(&mut alone);
    let second = Gzip::in_pieces(&blob[..], Cores::new(4).begin(), longest).take(LARGEST).read_to_end(&mut helped);
    assert_eq!(first.is_ok(), second.is_ok(), "alone {first:?}, helped {second:?}");
    assert!(first.is_err() || alone == helped, "other bytes are inflated");
}
