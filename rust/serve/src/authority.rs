//! The `:authority` of requests, made one that h2 takes.
//!
//! Clients of gRPC's C core (Python, C++) and of Java put a Unix socket's path there. HTTP/2 allows no such host (RFC 9113,
//! section 8.3.1), and h2 refuses the request; Go's server, which is containerd's, does not look. Nor does anything here: on its
//! way from the socket to h2 whatever is neither letter, digit nor dot in it becomes a hyphen. No byte is added or taken away,
//! so that lengths hold, and h2's table of headers (RFC 7541) has the text that later requests refer to. A value in Huffman codes,
//! which the C core does not use, stays as it is.

/// Bytes that a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// A frame's head, and with what may stand before the headers in it: the length of padding, a priority (section 6.2).
const HEAD: usize = 9;
const HEAD_MAX: usize = HEAD + 1 + 5;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Its index among the names of HPACK's static table, and its name.
const INDEX: u8 = 1;
const NAME: &[u8] = b":authority";

/// Follows what a client sends, in whatever pieces it comes.
pub struct Authorities {
    head: [u8; HEAD_MAX],
    /// Bytes of `head` that have come.
    known: usize,
    /// Bytes to come of a frame's headers.
    headers: usize,
    /// Bytes to come that are passed over after that.
    skip: usize,
    at: At,
}

/// Where in the fields of headers (RFC 7541, section 6).
#[derive(Clone, Copy)]
enum At {
    Field,
    /// In the further digits of a number after which the field ends.
    Index,
    /// The same, of a name's, after which its value follows.
    NameIndex,
    NameLength(Length),
    Name {
        left: usize,
        ours: bool,
    },
    ValueLength {
        ours: bool,
        length: Length,
    },
    Value {
        ours: bool,
        left: usize,
    },
}

/// The length of a string, as far as it has come (section 5.2).
#[derive(Clone, Copy, Default)]
struct Length {
    begun: bool,
    huffman: bool,
    number: usize,
    shift: u32,
}

impl Authorities {
    pub fn new() -> Self {
        Self { head: [0; HEAD_MAX], known: 0, headers: 0, skip: PREFACE, at: At::Field }
    }

    /// Mend what comes next.
    pub fn mend(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.headers > 0 {
                let (now, rest) = bytes.split_at_mut(self.headers.min(bytes.len()));
                now.iter_mut().for_each(|byte| self.at = self.at.after(byte));
                self.headers -= now.len();
                if self.headers == 0 {
                    self.headers_end();
                }
                bytes = rest;
            } else if self.skip > 0 {
                let size = self.skip.min(bytes.len());
                self.skip -= size;
                bytes = &mut bytes[size..];
            } else {
                self.head[self.known] = bytes[0];
                self.known += 1;
                bytes = &mut bytes[1..];
                if self.known >= HEAD {
                    self.begin();
                }
            }
        }
    }

    /// Look what a frame is, once its head is there.
    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let has = |flag| kind == HEADERS && flags & flag != 0;
        let before = usize::from(has(PADDED)) + 5 * usize::from(has(PRIORITY));
        if length >= before && self.known < HEAD + before {
            return; // the rest of the head follows
        }
        let begun = std::mem::take(&mut self.known) - HEAD;
        let padding = if has(PADDED) { usize::from(self.head[HEAD]) } else { 0 };
        match length.checked_sub(before + padding) {
            Some(headers) if matches!(kind, HEADERS | CONTINUATION) => {
                (self.headers, self.skip) = (headers, padding);
                if headers == 0 {
                    self.headers_end();
                }
            }
            // Another frame; or one that is malformed, which ends the connection.
            _ => self.skip = length - begun,
        }
    }

    fn headers_end(&mut self) {
        if self.head[4] & END_HEADERS != 0 {
            self.at = At::Field;
        }
    }
}

impl At {
    /// Go on by a byte, and mend it if it is one of an authority's.
    fn after(self, byte: &mut u8) -> Self {
        let last = *byte & 0x80 == 0; // of a number's further digits
        match self {
            Self::Field => match *byte {
                0x80.. => Self::number(*byte, 0x7f, Self::Index, Self::Field),
                0x40.. => Self::name(*byte, 0x3f),
                0x20.. => Self::number(*byte, 0x1f, Self::Index, Self::Field),
                _ => Self::name(*byte, 0x0f),
            },
            Self::Index => {
                if last {
                    Self::Field
                } else {
                    self
                }
            }
            Self::NameIndex => {
                if last {
                    Self::value(false)
                } else {
                    self
                }
            }
            Self::NameLength(mut length) => match length.take(*byte) {
                None => Self::NameLength(length),
                Some(0) => Self::value(false),
                Some(left) => Self::Name { left, ours: left == NAME.len() && !length.huffman },
            },
            Self::Name { left, ours } => {
                let ours = ours && NAME[NAME.len() - left] == *byte;
                if left == 1 { Self::value(ours) } else { Self::Name { left: left - 1, ours } }
            }
            Self::ValueLength { ours, mut length } => match length.take(*byte) {
                None => Self::ValueLength { ours, length },
                Some(0) => Self::Field,
                Some(left) => Self::Value { ours: ours && !length.huffman, left },
            },
            Self::Value { ours, left } => {
                if ours && !byte.is_ascii_alphanumeric() && *byte != b'.' {
                    *byte = b'-';
                }
                if left == 1 { Self::Field } else { Self::Value { ours, left: left - 1 } }
            }
        }
    }

