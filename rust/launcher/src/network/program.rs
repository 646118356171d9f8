//! Running the programs that make networks and take them away: CNI plugins, pasta.
//!
//! Each leads a process group of its own, and is killed with all that it started when it takes too long. Its input is a file, so that
//! one that does not read holds nobody up, and so are its outputs, of which only the beginning is kept.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;

use crate::error::{Failure, Step};
use crate::network::strays;
use crate::sys;

/// How much of an output is kept.
const LONGEST_OUTPUT: u64 = 1 << 20;
/// How often it is asked whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// A program with its arguments, its environment and its input.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program's path, and its arguments.
    pub args: Vec<String>,
    /// Its environment, as `NAME=VALUE`; PATH comes along.
    #[serde(default)]
    pub env: Vec<String>,
    /// What it reads.
    #[serde(default)]
    pub input: String,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status, negative for a signal; none when it took too long and was killed.
    pub status: Option<i32>,
    /// The beginning of what it wrote to its standard output.
    pub output: Vec<u8>,
    /// The beginning of what it wrote to its standard error.
    pub said: Vec<u8>,
}

impl Program {
    /// Run it to its end, `patience` at most. `check` is asked again and again, and ends the program by a failure.
    pub fn run(&self, patience: Duration, check: &mut dyn FnMut() -> Result<(), Failure>) -> Result<Ended, Failure> {
        let Some((path, arguments)) = self.args.split_first() else {
            return Err(Failure::invalid("program", "it has no name"));
        };
        let step = || path.to_owned();
        let memory = |name, content: &[u8]| sys::memory_file(name, content).step(step);
        let input = memory("lamella-input", self.input.as_bytes())?;
        let (output, said) = (memory("lamella-output", &[])?, memory("lamella-errors", &[])?);
        let mut command = Command::new(path);
        command.args(arguments).env_clear().current_dir("/").process_group(0);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.env.iter().filter_map(|pair| pair.split_once('=')));
        command.stdin(input).stdout(output.try_clone().step(step)?).stderr(said.try_clone().step(step)?);
        let mut child = command.spawn().step(step)?;
        let ended = await_end(&child, patience, check);
        if !matches!(ended, Ok(true))
            && let Some(group) = Pid::from_raw(child.id().cast_signed())
        {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            self.env.iter().filter(|pair| pair.starts_with(strays::VARIABLE)).for_each(|mark| strays::kill(mark));
        }
        let status = child.wait().step(step)?;
        Ok(Ended {
            status: ended?.then(|| status.code().or(status.signal().map(|signal| -signal)).unwrap_or(-1)),
            output: beginning(&output).step(step)?,
            said: beginning(&said).step(step)?,
        })
    }
}

/// Wait for a child's end; false when it takes too long.
fn await_end(
    child: &Child,
    patience: Duration,
    check: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let deadline = Instant::now() + patience;
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(rustix::io::Errno::SRCH);
    // Where no descriptor can be had, its end is waited for without a bound.
    let Ok(pidfd) = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())) else { return Ok(true) };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if sys::ends_within(pidfd.as_fd(), Some(left.min(LOOK))) {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
        check()?;
    }
}

fn beginning(file: &File) -> std::io::Result<Vec<u8>> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    let mut content = Vec::new();
    file.take(LONGEST_OUTPUT).read_to_end(&mut content)?;
    Ok(content)
}
