//! Letting go of a container's network: by its monitor when it has ended, else by whoever looks at the store next.
//!
//! Whoever made the network (`lamella/containers/networks`) has written down in a file of the store what takes it away:
//! programs with their input, and the network namespace that is kept on a file. The monitor does that, since its caller
//! may be gone by then; Python calls the same function. The file goes last, and stays when anything fails: whoever looks at
//! the container next does it all again, which is harmless (CNI spec, DEL).

pub mod names;
pub mod program;
pub mod strays;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;

use crate::error::{Failure, Step};
use crate::network::program::{Ended, Program};
use crate::{spec, sys};

/// A record longer than this is none.
const LONGEST_RECORD: u64 = 16 << 20;
/// How long one program may take; it is killed then, with all that it started.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may live on without its namespace: it watches the file, and needs milliseconds.
const COMPANION_PATIENCE: Duration = Duration::from_secs(2);

/// The file, of which other parts are not read here.
#[derive(Debug, Deserialize)]
struct Record {
    /// The container's identifier.
    #[serde(default)]
    container: String,
    release: Release,
    /// The interface that somebody was plugging in or out.
    #[serde(default)]
    unfinished: String,
    /// The file with what others call it; see [`names`].
    #[serde(default)]
    names: Option<PathBuf>,
}

/// What takes a network away.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    /// The file on which the network namespace is kept.
    namespace: PathBuf,
    /// What is run before, in this order.
    #[serde(default)]
    programs: Vec<Program>,
    /// The id of a process that ends with the namespace, and is killed if it does not.
    #[serde(default)]
    process: Option<i32>,
}

/// A program that has failed to take its part of a network away.
#[derive(Debug)]
pub struct Failed {
    /// Its path.
    pub path: String,
    /// How it ended.
    pub ended: Ended,
}

/// The network that a record describes.
#[derive(Debug)]
pub struct Network {
    record: PathBuf,
}

impl Network {
    /// A network to let go of at the end, by its record.
    pub fn new(record: impl Into<PathBuf>) -> Self {
        Self { record: record.into() }
    }

    /// Whether there is anything to let go of.
    pub fn is_recorded(&self) -> bool {
        self.record.exists()
    }

    /// Let go of it. Harmless twice. All is tried; the first failure is returned, and the record stays.
    ///
    /// With `again` another may have begun, and been killed; what it had started is waited for.
    pub fn release(
        &self,
        again: bool,
        patience: Duration,
        check: &mut dyn FnMut() -> Result<(), Failure>,
    ) -> Result<Option<Failed>, Failure> {
        let Some(record) = self.read()? else { return Ok(None) };
        // Nobody is to plug it in or out meanwhile.
        let lock = Lock::take(&record.release.namespace)?;
        let Some(Record { container, release, unfinished, names }) = self.read()? else { return Ok(None) };
        return_home()?;
        if let Some(names) = names {
            // Of a disk that is full, say: the rest matters more.
            let _ = names::forget(&names);
        }
        if again || !unfinished.is_empty() {
            strays::await_strays(&container);
        }
        let pinned = lamella_core::network::is_pinned(&release.namespace);
        let mut result = Ok(None);
        for program in release.programs {
            let path = program.args.first().cloned().unwrap_or_default();
            let program = if pinned { program } else { without_namespace(program) };
            let failed =
                program.run(patience, check).map(|ended| (ended.status != Some(0)).then_some(Failed { path, ended }));
            if matches!(result, Ok(None)) {
                result = failed;
            }
        }
        if !matches!(result, Ok(None)) {
            return result;
        }
        // Before the pin goes: of a process that is ending nobody can tell any more what it was.
        let companion = release.process.and_then(|pid| companion(pid, &release.namespace));
        if let (None, Some(pid)) = (&companion, release.process) {
            await_ending(pid);
        }
        lamella_core::network::unpin(&release.namespace)?;
        if let Some(pidfd) = companion
            && !sys::ends_within(pidfd.as_fd(), Some(COMPANION_PATIENCE))
        {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            sys::ends_within(pidfd.as_fd(), Some(COMPANION_PATIENCE));
        }
        // Of a pasta whose start was killed.
        let _ = std::fs::remove_file(beside(&release.namespace, ".pid"));
        let _ = std::fs::remove_file(self.record.with_extension("new"));
        // Before the record, so that whoever looks after this was killed finds both or neither.
        drop(lock);
        remove(&self.record)?;
        Ok(None)
    }

    fn read(&self) -> Result<Option<Record>, Failure> {
        let step = || format!("read {}", self.record.display());
        let mut text = String::new();
        match File::open(&self.record) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.step(step)?.take(LONGEST_RECORD).read_to_string(&mut text).step(step)?,
        };
        spec::parse_document(&text, "network record").map(Some)
    }
}

/// The lock of whoever plugs a running container in or out, or lets go of its network: a file that is there meanwhile
/// (`transient` in `lamella/locks.py`).
struct Lock {
    path: PathBuf,
    _file: OwnedFd,
}

