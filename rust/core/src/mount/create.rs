//! A new file system by fsopen, fsconfig and fsmount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags};

use super::options::lower_folders;
use super::{Mount, Options};
use crate::error::{Error, Kind};

/// Why a mount was not made.
pub enum Refusal {
    /// The kernel, or the file system in it, is too old for the new API; mount(2) may do it.
    TooOld,
    /// It failed.
    Failed(Error),
}

/// Values that fsconfig takes have at most 255 bytes.
const MAX_VALUE: usize = 255;

pub fn create(mount: &Mount, options: &Options) -> Result<OwnedFd, Refusal> {
    let context = match rustix::mount::fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Err(Refusal::TooOld),
        Err(Errno::NODEV) => {
            let error = Error::new(Kind::Unsupported, format!("the kernel has no file system '{}'", mount.kind))
                .hint("Load its module, or use another snapshotter.");
            return Err(Refusal::Failed(error));
        }
        Err(error) => return Err(Refusal::Failed(Error::system("fsopen", error))),
    };
    configure(&context, mount, options)?;
    rustix::mount::fsconfig_create(&context).map_err(|error| failed(&context, "fsconfig", error))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.set)
        .map_err(|error| failed(&context, "fsmount", error))
}

fn configure(context: &OwnedFd, mount: &Mount, options: &Options) -> Result<(), Refusal> {
    if !mount.source.is_empty() {
        set(context, "source", Some(&mount.source))?;
    }
    for flag in &options.system_flags {
        set(context, flag, None)?;
    }
    let overlay = mount.kind == "overlay";
    // overlayfs and snapshots of files are read-only by their mount; others want to know it when they are made.
    if options.read_only && !overlay {
        set(context, "ro", None)?;
    }
    for (key, value) in &options.data {
        match value {
            Some(list) if overlay && key == "lowerdir" => set_lower(context, list)?,
            value => set(context, key, value.as_deref())?,
        }
    }
    Ok(())
}

/// One call a folder: no limit on their number, no protection of colons. Linux 6.8 has that.
fn set_lower(context: &OwnedFd, list: &str) -> Result<(), Refusal> {
    for (index, folder) in lower_folders(list).iter().enumerate() {
        if folder.len() > MAX_VALUE {
            return Err(Refusal::TooOld);
        }
        match rustix::mount::fsconfig_set_string(context, "lowerdir+", folder.as_str()) {
            Ok(()) => {}
            Err(Errno::INVAL) if index == 0 && message(context).is_none_or(|text| text.contains("lowerdir+")) => {
                return Err(Refusal::TooOld);
            }
            Err(error) => return Err(failed(context, &format!("lowerdir '{folder}'"), error)),
        }
    }
    Ok(())
}

fn set(context: &OwnedFd, key: &str, value: Option<&str>) -> Result<(), Refusal> {
    let result = match value {
        Some(value) if value.len() > MAX_VALUE => return Err(Refusal::TooOld),
        Some(value) => rustix::mount::fsconfig_set_string(context, key, value),
        None => rustix::mount::fsconfig_set_flag(context, key),
    };
    result.map_err(|error| {
        let option = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
        failed(context, &format!("option '{option}'"), error)
    })
}

fn failed(context: &OwnedFd, what: &str, error: Errno) -> Refusal {
    let error = Error::system(what, error);
    let error = match message(context) {
        Some(text) => Error { message: format!("{} (kernel: {text})", error.message), ..error },
        None => error,
    };
    Refusal::Failed(error)
}

/// What the kernel has to say: its last error or warning, which a read of the context gives.
fn message(context: impl AsFd) -> Option<String> {
    let mut last = None;
    let mut buffer = [0u8; 1024];
    // Each read takes one message; none left is NODATA.
    while let Some(text) = read_message(context.as_fd(), &mut buffer) {
        last = Some(text);
    }
    last
}

fn read_message(context: BorrowedFd<'_>, buffer: &mut [u8]) -> Option<String> {
    let count = rustix::io::read(context, &mut *buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..count]);
    // A letter for the level stands before the text.
    Some(text.get(2..).unwrap_or_default().trim_end().to_owned())
}
