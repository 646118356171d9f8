//! The table of mounts (proc(5), /proc/PID/mountinfo).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount of this process's mount namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    id: u64,
    parent: u64,
    /// Where it is attached.
    pub point: PathBuf,
}

/// The mounts of this process's mount namespace, in the order of the table.
pub fn mounts() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Where the mounts beneath the one that an open folder is on are attached in it: relative paths, the upper ones first.
pub fn mounts_beneath(folder: BorrowedFd<'_>) -> io::Result<Vec<PathBuf>> {
    let entries = mounts()?;
    let own = id(folder)?;
    let top = entries.iter().find(|entry| entry.id == own).ok_or(io::ErrorKind::NotFound)?;
    let mut tree = vec![top];
    let mut next = 0;
    while let Some(parent) = tree.get(next) {
        let parent = parent.id;
        tree.extend(entries.iter().filter(|entry| entry.parent == parent && entry.id != parent));
        next += 1;
    }
    let relative = |entry: &&Entry| entry.point.strip_prefix(&top.point).ok().map(PathBuf::from);
    Ok(tree[1..].iter().filter_map(relative).collect())
}

/// The number of the mount that an open file is on.
fn id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let number = told.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn parse(table: &[u8]) -> Vec<Entry> {
    let entry = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        Some(Entry { id, parent, point: unescape(fields.nth(2)?) })
    };
    table.split(|&byte| byte == b'\n').filter_map(entry).collect()
}

/// Undo the octal escapes: of space, tab, line feed and backslash.
fn unescape(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after)
            }
            _ => (byte, after),
        };
        path.push(byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_path_is_as_it_was_before_the_table_escaped_it() {
        let table =
            b"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n25 24 0:5 / /a\\040b\\134\\011\\012/\\x rw - tmpfs none rw\n";
        let entry = |id, parent, point: &str| Entry { id, parent, point: PathBuf::from(point) };
        assert_eq!(parse(table), [entry(24, 1, "/"), entry(25, 24, "/a b\\\t\n/\\x")]);
    }

    #[test]
    fn what_is_mounted_beneath_a_folder_is_named_from_there() {
        let root = std::fs::File::open("/").unwrap();
        assert!(mounts_beneath(root.as_fd()).unwrap().iter().any(|path| path == Path::new("proc")));
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(!mounts_beneath(proc.as_fd()).unwrap().iter().any(|path| path == Path::new("proc")));
    }
}
