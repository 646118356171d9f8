//! How a container ended, kept where it outlives the monitor.

use std::os::fd::BorrowedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::WaitStatus;
use serde::Serialize;

use crate::error::{Failure, Step};
use crate::time;

/// What is added to a signal's number, as a shell does it.
const SIGNAL_BASE: i32 = 128;
const FILE: &str = "exit.json";
const RESTARTS: &str = "restart.json";
/// How added processes with a name ended ([`super::named`]).
pub(super) const EXECS: &str = "execs.json";

/// The end of a process.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ExitRecord {
    pub(super) exit_code: i32,
    pub(super) signal: Option<i32>,
    pub(super) exited_at: String,
    pub(super) oom_killed: bool,
    /// Its id, as the host saw it.
    pub(super) pid: Option<i32>,
}

impl ExitRecord {
    pub(super) fn new(pid: Option<i32>, status: WaitStatus, oom_killed: bool) -> Self {
        let signal = status.terminating_signal();
        let exit_code = signal.map_or_else(|| status.exit_status().unwrap_or(-1), |signal| SIGNAL_BASE + signal);
        Self { exit_code, signal, exited_at: time::now(), oom_killed, pid }
    }

    /// For a program that could not be started after all.
    pub(super) fn of_failed_start(exit_code: i32) -> Self {
        Self { exit_code, signal: None, exited_at: time::now(), oom_killed: false, pid: None }
    }

    /// Write `exit.json` into the bundle, whole or not at all.
    pub(super) fn write(&self, bundle: BorrowedFd<'_>) -> Result<(), Failure> {
        write(bundle, FILE, self)
    }

    /// Write a copy of it, whole or not at all.
    pub(super) fn write_copy(&self, path: &str) -> Result<(), Failure> {
        write(CWD, path, self)
    }
}

/// What is known between two runs.
#[derive(Debug, Serialize)]
pub(super) struct RestartRecord<'a> {
    /// How many runs come after the first one, the next one among them.
    pub(super) count: u32,
    /// How the last run ended.
    pub(super) exit: &'a ExitRecord,
    /// Why it could not even begin.
    pub(super) error: Option<&'a str>,
    /// When the next one begins.
    pub(super) next_run_at: Option<String>,
}

impl RestartRecord<'_> {
    /// Write `restart.json` into the bundle, whole or not at all.
    pub(super) fn write(&self, bundle: BorrowedFd<'_>) -> Result<(), Failure> {
        write(bundle, RESTARTS, self)
    }
}

/// Write a document into a folder, whole or not at all.
pub(super) fn write(bundle: BorrowedFd<'_>, name: &str, document: &impl Serialize) -> Result<(), Failure> {
    let step = || format!("write {name}");
    let unfinished = format!("{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(bundle, &unfinished, flags, Mode::from_raw_mode(0o644)).step(step)?;
    let text = serde_json::to_vec(document).unwrap_or_default();
    rustix::io::write(&file, &text).step(step)?;
    rustix::fs::renameat(bundle, &unfinished, bundle, name).step(step)
}

/// Forget the records of an earlier start.
pub fn forget(bundle: BorrowedFd<'_>) {
    for name in [FILE, RESTARTS, EXECS] {
        let _ = rustix::fs::unlinkat(bundle, name, rustix::fs::AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::WaitOptions;

    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is reaped by waitpid, as the monitor does it")]
    fn exit_codes_are_a_shells_and_the_record_is_the_only_file() {
        for (script, code, signal) in [("exit 3", 3, None), ("kill -9 $$", 137, Some(9)), ("true", 0, None)] {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().expect("started");
            let pid = rustix::process::Pid::from_raw(child.id() as i32);
            let (_, status) = rustix::process::waitpid(pid, WaitOptions::empty()).expect("waited").expect("ended");
            let folder = tempfile::tempdir().expect("a folder");
            let bundle = std::fs::File::open(folder.path()).expect("opened");
            ExitRecord::new(None, status, false).write(bundle.as_fd()).expect("written");
            let text = std::fs::read_to_string(folder.path().join(FILE)).expect("read");
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value["exit_code"], code);
            assert_eq!(value["signal"].as_i64(), signal.map(i64::from));
            assert_eq!(value["oom_killed"], false);
            assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1);
        }
    }
}
