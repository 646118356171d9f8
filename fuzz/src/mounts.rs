//! Mount options, one a line: the last word on a flag counts, and what is none of ours reaches the file system as it stands.

use lamella_core::Kind;
use lamella_core::mount::Options;
use rustix::mount::MountAttrFlags as Flags;

/// Options that set a flag, and those that clear it.
const FLAGS: [(Flags, &str, &str); 6] = [
    (Flags::MOUNT_ATTR_RDONLY, "ro", "rw"),
    (Flags::MOUNT_ATTR_NOSUID, "nosuid", "suid"),
    (Flags::MOUNT_ATTR_NODEV, "nodev", "dev"),
    (Flags::MOUNT_ATTR_NOEXEC, "noexec", "exec"),
    (Flags::MOUNT_ATTR_NODIRATIME, "nodiratime", "diratime"),
    (Flags::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow", "symfollow"),
];

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.lines().collect();
    let parsed = match Options::parse(&lines) {
        Ok(parsed) => parsed,
        Err(error) => {
            let reason = |line: &&str| match error.kind {
                Kind::Unsupported => ["remount", "loop", "move"].contains(line),
                Kind::InvalidArgument => is_id_map(line),
                _ => false,
            };
            assert!(lines.iter().any(reason), "{error}");
            return;
        }
    };
    for (flag, on, off) in FLAGS {
        let last = lines.iter().rev().find(|line| **line == on || **line == off);
        assert_eq!(parsed.set.contains(flag), last == Some(&on), "{on}");
        assert_eq!(parsed.clear.contains(flag), last == Some(&off), "{off}");
    }
    assert_eq!(parsed.read_only, parsed.set.contains(Flags::MOUNT_ATTR_RDONLY));
    assert_eq!(parsed.bind, lines.iter().any(|line| *line == "bind" || *line == "rbind"));
    // The access times are one field of three values.
    assert!(!parsed.set.contains(Flags::MOUNT_ATTR_NOATIME | Flags::MOUNT_ATTR_STRICTATIME));
    let mut data = parsed.data.iter();
    assert_eq!(parsed.id_maps.is_some(), lines.iter().any(is_id_map));
    for line in lines.iter().filter(|line| line.contains('=') && !is_id_map(line)) {
        let whole = data.by_ref().find_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}")));
        assert_eq!(whole.as_deref(), Some(*line), "an option of the file system is lost");
    }
    assert!(data.all(|(_, value)| value.is_none()));
    for (key, _) in &parsed.data {
        let last = parsed.data.iter().rev().find(|(other, _)| other == key);
        assert_eq!(parsed.value(key), last.and_then(|(_, value)| value.as_deref()));
    }
}

/// Whether an option says who owns what, other than it is stored.
fn is_id_map(option: &&str) -> bool {
    option.starts_with("uidmap=") || option.starts_with("gidmap=")
}
