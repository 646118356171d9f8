//! Messages on the wire: a byte that says whether it is compressed, four of length, the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;

use crate::call::Expected;
use crate::status::{Code, Status};

const PREFIX: usize = 5;
/// Digits of a number of 32 bits in base 128.
const DIGITS: usize = 5;
/// Bytes in which the head of a message that is expected has come.
const HEAD: usize = 4 << 10;
/// What has fewer bytes comes as a whole.
const BULK: usize = 32 << 10;

/// Give a body its prefix: `fill` appends the body, of `size` bytes, to what it is given.
///
/// # Panics
/// A body of 4 GiB or more, which no limit lets through.
pub fn framed(size: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut frame = Vec::with_capacity(PREFIX + size);
    frame.extend_from_slice(&prefix(size));
    fill(&mut frame);
    debug_assert_eq!(frame.len(), PREFIX + size);
    frame.into()
}

/// Give the prefix of a body of so many bytes, which is not compressed.
///
/// # Panics
/// As [`framed`].
pub fn prefix(size: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = u32::try_from(size).expect("messages are smaller than 4 GiB").to_be_bytes();
    [0, a, b, c, d]
}

/// Append a number in base 128, the lowest digit first (protobuf.dev, "Encoding").
pub fn varint(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// Read such a number of at most 32 bits; None: it is longer, or has not come yet. Gives what follows it, too.
fn read_varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let last = bytes.iter().take(DIGITS).position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at(last + 1);
    Some((digits.iter().rev().fold(0, |number, digit| number << 7 | usize::from(digit & 0x7f)), rest))
}

/// What a client says next.
pub enum Next {
    /// A message.
    Message(Bytes),
    /// The one that was expected: so many bytes of it follow.
    Bulk(usize),
    /// No more.
    End,
}

/// Reads the messages of a request.
pub struct Messages {
    stream: RecvStream,
    buffered: BytesMut,
    limit: usize,
}

impl Messages {
    pub fn new(stream: RecvStream, limit: usize) -> Self {
        Self { stream, buffered: BytesMut::new(), limit }
    }

    /// Give what comes next. May be dropped while it waits.
    pub async fn next(&mut self, expected: Option<&Expected>) -> Result<Next, Status> {
        loop {
            if let Some(next) = self.take(expected)? {
                return Ok(next);
            }
            let Some(data) = self.frame().await? else {
                return if self.buffered.is_empty() { Ok(Next::End) } else { Err(cut_off()) };
            };
            self.buffered.extend_from_slice(&data);
        }
    }

    /// Give what has come of a bulk of which so many bytes are left. May be dropped while it waits.
    pub async fn piece(&mut self, left: usize) -> Result<Bytes, Status> {
        if self.buffered.is_empty() {
            let mut data = self.frame().await?.ok_or_else(cut_off)?;
            if data.len() > left {
                self.buffered.extend_from_slice(&data.split_off(left));
            }
            return Ok(data);
        }
        let size = self.buffered.len().min(left);
        Ok(self.buffered.split_to(size).freeze())
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Status> {
        let data =
            self.stream.data().await.transpose().map_err(|_| Status::new(Code::CANCELLED, "the client is gone"))?;
        if let Some(data) = &data {
            // Memory is bounded by the limit of a message, so that the client may go on at once.
            _ = self.stream.flow_control().release_capacity(data.len());
        }
        Ok(data)
    }

    fn take(&mut self, expected: Option<&Expected>) -> Result<Option<Next>, Status> {
        let Some((prefix, body)) = self.buffered.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::new(Code::UNIMPLEMENTED, "grpc: compressed messages are not read"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            return Err(Status::new(
                Code::RESOURCE_EXHAUSTED,
                format!("grpc: received message larger than max ({length} vs. {})", self.limit),
            ));
        }
        if body.len() < length {
            if let Some((head, bulk)) = expected.and_then(|expected| bulk(expected, body, length)) {
                self.buffered.advance(PREFIX + head);
                return Ok(Some(Next::Bulk(bulk)));
            }
            if expected.is_none() || body.len() > HEAD {
                self.buffered.reserve(PREFIX + length - self.buffered.len());
            }
            return Ok(None);
        }
        self.buffered.advance(PREFIX);
        Ok(Some(Next::Message(self.buffered.split_to(length).freeze())))
    }
}

/// Tell whether a message of this length, of which `body` has come, is the expected one: how long what is before its bytes is, and
/// how many they are.
fn bulk(expected: &Expected, body: &[u8], length: usize) -> Option<(usize, usize)> {
    let rest = body.strip_prefix(&*expected.head)?.strip_prefix(&*expected.tag)?;
    let (size, rest) = read_varint(rest)?;
    let head = body.len() - rest.len();
    (head + size == length && size >= BULK && size as u64 <= expected.most).then_some((head, size))
}

fn cut_off() -> Status {
    Status::new(Code::INTERNAL, "the request ends inside a message")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::call::Sink;

    use super::*;

    #[test]
    fn numbers_are_in_base_128() {
        for (number, bytes) in [(0, &[0][..]), (127, &[127]), (128, &[0x80, 1]), (300, &[0xac, 2])] {
            let mut encoded = Vec::new();
            varint(number, &mut encoded);
            assert_eq!(encoded, bytes);
            encoded.push(9);
            assert_eq!(read_varint(&encoded), Some((usize::try_from(number).unwrap(), &[9][..])));
        }
        assert_eq!(read_varint(&[0x80]), None);
        assert_eq!(read_varint(&[0x80, 0x80, 0x80, 0x80, 0x80, 1]), None);
    }

    #[test]
    fn only_a_message_that_ends_with_the_bytes_is_the_expected_one() {
        struct Nowhere;
        impl Sink for Nowhere {
            fn take(&self, _: &[Bytes]) {}
        }
        let (head, tag) = (Bytes::from_static(&[8, 2]), Bytes::from_static(&[0x32]));
        let expected = Expected { head, tag, most: 1 << 20, sink: Arc::new(Nowhere) };
        let size = 0x80_00; // 32 KiB, in base 128: 0x80 0x80 0x02
        let begun = [8, 2, 0x32, 0x80, 0x80, 2, 1, 1];
        assert_eq!(bulk(&expected, &begun, 6 + size), Some((6, size)));
        for (body, length) in [
            (&begun[..5], 6 + size),                              // more has to come
            (&begun[..], 7 + size),                               // another field follows
            (&begun[..], 5 + size),                               // it is cut off
            (&[8, 3, 0x32, 0x80, 0x80, 2][..], 6 + size),         // another head
            (&[8, 2, 0x3a, 0x80, 0x80, 2], 6 + size),             // another field
            (&[8, 2, 0x32, 0xff, 0xff, 1], 6 + size - 1),         // small
            (&[8, 2, 0x32, 0x81, 0x80, 0x40], 6 + (1 << 20) + 1), // more than the sink takes
        ] {
            assert_eq!(bulk(&expected, body, length), None, "{body:?}");
        }
    }
}
