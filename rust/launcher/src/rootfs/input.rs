//! Standard input of a program that has none.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::pipe::PipeFlags;

use super::masks::NULL_DEVICE;
use super::path::Root;
use crate::error::{Failure, Step};

/// Open the container's null device; where it has none (it brought its own /dev), a pipe that nobody writes to.
///
/// Never the host's: the container's root owns that node too, and a descriptor that was opened through the host's
/// writable mount would let it change the node's mode and owner for the whole machine. The container's is reached by a
/// read-only mount.
pub fn empty_input(root: &Root) -> Result<OwnedFd, Failure> {
    let step = || "open the container's /dev/null";
    // Looked at before it is opened: opening a device or a FIFO that a container put there may do something, or hang.
    let place = root.open("/dev/null", OFlags::PATH);
    if place.is_ok_and(|place| is_null(&place)) {
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
        let null = root.open("/dev/null", flags).step(step)?;
        if is_null(&null) {
            rustix::io::ioctl_fionbio(&null, false).step(step)?;
            return Ok(null);
        }
    }
    empty_pipe()
}

/// Make an input that is at its end.
pub fn empty_pipe() -> Result<OwnedFd, Failure> {
    let (reading, _) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(|| "make an empty standard input")?;
    Ok(reading)
}

fn is_null(file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|status| {
        let number = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
        FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && number == NULL_DEVICE
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode};

    use super::*;

    fn root(folder: &std::path::Path) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root::new(rustix::fs::openat(CWD, folder, flags, Mode::empty()).expect("opened"), "/root")
    }

    #[test]
    fn what_stands_in_for_the_null_device_is_not_opened_and_the_input_is_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(rustix::io::read(empty_input(&root(folder.path())).expect("made"), &mut [0; 8]).expect("read"), 0);
        std::fs::create_dir(folder.path().join("dev")).expect("made");
        std::fs::write(folder.path().join("dev/null"), "something").expect("written");
        assert_eq!(rustix::io::read(empty_input(&root(folder.path())).expect("made"), &mut [0; 8]).expect("read"), 0);
    }
}