    /// A number whose first digit is in this byte's `bits`: all of them say that more follow.
    fn number(byte: u8, bits: u8, more: Self, done: Self) -> Self {
        if byte & bits == bits { more } else { done }
    }

    fn name(byte: u8, bits: u8) -> Self {
        match byte & bits {
            0 => Self::NameLength(Length::default()),
            index => Self::number(byte, bits, Self::NameIndex, Self::value(index == INDEX)),
        }
    }

    fn value(ours: bool) -> Self {
        Self::ValueLength { ours, length: Length::default() }
    }
}

impl Length {
    fn take(&mut self, byte: u8) -> Option<usize> {
        if !self.begun {
            *self = Self { begun: true, huffman: byte & 0x80 != 0, number: usize::from(byte & 0x7f), shift: 0 };
            return (self.number < 0x7f).then_some(self.number);
        }
        if self.shift < 28 {
            self.number += usize::from(byte & 0x7f) << self.shift; // longer than any headers may be, otherwise
        }
        self.shift += 7;
        (byte & 0x80 == 0).then_some(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&size[1..], &[kind, flags, 0, 0, 0, 1], body].concat()
    }

    fn string(text: &[u8]) -> Vec<u8> {
        let length = match u8::try_from(text.len()) {
            Ok(short @ ..0x7f) => vec![short],
            _ => vec![0x7f, ((text.len() - 0x7f) & 0x7f) as u8 | 0x80, ((text.len() - 0x7f) >> 7) as u8],
        };
        [length, text.to_vec()].concat()
    }

    /// What it makes of frames, in one piece and byte by byte, which has to be the same.
    fn mended(frames: &[Vec<u8>]) -> Vec<u8> {
        let sent = [&[b'%'; PREFACE][..], &frames.concat()].concat();
        let (mut whole, mut single) = (sent.clone(), sent);
        Authorities::new().mend(&mut whole);
        let mut authorities = Authorities::new();
        single.chunks_mut(1).for_each(|byte| authorities.mend(byte));
        assert_eq!(whole, single);
        assert_eq!(whole[..PREFACE], [b'%'; PREFACE]);
        whole.split_off(PREFACE)
    }

    #[test]
    fn a_path_becomes_a_host_and_nothing_else_changes() {
        let path = b"run%2Flamella/c.sock".as_slice();
        let long = [b'/'; 300];
        for (name, host) in [(vec![0x41], b"run-2Flamella-c.sock".to_vec()), (vec![0x11], vec![b'-'; 300])]
            .into_iter()
            .chain([([&[0][..], &string(b":authority")].concat(), b"run-2Flamella-c.sock".to_vec())])
        {
            let text = if host.len() == 300 { &long[..] } else { path };
            let fields = |authority: &[u8]| {
                [
                    &[0x83, 0xff, 0x01, 0x3f, 0x01][..], // indexed ones, a table's size
                    &[0x40],
                    &string(b":authoritx"),
                    &string(path),
                    &[0x44],
                    &string(path), // :path
                    &[0x7f, 0x01],
                    &string(path), // a name of the dynamic table
                    &name,
                    &string(authority),
                    &[0x00],
                    &string(b"x"),
                    &string(b""),
                    &[0x86],
                ]
                .concat()
            };
            let (sent, meant) = (fields(text), fields(&host));
            let padded = |fields: &[u8]| [&[3, 0x41, 1, b'/', 0x41, 1], fields, b"///"].concat();
            for (frames, expected) in [
                (vec![frame(HEADERS, END_HEADERS, &sent)], vec![frame(HEADERS, END_HEADERS, &meant)]),
                (
                    vec![frame(0, 0, &sent), frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded(&sent))],
                    vec![frame(0, 0, &sent), frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded(&meant))],
                ),
                (
                    vec![frame(HEADERS, 0, &sent[..70]), frame(CONTINUATION, END_HEADERS, &sent[70..])],
                    vec![frame(HEADERS, 0, &meant[..70]), frame(CONTINUATION, END_HEADERS, &meant[70..])],
                ),
                (
                    vec![frame(HEADERS, 0, &[]), frame(CONTINUATION, END_HEADERS, &sent), frame(0, 0, path)],
                    vec![frame(HEADERS, 0, &[]), frame(CONTINUATION, END_HEADERS, &meant), frame(0, 0, path)],
                ),
            ] {
                assert_eq!(mended(&frames), expected.concat());
            }
        }
    }

    #[test]
    fn huffman_codes_and_what_is_malformed_pass_as_they_came() {
        let huffman = [&[0x41, 0x83], &b"/%/"[..]].concat();
        let endless = [&[0x41, 0x7f], &[0xff; 40][..]].concat();
        let frames = [
            frame(HEADERS, END_HEADERS, &huffman),
            frame(HEADERS, END_HEADERS | PADDED, &[200, 0x41, 1, b'/']), // more padding than frame
            frame(HEADERS, END_HEADERS | PRIORITY, b"/"),
            frame(HEADERS, END_HEADERS, &endless),
            frame(HEADERS, END_HEADERS, &[0x41, 1, b'a']),
        ];
        assert_eq!(mended(&frames), frames.concat());
    }
}
