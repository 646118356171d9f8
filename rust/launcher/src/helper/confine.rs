//! What the thread that unpacks a layer cannot do any more, whatever the layer makes of it.
//!
//! It opens, makes and removes files in the layer's folder alone (Landlock, where the kernel has it), and has no way to a network,
//! to other programs and processes, to mounts, namespaces and whatever else a tar never needs (seccomp). What it has is the
//! connection to its caller, and a view of the memory with the archive that it cannot write to.

use std::path::Path;
use std::sync::OnceLock;

use lamella_core::error::{Error, Kind as ErrorKind, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::CapabilitySet;

use crate::error::{Failure, Step};
use crate::process::seccomp::{Filter, compile};
use crate::spec::{Seccomp, SeccompArgument, SeccompRule};
use crate::sys;

/// Calls that are refused, as far as this machine's architecture has them.
const REFUSED: &[&str] = &[
    "accept",
    "accept4",
    "acct",
    "add_key",
    "bind",
    "bpf",
    "chroot",
    "clone",
    "clone3",
    "connect",
    "delete_module",
    "execve",
    "execveat",
    "fanotify_init",
    "finit_module",
    "fork",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "kexec_load",
    "keyctl",
    "kill",
    "listen",
    "memfd_create",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "setdomainname",
    "setgid",
    "setgroups",
    "sethostname",
    "setns",
    "setresgid",
    "setresuid",
    "setuid",
    "socket",
    "socketpair",
    "swapon",
    "tkill",
    "umount2",
    "userfaultfd",
    "vfork",
];

/// What unpacking takes of root's rights. `SYS_RESOURCE` for files of users whose quota is used up.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN) // attributes trusted.*
    .union(CapabilitySet::SYS_RESOURCE);

/// Keep of root's rights what unpacking takes, in this thread and those that it starts, and let no program give others.
pub fn keep_capabilities() -> std::result::Result<(), Failure> {
    let mut sets = rustix::thread::capabilities(None).step(|| "read its capabilities")?;
    sets.permitted &= KEPT;
    sets.effective = sets.permitted;
    sets.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).step(|| "give up capabilities")?;
    rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs")
}

/// Confine the calling thread to the work on a layer's folder.
pub fn confine(folder: &Path) -> Result<()> {
    let failed =
        |error: &dyn std::fmt::Display| Error::new(ErrorKind::Internal, format!("cannot confine unpacking: {error}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, folder, flags, Mode::empty())
        .map_err(|error| Error::system(format!("cannot open {}", folder.display()), error))?;
    sys::confine_to(std::os::fd::AsFd::as_fd(&opened)).map_err(|error| failed(&error))?;
    let filter = filter().as_ref().map_err(|text| failed(text))?;
    sys::install_seccomp(&filter.program, filter.flags).map_err(|error| failed(&error))
}

fn filter() -> &'static std::result::Result<Filter, String> {
    static FILTER: OnceLock<std::result::Result<Filter, String>> = OnceLock::new();
    FILTER.get_or_init(|| compile(&profile()).map_err(|failure| failure.message))
}

fn profile() -> Seccomp {
    let refuse = |names: Vec<String>, args| SeccompRule {
        names,
        action: "SCMP_ACT_ERRNO".to_owned(),
        errno_ret: Some(libc::EPERM as u32),
        args,
    };
    // The applier has a umask of its own by unshare(CLONE_FS).
    let others = SeccompArgument { index: 0, value: libc::CLONE_FS as u64, value_two: 0, op: "SCMP_CMP_NE".to_owned() };
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        default_errno_ret: None,
        architectures: Vec::new(),
        flags: None,
        syscalls: vec![
            refuse(REFUSED.iter().map(|&name| name.to_owned()).collect(), Vec::new()),
            refuse(vec!["unshare".to_owned()], vec![others]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_root_is_no_more_than_unpacking_takes() {
        let own = rustix::thread::capabilities(None).unwrap();
        let kept = std::thread::spawn(|| {
            keep_capabilities().unwrap();
            rustix::thread::capabilities(None).unwrap()
        });
        let kept = kept.join().unwrap();
        assert_eq!(kept.permitted, own.permitted & KEPT);
        assert_eq!(kept.effective, kept.permitted);
        assert!(
            !kept.permitted.intersects(CapabilitySet::SYS_PTRACE | CapabilitySet::SYS_CHROOT | CapabilitySet::KILL)
        );
    }

    #[test]
    fn a_confined_thread_works_in_its_folder_and_nowhere_else() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (folder, other) = (inside.path().to_owned(), outside.path().to_owned());
        std::fs::write(other.join("secret"), "x").unwrap();
        let found = std::thread::spawn(move || {
            confine(&folder).unwrap();
            std::fs::create_dir(folder.join("sub")).unwrap();
            std::fs::write(folder.join("file"), "x").unwrap();
            std::fs::hard_link(folder.join("file"), folder.join("sub/linked")).unwrap();
            let refused = |error: std::io::Error| error.raw_os_error();
            (
                std::fs::read(other.join("secret")).map_err(refused),
                std::fs::write(other.join("made"), "x").map_err(refused),
                std::net::TcpStream::connect("127.0.0.1:1").map(drop).map_err(refused),
                std::process::Command::new("/bin/true").status().map(drop).map_err(|error| error.raw_os_error()),
            )
        })
        .join()
        .unwrap();
        // Without Landlock in the kernel the folder is held by the applier's own care alone.
        if crate::sys::has_landlock() {
            assert_eq!(found.0, Err(Some(libc::EACCES)));
            assert_eq!(found.1, Err(Some(libc::EACCES)));
        }
        assert_eq!(found.2, Err(Some(libc::EPERM)));
        assert!(found.3.is_err());
        // Other threads are as they were.
        assert!(std::fs::read(outside.path().join("secret")).is_ok());
    }
}
