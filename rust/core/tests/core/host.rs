//! The host around a layer folder, to see that an archive changed and read nothing of it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::tree;

/// Every file of the host begins with it, and no file of an archive.
pub const MARK: &[u8] = b"the host's ";

/// A folder with everything that an archive might want to change, and layer folders beside it.
pub struct Host {
    ground: tempfile::TempDir,
    before: BTreeMap<PathBuf, Seen>,
}

/// One inode, with all that a change of any kind would change.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    identity: (u64, u64),
    links: u64,
    mode: u32,
    owner: (u32, u32),
    device: u64,
    size: u64,
    mtime: (i64, i64),
    /// No program can set it: it tells of changes that were taken back, too.
    ctime: (i64, i64),
    /// Of files and folders: to look at a symlink is to read it.
    atime: Option<(i64, i64)>,
    content: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Host {
    /// A host with `layers` empty layer folders.
    pub fn new(layers: usize) -> Self {
        let ground = tempfile::tempdir().unwrap();
        let outside = ground.path().join("outside");
        for folder in ["", "etc", "folder", "folder/deeper"] {
            std::fs::create_dir(outside.join(folder)).unwrap();
        }
        for (name, mode) in [
            ("secret", 0o640),
            ("tool", 0o4755),
            ("read-only", 0o400),
            ("whitedout", 0o644),
            ("etc/passwd", 0o644),
            ("folder/inner", 0o600),
            ("folder/deeper/file", 0o600),
        ] {
            std::fs::write(outside.join(name), [MARK, name.as_bytes()].concat()).unwrap();
            std::fs::set_permissions(outside.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::set_permissions(outside.join("folder"), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::hard_link(outside.join("secret"), outside.join("second-name")).unwrap();
        std::os::unix::fs::symlink("secret", outside.join("link")).unwrap();
        std::os::unix::fs::symlink("folder", outside.join("folder-link")).unwrap();
        std::os::unix::fs::symlink("nowhere", outside.join("dangling")).unwrap();
        rustix::fs::mknodat(CWD, outside.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for name in ["secret", "folder"] {
            rustix::fs::setxattr(outside.join(name), "user.lamella", b"kept", XattrFlags::empty()).unwrap();
        }
        // Who may not give files away leaves them as they are.
        let _ = rustix::fs::chown(outside.join("tool"), Some(Uid::from_raw(1234)), Some(Gid::from_raw(5678)));
        for layer in 0..layers {
            std::fs::create_dir(ground.path().join(format!("layer-{layer}"))).unwrap();
        }
        let mut host = Self { ground, before: BTreeMap::new() };
        host.age();
        host.before = host.look();
        host
    }

    /// Make the last access the older time, so that the kernel records the next one also where it is mounted `relatime`.
    fn age(&self) {
        let at = |seconds| Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: at(1_000_000_000), last_modification: at(1_400_000_000) };
        for path in self.look().into_keys().collect::<Vec<_>>().iter().rev() {
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }

    /// The folder that must stay as it is.
    pub fn outside(&self) -> PathBuf {
        self.ground.path().join("outside")
    }

    pub fn layer(&self, number: usize) -> PathBuf {
        self.ground.path().join(format!("layer-{number}"))
    }

    /// What is different outside the layer folders, and what came into them from there. Empty: nothing.
    pub fn differences(&self) -> Vec<String> {
        let now = self.look();
        let mut found = Vec::new();
        for path in self.before.keys().chain(now.keys().filter(|path| !self.before.contains_key(*path))) {
            if self.before.get(path) != now.get(path) {
                found.push(format!("{}: {:?} became {:?}", path.display(), self.before.get(path), now.get(path)));
            }
        }
        let mut names: Vec<_> =
            std::fs::read_dir(self.ground.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|path| *path != self.outside());
        for layer in names {
            if !layer.file_name().unwrap().as_bytes().starts_with(b"layer-") {
                found.push(format!("{} is new", layer.display()));
                continue;
            }
            let leaked = look(&layer).into_iter().filter(|(_, seen)| seen.content.starts_with(MARK));
            found.extend(leaked.map(|(path, _)| format!("{} is the host's", path.display())));
        }
        found
    }

    fn look(&self) -> BTreeMap<PathBuf, Seen> {
        look(&self.outside())
    }
}

/// All inodes of a tree.
pub fn look(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        if let Some(seen) = see(&path, &mut pending) {
            found.insert(path, seen);
        }
    }
    found
}

/// Look at an inode without leaving a trace; what a folder holds is yet to be looked at. What keeps its owner out shows
/// nothing, and what lies deeper than a path can say is not there.
fn see(path: &Path, pending: &mut Vec<PathBuf>) -> Option<Seen> {
    let stat = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::InvalidFilename => return None,
        stat => stat.unwrap(),
    };
    let mut content = Vec::new();
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = (stat.is_file() || stat.is_dir()).then(|| rustix::fs::openat(CWD, path, flags, Mode::empty()));
    match opened {
        None if stat.is_symlink() => content = std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        None | Some(Err(Errno::ACCESS)) => {}
        Some(opened) if stat.is_file() => {
            // No file of the host is longer; one in a layer may be a hole of any length.
            std::fs::File::from(opened.unwrap()).take(1 << 16).read_to_end(&mut content).unwrap();
        }
        Some(opened) => {
            for name in lamella_core::tree::names(opened.unwrap()).unwrap() {
                pending.push(path.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Some(Seen {
        identity: (stat.dev(), stat.ino()),
        links: stat.nlink(),
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        device: stat.rdev(),
        size: stat.size(),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        ctime: (stat.ctime(), stat.ctime_nsec()),
        atime: (!stat.is_symlink()).then_some((stat.atime(), stat.atime_nsec())),
        content,
        xattrs: tree::xattrs(path),
    })
}

#[test]
fn every_kind_of_change_is_seen() {
    let changes: [fn(&Path); 12] = [
        |outside| std::fs::write(outside.join("secret"), b"new").unwrap(),
        |outside| std::fs::write(outside.join("etc/new"), b"").unwrap(),
        |outside| std::fs::remove_file(outside.join("dangling")).unwrap(),
        |outside| std::fs::hard_link(outside.join("tool"), outside.join("../layer-0/tool")).unwrap(),
        |outside| std::fs::set_permissions(outside.join("folder"), std::fs::Permissions::from_mode(0o701)).unwrap(),
        |outside| rustix::fs::chown(outside.join("secret"), None, Some(rustix::process::getgid())).unwrap(),
        |outside| rustix::fs::setxattr(outside.join("etc"), "user.new", b"", XattrFlags::empty()).unwrap(),
        |outside| rustix::fs::removexattr(outside.join("folder"), "user.lamella").unwrap(),
        |outside| std::fs::rename(outside.join("etc"), outside.join("../layer-0/etc")).unwrap(),
        |outside| std::fs::rename(outside.join("whitedout"), outside.join("tool")).unwrap(),
        |outside| std::fs::write(outside.join("../new"), b"").unwrap(),
        |outside| std::fs::copy(outside.join("etc/passwd"), outside.join("../layer-0/x")).map(|_| ()).unwrap(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let host = Host::new(1);
        assert_eq!(host.differences(), [""; 0], "nothing happened yet");
        change(&host.outside());
        assert_ne!(host.differences(), [""; 0], "change {number}");
    }
}
