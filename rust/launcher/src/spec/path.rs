//! Finds the JSON path of a position in a document, for error messages.
//!
//! serde_json says line and column only. Walking the text again when something was wrong costs nothing when all is
//! well, where tracking the path during the parse would make every parser twice as large.

/// The path (such as `linux.namespaces[1].type`) of the value or key that ends at, or contains, a position.
/// `line` and `column` count from 1, as in `serde_json::Error`.
pub(super) fn at(document: &str, line: usize, column: usize) -> String {
    let start: usize = document.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let end = (start + column).min(document.len());
    let mut frames: Vec<Frame> = Vec::new();
    let mut bytes = document.as_bytes()[..end].iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' => frames.push(Frame::Object { key: String::new(), in_value: false }),
            b'[' => frames.push(Frame::Array { index: 0 }),
            b'}' | b']' => {
                // Closing bracket at the very end: the error concerns the whole of what it closes (a missing field).
                frames.pop();
            }
            b':' => {
                if let Some(Frame::Object { in_value, .. }) = frames.last_mut() {
                    *in_value = true;
                }
            }
            b',' => match frames.last_mut() {
                Some(Frame::Object { key, in_value }) => {
                    key.clear();
                    *in_value = false;
                }
                Some(Frame::Array { index }) => *index += 1,
                None => {}
            },
            b'"' => {
                let mut text = Vec::new();
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => text.extend(bytes.next()),
                        byte => text.push(byte),
                    }
                }
                if let Some(Frame::Object { key, in_value: false }) = frames.last_mut() {
                    *key = String::from_utf8_lossy(&text).into_owned();
                }
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for frame in &frames {
        match frame {
            Frame::Object { key, .. } if key.is_empty() => {}
            Frame::Object { key, .. } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Frame::Array { index } => path.push_str(&format!("[{index}]")),
        }
    }
    if path.is_empty() { "the document".into() } else { path }
}

enum Frame {
    Object { key: String, in_value: bool },
    Array { index: usize },
}

#[cfg(test)]
mod tests {
    use super::at;

    #[test]
    fn positions_become_paths() {
        let document = "{\"a\": [1, {\"b\\\"c\": true}],\n \"d\": {\"e\": 5}}";
        let column = |needle: &str, line: usize| {
            document.split('\n').nth(line - 1).and_then(|text| text.find(needle)).unwrap_or(0) + 1
        };
        assert_eq!(at(document, 1, column("1,", 1)), "a[0]");
        assert_eq!(at(document, 1, column("true", 1)), "a[1].b\"c");
        assert_eq!(at(document, 2, column("5", 2)), "d.e");
        assert_eq!(at(document, 2, 100), "the document");
        assert_eq!(at("", 0, 0), "the document");
    }
}
