//! A tar into a root that leads out by symlinks wherever it can, as `cp` takes one into a container; and what is there, out again.
//!
//! Nothing outside of the root changes or gets in. What is packed is a well-formed archive, and unpacked gives the same tree.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use lamella_core::Kind;
use lamella_core::files::{Input, Links, Output, Packing, Root, Unpacking, pack, unpack};
use rustix::fs::{MemfdFlags, SeekFrom};

use crate::ground::{is_misleading, watch};
use crate::tar_reader::sealed;
use crate::tree::items;

/// Larger files are not read back: a hostile size costs nothing until then.
const LARGE: u64 = 1 << 20;

pub fn run(data: &[u8]) {
    if is_misleading(data) {
        return;
    }
    let archive = sealed(data);
    watch(|ground| {
        for (number, (links, owner, devices)) in
            [(Links::InRoot, None, true), (Links::InRoot, Some((7, 9)), false), (Links::None, None, false)]
                .into_iter()
                .enumerate()
        {
            let folder = ground.layer(number);
            for (name, target) in [("out", "{outside}"), ("up", "{up}"), ("in", "folder"), ("loop", "loop")] {
                let target = String::from_utf8(ground.placed(target.as_bytes())).unwrap();
                symlink(target, folder.join(name)).unwrap();
            }
            fs::create_dir(folder.join("folder")).unwrap();
            let root = Root::open(&folder, links).unwrap();
            for place in [&b"/"[..], b"in", b"out", b"up"] {
                let done =
                    unpack(&root, place, Unpacking { owner, devices }, Input::new(file(&archive), &mut || Ok(())));
                if let Err(error) = done {
                    assert_ne!(error.kind, Kind::Internal, "{error}");
                }
            }
            if number == 0 && !holds_large(&folder) {
                again(&root, &folder, &ground.layer(3));
            }
        }
    });
}

/// Pack a tree, unpack it elsewhere, and compare.
fn again(root: &Root, folder: &Path, copy: &Path) {
    let descriptor = file(b"");
    let kept = descriptor.try_clone().unwrap();
    let notes =
        pack(root, b"/", Packing { name: b"", follow: false }, Output::new(descriptor, &mut || Ok(()))).unwrap();
    rustix::fs::seek(&kept, SeekFrom::Start(0)).unwrap();
    let target = Root::open(copy, Links::InRoot).unwrap();
    let unpacking = Unpacking { owner: None, devices: true };
    let more = unpack(&target, b"/", unpacking, Input::new(kept, &mut || Ok(()))).unwrap();
    if notes.is_empty() && more.is_empty() {
        let (mut before, mut after) = (items(folder), items(copy));
        for tree in [&mut before, &mut after] {
            tree.remove("."); // stays as it was
        }
        assert_eq!(before, after);
    }
}

fn holds_large(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        let status = fs::symlink_metadata(&path).unwrap();
        if status.is_dir() { holds_large(&path) } else { status.is_file() && status.len() > LARGE }
    })
}

fn file(content: &[u8]) -> OwnedFd {
    let file = rustix::fs::memfd_create("archive", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(rustix::io::pwrite(&file, content, 0).unwrap(), content.len());
    file
}
