//! mount(2), for file systems that cannot be told their options one by one: overlayfs before Linux 6.8, and any with a
//! value that the new API cannot carry. And where mounts that are attached nowhere cannot be given attributes (gVisor).

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::copies::{bind, detached_copy_of_path};
use super::layers::{Layers, protected};
use super::{Mount, Options, attach};
use crate::error::{Error, Kind, Result};

/// mount(2) copies one page of options, the NUL at their end included.
const PAGE: usize = 4096;
/// What is mounted in passing is mounted here: a folder that every machine has, and no layer is in.
const POINT: &str = "/dev";
/// Options of overlayfs that only switch off, or spare, what a kernel has that knows them.
const SPARED: [&str; 4] = ["index", "metacopy", "redirect_dir", "volatile"];

/// Make a mount that is attached nowhere. Only for a thread of its own ([`super::apart`]): it mounts, and changes the
/// working folder.
pub fn make(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    let mut result = try_to_mount(mount, options)?;
    let spared = |(key, _): &(String, _)| mount.kind == "overlay" && SPARED.contains(&key.as_str());
    if result == Err(Errno::INVAL) && options.data.iter().any(spared) {
        let data = options.data.iter().filter(|option| !spared(option)).cloned().collect();
        result = try_to_mount(mount, &Options { data, ..options.clone() })?;
    }
    result.map_err(|error| failed(mount, error))?;
    copy_with_attributes(options, false)
}

/// As [`make`], a bind mount.
pub fn clone(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    let recursive = mount.is_recursive(options);
    bind(&mount.source, POINT, recursive).map_err(|error| failed(mount, error))?;
    copy_with_attributes(options, recursive)
}

fn failed(mount: &Mount, error: Errno) -> Error {
    Error::system(format!("mount(2) of {}", mount.kind), error)
}

/// Give what was mounted in passing its attributes, and a copy of it.
fn copy_with_attributes(options: &Options, recursive: bool) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mounted = rustix::fs::openat(CWD, POINT, flags, Mode::empty()).map_err(|error| Error::system(POINT, error))?;
    attach::set_attributes(mounted.as_fd(), options)?;
    detached_copy_of_path(POINT, recursive).map_err(|error| Error::system("open_tree", error))
}

/// Mount at the point, if the options are short enough to be said; what the kernel says to that.
fn try_to_mount(mount: &Mount, options: &Options) -> Result<std::result::Result<(), Errno>> {
    let mut text = data(options, None);
    if mount.kind == "overlay" && text.len() >= PAGE {
        // Name the folders from their common parent, and stand there.
        let parent = Layers::of(options).common_parent();
        text = data(options, Some(&parent));
        rustix::process::chdir(parent.as_str()).map_err(|error| failed(mount, error))?;
    }
    if text.len() >= PAGE {
        let message = format!("its options have {} bytes, mount(2) takes {}", text.len(), PAGE - 1);
        let hint = "Linux 6.8 has no such limit; before it, take fewer layers or a root folder with a shorter path.";
        return Err(Error::new(Kind::Unsupported, message).hint(hint));
    }
    let data = CString::new(text).map_err(|_| Error::invalid("a NUL in an option"))?;
    let source = if mount.source.is_empty() { "none" } else { mount.source.as_str() };
    Ok(rustix::mount::mount(source, POINT, mount.kind.as_str(), system_flags(options), data.as_c_str()))
}

/// The file system's own options in one string; folders in `parent` are named from there.
fn data(options: &Options, parent: Option<&str>) -> String {
    let layers = Layers::of(options);
    let name = |folder: &String| {
        let short = parent.and_then(|parent| folder.strip_prefix(parent)).map(|name| name.trim_start_matches('/'));
        protected(short.unwrap_or(folder))
    };
    let part = |(key, value): &(String, Option<String>)| match (key.as_str(), value) {
        ("lowerdir", Some(_)) => format!("lowerdir={}", layers.lower.iter().map(name).collect::<Vec<_>>().join(":")),
        ("upperdir", Some(_)) => format!("upperdir={}", layers.upper.iter().map(name).collect::<String>()),
        ("workdir", Some(_)) => format!("workdir={}", layers.work.iter().map(name).collect::<String>()),
        (_, Some(value)) => format!("{key}={value}"),
        (_, None) => key.clone(),
    };
    options.data.iter().map(part).collect::<Vec<_>>().join(",")
}

