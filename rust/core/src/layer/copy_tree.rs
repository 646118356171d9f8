//! Copies a tree, with all that cp -a keeps: for snapshots that do not stand on their parent's folder, but on a copy of it.
//!
//! Both trees are walked together, through descriptors and single names; a symlink is copied and never followed. Folders get
//! their attributes when what is in them is complete. What has several names in the tree is one inode in the copy too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

use super::apply::push_note;
use super::attributes::{Attributes, Target, read_all_xattrs, set_attributes};
use super::copy::{Manner, Name, copy_inode};
use super::folders::{open_child, open_tree};
use super::kept::Kept;
use super::name::join;
use crate::error::{Error, Kind, Result, show};
use crate::tree::{Check, Descent, names};

/// Copy what is in `from` into the empty folder `to`, which gets the attributes of `from` too. Gives notes of what was left out:
/// sockets, and attributes that cannot be set here.
///
/// After an error `to` is half done and must be thrown away. Who changes `from` meanwhile gets an error or a mixture.
pub fn copy_tree(from: &Path, to: &Path, check: Check<'_>) -> Result<Vec<String>> {
    let (source, target) = (open_tree(from)?, open_tree(to)?);
    let failed = |error| Error::system(format!("cannot list {}", to.display()), error);
    if !names(&target).map_err(failed)?.is_empty() {
        return Err(Error::new(Kind::FailedPrecondition, format!("the folder {} is not empty", to.display())));
    }
    let root = target.try_clone().map_err(|error| Error::system(format!("cannot open {}", to.display()), error))?;
    let mut copy = Copy { root, links: HashMap::new(), notes: Vec::new() };
    copy.run(source, target, check).map_err(|error| error.context(format!("copying {}", from.display())))?;
    Kept::beside(from)?.store(to)?;
    Ok(copy.notes)
}

struct Copy {
    root: OwnedFd,
    /// Inodes that have several names: the first of them in the copy.
    links: HashMap<(u64, u64), Vec<CString>>,
    notes: Vec<String>,
}

fn failed(verb: &str, name: &CStr, error: Errno) -> Error {
    Error::system(format!("cannot {verb} '{}'", show(name.to_bytes())), error)
}

impl Copy {
    fn run(&mut self, source: OwnedFd, target: OwnedFd, check: Check<'_>) -> Result<()> {
        let (mut sources, mut targets) = (Descent::default(), Descent::default());
        // As they were before they were read, which changes the time of the last access.
        let mut stats = vec![rustix::fs::fstat(&source).map_err(|error| failed("read", c".", error))?];
        sources.enter(source, c".".to_owned()).map_err(|error| failed("list", c".", error))?;
        targets.follow(target, c".".to_owned(), Vec::new()).map_err(|error| failed("read", c".", error))?;
        while let Some((_, next)) = sources.next() {
            check()?;
            let (Some(source), Some(target)) = (sources.folder(), targets.folder()) else { break };
            let Some(name) = next else {
                let Some(stat) = stats.pop() else { break };
                self.complete(source, &stat, target)?;
                for descent in [&mut sources, &mut targets] {
                    descent.leave().map_err(|error| failed("go back in", c"..", error))?;
                }
                continue;
            };
            let stat = rustix::fs::statat(source, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed("read", &name, error))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let (from, to) = (Name { folder: source, name: &name }, Name { folder: target, name: &name });
                self.inode(from, &stat, to, &sources, check)?;
                continue;
            }
            let inner = open_child(source, &name).map_err(|error| failed("open", &name, error))?;
            let made = rustix::fs::mkdirat(target, &name, Mode::RWXU)
                .and_then(|()| open_child(target, &name))
                .map_err(|error| failed("make folder", &name, error))?;
            stats.push(stat);
            sources.enter(inner, name.clone()).map_err(|error| failed("list", &name, error))?;
            targets.follow(made, name.clone(), Vec::new()).map_err(|error| failed("read", &name, error))?;
        }
        Ok(())
    }

    /// Give a folder its attributes.
    fn complete(&mut self, source: BorrowedFd<'_>, stat: &Stat, target: BorrowedFd<'_>) -> Result<()> {
        let attributes = Attributes::read(stat, read_all_xattrs(&Target::Descriptor(source))?);
        set_attributes(target, &attributes, &mut |text| push_note(&mut self.notes, text)).map(drop)
    }

    /// Copy what is no folder.
    fn inode(&mut self, from: Name<'_>, stat: &Stat, to: Name<'_>, at: &Descent, check: Check<'_>) -> Result<()> {
        let place = || at.path().map(CString::as_c_str).chain([to.name]).map(CStr::to_owned).collect::<Vec<_>>();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            let path: Vec<_> = place().into_iter().map(CString::into_bytes).collect();
            push_note(&mut self.notes, format!("'{}' is a socket and was left out", show(&join(&path))));
            return Ok(());
        }
        if stat.st_nlink > 1 {
            match self.links.entry((stat.st_dev, stat.st_ino)) {
                Entry::Occupied(first) => return link(&self.root, first.get(), to),
                Entry::Vacant(first) => drop(first.insert(place())),
            }
        }
        let note = &mut |text| push_note(&mut self.notes, text);
        copy_inode(from, stat, to, &mut Manner { xattrs: read_all_xattrs, check, note })
    }
}

/// Give what stands at a path of the copy another name.
fn link(root: &OwnedFd, path: &[CString], to: Name<'_>) -> Result<()> {
    let failed = |error| failed("link", to.name, error);
    let Some((name, parents)) = path.split_last() else { return Ok(()) };
    let mut folder: Option<OwnedFd> = None;
    for parent in parents {
        folder = Some(open_child(folder.as_ref().unwrap_or(root).as_fd(), parent).map_err(failed)?);
    }
    rustix::fs::linkat(folder.as_ref().unwrap_or(root), name, to.folder, to.name, AtFlags::empty()).map_err(failed)
}
