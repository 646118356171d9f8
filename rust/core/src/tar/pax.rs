//! PAX extended headers: records of the form `length key=value\n` (POSIX.1-2001, pax, "pax Extended Header").

use std::collections::BTreeMap;

use super::sparse::PaxSparse;
use super::{Limits, Timestamp};
use crate::error::{Error, Kind, Result, show};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What extended headers said; later ones override earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<Timestamp>,
    pub atime: Option<Timestamp>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: PaxSparse,
}

impl Pax {
    /// Read the records of one extended header on top of what is there.
    pub fn read(&mut self, mut records: &[u8], limits: &Limits) -> Result<()> {
        // A header with sparse records states the whole map.
        self.sparse = PaxSparse::default();
        while !records.is_empty() {
            let (key, value, rest) = split(records)?;
            self.set(key, value, limits).map_err(|error| error.context(format!("PAX {}", show(key))))?;
            records = rest;
        }
        self.check_xattrs(limits)
    }

    /// Read a global header. It may give attributes to what follows; a name, size or map shared by all is no sense.
    pub fn read_global(&mut self, records: &[u8], limits: &Limits) -> Result<()> {
        self.read(records, limits)?;
        if self.path.is_some() || self.link.is_some() || self.size.is_some() || self.sparse.is_set() {
            return Err(Error::invalid("a global PAX header gives every file one name, size or sparse map"));
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<()> {
        // An empty value takes an earlier (global) one back.
        let present = !value.is_empty();
        match key {
            b"path" => self.path = present.then(|| name(value)).transpose()?,
            b"linkpath" => self.link = present.then(|| name(value)).transpose()?,
            b"size" => self.size = present.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = present.then(|| signed(value)).transpose()?,
            b"gid" => self.gid = present.then(|| signed(value)).transpose()?,
            b"mtime" => self.mtime = present.then(|| timestamp(value)).transpose()?,
            b"atime" => self.atime = present.then(|| timestamp(value)).transpose()?,
            _ => {
                if let Some(attribute) = key.strip_prefix(XATTR) {
                    self.set_xattr(attribute, value)?;
                } else if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(field, value, limits.sparse_segments)?;
                }
                // Comments, character sets, user names and vendor records have no bearing on the tree.
            }
        }
        Ok(())
    }

    /// An attribute's value may be empty, so emptiness takes nothing back here.
    fn set_xattr(&mut self, attribute: &[u8], value: &[u8]) -> Result<()> {
        if attribute.is_empty() || attribute.len() > 255 || attribute.contains(&0) {
            return Err(Error::invalid("the name of the extended attribute is empty, too long or holds a NUL"));
        }
        self.xattrs.insert(attribute.to_vec(), value.to_vec());
        Ok(())
    }

    /// The cap on one header says nothing of many global ones, each of which adds to what is kept for every entry.
    fn check_xattrs(&self, limits: &Limits) -> Result<()> {
        let held: usize = self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if held as u64 > limits.extension {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("extended attributes of more than {} bytes for one entry", limits.extension),
            ));
        }
        Ok(())
    }
}

/// Split the first record off: key, value, rest.
fn split(records: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let malformed = || Error::data_loss("a PAX record is malformed");
    let space = records.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
    let length = usize::try_from(decimal(&records[..space])?).map_err(|_| malformed())?;
    if length > records.len() || length < space + 3 {
        return Err(malformed());
    }
    let (record, rest) = records.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
    if equals == 0 {
        return Err(malformed());
    }
    Ok((&body[..equals], &body[equals + 1..], rest))
}

fn name(value: &[u8]) -> Result<Vec<u8>> {
    if value.contains(&0) {
        return Err(Error::invalid("a name holds a NUL"));
    }
    Ok(value.to_vec())
}

/// Decimal digits and nothing else, at most 2^63-1.
pub fn decimal(value: &[u8]) -> Result<u64> {
    let bad = || Error::invalid(format!("'{}' is not a number that fits", show(value)));
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let number: i64 = text.parse().map_err(|_| bad())?;
    Ok(number.unsigned_abs())
}

fn signed(value: &[u8]) -> Result<i64> {
    let bad = || Error::invalid(format!("'{}' is not a number that fits", show(value)));
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let magnitude = i64::try_from(decimal(digits)?).map_err(|_| bad())?;
    Ok(if negative { -magnitude } else { magnitude })
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are rounded down, as POSIX asks.
fn timestamp(value: &[u8]) -> Result<Timestamp> {
    let (negative, magnitude) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match magnitude.iter().position(|byte| *byte == b'.') {
        Some(point) => (&magnitude[..point], &magnitude[point + 1..]),
        None => (magnitude, &[][..]),
    };
    let bad = || Error::invalid(format!("'{}' is not a time that fits", show(value)));
    let seconds = i64::try_from(decimal(whole).map_err(|_| bad())?).map_err(|_| bad())?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let mut nanoseconds = 0u32;
    for index in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.get(index).map_or(0, |digit| u32::from(digit - b'0'));
    }
    let beyond = fraction.iter().skip(9).any(|digit| *digit != b'0');
    if !negative {
        return Ok(Timestamp { seconds, nanoseconds });
    }
    let nanoseconds = nanoseconds + u32::from(beyond);
    if nanoseconds == 0 {
        Ok(Timestamp { seconds: -seconds, nanoseconds: 0 })
    } else {
        Ok(Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length += 1;
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn parse(records: &[u8]) -> Result<Pax> {
        let mut pax = Pax::default();
        pax.read(records, &Limits::default())?;
        Ok(pax)
    }

    #[test]
    fn records_override_and_empty_values_take_back() {
        let pax =
            parse(&[record("path", b"a"), record("path", b"b"), record("mtime", b"1"), record("mtime", b"")].concat())
                .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.mtime, None);
    }

    #[test]
    fn values_are_bytes_and_may_hold_newlines_and_equals() {
        let pax = parse(&record("SCHILY.xattr.user.x", b"a\n=\0b")).unwrap();
        assert_eq!(pax.xattrs, BTreeMap::from([(b"user.x".to_vec(), b"a\n=\0b".to_vec())]));
        assert!(parse(&record("path", b"a\0b")).is_err());
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            &b"5 a=b"[..],
            b"99 path=x\n",
            b"3 a\n",
            b"x path=b\n",
            b"0 \n",
            b"5 =bc\n",
            b"7 a=b\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert!(parse(bad).is_err(), "{}", show(bad));
        }
    }

    #[test]
    fn times_round_down_also_before_1970() {
        let time = |text: &[u8]| timestamp(text).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(time(b"1.0000000019").unwrap(), (1, 1));
        assert_eq!(time(b"-1.5").unwrap(), (-2, 500_000_000));
        assert_eq!(time(b"-1").unwrap(), (-1, 0));
        assert_eq!(time(b"-0.0000000001").unwrap(), (-1, 999_999_999));
        assert_eq!(time(b"7.").unwrap(), (7, 0));
        for bad in [&b""[..], b"-", b"1.x", b"1e9", b".5", b"99999999999999999999", b" 1", b"+1"] {
            assert!(time(bad).is_err(), "{}", show(bad));
        }
    }
}
