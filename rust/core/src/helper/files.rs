//! Work on a container's files ([`crate::files`]), for who may not do it: the caller opens the root, which goes along as a
//! descriptor, and so does the pipe with the archive. It is the caller who may look into the container's processes, whichever
//! helper's user namespace they are in; what may be done to their files is decided by ids, which all of them map alike.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::files::{Found, Input, Links, Output, Packing, Root, Unpacking, pack, unpack};
use crate::tree::Check;

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    /// See [`Root::stat`].
    Stat {
        /// The path.
        path: Vec<u8>,
        /// Follow a symlink at its end.
        follow: bool,
    },
    /// See [`pack`].
    Pack {
        /// The path.
        path: Vec<u8>,
        /// What it is called in the archive.
        name: Vec<u8>,
        /// Follow a symlink at its end.
        follow: bool,
    },
    /// See [`unpack`].
    Unpack {
        /// The folder's path.
        folder: Vec<u8>,
        /// Whose everything becomes.
        owner: Option<(u32, u32)>,
        /// Make device nodes.
        devices: bool,
    },
}

/// Work on a container's files.
#[derive(Debug, Serialize, Deserialize)]
pub struct OnFiles {
    /// Which symlinks of the container lead on.
    pub links: Links,
    /// What is done.
    pub work: Work,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Done {
    /// What was found.
    Found(Found),
    /// Notes of what was left out.
    Notes(Vec<String>),
}

impl OnFiles {
    /// Do it. `archive` is for [`Work::Pack`] and [`Work::Unpack`].
    pub fn run(self, root: OwnedFd, archive: impl FnOnce() -> Result<OwnedFd>, check: Check<'_>) -> Result<Done> {
        let root = Root::of(root, self.links);
        Ok(match self.work {
            Work::Stat { path, follow } => Done::Found(root.stat(&path, follow)?),
            Work::Pack { path, name, follow } => {
                let output = Output::new(archive()?, check);
                Done::Notes(pack(&root, &path, Packing { name: &name, follow }, output)?)
            }
            Work::Unpack { folder, owner, devices } => {
                let input = Input::new(archive()?, check);
                Done::Notes(unpack(&root, &folder, Unpacking { owner, devices }, input)?)
            }
        })
    }
}
