//! Starts the launcher: from a sealed copy in memory, as a program of its own, with a request and a reply.
//!
//! The copy is sealed, so that nothing that runs in a container can write to it (CVE-2019-5736), and no path has to be
//! found. A container whose program is `/proc/self/exe` runs the launcher, and reaches the copy by its process: what it
//! could still do, as root, is to take its mode or owner away. The seal of modes (Linux 6.3) forbids the first, and a copy
//! that is not any more as it was made is made anew. The launcher is started as nobody's child, so that who calls has none to
//! mind. Descriptors in it: 0 to 2 /dev/null, 3 the request (a sealed memfd), 4 the pipe for the reply, from 5 on those that
//! the caller passes; their number is its only argument.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::stopped::Watch;
use crate::sys;
use crate::tree::Check;

/// Where programs are looked for when nobody says.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const FORBIDDEN: &str = "vm.memfd_noexec=2 or a security module forbids it.";
/// Longest reply document.
const MAX_REPLY: usize = 1 << 20;

/// The executable's usual role: a container's parent process.
pub const LAUNCHER: &str = "lamella-launcher";

/// F_SEAL_EXEC, since Linux 6.3.
const SEAL_MODE: SealFlags = SealFlags::from_bits_retain(0x20);

/// A sealed copy of a program, with the mode and owner that it was made with.
struct Program {
    file: OwnedFd,
    made: (u32, u32, u32),
}

static PROGRAM: Mutex<Option<Program>> = Mutex::new(None);

impl Program {
    fn new(content: &[u8]) -> Result<Self> {
        let file = sealed("lamella-launcher", content, true)?;
        let made = Self::owner(&file)?;
        Ok(Self { file, made })
    }

    fn is_as_made(&self) -> bool {
        Self::owner(&self.file).is_ok_and(|now| now == self.made)
    }

    fn owner(file: &OwnedFd) -> Result<(u32, u32, u32)> {
        let status = rustix::fs::fstat(file).map_err(|error| Error::system("cannot look at the launcher", error))?;
        Ok((status.st_mode, status.st_uid, status.st_gid))
    }
}

/// Make the sealed copy ahead of the first launch, in a thread of its own: it takes a millisecond, in which the caller has
/// something else to do. Harmless twice. What goes wrong is said by the launch, which tries again.
pub fn make_ready(program: &'static [u8]) {
    let make = || {
        let mut slot = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Program::new(program).ok();
        }
    };
    let _ = std::thread::Builder::new().name("lamella-launcher".to_owned()).spawn(make);
}

/// Start the launcher in a role with a request document; return its reply document.
///
/// `role` is the name by which the executable knows what it is to be. `check` is called every 100 ms; when it fails the launcher is left to notice that its reply finds no reader.
/// One that is stopped is given up, likewise ([`Watch::look`]).
pub fn launch(
    program: &[u8],
    role: &str,
    request: &[u8],
    descriptors: &[BorrowedFd<'_>],
    check: Check<'_>,
) -> Result<Vec<u8>> {
    let failed = |error: Errno| Error::system("cannot start the launcher", error);
    // Above all target numbers, so that nothing is overwritten before it is used.
    let lowest = i32::try_from(descriptors.len() + 5).map_err(|_| failed(Errno::MFILE))?;
    let executable = {
        let mut slot = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
        let program = match slot.take().filter(Program::is_as_made) {
            Some(program) => slot.insert(program),
            None => slot.insert(Program::new(program)?),
        };
        rustix::io::fcntl_dupfd_cloexec(&program.file, lowest).map_err(failed)?
    };
    let path = CString::new(format!("/proc/self/fd/{}", executable.as_raw_fd())).map_err(|_| failed(Errno::INVAL))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let request = sealed("lamella-request", request, false)?;
    let (reply, reply_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    let sources = [null.as_fd(), null.as_fd(), null.as_fd(), request.as_fd(), reply_writer.as_fd()];
    let copies: Vec<OwnedFd> = sources
        .iter()
        .chain(descriptors)
        .map(|source| rustix::io::fcntl_dupfd_cloexec(source, lowest).map_err(failed))
        .collect::<Result<_>>()?;
    let arguments = [role.to_owned(), descriptors.len().to_string()].map(|text| CString::new(text).unwrap_or_default());
    let environment = [CString::new(format!("PATH={DEFAULT_PATH}")).unwrap_or_default()];
    let process = sys::spawn_orphan(&path, &arguments, &environment, &copies).map_err(|error| match error {
        Errno::ACCESS | Errno::PERM => failed(error).hint(FORBIDDEN),
        Errno::NOENT => failed(error).hint("/proc must be mounted."),
        _ => failed(error),
    })?;
    drop((copies, reply_writer, request, executable));
    let document = read_reply(&reply, check, Watch::new(process, "the launcher"))?;
    if document.is_empty() {
        return Err(Error::new(Kind::Internal, "the launcher ended without a reply"));
    }
    Ok(document)
}

/// Become a program, from a sealed copy in memory, with these arguments, the name first, and everything else as it is.
/// Returns only when that fails.
pub fn become_program(program: &[u8], arguments: &[OsString]) -> Error {
    let failed = |error: std::io::Error| Error::system("cannot become the launcher", error);
    let Some((name, rest)) = arguments.split_first() else { return Error::invalid("there is no name to go by") };
    match sealed("lamella-launcher", program, true) {
        Ok(program) => {
            let path = format!("/proc/self/fd/{}", program.as_raw_fd());
            failed(Command::new(path).arg0(name).args(rest).exec())
        }
        Err(error) => error,
    }
}

fn read_reply(reply: &OwnedFd, check: Check<'_>, mut watch: Watch) -> Result<Vec<u8>> {
    let failed = |error| Error::system("cannot read the launcher's reply", error);
    let mut document = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        watch.until_readable(reply, check)?;
        match rustix::io::read(reply, &mut buffer) {
            Ok(0) => return Ok(document),
            Ok(count) if document.len() + count <= MAX_REPLY => document.extend_from_slice(&buffer[..count]),
            Ok(_) => return Err(Error::new(Kind::Internal, "the launcher's reply is too long")),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A memory file that nobody can change any more.
fn sealed(name: &str, content: &[u8], executable: bool) -> Result<OwnedFd> {
    let failed = |error: Errno| match Error::system("cannot make a sealed copy", error) {
        refused if refused.kind == Kind::PermissionDenied => refused.hint(FORBIDDEN),
        other => other,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let kind = if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
    let file = match rustix::fs::memfd_create(name, flags | kind) {
        // Before Linux 6.3 there is no choice.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
    .map_err(failed)?;
    let mut left = content;
    while !left.is_empty() {
        match rustix::io::write(&file, left) {
            Ok(count) => left = &left[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(failed)?;
    let _ = rustix::fs::fcntl_add_seals(&file, SEAL_MODE);
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(failed)?;
    Ok(file)
}
