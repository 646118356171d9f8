//! The spec's `mounts`: bind mounts and file systems.

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{self, Options, copy_of_path};
use rustix::fs::{FileType, OFlags, PROC_SUPER_MAGIC};
use rustix::mount::MountAttrFlags;

use super::copy_up;
use super::detached::set_attributes;
use super::path::{self, Root, Target};
use super::sources::{self, Source};
use crate::cgroup::Cgroup;
use crate::error::{Failure, Kind, Step};
use crate::spec::Mount;
use crate::sys;

/// File systems that show the kernel's view of this process: nothing of the image may lead them elsewhere.
const KERNEL_VIEWS: [&str; 2] = ["proc", "sysfs"];
/// Options that runc carries out itself and that no kernel knows.
const UNSUPPORTED: [&str; 2] = ["idmap", "ridmap"];
/// One more of these, for a tmpfs; see [`copy_up`].
const COPY_UP: &str = "tmpcopyup";

/// Files of /proc that something else may be mounted on, as runc allows it: for lxcfs and its like.
const REPLACED_IN_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// One mount, checked and ready to be made.
#[derive(Debug)]
pub struct MountPlan {
    mount: lamella_core::mount::Mount,
    options: Options,
    destination: String,
    bind: bool,
    /// It begins with what the image has at its place.
    copies_up: bool,
    /// Its place in the bundle is that of the request's source of this number.
    source: Option<usize>,
}

impl MountPlan {
    /// Prepare a checked mount of the spec.
    pub fn new(index: usize, mount: &Mount, bundle: &str) -> Result<Self, Failure> {
        let field = || format!("mounts[{index}].options");
        for option in &mount.options {
            if UNSUPPORTED.contains(&option.split('=').next().unwrap_or_default()) {
                return Err(Failure::unsupported(format!("{} {option:?}", field())));
            }
        }
        let bind = mount.is_bind();
        let destination = path::clean(&mount.destination);
        let (own, mut words): (Vec<_>, Vec<_>) = mount.options.iter().cloned().partition(|option| option == COPY_UP);
        let copies_up = !own.is_empty();
        if copies_up && mount.kind != "tmpfs" {
            return Err(Failure::invalid(field(), format!("{COPY_UP} is for a tmpfs")));
        }
        if !bind && destination == "/dev" {
            // The container's own nodes are mounts. Other runtimes make them right there, so that the bundle cannot say it.
            words.push("nodev".to_owned());
        }
        let options = Options::parse(&words).map_err(|error| Failure::from(error.context(field())))?;
        if bind && let Some((option, _)) = options.data.first() {
            return Err(Failure::invalid(field(), format!("a bind mount has no option {option:?}")));
        }
        let source = bind.then(|| sources::number(&mount.source)).flatten();
        Ok(Self {
            mount: lamella_core::mount::Mount {
                kind: if bind { "bind".to_owned() } else { mount.kind.clone() },
                source: if bind { path::from_bundle(bundle, &mount.source) } else { mount.source.clone() },
                options: words,
            },
            options,
            destination,
            bind,
            copies_up,
            source,
        })
    }

    /// Whether the mount shows the container's cgroups.
    fn is_cgroup(&self) -> bool {
        !self.bind && (self.mount.kind == "cgroup" || self.mount.kind == "cgroup2")
    }

    /// Make the mount in the root. What is bound is looked up once: the mount point is of its kind, and it is what is mounted,
    /// whatever has its path by then. `bound` is that where it was made outside.
    pub(super) fn make(
        &self,
        root: &Root,
        sources: &[Source],
        bound: Option<OwnedFd>,
        cgroup: &Cgroup,
    ) -> Result<(), Failure> {
        let what = format!("mount {} on {}", self.mount.kind, self.destination);
        let failed = |error: lamella_core::Error| Failure::from(error.context(&what));
        if self.is_cgroup() {
            return super::cgroups::mount(root, &self.destination, &self.options, cgroup, &what);
        }
        if !self.bind {
            let mut target = root.mount_point(&self.destination, Target::Folder)?;
            if KERNEL_VIEWS.contains(&self.mount.kind.as_str()) {
                target = root
                    .open_plain(&self.destination, OFlags::PATH | OFlags::DIRECTORY)
                    .step(|| format!("{what}: it must be a plain folder of the image"))?;
            }
            self.check_target(root, &target, self.mount.kind == "proc", &what)?;
            let made = self.file_system().map_err(failed)?;
            if self.copies_up {
                // Before it is attached: its path may lead elsewhere by then.
                copy_up::copy(target.as_fd(), made.as_fd())
                    .step(|| format!("copy what the image has at {}", self.destination))?;
            }
            return mount::place(made.as_fd(), target.as_fd(), &self.options).map_err(failed);
        }
        let made = bound.map_or_else(|| self.bound(sources), Ok)?;
        let status = rustix::fs::fstat(&made).step(|| &what)?;
        let is_folder = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        let target = root.mount_point(&self.destination, if is_folder { Target::Folder } else { Target::File })?;
        self.check_target(root, &target, is_proc(&made).step(|| &what)?, &what)?;
        mount::place(made.as_fd(), target.as_fd(), &self.options).map_err(failed)
    }

