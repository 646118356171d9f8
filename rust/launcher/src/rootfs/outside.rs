//! Mounts that a container in a user namespace of its own cannot make for itself: their files are for the machine's root.
//!
//! They are made before its first process is, which has them as descriptors that are attached nowhere, and puts them in their
//! places: the root, and what is bound: from paths of the host, of volumes, and of images.

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{Mount, Options, copy_of_path, make, put};

use super::snapshot::without_devices;
use crate::error::{Failure, Step};

/// What was made outside; by default nothing.
#[derive(Debug, Default)]
pub struct Outside {
    /// The root's mounts, the topmost last.
    root: Vec<OwnedFd>,
    /// What each mount of the spec binds, for those that bind anything.
    pub(super) bound: Vec<Option<OwnedFd>>,
}

impl Outside {
    /// Make the root's mounts: of a snapshot, or of a folder that is ready.
    pub(super) fn new(snapshot: &[Mount], root: &str, bound: Vec<Option<OwnedFd>>) -> Result<Self, Failure> {
        let made = if snapshot.is_empty() {
            vec![copy_of_path(root, true).step(|| format!("bind the root {root}"))?]
        } else {
            let each = |mount: &Mount| {
                let made = Options::parse(&mount.options).and_then(|options| make(mount, &options));
                made.map_err(|error| Failure::from(error.context(format!("for {root}"))))
            };
            snapshot.iter().map(each).collect::<Result<_, _>>()?
        };
        made.iter().try_for_each(without_devices)?;
        Ok(Self { root: made, bound })
    }

    /// Put the root in its place; returns it, None where nothing was made.
    pub(super) fn place_root(&mut self, place: &OwnedFd) -> Result<Option<OwnedFd>, Failure> {
        let mut below: Option<OwnedFd> = None;
        for mount in self.root.drain(..) {
            put(&mount, below.as_ref().map_or(place.as_fd(), AsFd::as_fd)).step(|| "put the root in its place")?;
            below = Some(mount);
        }
        Ok(below)
    }
}
