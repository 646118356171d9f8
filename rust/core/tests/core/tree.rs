//! What a folder holds, for comparison.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One inode of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub content: Vec<u8>,
    pub device: u64,
    /// The path of the first name of a hard-linked inode.
    pub first_name: Option<String>,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// All items below a folder; the folder itself is ".".
pub fn items(root: &Path) -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    walk(root, root, &mut items, &mut inodes);
    items
}

fn walk(root: &Path, path: &Path, items: &mut BTreeMap<String, Item>, inodes: &mut BTreeMap<(u64, u64), String>) {
    let stat = std::fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
    let name = if name.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(name).into_owned() };
    let letter = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_file() => 'f',
        () if kind.is_char_device() => 'c',
        () if kind.is_block_device() => 'b',
        () if kind.is_fifo() => 'p',
        () => '?',
    };
    let content = match letter {
        'l' => std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        'f' => std::fs::read(path).unwrap(),
        _ => Vec::new(),
    };
    let mut first_name = None;
    if letter != 'd' && stat.nlink() > 1 {
        first_name = Some(inodes.entry((stat.dev(), stat.ino())).or_insert_with(|| name.clone()).clone());
    }
    let item = Item {
        kind: letter,
        mode: stat.mode() & 0o7777,
        owner: (stat.uid(), stat.gid()),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        content,
        device: if matches!(letter, 'c' | 'b') { stat.rdev() } else { 0 },
        first_name,
        xattrs: xattrs(path),
    };
    items.insert(name, item);
    if letter == 'd' {
        let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        for name in names {
            walk(root, &name, items, inodes);
        }
    }
}

pub fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, list.as_mut_slice()).unwrap_or(0);
    let mut xattrs: Vec<_> = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// The names below a folder with a letter for their kind, such as "etc/ d"; whiteouts are 'w'.
pub fn listing(root: &Path) -> Vec<String> {
    let show = |(name, item): (String, Item)| {
        let kind = if item.kind == 'c' && item.device == 0 { 'w' } else { item.kind };
        let opaque = item.xattrs.iter().any(|(name, value)| name.ends_with("overlay.opaque") && value == b"y");
        format!("{name} {kind}{}", if opaque { "!" } else { "" })
    };
    items(root).into_iter().filter(|(name, _)| name != ".").map(show).collect()
}
