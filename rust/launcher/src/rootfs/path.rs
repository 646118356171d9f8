//! Paths inside the container's root, which the image and other containers may change at any moment.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Failure, Step};

/// openat2 gives EAGAIN when something is renamed or mounted while it walks; give up after this many.
const ATTEMPTS: u32 = 128;
/// As many symlinks in a row as the kernel follows.
const LINKS_MAX: u32 = 40;
pub(super) const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// The container's root folder, by descriptor.
#[derive(Debug)]
pub struct Root {
    descriptor: OwnedFd,
    shown: String,
    /// Its own path, once it was asked for: it stays where it is as long as anything is mounted in it by this.
    top: OnceCell<String>,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What kind of mount point is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Folder,
    File,
}

impl Root {
    /// Use an open folder as root; `shown` names it in errors.
    pub fn new(descriptor: OwnedFd, shown: &str) -> Self {
        Self { descriptor, shown: shown.to_owned(), top: OnceCell::new() }
    }

    /// The root that this process has, inside a container.
    pub fn present() -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(CWD, "/", flags, Mode::empty()).step(|| "open the container's root")?;
        Ok(Self::new(descriptor, "the container"))
    }

    /// Where the root is on the host, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Where an open file is in the root.
    pub(super) fn place(&self, file: BorrowedFd<'_>) -> Result<String, Errno> {
        let path = |file: BorrowedFd<'_>| {
            let shown = rustix::fs::readlinkat(CWD, lamella_core::sys::descriptor_path(file), Vec::new())?;
            shown.into_string().map_err(|_| Errno::ILSEQ)
        };
        let top = match self.top.get() {
            Some(top) => top,
            None => {
                let top = path(self.as_fd())?;
                self.top.get_or_init(|| top)
            }
        };
        let place = path(file)?;
        Ok(place.strip_prefix(top.trim_end_matches('/')).unwrap_or(&place).to_owned())
    }

    /// Open a path as the container would see it: absolute symlinks and `..` stay inside the root.
    pub(super) fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Open a path of which no component may be a symlink.
    pub(super) fn open_plain(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        self.open_with(path, flags, resolve)
    }

    fn open_with(&self, path: &str, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        open_beneath(self.as_fd(), path, flags, resolve)
    }

    /// Open the mount point at `path`; make it, and the folders that lead to it, when it is missing.
    pub(super) fn mount_point(&self, path: &str, target: Target) -> Result<OwnedFd, Failure> {
        let path = clean(path);
        match self.open(&path, OFlags::PATH) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).step(|| format!("open {path} in {}", self.shown)),
        }
        let path = self.end_of_links(&path).step(|| format!("follow {path} in {}", self.shown))?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let parent = self.folder(parent)?;
        let made = match target {
            Target::Folder => rustix::fs::mkdirat(&parent, name, FOLDER_MODE),
            Target::File => make_file(parent.as_fd(), name).map(drop),
        };
        match made {
            // Another container that shares the folder was faster.
            Ok(()) | Err(Errno::EXIST) => {}
            error => error.step(|| format!("make the mount point {path} in {}", self.shown))?,
        }
        // Opened as a plain name of the folder that was made or found: what appeared since is no symlink.
        open_beneath(parent.as_fd(), name, OFlags::PATH, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
            .step(|| format!("open the mount point {path} in {}", self.shown))
    }

    /// Where the symlinks at the end of a path lead to, inside the root, whether anything is there or not: many images
    /// have `/etc/resolv.conf` as a link into `/run`, which is empty until a system has started.
    fn end_of_links(&self, path: &str) -> Result<String, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let link = match self.open(&path, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) => found,
                Err(Errno::NOENT) => return Ok(path),
                Err(error) => return Err(error),
            };
            // What a descriptor of a symlink with an empty name gives; ENOENT: it is something else.
            let text = match rustix::fs::readlinkat(&link, "", Vec::new()) {
                Ok(text) => text.into_string().map_err(|_| Errno::ILSEQ)?,
                Err(Errno::NOENT | Errno::INVAL) => return Ok(path),
                Err(error) => return Err(error),
            };
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            path = if text.starts_with('/') { clean(&text) } else { clean(&format!("{folder}/{text}")) };
        }
        Err(Errno::LOOP)
    }

    /// Open a folder, making what is missing of its path.
    pub(super) fn folder(&self, path: &str) -> Result<OwnedFd, Failure> {
        let step = |part: &str| format!("make the folder {part} in {}", self.shown);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let path = clean(path);
        match self.open(&path, flags) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).step(|| format!("open {path} in {}", self.shown)),
        }
        // The longest part that is there, then one folder after the other beneath it.
        let mut cut = path.len();
        let mut current = loop {
            cut = path[..cut].rfind('/').unwrap_or(0);
            match self.open(&path[..cut], flags) {
                Ok(found) => break found,
                Err(Errno::NOENT) if cut > 0 => {}
                Err(error) => return Err(error).step(|| step(&path)),
            }
        };
        for name in path[cut..].split('/').filter(|name| !name.is_empty()) {
            match rustix::fs::mkdirat(&current, name, FOLDER_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                error => error.step(|| step(&path))?,
            }
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            current = open_beneath(current.as_fd(), name, flags, resolve).step(|| step(&path))?;
        }
        Ok(current)
    }

    /// Make the working folder when it is missing (as runc and Docker do); what is wrong with it shows when the process
    /// changes to it.
    pub fn make_working_folder(&self, path: &str) {
        let _ = self.folder(path);
    }
}

