//! Sources of bind mounts that are no paths of the host: views of images, and parts of volumes.
//!
//! The spec binds `sources/N` of the bundle, as it would any folder. What is to be there is the N-th source of the request:
//! a mount, and a path in what it shows. It is made when the container starts, attached nowhere, so that nothing of it is ever
//! seen on the host or left there.
//!
//! The path is looked up by one openat2(2) from a descriptor: symlinks are followed as long as they stay beneath the top, and
//! what is mounted is what the descriptor stands for. So whoever changes the volume at the same moment gains nothing
//! (CVE-2023-3676, CVE-2024-10220 and CVE-2021-25741 were subpaths of Kubernetes that were looked at first and mounted by
//! their names afterwards).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lamella_core::mount::{Mount, Options, apart, apply, copy_of, detached_copy, make, put};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::path::open_beneath;
use crate::error::{Failure, Kind, Step};

/// What a bind mount of the spec shows.
#[derive(Clone, Debug)]
pub struct Source {
    /// A snapshot's mount, or a bind mount.
    pub mount: Mount,
    /// A relative path in what it shows; empty for all of it.
    pub subpath: String,
}

/// The number of the source that a bind mount of the spec names, if it does.
pub(super) fn number(path: &str) -> Option<usize> {
    path.strip_prefix("sources/")?.parse().ok()
}

/// Make all of them where the spec of a bundle names them, for another runtime to bind.
pub(super) fn mount_in_bundle(sources: &[Source], bundle: &Path) -> Result<(), Failure> {
    for (number, source) in sources.iter().enumerate() {
        let place = bundle.join(format!("sources/{number}"));
        let what = format!("mount {}", place.display());
        let made = source.make(&what)?;
        let is_folder = FileType::from_raw_mode(rustix::fs::fstat(&made).step(|| &what)?.st_mode).is_dir();
        let folder = if is_folder { place.clone() } else { bundle.join("sources") };
        std::fs::create_dir_all(folder).step(|| &what)?;
        let flags = if is_folder { OFlags::PATH } else { OFlags::CREATE | OFlags::WRONLY };
        let target = rustix::fs::openat(CWD, &place, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::RUSR);
        put(&made, target.step(|| &what)?).step(|| &what)?;
    }
    Ok(())
}

impl Source {
    /// Make it, as a mount that is attached nowhere.
    pub(super) fn make(&self, what: &str) -> Result<OwnedFd, Failure> {
        let failed = |error: lamella_core::Error| Failure::from(error.context(what));
        let options = Options::parse(&self.mount.options).map_err(failed)?;
        if self.subpath.is_empty() {
            return make(&self.mount, &options).map_err(failed);
        }
        if options.bind || self.mount.kind == "bind" {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let top = rustix::fs::openat(CWD, self.mount.source.as_str(), flags, Mode::empty())
                .step(|| format!("{what}: open {}", self.mount.source))?;
            let part = copy_of(self.part(&top, what)?, options.recursive).step(|| what)?;
            apply(part.as_fd(), &options).map_err(failed)?;
            return Ok(part);
        }
        let made = make(&self.mount, &options).map_err(failed)?;
        // Parts of a mount that is attached nowhere can be copied since Linux 6.15 only.
        apart(|| {
            let place = super::snapshot::open_folder("/").step(|| what)?;
            put(&made, place).step(|| what)?;
            detached_copy(self.part(&made, what)?, false).step(|| what)
        })
    }

    /// Open what is at the path beneath an open folder.
    fn part(&self, top: &OwnedFd, what: &str) -> Result<OwnedFd, Failure> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        open_beneath(top.as_fd(), &self.subpath, OFlags::PATH, resolve).map_err(|error| match error {
            Errno::XDEV => {
                Failure::new(Kind::FailedPrecondition, format!("{what}: the path {:?} leads out of it", self.subpath))
            }
            error => Failure::system(format!("{what}: the path {:?} in it", self.subpath), &error.into()),
        })
    }
}
