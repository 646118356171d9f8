//! Connecting a container's network namespace by a program, for who is not root: pasta(1).
//!
//! The program is told the namespace by a path, and goes on when its start is over, as long as there is a file at that path. Who is
//! not root can mount nothing there that others see; the helper can, in its own mount namespace, which the program inherits.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys;
use crate::tree::Check;

/// Time between two looks at the program.
const LOOK: Duration = Duration::from_millis(2);
/// What is kept of what it says.
const LONGEST: u64 = 64 * 1024;

/// Run a program to the end of its start, for which the network namespace that is passed along is kept on `path`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connect {
    /// The file; it is there.
    pub path: PathBuf,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment, as `NAME=value`.
    pub env: Vec<String>,
    /// After how many milliseconds it is killed.
    pub patience: u64,
}

impl Connect {
    /// Do it. Gives its exit status, None when it was killed, and what it said.
    pub fn run(self, network: &OwnedFd, check: Check<'_>) -> Result<(Option<i32>, Vec<u8>)> {
        let place = || format!("cannot keep a network namespace on {}", self.path.display());
        rustix::mount::mount_bind(sys::descriptor_path(network.as_fd()), &self.path)
            .map_err(|error| Error::system(place(), error))?;
        let ended = self.run_program(check);
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        ended
    }

    fn run_program(&self, check: Check<'_>) -> Result<(Option<i32>, Vec<u8>)> {
        let Some((name, rest)) = self.args.split_first() else { return Err(Error::invalid("there is no program")) };
        let failed = |error: std::io::Error| {
            let number = error.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error);
            Error::system(format!("cannot run {name}"), number)
        };
        let said =
            rustix::fs::memfd_create("lamella-said", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let mut said = File::from(said);
        let mut child = Command::new(name)
            .args(rest)
            .env_clear()
            .envs(self.env.iter().filter_map(|pair| pair.split_once('=')))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.try_clone().map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let deadline = Instant::now() + Duration::from_millis(self.patience);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            let wanted = check();
            if wanted.is_err() || Instant::now() > deadline {
                let _ = child.kill();
                let status = child.wait().map_err(failed)?;
                wanted?;
                break status;
            }
            std::thread::sleep(LOOK);
        };
        let mut text = Vec::new();
        said.rewind().map_err(failed)?;
        said.take(LONGEST).read_to_end(&mut text).map_err(failed)?;
        Ok((status.code(), text))
    }
}
