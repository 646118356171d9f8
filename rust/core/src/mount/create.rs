//! A new file system by fsopen, fsconfig and fsmount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags};

use super::layers::Layers;
use super::{Mount, Options};
use crate::error::{Error, Kind};

/// Why a mount was not made.
pub enum Refusal {
    /// The file system cannot be told its options by the new API; mount(2) may do it.
    TooOld,
    /// It failed.
    Failed(Error),
}

/// Values that fsconfig takes have at most 255 bytes.
const MAX_VALUE: usize = 255;

/// As many lower folders has an overlay at most (`OVL_MAX_STACK`).
const MAX_LOWER: usize = 500;

/// What [`heeds_no_option`] says of overlayfs: asked once a process.
static HEEDS_NO_OPTION: OnceLock<bool> = OnceLock::new();

pub fn create(mount: &Mount, options: &Options) -> Result<OwnedFd, Refusal> {
    let context = match rustix::mount::fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NODEV) => {
            let error = Error::new(Kind::Unsupported, format!("the kernel has no file system '{}'", mount.kind))
                .hint("Load its module, or use another snapshotter.");
            return Err(Refusal::Failed(error));
        }
        Err(error) => return Err(Refusal::Failed(Error::system("fsopen", error))),
    };
    if mount.kind == "overlay" && *HEEDS_NO_OPTION.get_or_init(|| heeds_no_option(&mount.kind)) {
        return Err(Refusal::TooOld);
    }
    configure(&context, mount, options)?;
    rustix::mount::fsconfig_create(&context).map_err(|error| failed(&context, "fsconfig", error))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.set)
        .map_err(|error| failed(&context, "fsmount", error))
}

/// Whether a file system heeds no option before it is made, as overlayfs until Linux 6.5: it would be told `lowerdir+`
/// without a complaint, and refuse to be made then, with a line in the kernel's log.
fn heeds_no_option(kind: &str) -> bool {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .and_then(|context| rustix::mount::fsconfig_set_flag(context, "no-such-option"))
        .is_ok()
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
    let layers = if overlay { Layers::of(options) } else { Layers::default() };
    for (key, value) in &options.data {
        match key.as_str() {
            "lowerdir" if overlay => set_lower(context, &layers.lower)?,
            "upperdir" if overlay => set_upper(context, key, value, layers.upper.as_deref())?,
            "workdir" if overlay => set_upper(context, key, value, layers.work.as_deref())?,
            _ => set(context, key, value.as_deref())?,
        }
    }
    Ok(())
}

/// One call a folder: no page that they must share, no protection of colons. Linux 6.8 has that.
fn set_lower(context: &OwnedFd, folders: &[String]) -> Result<(), Refusal> {
    if folders.len() > MAX_LOWER {
        let message = format!("an overlay of {} lower folders; the kernel stacks {MAX_LOWER}", folders.len());
        let hint = "Copy the files of some layers into one.";
        return Err(Refusal::Failed(Error::new(Kind::Unsupported, message).hint(hint)));
    }
    for (index, folder) in folders.iter().enumerate() {
        if folder.len() > MAX_VALUE {
            set_folder(context, "lowerdir+", folder)?;
            continue;
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

fn set_upper(context: &OwnedFd, key: &str, value: &Option<String>, folder: Option<&str>) -> Result<(), Refusal> {
    match folder {
        Some(folder) if folder.len() > MAX_VALUE => set_folder(context, key, folder),
        _ => set(context, key, value.as_deref()),
    }
}

/// A folder by its descriptor, however long its path is. Linux 6.13 has that.
fn set_folder(context: &OwnedFd, key: &str, folder: &str) -> Result<(), Refusal> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, folder, flags, Mode::empty())
        .map_err(|error| Refusal::Failed(Error::system(format!("{key} '{folder}'"), error)))?;
    rustix::mount::fsconfig_set_fd(context, key, &opened).map_err(|_| Refusal::TooOld)
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
