//! The root file system: a snapshot's mounts, made inside the container's mount namespace.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::filesystem::{attach, copy_of_path, create, kernel_log, set_attributes};
use super::options::MountOptions;
use crate::error::{Failure, Kind, Step};
use crate::request::SnapshotMount;

fn open_folder(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Mount a snapshot on a folder of the host; returns the root of the topmost mount.
pub(super) fn mount(mounts: &[SnapshotMount], target: &str) -> Result<OwnedFd, Failure> {
    for mount in mounts {
        let what = format!("mount the snapshot ({} from {}) on {target}", mount.kind, mount.source);
        let point = open_folder(target).step(|| format!("open {target}"))?;
        let options = MountOptions::parse(mount.options.iter().map(String::as_str));
        let made = if mount.kind == "bind" || mount.options.iter().any(|option| option == "rbind") {
            let made = copy_of_path(&mount.source, options.recursive_bind).step(|| &what)?;
            set_attributes(&made, false, options.set, options.clear).step(|| &what)?;
            made
        } else if mount.kind == "overlay" {
            match overlay(&mount.source, &options, &what)? {
                Some(made) => made,
                None => {
                    classic_overlay(&options, target, &what)?;
                    continue;
                }
            }
        } else {
            create(&mount.kind, &mount.source, &options, &what)?
        };
        attach(&made, &point).step(|| &what)?;
    }
    open_folder(target).step(|| format!("open {target}"))
}

/// A root that is ready: bound onto itself, as pivot_root wants a mount.
pub(super) fn bind_root(root: &str) -> Result<OwnedFd, Failure> {
    let what = || format!("bind the root {root}");
    let point = open_folder(root).step(what)?;
    let mount = copy_of_path(root, true).step(what)?;
    attach(&mount, &point).step(what)?;
    open_folder(root).step(what)
}

/// Layers are handed over one by one (`lowerdir+`, Linux 6.8): a value of fsconfig ends at 255 bytes, and the page of
/// mount(2) at 4095. None when the kernel does not know it.
fn overlay(source: &str, options: &MountOptions, what: &str) -> Result<Option<OwnedFd>, Failure> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| {
        Failure::system(what, &error.into()).with_hint("load the kernel module: modprobe overlay")
    })?;
    let explain = |error: Errno| {
        let mut failure = Failure::system(what, &error.into());
        if let Some(log) = kernel_log(&context) {
            failure.message = format!("{} ({log})", failure.message);
        }
        failure
    };
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source).map_err(explain)?;
    }
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for (index, layer) in split_layers(layers).iter().enumerate() {
                    match fsconfig_set_string(&context, "lowerdir+", layer.as_str()) {
                        Err(Errno::INVAL) if index == 0 => return Ok(None),
                        result => result.map_err(explain)?,
                    }
                }
            }
            // Too long for fsconfig.
            Some((_, value)) if value.len() > 255 => return Ok(None),
            Some((key, value)) => fsconfig_set_string(&context, key, value).map_err(explain)?,
            None => fsconfig_set_flag(&context, option.as_str()).map_err(explain)?,
        }
    }
    fsconfig_create(&context).map_err(explain)?;
    let attributes = MountAttrFlags::from_bits_retain(options.set as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Some).map_err(explain)
}

/// mount(2), for older kernels. Long lists of layers are shortened by naming them relative to a common folder.
fn classic_overlay(options: &MountOptions, target: &str, what: &str) -> Result<(), Failure> {
    const PAGE: usize = 4095;
    let flags = MountFlags::from_bits_retain(classic_flags(options.set));
    let data = options.data.join(",");
    if data.len() <= PAGE {
        let data = std::ffi::CString::new(data).map_err(|_| Failure::invalid("rootfs", "contains a NUL byte"))?;
        return rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str()).step(|| what);
    }
    let layers: Vec<String> = options
        .data
        .iter()
        .filter_map(|option| option.strip_prefix("lowerdir="))
        .flat_map(split_layers)
        .collect();
    let common = layers.iter().skip(1).fold(layers.first().map(|layer| Path::new(layer).to_owned()), |common, layer| {
        let mut common = common?;
        while !Path::new(layer).starts_with(&common) {
            common = common.parent()?.to_owned();
        }
        Some(common)
    });
    let too_long = || Failure::new(Kind::ResourceExhausted, format!("{what}: the list of layers is too long"));
    let common = common.ok_or_else(too_long)?;
    let shortened: Vec<String> = options
        .data
        .iter()
        .map(|option| match option.strip_prefix("lowerdir=") {
            Some(layers) => {
                let relative: Vec<String> = split_layers(layers)
                    .iter()
                    .map(|layer| {
                        let relative = Path::new(layer).strip_prefix(&common).unwrap_or(Path::new(layer));
                        relative.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
                    })
                    .collect();
                format!("lowerdir={}", relative.join(":"))
            }
            None => option.clone(),
        })
        .collect();
    let data = shortened.join(",");
    if data.len() > PAGE {
        return Err(too_long());
    }
    let data = std::ffi::CString::new(data).map_err(|_| Failure::invalid("rootfs", "contains a NUL byte"))?;
    let present = open_folder(".").step(|| "open the working folder")?;
    rustix::process::chdir(&common).step(|| what)?;
    let result = rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str()).step(|| what);
    rustix::process::fchdir(present.as_fd()).step(|| "change back to the working folder")?;
    result
}

/// The flags of mount(2) for mount attributes.
fn classic_flags(attributes: u64) -> u32 {
    [
        (libc::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
        (libc::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (libc::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (libc::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (libc::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
        (libc::MOUNT_ATTR_NODIRATIME, libc::MS_NODIRATIME),
    ]
    .iter()
    .filter(|(attribute, _)| attributes & attribute != 0)
    .fold(0, |flags, (_, flag)| flags | *flag as u32)
}

/// Split overlayfs's list of layers, in which a backslash takes a colon's meaning away.
fn split_layers(list: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match (character, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(layer)) => layer.extend(characters.next()),
            (character, Some(layer)) => layer.push(character),
            (_, None) => {}
        }
    }
    layers.retain(|layer| !layer.is_empty());
    layers
}

#[cfg(test)]
mod tests {
    use super::split_layers;

    #[test]
    fn layers_are_split_at_plain_colons() {
        assert_eq!(split_layers("/a:/b\\:c:/d\\\\e"), ["/a", "/b:c", "/d\\e"]);
        assert_eq!(split_layers("/a"), ["/a"]);
    }
}
