//! Sparse files: GNU's old format, and the PAX formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

use super::header::{number, unsigned};
use super::pax::decimal;
use crate::error::{Error, Kind, Result};

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins, in bytes of the file.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// What `GNU.sparse.*` records said.
#[derive(Clone, Debug, Default)]
pub struct PaxSparse {
    pub name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    real_size: Option<u64>,
    numbers: Vec<u64>,
}

/// Where the map of a PAX sparse file stands.
pub enum PaxMap {
    /// In the records.
    Here(Vec<Segment>),
    /// In front of the file's data (format 1.0).
    InData,
}

impl PaxSparse {
    pub fn is_set(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || !self.numbers.is_empty() || self.name.is_some()
    }

    pub fn set(&mut self, field: &[u8], value: &[u8], max_segments: usize) -> Result<()> {
        match field {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"name" => {
                if value.contains(&0) {
                    return Err(Error::invalid("a name holds a NUL"));
                }
                self.name = Some(value.to_vec());
            }
            // Format 0.0 repeats this pair.
            b"offset" if self.numbers.len().is_multiple_of(2) => self.push(value, max_segments)?,
            b"numbytes" if self.numbers.len() % 2 == 1 => self.push(value, max_segments)?,
            b"offset" | b"numbytes" => return Err(Error::invalid("offset and numbytes do not alternate")),
            b"map" => {
                self.numbers.clear();
                if !value.is_empty() {
                    for part in value.split(|byte| *byte == b',') {
                        self.push(part, max_segments)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, value: &[u8], max_segments: usize) -> Result<()> {
        if self.numbers.len() >= 2 * max_segments {
            return Err(too_many(max_segments));
        }
        self.numbers.push(decimal(value)?);
        Ok(())
    }

    /// The real size and the map, when the records describe a sparse file.
    pub fn map(&self) -> Result<Option<(u64, PaxMap)>> {
        let (major, minor) = (self.major.unwrap_or(0), self.minor.unwrap_or(0));
        match (major, minor) {
            (1, 0) => {
                let size = self.real_size.ok_or_else(|| Error::invalid("a sparse file has no real size"))?;
                Ok(Some((size, PaxMap::InData)))
            }
            (0, _) => {
                let Some(size) = self.real_size else { return Ok(None) };
                if !self.numbers.len().is_multiple_of(2) {
                    return Err(Error::invalid("a sparse map has an odd count of numbers"));
                }
                Ok(Some((size, PaxMap::Here(pairs(&self.numbers)))))
            }
            _ => Err(Error::new(Kind::Unsupported, format!("sparse file format {major}.{minor}"))),
        }
    }
}

fn pairs(numbers: &[u64]) -> Vec<Segment> {
    numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect()
}

fn too_many(max_segments: usize) -> Error {
    Error::new(Kind::ResourceExhausted, format!("a sparse file has more than {max_segments} data segments"))
}

/// Append the entries (12 bytes offset, 12 bytes length) of an old GNU map; an empty one ends it.
pub fn read_gnu(entries: &[u8], segments: &mut Vec<Segment>, max_segments: usize) -> Result<()> {
    for entry in entries.chunks_exact(24) {
        if entry[0] == 0 || entry[12] == 0 {
            return Ok(());
        }
        if segments.len() >= max_segments {
            return Err(too_many(max_segments));
        }
        let offset = unsigned(number(&entry[..12])?, "offset of a sparse segment")?;
        let length = unsigned(number(&entry[12..])?, "length of a sparse segment")?;
        segments.push(Segment { offset, length });
    }
    Ok(())
}

/// Reads the map in front of the data (format 1.0): a count and then pairs, a decimal number a line.
#[derive(Default)]
pub struct DataMap {
    line: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl DataMap {
    /// Take one block; true when the map is complete (the rest of the block is padding).
    pub fn feed(&mut self, block: &[u8], max_segments: usize) -> Result<bool> {
        for byte in block {
            if *byte != b'\n' {
                if self.line.len() >= 20 {
                    return Err(Error::invalid("a number of the sparse map is too long"));
                }
                self.line.push(*byte);
                continue;
            }
            let value = decimal(&self.line)?;
            self.line.clear();
            match self.count {
                None => {
                    if value > max_segments as u64 {
                        return Err(too_many(max_segments));
                    }
                    self.count = Some(value);
                }
                Some(_) => self.numbers.push(value),
            }
            if self.count.is_some_and(|count| self.numbers.len() as u64 == 2 * count) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn segments(&self) -> Vec<Segment> {
        pairs(&self.numbers)
    }
}

/// Check that a map is ascending, stays within the file and describes exactly `stored` bytes; drop empty segments.
pub fn validate(mut segments: Vec<Segment>, real_size: u64, stored: u64) -> Result<Vec<Segment>> {
    let (mut end, mut total) = (0u64, 0u64);
    for segment in &segments {
        let stop = segment.offset.checked_add(segment.length);
        if segment.offset < end || stop.is_none_or(|stop| stop > real_size) {
            return Err(Error::invalid("the segments of a sparse file overlap or lie outside it"));
        }
        end = segment.offset + segment.length;
        total += segment.length;
    }
    if total != stored {
        return Err(Error::invalid(format!("a sparse map describes {total} bytes, the archive holds {stored}")));
    }
    segments.retain(|segment| segment.length > 0);
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(list: &[(u64, u64)]) -> Vec<Segment> {
        list.iter().map(|(offset, length)| Segment { offset: *offset, length: *length }).collect()
    }

    #[test]
    fn maps_must_ascend_stay_inside_and_match_the_stored_size() {
        assert_eq!(validate(segments(&[(0, 10), (20, 5), (30, 0)]), 30, 15).unwrap(), segments(&[(0, 10), (20, 5)]));
        assert!(validate(segments(&[(10, 5), (0, 5)]), 30, 10).is_err());
        assert!(validate(segments(&[(0, 10), (5, 5)]), 30, 15).is_err());
        assert!(validate(segments(&[(20, 11)]), 30, 11).is_err());
        assert!(validate(segments(&[(u64::MAX, 2)]), 30, 2).is_err());
        assert!(validate(segments(&[(0, 10)]), 30, 9).is_err());
    }

    #[test]
    fn a_map_in_the_data_may_cross_blocks() {
        let mut map = DataMap::default();
        assert!(!map.feed(b"2\n0\n5", 10).unwrap());
        assert!(map.feed(b"12\n1024\n7\n\0\0\0", 10).unwrap());
        assert_eq!(map.segments(), segments(&[(0, 512), (1024, 7)]));
        assert!(DataMap::default().feed(b"0\n", 10).unwrap());
        assert!(DataMap::default().feed(b"11\n", 10).is_err());
        assert!(DataMap::default().feed(b"x\n", 10).is_err());
    }
}
