//! Maps of ids: who owns what in a mount, other than it is stored (`mount_setattr(2)`, "ID-mapped mounts").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;

use super::copies::detached_copy_of_path;
use super::layers::{Layers, common_parent};
use crate::error::{Error, Kind, Result};
use crate::sys::{self, MountAttributes, UserNamespace, mount_setattr};

/// Ranges that the kernel takes in one map, and bytes of their text (`user_namespaces(7)`).
const MAX_RANGES: usize = 340;
const MAX_TEXT: usize = 4095;
/// /proc/sys/kernel/overflowuid, as nearly every machine has it.
const OVERFLOW: u32 = 65534;

/// What is stored as one id is shown as another: of users, and of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    users: Vec<Range>,
    groups: Vec<Range>,
}

/// Ids that follow each other: the first as it is stored, the first as it is shown on this machine, their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    stored: u32,
    shown: u32,
    count: u32,
}

impl IdMaps {
    /// Read maps in containerd's form: `containerID:hostID:size`, several with commas between them.
    ///
    /// `InvalidArgument` for what the kernel would not take: ids beyond 4294967294, ranges that are empty or overlap.
    pub fn parse(users: &str, groups: &str) -> Result<Self> {
        let map = |name: &str, text: &str| ranges(text).map_err(|error| error.context(format!("{name}={text}")));
        Ok(Self { users: map("uidmap", users)?, groups: map("gidmap", groups)? })
    }

    /// The ids that this machine has for those of a container; None where one has none.
    #[must_use]
    pub fn shown(&self, user: u32, group: u32) -> Option<(u32, u32)> {
        let shown = |ranges: &[Range], id: u32| {
            let range = ranges.iter().find(|range| id.checked_sub(range.stored).is_some_and(|at| at < range.count))?;
            Some(range.shown + (id - range.stored))
        };
        Some((shown(&self.users, user)?, shown(&self.groups, group)?))
    }

    /// The ids that a container has for those of this machine; 65534 where it has none, as the kernel says it inside.
    #[must_use]
    pub fn stored(&self, user: u32, group: u32) -> (u32, u32) {
        let stored = |ranges: &[Range], id: u32| {
            let range = ranges.iter().find(|range| id.checked_sub(range.shown).is_some_and(|at| at < range.count));
            range.map_or(OVERFLOW, |range| range.stored + (id - range.shown))
        };
        (stored(&self.users, user), stored(&self.groups, group))
    }

    /// Make a user namespace with these maps.
    pub(super) fn namespace(&self) -> Result<OwnedFd> {
        let (_keeper, process) = self.kept_namespace(false)?;
        rustix::fs::openat(&process, "ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
    }

    /// Make a user namespace with these maps, and with `network` a network namespace that belongs to it. Gives what keeps them,
    /// and the folder in /proc that has their files meanwhile.
    pub(crate) fn kept_namespace(&self, network: bool) -> Result<(UserNamespace, OwnedFd)> {
        let namespace = UserNamespace::new(network).map_err(failed)?;
        let process = namespace.process().map_err(failed)?;
        for (name, map) in [("uid_map", &self.users), ("gid_map", &self.groups)] {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&process, name, flags, Mode::empty()).map_err(failed)?;
            // The kernel takes the whole text or none of it.
            rustix::io::write(&file, text(map).as_bytes()).map_err(failed)?;
        }
        Ok((namespace, process))
    }

    /// The user and group of this machine as whom the container's root is shown, or else the first that are mapped.
    #[must_use]
    pub fn root(&self) -> (u32, u32) {
        (root(&self.users), root(&self.groups))
    }
}

fn failed(error: Errno) -> Error {
    Error::system("cannot make a user namespace for the map of ids", error).hint(match error {
        Errno::NOSPC | Errno::USERS => "There are as many as allowed; raise user.max_user_namespaces.",
        _ => "It takes root, and a kernel that allows user namespaces.",
    })
}

fn root(map: &[Range]) -> u32 {
    map.iter().find(|range| range.stored == 0).or(map.first()).map_or(0, |range| range.shown)
}

fn text(map: &[Range]) -> String {
    map.iter().map(|range| format!("{} {} {}\n", range.stored, range.shown, range.count)).collect()
}

fn ranges(value: &str) -> Result<Vec<Range>> {
    let map = value.split(',').map(range).collect::<Result<Vec<_>>>()?;
    if map.len() > MAX_RANGES || text(&map).len() > MAX_TEXT {
        return Err(Error::invalid(format!("the kernel takes {MAX_RANGES} ranges, in {MAX_TEXT} bytes of text")));
    }
    for (side, start) in [("container", (|range| range.stored) as fn(&Range) -> u32), ("host", |range| range.shown)] {
        let mut sorted = map.clone();
        sorted.sort_by_key(start);
        if sorted.windows(2).any(|pair| start(&pair[0]) + pair[0].count > start(&pair[1])) {
            return Err(Error::invalid(format!("ranges of {side} ids overlap")));
        }
    }
    Ok(map)
}

