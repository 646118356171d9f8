//! Compression of layers: what the media type says and what the bytes say.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::str::FromStr;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use crate::cores::Layer;
use crate::error::{Error, Kind, Result, show};
use crate::inflate;

/// Above this much output a ratio of more than [`MAX_RATIO`] is refused. gzip cannot exceed 1032.
const RATIO_FLOOR: u64 = 1 << 30;
const MAX_RATIO: u64 = 4096;

/// How a blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one or several members.
    Gzip,
    /// Zstandard, of one or several frames.
    Zstd,
}

impl Compression {
    /// What the first bytes of a blob show.
    ///
    /// As in containerd the magic number decides, not the media type: images exist whose media types lie.
    #[must_use]
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first.
            [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50 => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(Error::new(Kind::Unsupported, format!("compression '{}'", show(text.as_bytes())))
                .hint("Layers may be plain, gzip or zstd.")),
        }
    }
}

/// Inflates a stream.
pub enum Decoder<R: BufRead> {
    /// See [`Compression::None`].
    None(R),
    /// See [`Compression::Gzip`].
    Gzip(Box<MultiGzDecoder<R>>),
    /// The same, with several threads.
    Helped(Box<inflate::Gzip<R>>),
    /// See [`Compression::Zstd`].
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Inflate what `reader` gives.
    pub fn new(compression: Compression, reader: R) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(reader),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)),
        })
    }

    /// Inflate what `reader` gives with as many threads as `layer` may have.
    pub fn helped(compression: Compression, reader: R, layer: &Arc<Layer>) -> io::Result<Self> {
        match compression {
            Compression::Gzip if layer.can_be_helped() => {
                Ok(Self::Helped(Box::new(inflate::Gzip::new(reader, Arc::clone(layer)))))
            }
            _ => Self::new(compression, reader),
        }
    }

    /// The compressed stream; `Helped` reads some pieces of it ahead.
    pub fn get_ref(&self) -> &R {
        match self {
            Self::None(reader) => reader,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Helped(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Helped(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

/// Say what is wrong with a compressed stream that cannot be read.
#[must_use]
pub fn damaged(compression: Compression, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::data_loss(format!("the {compression} stream ends too early")),
        _ if error.to_string().contains("too much memory") => {
            Error::new(Kind::ResourceExhausted, format!("the {compression} stream needs a window of more than 128 MiB"))
        }
        _ => Error::data_loss(format!("the {compression} stream is damaged: {error}")),
    }
}

/// Refuse an archive of `tar_size` bytes so far that is larger than `limit`, or that came out of too little.
pub fn check_growth(tar_size: u64, consumed: u64, limit: u64) -> Result<()> {
    let what = if tar_size > limit {
        format!("the uncompressed layer is larger than {limit} bytes")
    } else if tar_size > RATIO_FLOOR && tar_size / MAX_RATIO > consumed {
        format!("the layer unpacks to more than {MAX_RATIO} times its size")
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::ResourceExhausted, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_magic_number_decides() {
        assert_eq!(Compression::detect(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
        assert_eq!(Compression::detect(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::detect(&[0x5e, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::detect(b"etc/passwd"), Compression::None);
        assert_eq!(Compression::detect(b""), Compression::None);
    }
}
