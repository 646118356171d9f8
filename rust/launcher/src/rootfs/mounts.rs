//! The spec's `mounts`: bind mounts and file systems.

use std::io;

use rustix::fs::{FileType, OFlags};

use super::filesystem::{attach, copy_of_path, create, set_attributes};
use super::options::MountOptions;
use super::path::{self, Root, Target};
use crate::cgroup::Cgroup;
use crate::error::{Failure, Kind, Step};
use crate::spec::Mount;
use crate::sys::{self, MountAttributes};

/// File systems that show the kernel's view of this process: nothing of the image may lead them elsewhere.
const KERNEL_VIEWS: [&str; 2] = ["proc", "sysfs"];

/// One mount, checked and ready to be made.
#[derive(Debug)]
pub struct MountPlan {
    kind: String,
    source: String,
    destination: String,
    options: MountOptions,
    bind: bool,
}

impl MountPlan {
    /// Prepare a checked mount of the spec.
    pub fn new(index: usize, mount: &Mount, bundle: &str) -> Result<Self, Failure> {
        let options = MountOptions::parse(mount.options.iter().map(String::as_str));
        let field = || format!("mounts[{index}].options");
        if let Some(option) = options.refused.first() {
            return Err(Failure::unsupported(format!("{} {option:?}", field())));
        }
        let bind = mount.is_bind();
        if bind && let Some(option) = options.data.first() {
            return Err(Failure::invalid(field(), format!("a bind mount has no option {option:?}")));
        }
        Ok(Self {
            kind: mount.kind.clone(),
            source: if bind { path::from_bundle(bundle, &mount.source) } else { mount.source.clone() },
            destination: path::clean(&mount.destination),
            options,
            bind,
        })
    }

    /// Whether the mount shows the container's cgroups.
    pub(super) fn is_cgroup(&self) -> bool {
        !self.bind && (self.kind == "cgroup" || self.kind == "cgroup2")
    }

    /// Make the mount in the root.
    pub(super) fn make(&self, root: &Root, cgroup: &Cgroup) -> Result<(), Failure> {
        if self.bind {
            return self.bind(root);
        }
        let what = format!("mount {} on {}", self.kind, self.destination);
        if self.is_cgroup() {
            return super::cgroups::mount(root, &self.destination, &self.options, cgroup, &what);
        }
        let mut target = root.mount_point(&self.destination, Target::Folder)?;
        if KERNEL_VIEWS.contains(&self.kind.as_str()) {
            target = root.open_plain(&self.destination, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| {
                Failure::system(format!("{what}: it must be a plain folder of the image"), &error.into())
            })?;
        }
        let mount = create(&self.kind, &self.source, &self.options, &what)?;
        attach(&mount, &target).step(|| &what)?;
        self.propagate(&mount).step(|| &what)
    }

    fn bind(&self, root: &Root) -> Result<(), Failure> {
        let what = format!("bind {} on {}", self.source, self.destination);
        let mount = copy_of_path(&self.source, self.options.recursive_bind).map_err(|error| {
            let failure = Failure::system(&what, &error.into());
            if failure.kind == Kind::NotFound {
                return failure.with_hint("the source of a bind mount must exist on the host");
            }
            failure
        })?;
        let status = rustix::fs::fstat(&mount).step(|| &what)?;
        let folder = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        let target =
            root.mount_point(&self.destination, if folder { Target::Folder } else { Target::File })?;
        set_attributes(&mount, false, self.options.set, self.options.clear).step(|| &what)?;
        set_attributes(&mount, true, self.options.set_recursively, self.options.clear_recursively)
            .step(|| &what)?;
        attach(&mount, &target).step(|| &what)?;
        self.propagate(&mount).step(|| &what)
    }

    fn propagate(&self, mount: &std::os::fd::OwnedFd) -> io::Result<()> {
        for (propagation, recursive) in &self.options.propagation {
            let attributes = MountAttributes { propagation: Some(*propagation), ..MountAttributes::default() };
            sys::mount_setattr(mount, *recursive, attributes)?;
        }
        Ok(())
    }
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
        assert_eq!((plan.source.as_str(), plan.destination.as_str()), ("/b/data", "/y"));
        let plan = MountPlan::new(0, &mount("tmpfs", &["size=1m"]), "/b").expect("valid");
        assert_eq!(plan.source, "data");
    }

    #[test]
    fn options_that_mean_nothing_to_a_bind_mount_are_refused() {
        let failure = MountPlan::new(3, &mount("bind", &["size=1m"]), "/b").expect_err("refused");
        assert!(failure.message.contains("mounts[3].options"), "{}", failure.message);
        let failure = MountPlan::new(3, &mount("tmpfs", &["tmpcopyup"]), "/b").expect_err("refused");
        assert_eq!(failure.kind, Kind::Unsupported);
    }
}
