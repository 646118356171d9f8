//! fstab's options: flags of the mount, flags of the file system, propagation, and what is the file system's own.

use rustix::mount::MountAttrFlags;

use super::IdMaps;
use crate::error::{Error, Kind, Result};

/// How mount events spread (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the master only.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and no bind mount of it either.
    Unbindable,
}

impl Propagation {
    pub(super) fn flag(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Slave => libc::MS_SLAVE,
            Self::Shared => libc::MS_SHARED,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// Options, sorted.
#[derive(Clone, Debug)]
pub struct Options {
    /// A bind mount.
    pub bind: bool,
    /// With all that is mounted beneath.
    pub recursive: bool,
    /// Attributes to set.
    pub set: MountAttrFlags,
    /// Attributes to clear; matters to bind mounts, which take over their source's.
    pub clear: MountAttrFlags,
    /// Attributes that were named for the whole tree (`rro` and the like).
    pub set_recursive: MountAttrFlags,
    /// Propagation, and whether of the whole tree.
    pub propagation: Option<(Propagation, bool)>,
    /// Flags of the file system itself: `sync`, `dirsync`, `lazytime`.
    pub system_flags: Vec<String>,
    /// Read-only, so that a file system that is made anew can be told too.
    pub read_only: bool,
    /// Who owns what, other than it is stored: `uidmap=` and `gidmap=`.
    pub id_maps: Option<IdMaps>,
    /// The file system's own.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Sort options. `Unsupported` for those that need a program of their own (`loop`), `InvalidArgument` for maps of ids
    /// that are none.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self> {
        let mut parsed = Self {
            bind: false,
            recursive: false,
            set: MountAttrFlags::empty(),
            clear: MountAttrFlags::empty(),
            set_recursive: MountAttrFlags::empty(),
            propagation: None,
            system_flags: Vec::new(),
            read_only: false,
            id_maps: None,
            data: Vec::new(),
        };
        let (mut users, mut groups) = (None, None);
        for option in options {
            match option.as_ref().split_once('=') {
                Some(("uidmap", map)) => users = Some(map),
                Some(("gidmap", map)) => groups = Some(map),
                _ => parsed.take(option.as_ref())?,
            }
        }
        parsed.id_maps = match (users, groups) {
            (None, None) => None,
            (Some(users), Some(groups)) => Some(IdMaps::parse(users, groups)?),
            _ => return Err(Error::invalid("a map of users goes with one of groups: uidmap= and gidmap=")),
        };
        Ok(parsed)
    }

    fn take(&mut self, option: &str) -> Result<()> {
        use MountAttrFlags as M;
        match option {
            "" | "defaults" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "ro" => {
                self.read_only = true;
                self.set(M::MOUNT_ATTR_RDONLY);
            }
            "rw" => {
                self.read_only = false;
                self.clear(M::MOUNT_ATTR_RDONLY);
            }
            "rro" => self.set_recursive |= M::MOUNT_ATTR_RDONLY,
            "rnodev" => self.set_recursive |= M::MOUNT_ATTR_NODEV,
            "nosuid" => self.set(M::MOUNT_ATTR_NOSUID),
            "suid" => self.clear(M::MOUNT_ATTR_NOSUID),
            "nodev" => self.set(M::MOUNT_ATTR_NODEV),
            "dev" => self.clear(M::MOUNT_ATTR_NODEV),
            "noexec" => self.set(M::MOUNT_ATTR_NOEXEC),
            "exec" => self.clear(M::MOUNT_ATTR_NOEXEC),
            "nodiratime" => self.set(M::MOUNT_ATTR_NODIRATIME),
            "diratime" => self.clear(M::MOUNT_ATTR_NODIRATIME),
            "nosymfollow" => self.set(M::MOUNT_ATTR_NOSYMFOLLOW),
            "symfollow" => self.clear(M::MOUNT_ATTR_NOSYMFOLLOW),
            "noatime" => self.access_time(M::MOUNT_ATTR_NOATIME),
            "strictatime" => self.access_time(M::MOUNT_ATTR_STRICTATIME),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => self.access_time(M::empty()),
            "private" => self.propagation = Some((Propagation::Private, false)),
            "rprivate" => self.propagation = Some((Propagation::Private, true)),
            "slave" => self.propagation = Some((Propagation::Slave, false)),
            "rslave" => self.propagation = Some((Propagation::Slave, true)),
            "shared" => self.propagation = Some((Propagation::Shared, false)),
            "rshared" => self.propagation = Some((Propagation::Shared, true)),
            "unbindable" => self.propagation = Some((Propagation::Unbindable, false)),
            "runbindable" => self.propagation = Some((Propagation::Unbindable, true)),
            "sync" | "dirsync" | "lazytime" => self.system_flags.push(option.to_owned()),
            "async" | "nolazytime" | "silent" | "loud" => {}
            "remount" | "loop" | "move" => {
                return Err(Error::new(Kind::Unsupported, format!("the mount option '{option}'")));
            }
            _ => match option.split_once('=') {
                Some((key, value)) => self.data.push((key.to_owned(), Some(value.to_owned()))),
                None => self.data.push((option.to_owned(), None)),
            },
        }
        Ok(())
    }

    fn set(&mut self, flag: MountAttrFlags) {
        self.set |= flag;
        self.clear &= !flag;
    }

    fn clear(&mut self, flag: MountAttrFlags) {
        self.clear |= flag;
        self.set &= !flag;
    }

    /// The three access-time modes are one field: it is cleared before it is set.
    fn access_time(&mut self, mode: MountAttrFlags) {
        let all = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        self.set = (self.set & !all) | mode;
        self.clear |= MountAttrFlags::MOUNT_ATTR__ATIME;
    }

    /// The value of one of the file system's own options.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.data.iter().rev().find(|(known, _)| known == key).and_then(|(_, value)| value.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_flag_counts() {
        let options = Options::parse(&["ro", "nosuid", "rw", "noatime", "relatime"]).unwrap();
        assert_eq!(options.set, MountAttrFlags::MOUNT_ATTR_NOSUID);
        assert!(options.clear.contains(MountAttrFlags::MOUNT_ATTR_RDONLY));
        assert!(!options.read_only);
    }

    #[test]
    fn what_is_unknown_belongs_to_the_file_system() {
        let options = Options::parse(&["mode=755", "userxattr", "rbind", "rslave"]).unwrap();
        assert_eq!(options.data, [("mode".to_owned(), Some("755".to_owned())), ("userxattr".to_owned(), None)]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.propagation, Some((Propagation::Slave, true)));
        assert!(Options::parse(&["loop"]).is_err());
    }

    #[test]
    fn a_map_of_users_goes_with_one_of_groups() {
        let options = Options::parse(&["uidmap=0:1:1", "ro", "gidmap=0:2:1"]).unwrap();
        assert_eq!(options.id_maps, Some(IdMaps::parse("0:1:1", "0:2:1").unwrap()));
        assert!(options.data.is_empty());
        for lonely in ["uidmap=0:1:1", "gidmap=0:1:1"] {
            assert_eq!(Options::parse(&[lonely]).unwrap_err().kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn flags_may_be_for_the_whole_tree() {
        let options = Options::parse(&["rbind", "rro", "rnodev"]).unwrap();
        assert_eq!(options.set_recursive, MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV);
    }
}
