//! Status codes (grpc/doc/statuscodes.md), and how they are told in headers.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue};

/// Longer messages are cut: peers limit the size of headers, and drop the whole connection for one that is too long.
const MESSAGE_MAX: usize = 4096;

/// A status code, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Code(pub u8);

impl Code {
    /// Done.
    pub const OK: Self = Self(0);
    /// The client gave up.
    pub const CANCELLED: Self = Self(1);
    /// The client's time was up.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// Too much.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// No such RPC.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// Somebody breaks the protocol, or has a defect.
    pub const INTERNAL: Self = Self(13);
    /// Not now.
    pub const UNAVAILABLE: Self = Self(14);
    /// Bytes are gone.
    pub const DATA_LOSS: Self = Self(15);
}

/// How an RPC ended.
#[derive(Clone, Debug)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// What a reader is told; empty for OK.
    pub message: String,
}

impl Status {
    /// Done.
    pub const OK: Self = Self { code: Code::OK, message: String::new() };

    /// A code and what is to say about it.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Put it into headers or trailers.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(u16::from(self.code.0)));
        if !self.message.is_empty()
            && let Ok(value) = HeaderValue::try_from(encoded(&self.message))
        {
            headers.insert("grpc-message", value);
        }
    }
}

/// Percent-encode what is not printable ASCII (PROTOCOL-HTTP2.md, "Status-Message").
fn encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        if text.len() > MESSAGE_MAX {
            break;
        }
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => _ = write!(text, "%{byte:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_printable_ascii_on_the_wire() {
        assert_eq!(encoded("100% of \u{e4}\n"), "100%25 of %C3%A4%0A");
        assert!(encoded(&"x".repeat(1 << 20)).len() <= MESSAGE_MAX + 3);
    }

    #[test]
    fn ok_has_no_message() {
        let mut headers = HeaderMap::new();
        Status::OK.tell(&mut headers);
        assert_eq!(headers.get("grpc-status").map(HeaderValue::as_bytes), Some(&b"0"[..]));
        assert!(!headers.contains_key("grpc-message"));
    }
}