fn range(part: &str) -> Result<Range> {
    let invalid = || {
        Error::invalid(format!("'{part}' is no range of ids"))
            .hint("It is containerID:hostID:size, such as 0:100000:65536; ids go up to 4294967294.")
    };
    let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let numbers: Vec<u32> = part.split(':').map(number).collect::<Option<_>>().ok_or_else(invalid)?;
    let [stored, shown, count] = numbers[..] else { return Err(invalid()) };
    // 4294967295 is no id: the end of a range is at most that.
    if count == 0 || stored.max(shown).checked_add(count).is_none() {
        return Err(invalid());
    }
    Ok(Range { stored, shown, count })
}

/// Show a mount that is attached nowhere, and with `recursive` those beneath it, with mapped ids.
pub(super) fn map(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let attributes = MountAttributes { id_map: Some(namespace), recursive, ..MountAttributes::default() };
    mount_setattr(mount, attributes).map_err(|error| match error {
        Errno::INVAL => Error::new(Kind::Unsupported, "the file system, or this kernel, cannot map ids")
            .hint("Since Linux 5.12 ext4 can, xfs since 5.13, btrfs since 5.15, overlayfs's layers since 5.19, tmpfs since 6.3."),
        Errno::PERM => Error::system("cannot map ids", error)
            .hint("It takes root of the user namespace that the file system was mounted in, and a mount that maps none yet."),
        _ => Error::system("cannot map ids", error),
    })
}

/// Show the layers of an overlay with mapped ids, in their own places, and become who may write to them.
///
/// Only for a thread of its own ([`super::apart`]). The upper folder is mapped too, so that ids are stored as in the
/// layers below. overlayfs makes whiteouts and copies as whoever mounted it, who therefore must be in the map.
pub(super) fn map_layers(layers: &Layers, maps: &IdMaps, namespace: BorrowedFd<'_>) -> Result<()> {
    for folder in &layers.lower {
        cover(folder, namespace)?;
    }
    if let (Some(upper), Some(work)) = (&layers.upper, &layers.work) {
        // overlayfs wants both in one mount.
        let parent = common_parent([upper, work].into_iter());
        if parent == "/" {
            return Err(Error::new(Kind::Unsupported, "maps of ids for upperdir and workdir without a common folder")
                .hint("Put them into one folder."));
        }
        cover(&parent, namespace)?;
    }
    let (user, group) = maps.root();
    sys::make_files_as(user, group).map_err(|error| Error::system("cannot act as the mapped root", error))
}

/// Put the mapped copy of a folder over it.
fn cover(folder: &str, namespace: BorrowedFd<'_>) -> Result<()> {
    let what = |error: Error| error.context(format!("the layer {folder}"));
    let copy = detached_copy_of_path(folder, false).map_err(|error| what(Error::system("open_tree", error)))?;
    map(copy.as_fd(), namespace, false).map_err(what)?;
    rustix::mount::move_mount(&copy, "", CWD, folder, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| what(Error::system("move_mount", error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_in_containerds_form() {
        let maps = IdMaps::parse("0:100000:65536", "1000:1000:1,0:100000:1000").unwrap();
        assert_eq!(text(&maps.users), "0 100000 65536\n");
        assert_eq!(text(&maps.groups), "1000 1000 1\n0 100000 1000\n");
        assert_eq!(maps.root(), (100_000, 100_000));
        assert_eq!(maps.shown(5, 1000), Some((100_005, 1000)));
        assert_eq!(maps.stored(100_005, 1000), (5, 1000));
        assert_eq!((maps.shown(65_536, 0), maps.stored(0, 100_999)), (None, (65534, 999)));
        assert_eq!(IdMaps::parse("5:7:1", "4294967294:0:1").unwrap().root(), (7, 0));
        IdMaps::parse("0:0:4294967295", "0:4294967294:1").unwrap();
        IdMaps::parse("0:10:10,10:0:10", "0:0:1").unwrap();
    }

    #[test]
    fn what_the_kernel_would_not_take_is_invalid() {
        let many = (0..341).map(|number| format!("{number}:{number}:1")).collect::<Vec<_>>().join(",");
        let long =
            (0..200).map(|number| format!("{0}:{0}:1", 4_000_000_000_u32 + number)).collect::<Vec<_>>().join(",");
        let bad = [
            "",
            "0",
            "0:0",
            "0:0:0",
            "0:0:1:1",
            "a:0:1",
            "-1:0:1",
            "+1:0:1",
            " 0:0:1",
            "0:0:1,",
            "0:4294967296:1",
            "0:4294967295:1",
            "4294967295:0:1",
            "1:0:4294967295",
            "0:1:4294967295",
            "0:0:2,1:5:1",
            "0:0:2,5:1:1",
            &many,
            &long,
        ];
        for map in bad {
            for (users, groups) in [(map, "0:0:1"), ("0:0:1", map)] {
                let error = IdMaps::parse(users, groups).unwrap_err();
                assert_eq!(error.kind, Kind::InvalidArgument, "{map}");
            }
        }
    }
}
