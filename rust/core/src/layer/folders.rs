//! Open descriptors of a layer's folders: opened one component at a time from the layer's root, and a few kept.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::made::{FolderId, Made};
use super::name::c_name;
use crate::error::{Error, Result, show};

/// How many stay open. A pull has several layers in work, and many processes may have 1024 descriptors only.
const KEPT: usize = 48;

/// Flags that open a folder and never follow a symlink.
pub const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Open a folder by a single name.
pub fn open_child(parent: BorrowedFd<'_>, name: &CStr) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, FOLDER, Mode::empty())
}

/// Open the top folder of a tree.
pub fn open_tree(path: &Path) -> Result<OwnedFd> {
    open_top(path, "")
}

/// Open the top folder of a layer.
pub fn open_layer(path: &Path) -> Result<OwnedFd> {
    open_top(path, "the layer folder ")
}

fn open_top(path: &Path, what: &str) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, FOLDER, Mode::empty())
        .map_err(|error| Error::system(format!("cannot open {what}{}", path.display()), error))
}

/// The descriptors of one layer.
#[derive(Debug)]
pub struct Folders {
    root: Rc<OwnedFd>,
    open: HashMap<FolderId, Rc<OwnedFd>>,
    order: VecDeque<FolderId>,
}

impl Folders {
    pub fn new(root: OwnedFd) -> Self {
        Self { root: Rc::new(root), open: HashMap::new(), order: VecDeque::new() }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The descriptor of a folder.
    pub fn get<A>(&mut self, made: &Made<A>, folder: FolderId) -> Result<Rc<OwnedFd>> {
        // Find the nearest open folder above, then open downwards.
        let mut missing = Vec::new();
        let mut at = folder;
        let mut current = loop {
            if at == FolderId::ROOT {
                break Rc::clone(&self.root);
            }
            if let Some(found) = self.open.get(&at) {
                break Rc::clone(found);
            }
            missing.push(at);
            at = made.folder(at).parent;
        };
        while let Some(next) = missing.pop() {
            let name = &made.folder(next).name;
            let opened = open_child(current.as_fd(), &c_name(name)?)
                .map_err(|error| Error::system(format!("cannot open folder '{}'", show(name)), error))?;
            current = Rc::new(opened);
            self.keep(next, &current);
        }
        Ok(current)
    }

    fn keep(&mut self, folder: FolderId, descriptor: &Rc<OwnedFd>) {
        if self.order.len() >= KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.open.remove(&oldest);
        }
        self.open.insert(folder, Rc::clone(descriptor));
        self.order.push_back(folder);
    }

    /// Drop the descriptor of a folder that is removed.
    pub fn close(&mut self, folder: FolderId) {
        if self.open.remove(&folder).is_some() {
            self.order.retain(|id| *id != folder);
        }
    }
}