fn system_flags(options: &Options) -> MountFlags {
    options.system_flags.iter().fold(MountFlags::empty(), |flags, name| {
        flags
            | match name.as_str() {
                "sync" => MountFlags::SYNCHRONOUS,
                "dirsync" => MountFlags::DIRSYNC,
                _ => MountFlags::LAZYTIME,
            }
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;
    use crate::mount::apart::apart;
    use crate::mount::{IdMaps, idmap};
    use crate::sys;

    #[test]
    fn paths_are_protected_in_the_option_string() {
        let options = Options::parse(&[r"lowerdir=/s/x\:y,z:/s/b", "upperdir=/s/u,v", "userxattr"]).unwrap();
        assert_eq!(data(&options, None), r"lowerdir=/s/x\:y\,z:/s/b,upperdir=/s/u\,v,userxattr");
        assert_eq!(data(&options, Some("/s")), r"lowerdir=x\:y\,z:b,upperdir=u\,v,userxattr");
        assert_eq!(data(&options, Some("/")), r"lowerdir=s/x\:y\,z:s/b,upperdir=s/u\,v,userxattr");
    }

    /// Folders with a file each, and what makes an overlay of them.
    fn overlay(top: &Path, layers: usize) -> (Mount, Options) {
        let folder = |name: String| {
            std::fs::create_dir_all(top.join(&name)).unwrap();
            top.join(name).to_str().unwrap().to_owned()
        };
        let lower: Vec<String> = (0..layers).map(|number| folder(format!("{number:016}/fs"))).collect();
        for (number, layer) in lower.iter().enumerate() {
            std::fs::write(format!("{layer}/{number}"), b"").unwrap();
        }
        let options = [
            format!("workdir={}", folder("own/work".into()).replace(':', "\\:")),
            format!("upperdir={}", folder("own/fs".into()).replace(':', "\\:")),
            format!("lowerdir={}", lower.iter().map(|path| path.replace(':', "\\:")).collect::<Vec<_>>().join(":")),
            "nodev".to_owned(),
        ];
        let parsed = Options::parse(&options).unwrap();
        (Mount { kind: "overlay".into(), source: "overlay".into(), options: options.into() }, parsed)
    }

    /// Mounts of this thread's namespace, and its working folder.
    fn surroundings() -> (String, std::path::PathBuf) {
        (std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), std::env::current_dir().unwrap())
    }

    #[test]
    fn an_overlay_whose_options_fill_more_than_a_page_is_made_from_shorter_ones() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        let top = outer.path().join(format!("{}/a:b,c", "x".repeat(200)));
        std::fs::create_dir_all(&top).unwrap();
        let tried = || -> Result<()> {
            let before = surroundings();
            for layers in [3, 128] {
                let (mount, options) = overlay(&top.join(layers.to_string()), layers);
                assert_eq!(data(&options, None).len() >= PAGE, layers == 128);
                let made = apart(|| make(&mount, &options))?;
                let shown = Path::new("/proc/self/fd").join(made.as_raw_fd().to_string());
                assert_eq!(std::fs::read_dir(&shown).unwrap().count(), layers);
                std::fs::write(shown.join("new"), b"").unwrap();
                assert!(top.join(layers.to_string()).join("own/fs/new").exists());
            }
            assert_eq!(surroundings(), before, "it leaves this namespace alone");
            Ok(())
        };
        apart(tried).unwrap(); // where nobody else mounts anything
    }

    #[test]
    fn layers_with_mapped_ids_are_stacked_too() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        let top = outer.path().join("x".repeat(100));
        let (mount, options) = overlay(&top, 128);
        let maps = IdMaps::parse("0:100000:10", "0:100000:10").unwrap();
        let namespace = maps.namespace().unwrap();
        let made = apart(|| {
            idmap::map_layers(&Layers::of(&options), &maps, namespace.as_fd())?;
            apart(|| make(&mount, &options))
        });
        let made = made.unwrap();
        let owner = |path: &Path| std::fs::symlink_metadata(path).map(|status| (status.uid(), status.gid())).unwrap();
        let shown = Path::new("/proc/self/fd").join(made.as_raw_fd().to_string());
        assert_eq!(owner(&shown.join("127")), (100_000, 100_000));
        let write = || {
            sys::make_files_as(100_000, 100_000).unwrap();
            std::fs::write(shown.join("new"), b"").unwrap();
        };
        std::thread::scope(|scope| scope.spawn(write).join().unwrap());
        assert_eq!(owner(&top.join("own/fs/new")), (0, 0));
    }

    #[test]
    fn what_no_page_holds_is_refused_with_its_length() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        let (mount, options) = overlay(outer.path(), 250);
        let error = apart(|| make(&mount, &options)).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("bytes, mount(2) takes 4095"), "{error}");
    }

    #[test]
    fn other_file_systems_and_their_attributes_are_made_too() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let options = Options::parse(&["size=64k", "ro", "lazytime"]).unwrap();
        let mount = Mount { kind: "tmpfs".into(), source: String::new(), options: Vec::new() };
        let made = apart(|| make(&mount, &options)).unwrap();
        let status = rustix::fs::fstatvfs(&made).unwrap();
        assert_eq!(status.f_blocks * status.f_frsize, 64 << 10);
        assert!(status.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    }
}
