//! One 512-byte header block: fields and numbers.

use super::{Device, Timestamp};
use crate::error::{Error, Result, show};

/// Size of a block; everything in an archive is padded to it.
pub const BLOCK: usize = 512;

/// A header block.
pub type Block = [u8; BLOCK];

/// Which fields the header has after the common ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Before POSIX: nothing follows the link name.
    V7,
    /// POSIX: a prefix of the name.
    Ustar,
    /// Schilling's: a shorter prefix, then times.
    Star,
    /// GNU's: times and a sparse map.
    Gnu,
}

/// A header whose checksum was right.
pub struct Header<'a>(&'a Block);

impl<'a> Header<'a> {
    /// Check the checksum. Old programs summed signed bytes; either sum is taken.
    pub fn parse(block: &'a Block) -> Result<Self> {
        let field = &block[148..156];
        let expected = number(field).map_err(|_| Error::data_loss("the header has no checksum"))?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (index, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if expected != unsigned && expected != signed {
            return Err(
                Error::data_loss("the header's checksum is wrong").hint("The layer is damaged, or not a tar archive.")
            );
        }
        Ok(Self(block))
    }

    pub fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if &self.0[508..512] == b"tar\0" {
                    Format::Star
                } else {
                    Format::Ustar
                }
            }
            _ => Format::V7,
        }
    }

    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that the format may have.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.format() {
            Format::Ustar => text(&self.0[345..500]),
            Format::Star => text(&self.0[345..476]),
            Format::V7 | Format::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    pub fn mode(&self) -> Result<u32> {
        let mode = number(&self.0[100..108])?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or_default())
    }

    pub fn uid(&self) -> Result<i64> {
        number(&self.0[108..116])
    }

    pub fn gid(&self) -> Result<i64> {
        number(&self.0[116..124])
    }

    pub fn size(&self) -> Result<u64> {
        unsigned(number(&self.0[124..136])?, "size")
    }

    pub fn mtime(&self) -> Result<Timestamp> {
        Ok(Timestamp { seconds: number(&self.0[136..148])?, nanoseconds: 0 })
    }

    /// Access time, in the formats that have it; zero there means that it was not recorded.
    pub fn atime(&self) -> Result<Option<Timestamp>> {
        let field = match self.format() {
            Format::Gnu => &self.0[345..357],
            Format::Star => &self.0[476..488],
            Format::V7 | Format::Ustar => return Ok(None),
        };
        let seconds = number(field)?;
        Ok((seconds != 0).then_some(Timestamp { seconds, nanoseconds: 0 }))
    }

    /// The device number; one that Linux could not hold is an error.
    pub fn device(&self) -> Result<Device> {
        let (major, minor) = (number(&self.0[329..337])?, number(&self.0[337..345])?);
        let fits = (0..1 << 12).contains(&major) && (0..1 << 20).contains(&minor);
        if !fits {
            return Err(Error::invalid(format!("device number {major}:{minor} does not fit (12 and 20 bits)")));
        }
        Ok(Device { major: as_u32(major), minor: as_u32(minor) })
    }

    /// The first part of an old GNU sparse map, whether it goes on, and the real size.
    pub fn gnu_sparse(&self) -> Result<(&'a [u8], bool, u64)> {
        let real_size = unsigned(number(&self.0[483..495])?, "real size")?;
        Ok((&self.0[386..482], self.0[482] != 0, real_size))
    }
}

fn as_u32(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Turn an owner or group number into one that chown(2) can set; what does not fit is an error, never cut.
pub fn owner(value: i64, what: &str) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::invalid(format!("{what} {value} does not fit (0 to 4294967294)"))),
    }
}

/// A number that must not be negative.
pub fn unsigned(value: i64, what: &str) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::invalid(format!("the {what} is negative ({value})")))
}

/// A text field: up to its first NUL, or all of it.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits between blanks and NULs, or GNU's base-256 with the top bit set.
pub fn number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return base256(field);
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let mut value: i64 = 0;
    for byte in &field[start..end] {
        if !(b'0'..=b'7').contains(byte) {
            return Err(Error::data_loss(format!("'{}' is not an octal number", show(&field[start..end]))));
        }
        // A field has at most 12 digits of 3 bits.
        value = (value << 3) | i64::from(byte - b'0');
    }
    Ok(value)
}

/// Two's complement, big-endian; the top bit of the field is a mark, the next is the sign.
fn base256(field: &[u8]) -> Result<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (index, byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = (value << 8) | i128::from(byte);
        if i64::try_from(value).is_err() {
            return Err(Error::invalid("a number in the header is larger than 64 bits"));
        }
    }
    i64::try_from(value).map_err(|_| Error::invalid("a number in the header is larger than 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers_stand_between_blanks_and_nuls() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"77777777777 ").unwrap(), 0o77777777777);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert!(number(b"0000689\0").is_err());
        assert!(number(b"-000644\0").is_err());
        assert!(number(b"64 4   \0").is_err());
    }

    #[test]
    fn base_256_numbers_may_be_negative_and_must_fit_64_bits() {
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0").unwrap(), 256);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap(), -2);
        assert_eq!(number(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").unwrap(), i64::MAX);
        assert!(number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0").is_err());
        assert!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0").is_err());
        assert!(number(b"\xc0\0\0\0\0\0\0\0\0\0\0\0").is_err());
    }

    #[test]
    fn owners_that_do_not_fit_are_errors_and_never_root() {
        assert_eq!(owner(4_294_967_294, "uid").unwrap(), 4_294_967_294);
        for value in [-1, 4_294_967_295, 4_294_967_296, i64::MAX] {
            assert!(owner(value, "uid").is_err(), "{value}");
        }
    }
}
