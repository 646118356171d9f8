//! A blob through the whole pipeline, held against one decoder after the other: the same tar, or an error, and no thread left.
//!
//! The input's first bytes say how the rest is compressed, into how many members or frames, and what is damaged: what is random
//! alone would hardly get past a checksum.

use std::io::{Read, Write};

use lamella_core::compression::{Compression, Decoder};
use lamella_core::cores::Cores;
use lamella_core::digest::{Algorithm, Hasher};
use lamella_core::layer::WhiteoutFormat;
use lamella_core::pipeline::{Options, Pipeline};
use lamella_core::tar::Limits;
use lamella_core::{Error, Kind};

use crate::ground::{is_misleading, watch};
use crate::input::Input;
use crate::tar_reader::sealed;

/// More than the largest input unpacks to, unless it is a bomb.
const LARGEST: u64 = 1 << 22;

pub fn run(data: &[u8]) {
    if is_misleading(data) {
        return;
    }
    let mut input = Input(data);
    let (form, members, damage) = (input.byte(), 1 + input.below(4), input.byte());
    let step = 1 + usize::from(input.byte()) * 16;
    let content = sealed(input.0);
    let mut blob = match form % 3 {
        0 => input.0.to_vec(),
        1 => in_members(&content, members, Compression::Gzip),
        _ => in_members(&content, members, Compression::Zstd),
    };
    if damage > 127 && !blob.is_empty() {
        let at = usize::from(damage) * 251 % blob.len();
        blob[at] ^= 1 << (damage % 8);
    }
    let expected = decode(&blob);
    watch(|ground| {
        let told = pipeline(&blob, step, &ground.layer(0));
        match (&told, &expected) {
            (Ok(told), Some(tar)) => {
                assert_eq!(told.tar_size, tar.len() as u64);
                assert_eq!(told.diff_id.clone().unwrap(), digest(tar), "the tar's digest is another tar's");
            }
            (Ok(_), None) => panic!("a blob is taken that does not decode"),
            (Err(error), _) => assert_ne!(error.kind, Kind::Internal, "{error}"),
        }
    });
}

/// gzip and zstd both allow several streams in a row.
fn in_members(content: &[u8], members: usize, compression: Compression) -> Vec<u8> {
    let mut blob = Vec::new();
    for member in content.chunks((content.len() / members).max(1)) {
        if compression == Compression::Gzip {
            let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::fast());
            encoder.write_all(member).unwrap();
            encoder.finish().unwrap();
        } else {
            let mut encoder = lamella_core::compress::Encoder::new(&mut blob, compression, Some(1), 1).unwrap();
            encoder.write_all(member).unwrap();
            encoder.finish().unwrap();
        }
    }
    blob
}

/// What one decoder by itself makes of it; None for damage, and for what is too large.
fn decode(blob: &[u8]) -> Option<Vec<u8>> {
    let mut tar = Vec::new();
    let decoder = Decoder::new(Compression::detect(blob), blob).ok()?;
    decoder.take(LARGEST + 1).read_to_end(&mut tar).ok()?;
    (tar.len() as u64 <= LARGEST).then_some(tar)
}

fn digest(bytes: &[u8]) -> lamella_core::digest::Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

fn pipeline(blob: &[u8], step: usize, layer: &std::path::Path) -> Result<lamella_core::pipeline::Unpacked, Error> {
    let pipeline = Pipeline::new(Options {
        digest: digest(blob),
        size: blob.len() as u64,
        blob: None,
        offset: 0,
        compression: Compression::detect(blob),
        layer: Some(layer.to_owned()),
        diff_id: None,
        whiteouts: WhiteoutFormat::OverlayUserXattr,
        cores: Cores::new(4),
        helper: None,
        limits: Limits { archive: LARGEST, entries: 1000, ..Limits::default() },
    })?;
    for piece in blob.chunks(step) {
        pipeline.write(piece, &mut || Ok(()))?;
    }
    pipeline.finish(&mut || Ok(()))
}