pub(super) fn open_beneath(
    folder: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempts < ATTEMPTS => attempts += 1,
            result => return result,
        }
    }
}

/// Make an empty file to mount on and open it; what is there already is opened without following or running it.
pub(super) fn make_file(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o644)) {
        Err(Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = rustix::fs::openat(folder, name, flags, Mode::empty())?;
            let status = rustix::fs::statat(&found, "", AtFlags::EMPTY_PATH)?;
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Symlink => Err(Errno::LOOP),
                FileType::Directory => Err(Errno::ISDIR),
                _ => Ok(found),
            }
        }
        result => result,
    }
}

/// A path without empty parts, `.` and `..` (which takes the part before it away, as Go's filepath.Clean), with one
/// slash in front, or nothing for the root.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.iter().flat_map(|part| ["/", part]).collect()
}

/// An absolute path as it is, a relative one below the bundle.
pub(super) fn from_bundle(bundle: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{bundle}/{path}") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn root(folder: &Path) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(rustix::fs::CWD, folder, flags, Mode::empty()).expect("opened");
        Root::new(descriptor, "/root")
    }

    #[test]
    fn paths_are_cleaned_like_go_does() {
        assert_eq!(clean("/a//b/./c/../d/"), "/a/b/d");
        assert_eq!(clean("/../.."), "");
        assert_eq!(clean("a"), "/a");
        assert_eq!(from_bundle("/b", "rootfs"), "/b/rootfs");
        assert_eq!(from_bundle("/b", "/x"), "/x");
    }

    #[test]
    fn a_missing_mount_point_is_made_inside_the_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = root(folder.path());
        root.mount_point("/a/b/c", Target::Folder).expect("made");
        root.mount_point("/a/b/file", Target::File).expect("made");
        assert!(folder.path().join("a/b/c").is_dir());
        assert!(folder.path().join("a/b/file").is_file());
        root.mount_point("/a/b/file", Target::File).expect("it may be there");
    }

    #[test]
    fn a_symlink_in_the_image_never_leads_out_of_the_root() {
        let outside = tempfile::tempdir().expect("a folder");
        let folder = tempfile::tempdir().expect("a folder");
        symlink(outside.path(), folder.path().join("absolute")).expect("linked");
        symlink("../../../../../..", folder.path().join("up")).expect("linked");
        let root = root(folder.path());
        root.mount_point("/up/made", Target::Folder).expect("made");
        assert!(folder.path().join("made").is_dir());
        // The absolute target is looked for inside the root, where it is missing: a dangling link is not filled in.
        root.mount_point("/absolute/made", Target::Folder).expect_err("a dangling link");
        assert_eq!(std::fs::read_dir(outside.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_dangling_symlink_is_a_mount_point_where_it_leads_to_inside_the_root() {
        let outside = tempfile::tempdir().expect("a folder");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("etc")).expect("made");
        symlink("../run/systemd/resolv.conf", folder.path().join("etc/resolv.conf")).expect("linked");
        symlink("../../../../out", folder.path().join("etc/up")).expect("linked");
        symlink(outside.path().join("made"), folder.path().join("etc/absolute")).expect("linked");
        symlink("round", folder.path().join("etc/round")).expect("linked");
        let root = root(folder.path());
        root.mount_point("/etc/resolv.conf", Target::File).expect("made");
        assert!(folder.path().join("run/systemd/resolv.conf").is_file());
        root.mount_point("/etc/up", Target::File).expect("made");
        assert!(folder.path().join("out").is_file());
        root.mount_point("/etc/absolute", Target::File).expect("made");
        assert!(folder.path().join(outside.path().strip_prefix("/").expect("absolute")).join("made").is_file());
        assert_eq!(std::fs::read_dir(outside.path()).expect("readable").count(), 0);
        root.mount_point("/etc/round", Target::File).expect_err("links in a circle");
    }

    #[test]
    fn plain_paths_have_no_symlinks() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("real")).expect("made");
        symlink("real", folder.path().join("proc")).expect("linked");
        let root = root(folder.path());
        assert_eq!(root.open_plain("/proc", OFlags::PATH).expect_err("refused"), Errno::LOOP);
        root.open("/proc", OFlags::PATH).expect("followed inside the root");
    }
}
