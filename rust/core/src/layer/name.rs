//! Names in an archive, taken apart. What comes out can be handed to the kernel one component at a time.

use std::ffi::CString;

use super::whiteout::PREFIX;
use crate::error::{Error, Kind, Result, show};

/// Longest component (NAME_MAX of every file system in question). A whiteout has its prefix besides.
const MAX_COMPONENT: usize = 255;
/// Deepest path. Real layers stay below 60; the cap bounds the cost of walks.
pub const MAX_DEPTH: usize = 512;

/// The components of a path inside the layer. Empty for the root itself.
///
/// Leading slashes are dropped, as Docker and GNU tar do; so are `.` components. `..` is refused: no tar that a layer
/// builder writes has one.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let parts = split(path)?;
    if parts.contains(&&b".."[..]) {
        return Err(Error::invalid(format!("the path '{}' has a '..' in it", show(path)))
            .hint("The layer is malformed, or tries to write outside of its folder."));
    }
    Ok(parts)
}

/// The components of a symlink's target, `..` included.
pub fn split(path: &[u8]) -> Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let is_long = |part: &[u8]| part.strip_prefix(PREFIX).unwrap_or(part).len() > MAX_COMPONENT;
    if let Some(long) = parts.iter().find(|part| is_long(part)) {
        return Err(Error::invalid(format!("the name '{}' is longer than {MAX_COMPONENT} bytes", show(long))));
    }
    if path.contains(&0) {
        return Err(Error::invalid(format!("the path '{}' holds a NUL", show(path))));
    }
    if parts.len() > MAX_DEPTH {
        return Err(Error::new(
            Kind::ResourceExhausted,
            format!("the path '{}' is more than {MAX_DEPTH} folders deep", show(path)),
        ));
    }
    Ok(parts)
}

/// A component for a system call.
pub fn c_name(component: &[u8]) -> Result<CString> {
    debug_assert!(!component.contains(&b'/') && component != b".." && component != b"." && !component.is_empty());
    CString::new(component).map_err(|_| Error::invalid(format!("the name '{}' holds a NUL", show(component))))
}

/// Put components together again.
pub fn join<T: AsRef<[u8]>>(components: &[T]) -> Vec<u8> {
    let mut path = Vec::new();
    for component in components {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component.as_ref());
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_what_leads_outside() {
        assert_eq!(components(b"/etc//./passwd/").unwrap(), [&b"etc"[..], b"passwd"]);
        assert!(components(b"./").unwrap().is_empty());
        assert!(components(b"").unwrap().is_empty());
        for bad in [&b"../x"[..], b"a/../b", b"a/..", b"a\0b"] {
            assert!(components(bad).is_err(), "{}", show(bad));
        }
        assert_eq!(components(b"a/..b/...").unwrap().len(), 3);
    }

    #[test]
    fn names_and_depths_have_caps() {
        assert!(components(&[b'a'; 255]).is_ok());
        assert_eq!(components(&[b'a'; 256]).unwrap_err().kind, Kind::InvalidArgument);
        assert!(components(&[b".wh.", &[b'a'; 255][..]].concat()).is_ok());
        assert_eq!(components(&[b".wh.", &[b'a'; 256][..]].concat()).unwrap_err().kind, Kind::InvalidArgument);
        assert!(components(&b"a/".repeat(512)).is_ok());
        assert_eq!(components(&b"a/".repeat(513)).unwrap_err().kind, Kind::ResourceExhausted);
    }
}