    /// A new file system. Where a user namespace has no right to it, what comes nearest: the host's view where it is to show what
    /// the container shares with the host, or the caller's own is not whole; terminals of no group that is not there.
    fn file_system(&self) -> Result<OwnedFd, lamella_core::Error> {
        let refused = match mount::make(&self.mount, &self.options) {
            Err(refused) if sys::in_user_namespace() => refused,
            made => return made,
        };
        let host = match self.mount.kind.as_str() {
            "proc" => "/proc",
            "sysfs" => "/sys",
            "devpts" => {
                let options: Vec<_> =
                    self.mount.options.iter().filter(|option| !option.starts_with("gid=")).cloned().collect();
                let mount = lamella_core::mount::Mount { options, ..self.mount.clone() };
                return mount::make(&mount, &Options::parse(&mount.options)?).map_err(|_| refused);
            }
            _ => return Err(refused),
        };
        let attributes = self.options.set | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let copy = copy_of_path(host, true).and_then(|copy| set_attributes(&copy, true, attributes).map(|()| copy));
        copy.map_err(|_| refused)
    }

    /// Refuse what would put something else in the place of the kernel's view of the processes, or of a part of it: what hides and
    /// protects files there, and writes into them, goes by their names (CVE-2019-16884, CVE-2019-19921). Where symlinks of the image
    /// lead is what counts.
    fn check_target(&self, root: &Root, target: &OwnedFd, proc: bool, what: &str) -> Result<(), Failure> {
        let place = root.place(target.as_fd()).step(|| what)?;
        let beneath = is_proc(target).step(|| what)? && !REPLACED_IN_PROC.contains(&place.as_str());
        if (place == "/proc" || beneath) && !(proc && place == "/proc") {
            let failure = Failure::invalid("mounts", format!("{what}: {place} is the kernel's, and stays so"));
            return Err(failure
                .with_hint("Mount it somewhere else; to show the host's processes bind /proc beside: /host/proc."));
        }
        Ok(())
    }

    /// What it binds, if it binds anything.
    pub(super) fn make_outside(&self, sources: &[Source]) -> Result<Option<OwnedFd>, Failure> {
        self.bind.then(|| self.bound(sources)).transpose()
    }

    /// A source of the request, or a copy of the mount of a path of the host.
    fn bound(&self, sources: &[Source]) -> Result<OwnedFd, Failure> {
        if let Some(source) = self.source.and_then(|number| sources.get(number)) {
            let what = format!("bind a source on {}", self.destination);
            let made = source.make(&what)?;
            mount::let_wait(&made).step(|| &what)?;
            mount::apply(made.as_fd(), &self.options).map_err(|error| Failure::from(error.context(what)))?;
            return Ok(made);
        }
        mount::make(&self.mount, &self.options).map_err(|error| {
            let failure = Failure::from(error.context(format!("bind {} on {}", self.mount.source, self.destination)));
            if failure.kind == Kind::NotFound {
                return failure.with_hint("the source of a bind mount must exist on the host");
            }
            failure
        })
    }
}

fn is_proc(file: &OwnedFd) -> Result<bool, rustix::io::Errno> {
    rustix::fs::fstatfs(file).map(|found| found.f_type == PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        Mount {
            destination: "/x/../y".into(),
            kind: kind.into(),
            source: "data".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn a_relative_source_lies_in_the_bundle_and_the_destination_is_cleaned() {
        let plan = MountPlan::new(0, &mount("bind", &["ro"]), "/b").expect("valid");
        assert_eq!((plan.mount.source.as_str(), plan.destination.as_str()), ("/b/data", "/y"));
        let plan = MountPlan::new(0, &mount("tmpfs", &["size=1m"]), "/b").expect("valid");
        assert_eq!(plan.mount.source, "data");
    }

    #[test]
    fn nodes_of_dev_itself_open_nothing_whatever_the_bundle_says() {
        let dev = Mount { destination: "//dev/".into(), ..mount("tmpfs", &["nosuid"]) };
        assert_eq!(MountPlan::new(0, &dev, "/b").expect("valid").mount.options, ["nosuid", "nodev"]);
        let bound = Mount { destination: "/dev".into(), ..mount("bind", &["nosuid"]) };
        assert_eq!(MountPlan::new(0, &bound, "/b").expect("valid").mount.options, ["nosuid"]);
    }

    #[test]
    fn options_that_mean_nothing_to_a_bind_mount_are_refused() {
        let failure = MountPlan::new(3, &mount("bind", &["size=1m"]), "/b").expect_err("refused");
        assert!(failure.message.contains("mounts[3].options"), "{}", failure.message);
        for option in ["idmap", "ridmap", "remount"] {
            let failure = MountPlan::new(3, &mount("tmpfs", &[option]), "/b").expect_err("refused");
            assert_eq!(failure.kind, Kind::Unsupported);
            assert!(failure.message.contains(option) && failure.message.contains("mounts[3].options"));
        }
    }
}
