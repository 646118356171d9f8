//! Messages on the wire: a byte that says whether it is compressed, four of length, the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;

use crate::status::{Code, Status};

const PREFIX: usize = 5;

/// Give a body its prefix: `fill` appends the body, of `size` bytes, to what it is given.
///
/// # Panics
/// A body of 4 GiB or more, which no limit lets through.
pub fn framed(size: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut frame = Vec::with_capacity(PREFIX + size);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(size).expect("messages are smaller than 4 GiB"));
    fill(&mut frame);
    debug_assert_eq!(frame.len(), PREFIX + size);
    frame.into()
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

    /// Give the next body; None: the client has sent the last one. May be dropped while it waits.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(body) = self.take()? {
                return Ok(Some(body));
            }
            let Some(data) = self.stream.data().await else {
                return if self.buffered.is_empty() {
                    Ok(None)
                } else {
                    Err(Status::new(Code::INTERNAL, "the request ends inside a message"))
                };
            };
            let data = data.map_err(|_| Status::new(Code::CANCELLED, "the client is gone"))?;
            // Memory is bounded by the limit of a message, so that the client may go on at once.
            _ = self.stream.flow_control().release_capacity(data.len());
            self.buffered.extend_from_slice(&data);
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((prefix, _)) = self.buffered.split_first_chunk::<PREFIX>() else {
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
        if self.buffered.len() - PREFIX < length {
            self.buffered.reserve(PREFIX + length - self.buffered.len());
            return Ok(None);
        }
        self.buffered.advance(PREFIX);
        Ok(Some(self.buffered.split_to(length).freeze()))
    }
}
