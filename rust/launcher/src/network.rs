//! Letting go of the container's network when it has ended.
//!
//! Whoever made the network (`lamella/containers/networks`) has written down in a file of the store what takes it away:
//! programs with their input, and the network namespace that is kept on a file. The monitor does that, since its caller
//! may be gone by then. The file goes last, and stays when anything fails: whoever looks at the container next does it
//! all again, which is harmless.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;

use crate::error::{Failure, Kind, Step};
use crate::{spec, sys};

/// A record longer than this is none.
const LONGEST_RECORD: u64 = 16 << 20;
/// How long one program may take; it is killed then, with all that it started.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a process may live on without its namespace.
const COMPANION_PATIENCE: Duration = Duration::from_secs(2);

/// The file, of which other parts are not read here.
#[derive(Debug, Deserialize)]
struct Record {
    release: Release,
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    /// The program's path, and its arguments.
    args: Vec<String>,
    /// Its environment, as `NAME=VALUE`; PATH comes along.
    #[serde(default)]
    env: Vec<String>,
    /// What it reads.
    #[serde(default)]
    input: String,
}

/// The network that a record describes.
#[derive(Debug)]
pub struct Network {
    record: PathBuf,
}

impl Network {
    /// A network to let go of at the end, by its record.
    pub fn new(record: &str) -> Self {
        Self { record: record.into() }
    }

    /// Let go of it. Harmless twice. All is tried; the first failure is returned, and the record stays.
    pub fn release(&self) -> Result<(), Failure> {
        let step = || format!("read {}", self.record.display());
        let mut text = String::new();
        match File::open(&self.record) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file.step(step)?.take(LONGEST_RECORD).read_to_string(&mut text).step(step)?,
        };
        let release = spec::parse_document::<Record>(&text, "network record")?.release;
        return_home()?;
        let mut result = Ok(());
        for program in &release.programs {
            result = result.and(program.run());
        }
        result?;
        let companion = release.process.and_then(|pid| companion(pid, &release.namespace));
        lamella_core::network::unpin(&release.namespace)?;
        if let Some(pidfd) = companion
            && !ends_within(&pidfd, COMPANION_PATIENCE)
        {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            ends_within(&pidfd, COMPANION_PATIENCE);
        }
        remove(&self.record)
    }
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

/// A process, if it is still the one that serves the namespace: its arguments name the file.
fn companion(pid: i32, namespace: &Path) -> Option<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let name = namespace.as_os_str().as_bytes();
    arguments.split(|byte| *byte == 0).any(|argument| argument == name).then_some(pidfd)
}

/// Wait for the end of a process; false when it does not come.
fn ends_within(pidfd: &OwnedFd, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).ok();
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}

impl Program {
    fn run(&self) -> Result<(), Failure> {
        let Some((path, arguments)) = self.args.split_first() else {
            return Err(Failure::invalid("release.programs", "a program without a name"));
        };
        let step = || format!("run {path}");
        // A file, not a pipe: nobody waits for a program that does not read.
        let input = rustix::fs::memfd_create("lamella-input", MemfdFlags::CLOEXEC).step(step)?;
        let mut input = File::from(input);
        input.write_all(self.input.as_bytes()).step(step)?;
        rustix::fs::seek(&input, rustix::fs::SeekFrom::Start(0)).step(step)?;
        let mut command = Command::new(path);
        command.args(arguments).env_clear().current_dir("/").process_group(0);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.env.iter().filter_map(|pair| pair.split_once('=')));
        command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().step(step)?;
        let group = Pid::from_raw(child.id().cast_signed()).ok_or(rustix::io::Errno::SRCH).step(step)?;
        // Where no descriptor can be had, its end is waited for without a bound.
        let pidfd = rustix::process::pidfd_open(group, PidfdFlags::empty());
        let ended = pidfd.map_or(true, |pidfd| ends_within(&pidfd, PATIENCE));
        if !ended {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let status = child.wait().step(step)?;
        match (ended, status.success()) {
            (true, true) => Ok(()),
            (true, false) => Err(Failure::new(Kind::Unavailable, format!("{path}: {status}"))),
            (false, _) => Err(Failure::new(Kind::Unavailable, format!("{path} did not end and was killed"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(folder: &Path, programs: &str) -> Network {
        let record = folder.join("record.json");
        let namespace = folder.join("namespace");
        std::fs::write(&namespace, "").expect("written");
        let text = format!(r#"{{"other":1,"release":{{"namespace":{namespace:?},"programs":{programs}}}}}"#);
        std::fs::write(&record, text).expect("written");
        Network::new(record.to_str().expect("UTF-8"))
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
        network.release().expect("released");
        assert_eq!(std::fs::read_to_string(&seen).expect("read"), "one is=it\ntwo is=it\n");
        let left = std::fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!(left, 1, "the record and the namespace are gone");
        network.release().expect("harmless twice");
    }

    #[test]
    fn after_a_failure_the_rest_is_tried_and_the_record_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = folder.path().join("seen");
        let touch = format!(r#"{{"args":["/bin/touch",{seen:?}]}}"#);
        let network =
            network(folder.path(), &format!(r#"[{{"args":["/no/such"]}},{{"args":["/bin/false"]}},{touch}]"#));
        let failure = network.release().expect_err("failed");
        assert!(failure.message.contains("/no/such"), "{}", failure.message);
        assert!(seen.exists() && network.record.exists() && folder.path().join("namespace").exists());
    }

    #[test]
    fn a_process_that_outlives_its_namespace_is_killed_if_it_is_the_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = folder.path().join("namespace");
        for (argument, killed) in [(namespace.as_path(), true), (Path::new("/other"), false)] {
            let network = network(folder.path(), "[]");
            let mut command = Command::new("cat");
            let mut child = command.arg("-").arg(argument).stdin(Stdio::piped()).spawn().expect("started");
            let text = std::fs::read_to_string(&network.record).expect("read");
            let text = text.replace(r#""programs""#, &format!(r#""process":{},"programs""#, child.id()));
            std::fs::write(&network.record, text).expect("written");
            network.release().expect("released");
            assert_eq!(child.try_wait().expect("looked").is_some(), killed);
            let _ = child.kill();
            child.wait().expect("reaped");
        }
    }
}
