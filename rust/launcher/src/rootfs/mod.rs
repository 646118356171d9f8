//! The container's view of the file system: root, mounts, devices, paths hidden or made read-only.
//!
//! Everything happens in the container's own mount namespace, so nothing is left on the host whatever happens. Paths
//! inside the root are opened with openat2(RESOLVE_IN_ROOT), without magic links, and mounts go onto the descriptors
//! that come of it: no symlink of the image leads a mount or a file out of the root, however it changes meanwhile.

mod cgroups;
mod console;
mod copy_up;
mod detached;
mod devices;
mod input;
mod masks;
mod mounts;
mod outside;
mod path;
mod snapshot;
mod sources;
mod sysctl;

pub use console::{Console, set_size as set_terminal_size};
pub use devices::DevicePlan;
pub use input::{empty_input, empty_pipe};
pub use mounts::MountPlan;
pub use outside::Outside;
pub use path::Root;
pub use sources::Source;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use lamella_core::mount::{Mount, Propagation, detached_copy, mounts, put, wait_in};
use lamella_core::sys::has_mount_setattr;
use rustix::mount::MountAttrFlags;

use crate::cgroup::Cgroup;
use crate::error::{Failure, Kind, Step};
use crate::spec::Spec;
use detached::{file_system, set_attributes, set_propagation};

/// The file-system part of a container, checked and ready to be made.
#[derive(Debug)]
pub struct RootfsPlan {
    root: String,
    readonly: bool,
    snapshot: Vec<Mount>,
    sources: Vec<Source>,
    mounts: Vec<MountPlan>,
    devices: Vec<DevicePlan>,
    /// A bind mount on /dev brings its own nodes.
    own_devices: bool,
    masked: Vec<String>,
    readonly_paths: Vec<String>,
    sysctl: Vec<(String, String)>,
    propagation: Option<(Propagation, bool)>,
}

impl RootfsPlan {
    /// Prepare a checked spec. `sources` are what its bind mounts of `sources/N` show.
    pub fn new(bundle: &str, snapshot: Vec<Mount>, sources: Vec<Source>, spec: &Spec) -> Result<Self, Failure> {
        let mounts = spec
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| MountPlan::new(index, mount, bundle))
            .collect::<Result<Vec<_>, _>>()?;
        let own_devices = !spec
            .mounts
            .iter()
            .any(|mount| mount.is_bind() && mount.destination.split('/').filter(|part| !part.is_empty()).eq(["dev"]));
        Ok(Self {
            root: path::from_bundle(bundle, &spec.root.path),
            readonly: spec.root.readonly,
            snapshot,
            sources,
            mounts,
            devices: devices::plan(&spec.linux.devices),
            own_devices,
            masked: spec.linux.masked_paths.clone(),
            readonly_paths: spec.linux.readonly_paths.clone(),
            sysctl: spec.linux.sysctl.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            propagation: propagation(spec.linux.rootfs_propagation.as_deref())?,
        })
    }

    /// Make what a first process in a user namespace of its own cannot make.
    pub fn make_outside(&self) -> Result<Outside, Failure> {
        if !has_mount_setattr() {
            let message = "ids of its own take mount_setattr(2), which this kernel has not, or a filter around refuses";
            return Err(Failure::new(Kind::Unsupported, message).with_hint("leave out userns and maps of ids"));
        }
        let bound = self.mounts.iter().map(|mount| mount.make_outside(&self.sources)).collect::<Result<_, _>>()?;
        Outside::new(&self.snapshot, &self.root, bound)
    }

    /// Open the folder that the root is mounted on: for the machine's root alone to reach.
    pub fn open_place(&self) -> Result<OwnedFd, Failure> {
        snapshot::open_folder(&self.root).step(|| format!("open {}", self.root))
    }

    /// Make the root and all mounts in this process's mount namespace, which must be its own. The root of the process
    /// is still the host's afterwards. `place` is for what was made outside.
    pub fn mount(&self, cgroup: &Cgroup, mut outside: Outside, place: Option<&OwnedFd>) -> Result<Root, Failure> {
        detach_from_host(self.propagation, &self.root)?;
        let root = match place.map(|place| outside.place_root(place)).transpose()?.flatten() {
            Some(root) => root,
            None => self.mount_root()?,
        };
        let root = Root::new(root, &self.root);
        let mut bound = outside.bound.into_iter();
        for mount in &self.mounts {
            mount.make(&root, &self.sources, bound.next().flatten(), cgroup)?;
        }
        if self.own_devices {
            devices::make(&root, &self.devices)?;
        }
        Ok(root)
    }

    /// Mount the snapshot, or the folder that is ready, in its place.
    fn mount_root(&self) -> Result<OwnedFd, Failure> {
        let place = self.open_place()?;
        let is_ready = self.snapshot.is_empty();
        let copy = is_ready.then(|| detached_copy(&place, true)).transpose();
        let copy = copy.step(|| format!("bind the root {}", self.root))?;
        let_copies_wait_on(&place)?;
        match copy {
            Some(copy) => snapshot::place_copy(&copy, &self.root),
            None => snapshot::mount(&self.snapshot, &self.root),
        }
    }

    /// Hide what is to be hidden, then make the root the process's root and let go of the host's.
    pub fn enter(&self, root: &Root) -> Result<(), Failure> {
        sysctl::write(&self.sysctl)?;
        masks::mask(root, &self.masked)?;
        masks::make_readonly(root, &self.readonly_paths)?;
        if self.readonly {
            set_attributes(root, false, MountAttrFlags::MOUNT_ATTR_RDONLY).step(|| "make the root read-only")?;
        }
        pivot(root)?;
        if let Some((propagation, recursive)) = self.propagation {
            set_propagation(root, recursive, flag(propagation)).step(|| "set the root's propagation")?;
        }
        Ok(())
    }
}