impl Lock {
    /// Take it; none where the folder is gone, with the machine's state.
    fn take(namespace: &Path) -> Result<Option<Self>, Failure> {
        let path = beside(namespace, ".lock");
        let step = || format!("lock {}", path.display());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let file = match rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)) {
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                result => result.step(step)?,
            };
            rustix::fs::flock(&file, FlockOperation::LockExclusive).step(step)?;
            // Its last holder may have removed the file after it was opened here.
            let number = rustix::fs::fstat(&file).step(step)?.st_ino;
            if path.symlink_metadata().is_ok_and(|metadata| metadata.ino() == number) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A namespace that is gone, as after a restart of the machine, is named by nothing (CNI spec, DEL).
fn without_namespace(mut program: Program) -> Program {
    program.env.retain(|pair| !pair.starts_with("CNI_NETNS="));
    program.env.push("CNI_NETNS=".to_owned());
    program
}

/// Let children be made in this process's own PID namespace again. Where the container has joined another's, they would be
/// made there, and could be seen from there, though they are root on the host.
fn return_home() -> Result<(), Failure> {
    let step = || "return to the launcher's PID namespace";
    let home = std::fs::read_link("/proc/self/ns/pid").step(step)?;
    if std::fs::read_link("/proc/self/ns/pid_for_children").is_ok_and(|link| link == home) {
        return Ok(());
    }
    let home = File::open("/proc/self/ns/pid").step(step)?;
    sys::move_into(home.as_fd(), libc::CLONE_NEWPID).step(step)
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.step(|| format!("remove {}", path.display())),
    }
}

/// Whether a process still serves the namespace that is kept on a file.
pub fn serves(pid: i32, namespace: &Path) -> bool {
    companion(pid, namespace).is_some()
}

/// A process, if it is still the one that serves the namespace: its arguments name the file.
fn companion(pid: i32, namespace: &Path) -> Option<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let name = namespace.as_os_str().as_bytes();
    arguments.split(|byte| *byte == 0).any(|argument| argument == name).then_some(pidfd)
}

/// Wait for a process that is ending, and has no arguments any more: the ports that it has are taken until it is gone.
fn await_ending(pid: i32) {
    let pidfd = Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(pidfd) = pidfd
        && sys::is_exiting(pid)
    {
        sys::ends_within(pidfd.as_fd(), Some(COMPANION_PATIENCE));
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn release(network: &Network) -> Result<Option<Failed>, Failure> {
        network.release(false, PATIENCE, &mut || Ok(()))
    }

    fn network(folder: &Path, programs: &str) -> Network {
        let record = folder.join("record.json");
        let namespace = folder.join("namespace");
        std::fs::write(&namespace, "").expect("written");
        let text = format!(r#"{{"other":1,"release":{{"namespace":{namespace:?},"programs":{programs}}}}}"#);
        std::fs::write(&record, text).expect("written");
        Network::new(record)
    }

    #[test]
    fn programs_run_in_order_with_their_input_and_environment_and_the_record_goes_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = folder.path().join("seen");
        let program = |input: &str| {
            let script = format!("read line; echo $line $WHAT >> {}", seen.display());
            format!(r#"{{"args":["/bin/sh","-c",{script:?}],"env":["WHAT=is=it"],"input":"{input}\n"}}"#)
        };
        let network = network(folder.path(), &format!("[{},{}]", program("one"), program("two")));
        assert!(release(&network).expect("released").is_none());
        assert_eq!(std::fs::read_to_string(&seen).expect("read"), "one is=it\ntwo is=it\n");
        let left = std::fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!(left, 1, "the record and the namespace are gone");
        assert!(release(&network).expect("harmless twice").is_none());
    }

    #[test]
    fn after_a_failure_the_rest_is_tried_and_the_record_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = folder.path().join("seen");
        let touch = format!(r#"{{"args":["/bin/touch",{seen:?}]}}"#);
        let network =
            network(folder.path(), &format!(r#"[{{"args":["/no/such"]}},{{"args":["/bin/false"]}},{touch}]"#));
        let failure = release(&network).expect_err("failed");
        assert!(failure.message.contains("/no/such"), "{}", failure.message);
        assert!(seen.exists() && network.record.exists() && folder.path().join("namespace").exists());
    }

    /// Between its new memory and its arguments a process that execve makes has none (`begin_new_exec` in Linux).
    fn await_arguments(pid: u32) {
        while std::fs::read(format!("/proc/{pid}/cmdline")).expect("read").is_empty() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_that_outlives_its_namespace_is_killed_if_it_is_the_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = folder.path().join("namespace");
        for (argument, killed) in [(namespace.as_path(), true), (Path::new("/other"), false)] {
            let network = network(folder.path(), "[]");
            let mut command = Command::new("cat");
            let mut child = command.arg("-").arg(argument).stdin(Stdio::piped()).spawn().expect("started");
            await_arguments(child.id());
            let text = std::fs::read_to_string(&network.record).expect("read");
            let text = text.replace(r#""programs""#, &format!(r#""process":{},"programs""#, child.id()));
            std::fs::write(&network.record, text).expect("written");
            assert!(release(&network).expect("released").is_none());
            assert_eq!(child.try_wait().expect("looked").is_some(), killed);
            let _ = child.kill();
            child.wait().expect("reaped");
        }
    }
}
