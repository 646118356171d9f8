//! Device nodes: single bind mounts into a /dev on which no other node works.
//!
//! The /dev of a container is mounted nodev, like everything else: a node that its root makes anywhere is useless. The
//! nodes that it may use are bind mounts without nodev: of the host's node where that is the very same device, else of
//! one that is made in a file system of its own. Who may make none, as in a user namespace, gets the one that the kernel calls by
//! the device's name. The mounts are read-only, which does not touch
//! what is read from and written to a device, but protects owner and mode of the host's node.

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{copy_of, put};
use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::detached::{change_attributes, file_system};
use super::masks::device_copy;
use super::path::{self, Root, make_file};
use crate::error::{Failure, Step};
use crate::spec::Device;

/// What every bind mount of a device node has.
pub(super) const NODE_ATTRIBUTES: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_RDONLY.union(MountAttrFlags::MOUNT_ATTR_NOSUID).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// The container's own terminals are there (a symlink), also for a spec that lists all nodes of the host, as `ctr --privileged`
/// does; runc passes it over, too.
const PTMX: &str = "/dev/ptmx";

/// A node to make.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    path: String,
    kind: FileType,
    number: (u32, u32),
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// The default nodes, and the spec's (checked) own ones; of two for one path the later wins.
pub(super) fn plan(devices: &[Device]) -> Vec<DevicePlan> {
    let mut plans: Vec<DevicePlan> = DEFAULTS
        .iter()
        .map(|(path, major, minor)| DevicePlan {
            path: (*path).into(),
            kind: FileType::CharacterDevice,
            number: (*major, *minor),
            mode: None,
            uid: None,
            gid: None,
        })
        .collect();
    for device in devices {
        let path = path::clean(&device.path);
        if path == PTMX {
            continue;
        }
        plans.retain(|earlier| earlier.path != path);
        plans.push(DevicePlan {
            path,
            kind: match device.kind.as_str() {
                "b" => FileType::BlockDevice,
                "p" => FileType::Fifo,
                _ => FileType::CharacterDevice,
            },
            number: (device.major as u32, device.minor as u32),
            mode: device.file_mode.map(|mode| mode & 0o7777),
            uid: device.uid,
            gid: device.gid,
        });
    }
    plans
}

/// Make the nodes and /dev's usual symlinks.
pub(super) fn make(root: &Root, plans: &[DevicePlan]) -> Result<(), Failure> {
    let mut workshop = None;
    let dev = root.folder("/dev")?;
    for (name, target) in LINKS {
        if name == "core" && !std::path::Path::new(target).exists() {
            continue;
        }
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            error => error.step(|| format!("make the symlink /dev/{name}"))?,
        }
    }
    for plan in plans {
        let what = || format!("make the device {}", plan.path);
        let node = match plan.host_node().step(what)? {
            Some(node) => node,
            None => plan.made_node(root, &mut workshop).or_else(|failure| plan.named_node().ok_or(failure))?,
        };
        change_attributes(&node, false, NODE_ATTRIBUTES, MountAttrFlags::MOUNT_ATTR_NODEV).step(what)?;
        let target = match plan.path.strip_prefix("/dev/") {
            Some(name) if !name.contains('/') => make_file(dev.as_fd(), name).step(what)?,
            _ => {
                let (parent, name) = plan.path.rsplit_once('/').unwrap_or(("", &plan.path));
                make_file(root.folder(parent)?.as_fd(), name).step(what)?
            }
        };
        put(&node, &target).step(what)?;
    }
    if let Some((workshop, _)) = workshop {
        let path = lamella_core::sys::descriptor_path(workshop.as_fd());
        rustix::mount::unmount(path, UnmountFlags::DETACH).step(|| "leave the place for device nodes")?;
    }
    Ok(())
}

impl DevicePlan {
    /// The host's node of the same path, when it is as is asked for.
    fn host_node(&self) -> Result<Option<OwnedFd>, Errno> {
        if self.kind == FileType::Fifo { Ok(None) } else { self.node_at(&self.path) }
    }

    /// The host's node of a path, when it is the device with the owner and mode that are asked for.
    fn node_at(&self, path: &str) -> Result<Option<OwnedFd>, Errno> {
        let Some((node, status)) = device_copy(path, self.kind, self.number)? else { return Ok(None) };
        let fits = self.mode.is_none_or(|mode| mode == status.st_mode & 0o7777)
            && self.uid.is_none_or(|uid| uid == status.st_uid)
            && self.gid.is_none_or(|gid| gid == status.st_gid);
        Ok(fits.then_some(node))
    }

    /// The host's node under the name that the kernel gives the device (`DEVNAME`, as devtmpfs has it), when it is as is asked for.
    fn named_node(&self) -> Option<OwnedFd> {
        let class = match self.kind {
            FileType::CharacterDevice => "char",
            FileType::BlockDevice => "block",
            _ => return None,
        };
        let (major, minor) = self.number;
        let told = std::fs::read_to_string(format!("/sys/dev/{class}/{major}:{minor}/uevent")).ok()?;
        let name = told.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        self.node_at(&format!("/dev/{name}")).ok()?
    }

    /// A node that is made for this container, on a file system of its own, the `workshop`. `root` lends its place to that
    /// until all are made: of a mount that hangs nowhere no part can be copied before Linux 6.15.
    fn made_node(&self, root: &Root, workshop: &mut Option<(OwnedFd, u32)>) -> Result<OwnedFd, Failure> {
        let what = || format!("make the device {} ({}:{})", self.path, self.number.0, self.number.1);
        let (folder, count) = match workshop {
            Some(workshop) => workshop,
            None => {
                let (options, what) = (["nosuid", "noexec", "mode=700", "size=64k"], "make a place for device nodes");
                let made = file_system("tmpfs", &options, what)?;
                put(&made, root).step(|| what)?;
                workshop.insert((made, 0))
            }
        };
        *count += 1;
        let name = count.to_string();
        let mode = Mode::from_raw_mode(self.mode.unwrap_or(0o666));
        let number = rustix::fs::makedev(self.number.0, self.number.1);
        rustix::fs::mknodat(&*folder, name.as_str(), self.kind, mode, number).map_err(|error| {
            Failure::system(what(), &error.into())
                .with_hint("the host has no such device node at this path or in /dev, and making one takes CAP_MKNOD outside a user namespace")
        })?;
        // The file creation mask is not ours to know.
        rustix::fs::chmodat(&*folder, name.as_str(), mode, rustix::fs::AtFlags::empty()).step(what)?;
        rustix::fs::chownat(
            &*folder,
            name.as_str(),
            Some(Uid::from_raw(self.uid.unwrap_or(0))),
            Some(Gid::from_raw(self.gid.unwrap_or(0))),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .step(what)?;
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let node = rustix::fs::openat(&*folder, name.as_str(), flags, Mode::empty()).step(what)?;
        copy_of(&node, false).step(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_the_spec_takes_a_defaults_place() {
        let device = |path: &str, minor| Device {
            kind: "c".into(),
            path: path.into(),
            major: 1,
            minor,
            file_mode: Some(0o20666),
            uid: None,
            gid: None,
        };
        let plans = plan(&[device("/dev/./null", 3), device("/dev/mem", 1)]);
        assert_eq!(plans.len(), 7);
        let null: Vec<_> = plans.iter().filter(|plan| plan.path == "/dev/null").collect();
        assert_eq!(null.len(), 1);
        assert_eq!(null[0].mode, Some(0o666));
    }
}
