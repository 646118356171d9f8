//! The terminal of a container: a pair of the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};

use lamella_core::mount::{copy_of, put};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::detached::set_attributes;
use super::path::{Root, make_file};
use crate::error::{Failure, Kind, Step};
use crate::spec::Size;

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Console {
    /// For the monitor.
    pub master: OwnedFd,
    /// For the program.
    pub slave: OwnedFd,
}

impl Console {
    /// Open a new terminal of the devpts that is mounted in the root, and make it /dev/console too when `bind`.
    ///
    /// Nothing is opened by a name that the container could have exchanged (CVE-2025-52565): the folder is checked to
    /// be a devpts, and the program's end comes from the monitor's end itself.
    pub fn open(root: &Root, size: Option<Size>, bind: bool) -> Result<Self, Failure> {
        let what = || "open a terminal in the container's /dev/pts";
        let folder = root.open_plain("/dev/pts", OFlags::PATH | OFlags::DIRECTORY).step(what)?;
        if rustix::fs::fstatfs(&folder).step(what)?.f_type as u64 != DEVPTS_MAGIC {
            return Err(Failure::new(Kind::InvalidArgument, format!("{}: it is no devpts", what()))
                .with_hint("process.terminal needs a mount of type devpts on /dev/pts"));
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let master = rustix::fs::openat(&folder, "ptmx", flags, Mode::empty()).step(what)?;
        rustix::pty::unlockpt(&master).step(what)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).step(what)?;
        if let Some(size) = size {
            set_size(&master, size).step(|| "set the terminal's size")?;
        }
        if bind {
            let what = || "make the terminal /dev/console";
            let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            let copy = copy_of(&slave, false).step(what)?;
            set_attributes(&copy, false, attributes).step(what)?;
            let dev = root.folder("/dev")?;
            let target = make_file(dev.as_fd(), "console").step(what)?;
            put(&copy, &target).step(what)?;
        }
        Ok(Self { master, slave })
    }
}

/// Tell a terminal its size.
pub fn set_size(terminal: impl AsFd, size: Size) -> Result<(), rustix::io::Errno> {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}
