//! Frames of the control socket: a type byte, a 32-bit little-endian length, the payload.

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// A JSON document.
    Control = 0,
    /// Bytes for standard input; none is its end.
    Input = 1,
    /// Bytes of standard output.
    Output = 2,
    /// Bytes of standard error.
    Error = 3,
}

/// Length of what stands before the payload.
pub(super) const HEADER: usize = 5;
/// The longest payload that a client may send.
pub(super) const LONGEST: usize = 1 << 20;

/// The bytes before a payload.
pub(super) fn header(kind: FrameKind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// Take the first whole frame off the front of received bytes; None when it is not whole yet. A client that sends
/// something else than frames is an Err.
pub(super) fn take(received: &mut Vec<u8>) -> Result<Option<(FrameKind, Vec<u8>)>, Malformed> {
    let Some([kind, a, b, c, d]) = received.first_chunk::<HEADER>().copied() else { return Ok(None) };
    let kind = match kind {
        0 => FrameKind::Control,
        1 => FrameKind::Input,
        _ => return Err(Malformed),
    };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > LONGEST {
        return Err(Malformed);
    }
    if received.len() < HEADER + length {
        return Ok(None);
    }
    let payload = received.get(HEADER..HEADER + length).unwrap_or_default().to_vec();
    received.drain(..HEADER + length);
    Ok(Some((kind, payload)))
}

/// What was received is no frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        [&header(kind, payload.len())[..], payload].concat()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let sent =
            [frame(FrameKind::Control, b"{}"), frame(FrameKind::Input, b""), frame(FrameKind::Input, b"abc")].concat();
        for cut in 0..=sent.len() {
            let mut received = sent[..cut].to_vec();
            let mut frames = Vec::new();
            while let Ok(Some(frame)) = take(&mut received) {
                frames.push(frame);
            }
            received.extend_from_slice(&sent[cut..]);
            while let Ok(Some(frame)) = take(&mut received) {
                frames.push(frame);
            }
            let kinds = [FrameKind::Control, FrameKind::Input, FrameKind::Input];
            assert_eq!(frames.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), kinds);
            assert_eq!(frames[2].1, b"abc");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn garbage_and_lies_about_the_length_are_refused() {
        assert_eq!(take(&mut b"GET / HTTP/1.1".to_vec()), Err(Malformed));
        assert_eq!(take(&mut header(FrameKind::Output, 0).to_vec()), Err(Malformed));
        assert_eq!(take(&mut header(FrameKind::Input, LONGEST + 1).to_vec()), Err(Malformed));
        assert_eq!(take(&mut vec![0, 1]), Ok(None));
    }
}
