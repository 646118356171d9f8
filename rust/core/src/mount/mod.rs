//! Mounts: type, source and options as containerd's mount structure and fstab have them.
//!
//! The new mount API makes them (fsopen, fsconfig, fsmount, `open_tree`, `mount_setattr`, `move_mount`): it says what is
//! wrong in words, takes as many lower folders as the kernel stacks, and attaches a mount only when it is complete.
//! mount(2) serves where a file system cannot be told its options that way: overlayfs before Linux 6.8; and where a kernel has
//! only a part of it: gVisor.

mod apart;
mod attach;
mod attributes;
mod copies;
mod create;
mod idmap;
mod layers;
mod legacy;
mod options;
mod table;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

pub use apart::apart;
pub use attach::put;
pub use attributes::change;
pub use copies::{copy_of, copy_of_path, detached_copy, let_wait, wait_in};
pub use idmap::IdMaps;
pub use options::{Options, Propagation};
pub use table::mounts;

use self::layers::Layers;
use crate::error::{Error, Kind, Result};

/// Errors show so many characters of the options: 500 layers have 100,000.
const MAX_SHOWN: usize = 1000;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type; `bind` (or empty, or `none`) for a bind mount.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options, as in fstab.
    pub options: Vec<String>,
}

impl Mount {
    fn is_bind(&self, options: &Options) -> bool {
        options.bind || matches!(self.kind.as_str(), "bind" | "rbind" | "" | "none")
    }

    fn is_recursive(&self, options: &Options) -> bool {
        options.recursive || self.kind == "rbind"
    }

    fn describe(&self) -> String {
        let mut options = self.options.join(",");
        if let Some((end, _)) = options.char_indices().nth(MAX_SHOWN) {
            options.replace_range(end.., "...");
        }
        format!("{} mount of '{}' with options '{options}'", self.kind, self.source)
    }
}

/// Mount one after another on a folder or file, each on top of the one before. When one fails, none stays.
///
/// Symlinks in `target` are followed: it must not be a path that a container controls (see [`mount_at`]).
pub fn mount(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        // Opened anew each time: the next one goes on top of the one before.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let result = rustix::fs::openat(CWD, target, flags, Mode::empty())
            .map_err(|error| Error::system(format!("cannot mount on {}", target.display()), error))
            .and_then(|point| mount_at(mount, point.as_fd()));
        if let Err(error) = result {
            for _ in 0..done {
                let _ = rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
            return Err(error.context(format!("on {}", target.display())));
        }
    }
    Ok(())
}

/// Mount on what a descriptor (of `O_PATH`) stands for.
pub fn mount_at(mount: &Mount, target: BorrowedFd<'_>) -> Result<()> {
    let options = Options::parse(&mount.options).map_err(|error| error.context(mount.describe()))?;
    let made = match make(mount, &options) {
        Err(error) if error.kind == Kind::InvalidArgument && attach::can_bind_file(mount, &options) => {
            return attach::bind_file(mount, target, &options).map_err(|_| error);
        }
        made => made?,
    };
    place(made.as_fd(), target, &options)
        .map_err(|error| error.context(format!("cannot attach the {}", mount.describe())))
}

/// Put a mount that is attached nowhere on what a descriptor (of `O_PATH`) stands for.
pub fn place(made: BorrowedFd<'_>, target: BorrowedFd<'_>, options: &Options) -> Result<()> {
    attach::attach(made, target, options)
}

/// Give a mount that is attached nowhere the attributes and the map of ids that the options name, as [`make`] does.
pub fn apply(made: BorrowedFd<'_>, options: &Options) -> Result<()> {
    attach::set_attributes(made, options)?;
    let Some(maps) = &options.id_maps else { return Ok(()) };
    idmap::map(made, maps.namespace()?.as_fd(), options.recursive)
}

/// Make a mount that is attached nowhere.
pub fn make(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    let made = match &options.id_maps {
        None => make_plain(mount, options),
        Some(maps) => make_mapped(mount, options, maps),
    };
    made.map_err(|error| error.context(format!("cannot make the {}", mount.describe())))
}

fn make_plain(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    if !mount.is_bind(options) {
        return new(mount, options);
    }
    match attach::clone(mount, options) {
        Err(error) if error.kind == Kind::Unsupported => apart(|| legacy::clone(mount, options)).map_err(|_| error),
        result => result,
    }
}

/// Make a mount that shows other ids than are stored. An overlay cannot be mapped itself: its layers are.
fn make_mapped(mount: &Mount, options: &Options, maps: &IdMaps) -> Result<OwnedFd> {
    let namespace = maps.namespace()?;
    if mount.is_bind(options) || mount.kind != "overlay" {
        let made = make_plain(mount, options)?;
        idmap::map(made.as_fd(), namespace.as_fd(), mount.is_recursive(options))?;
        return Ok(made);
    }
    apart(|| {
        idmap::map_layers(&Layers::of(options), maps, namespace.as_fd())?;
        make_plain(mount, options).map_err(|error| match error.hint {
            None => error.hint("Overlays of layers with mapped ids take Linux 5.19."),
            Some(_) => error,
        })
    })
}

/// A new file system.
fn new(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    if mount.kind == "overlay" {
        layers::forget_volatile(&Layers::of(options));
    }
    match create::create(mount, options) {
        Ok(made) => Ok(made),
        Err(create::Refusal::TooOld) => apart(|| legacy::make(mount, options)),
        Err(create::Refusal::Failed(error)) => Err(error),
    }
}

/// Unmount everything that is stacked on a path, lazily what is busy. Harmless when nothing is mounted there.
pub fn unmount(target: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // INVAL: no mount point.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(error) => return Err(Error::system(format!("cannot unmount {}", target.display()), error)),
            },
            Err(error) => return Err(Error::system(format!("cannot unmount {}", target.display()), error)),
        }
    }
}
