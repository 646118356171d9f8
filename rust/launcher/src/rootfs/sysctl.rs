//! Kernel parameters of the container's namespaces.

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::detached::file_system;
use crate::error::{Failure, Step};

/// Write (checked) parameters through a /proc of our own that hangs nowhere, so that no mount or symlink of the
/// container can lead the write elsewhere (CVE-2025-52881).
pub(super) fn write(parameters: &[(String, String)]) -> Result<(), Failure> {
    if parameters.is_empty() {
        return Ok(());
    }
    let proc = file_system("proc", &[], "mount proc to set kernel parameters")?;
    for (name, value) in parameters {
        let what = || format!("set the kernel parameter {name} to {value:?}");
        // A slash in a name stands for itself, as sysctl(8) has it: the first separator decides.
        let path = match name.find(['.', '/']) {
            Some(position) if name.as_bytes().get(position) == Some(&b'/') => name.clone(),
            _ => name.replace('/', "\0").replace('.', "/").replace('\0', "."),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&proc, format!("sys/{path}"), flags, Mode::empty(), resolve).step(what)?;
        rustix::io::write(&file, value.as_bytes()).step(what)?;
    }
    Ok(())
}