/// Mount a snapshot where another runtime is to find the root of a bundle, and what bind mounts of the bundle show where it
/// is to find that, in this process's mount namespace, which must be its own. Without a snapshot the root is ready as it is.
pub fn mount_for_runtime(
    bundle: &Path,
    root: &Path,
    snapshot: &[Mount],
    sources: &[Source],
    rootfs_propagation: Option<&str>,
) -> Result<(), Failure> {
    let shown = root.to_string_lossy();
    detach_from_host(propagation(rootfs_propagation)?, &shown)?;
    sources::mount_in_bundle(sources, bundle)?;
    if !snapshot.is_empty() {
        snapshot::mount(snapshot, &shown)?;
    }
    Ok(())
}

/// Where the kernel gives attributes to attached mounts alone, let copies of mounts wait on the folder that the root will be mounted
/// on: beneath that nothing that looks for a path finds them, and they go with the host's mounts.
fn let_copies_wait_on(place: impl AsFd) -> Result<(), Failure> {
    if has_mount_setattr() {
        return Ok(());
    }
    let what = "make a place for copies of mounts";
    let folder = file_system("tmpfs", &["nosuid", "nodev", "noexec", "mode=700", "size=64k"], what)?;
    put(&folder, place).step(|| what)?;
    wait_in(folder);
    Ok(())
}

/// Keep our mounts from travelling to the host. Mounts of the host go on arriving (slave), unless the root is to be
/// private; with a shared root the volumes stay peers of the host's mounts, and only the mount that the root is made
/// on becomes private.
fn detach_from_host(propagation: Option<(Propagation, bool)>, root: &str) -> Result<(), Failure> {
    let (path, recursive, propagation) = match propagation.map(|(propagation, _)| propagation) {
        None | Some(Propagation::Slave) => (PathBuf::from("/"), true, Propagation::Slave),
        Some(Propagation::Private | Propagation::Unbindable) => (PathBuf::from("/"), true, Propagation::Private),
        Some(Propagation::Shared) => (mount_point_of(root)?, false, Propagation::Private),
    };
    let folder = snapshot::open_folder(&path).step(|| format!("open {}", path.display()))?;
    set_propagation(folder, recursive, flag(propagation)).step(|| "detach the mounts from the host's")
}

/// Exchange the root, by descriptors: the old root is stacked on the new one for a moment, then detached.
fn pivot(root: &Root) -> Result<(), Failure> {
    let old = snapshot::open_folder("/").step(|| "open the host's root")?;
    rustix::process::fchdir(root.as_fd()).step(|| "change to the new root")?;
    rustix::process::pivot_root(".", ".").step(|| "make the container's root the root")?;
    rustix::process::fchdir(&old).step(|| "change to the old root")?;
    // Nothing that is detached may travel to the host.
    set_propagation(&old, true, libc::MS_SLAVE).step(|| "detach the old root from the host's mounts")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).step(|| "let go of the host's root")?;
    rustix::process::chdir("/").step(|| "change to /")
}

/// The mount point that a path of the host lies beneath.
fn mount_point_of(path: &str) -> Result<PathBuf, Failure> {
    let step = || format!("find the mount that {path} lies on");
    let path = std::fs::canonicalize(path).step(step)?;
    let points = mounts().step(step)?.into_iter().map(|mount| mount.point);
    let found = points.filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len());
    found.ok_or_else(|| Failure::new(Kind::Internal, step()))
}

fn flag(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    }
}

fn propagation(text: Option<&str>) -> Result<Option<(Propagation, bool)>, Failure> {
    Ok(Some(match text.unwrap_or_default() {
        "" => return Ok(None),
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        other => return Err(Failure::invalid("linux.rootfsPropagation", format!("{other:?} is no propagation"))),
    }))
}
