//! Mount options as fstab and the runtime spec write them.

use crate::sys::Propagation;

/// Options, sorted by what they act on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `MOUNT_ATTR_*` to set on the mount.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear, where a bind mount takes over its source's.
    pub clear: u64,
    /// The same for the mount and all beneath it (`rro`, ...).
    pub set_recursively: u64,
    /// See `set_recursively`.
    pub clear_recursively: u64,
    /// A bind mount takes what is mounted beneath its source along.
    pub recursive_bind: bool,
    /// Changes of propagation, in order; true for the recursive ones.
    pub propagation: Vec<(Propagation, bool)>,
    /// Flags of the file system.
    pub flags: Vec<&'static str>,
    /// What only the file system itself understands.
    pub data: Vec<String>,
    /// Options that mean something that the launcher does not do.
    pub refused: Vec<String>,
}

const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// Options about a mount: name, attribute to set, attributes to clear.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("noatime", libc::MOUNT_ATTR_NOATIME, ATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, ATIME),
    ("relatime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("norelatime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME, ATIME),
];

const PROPAGATIONS: [(&str, Propagation); 4] = [
    ("private", Propagation::Private),
    ("slave", Propagation::Slave),
    ("shared", Propagation::Shared),
    ("unbindable", Propagation::Unbindable),
];

const FLAGS: [&str; 6] = ["sync", "dirsync", "mand", "lazytime", "iversion", "silent"];
const WITHOUT_EFFECT: [&str; 10] = [
    "bind", "defaults", "async", "nomand", "nolazytime", "noiversion", "loud", "auto", "noauto", "_netdev",
];
const REFUSED: [&str; 5] = ["tmpcopyup", "idmap", "ridmap", "remount", "move"];

impl MountOptions {
    /// Sort options; the last of two that contradict each other wins.
    pub fn parse<'text>(options: impl IntoIterator<Item = &'text str>) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
            change(&mut self.set, &mut self.clear, *set, *clear);
        } else if option == "rbind" {
            self.recursive_bind = true;
        } else if let Some((_, propagation)) = PROPAGATIONS.iter().find(|(name, _)| *name == option) {
            self.propagation.push((*propagation, false));
        } else if let Some((_, propagation)) =
            PROPAGATIONS.iter().find(|(name, _)| option.strip_prefix('r') == Some(*name))
        {
            self.propagation.push((*propagation, true));
        } else if let Some((_, set, clear)) =
            ATTRIBUTES.iter().find(|(name, ..)| option.strip_prefix('r') == Some(*name))
        {
            change(&mut self.set_recursively, &mut self.clear_recursively, *set, *clear);
        } else if let Some(flag) = FLAGS.iter().find(|flag| **flag == option) {
            self.flags.push(flag);
        } else if REFUSED.contains(&option) || option.starts_with("idmap=") || option.starts_with("ridmap=") {
            self.refused.push(option.to_owned());
        } else if !WITHOUT_EFFECT.contains(&option) && !option.is_empty() {
            self.data.push(option.to_owned());
        }
    }
}

fn change(to_set: &mut u64, to_clear: &mut u64, set: u64, clear: u64) {
    *to_set = *to_set & !clear | set;
    // The access-time modes are one field: it is cleared and then set, mount_setattr wants it so.
    *to_clear = *to_clear & !(set & !ATIME) | clear;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_by_what_they_act_on() {
        let options = MountOptions::parse(["nosuid", "mode=755", "rbind", "rprivate", "sync", "rro", "defaults"]);
        assert_eq!(options.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.set_recursively, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.data, ["mode=755"]);
        assert_eq!(options.flags, ["sync"]);
        assert_eq!(options.propagation, [(Propagation::Private, true)]);
        assert!(options.recursive_bind);
    }

    #[test]
    fn the_last_of_two_that_contradict_wins() {
        assert_eq!(MountOptions::parse(["ro", "rw"]).set, 0);
        let options = MountOptions::parse(["rw", "ro"]);
        assert_eq!((options.set, options.clear), (libc::MOUNT_ATTR_RDONLY, 0));
        let options = MountOptions::parse(["noatime", "strictatime"]);
        assert_eq!((options.set, options.clear), (libc::MOUNT_ATTR_STRICTATIME, ATIME));
        assert_eq!(MountOptions::parse(["relatime"]).clear, ATIME);
    }

    #[test]
    fn what_is_not_done_is_said() {
        assert_eq!(MountOptions::parse(["tmpcopyup", "idmap=x"]).refused, ["tmpcopyup", "idmap=x"]);
    }
}
