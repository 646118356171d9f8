//! Adding a process to a container that a runtime has made.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use serde_json::Value;

use super::{Making, Process, Runtime, keep_only};
use crate::channel::{Channel, Message};
use crate::container::Streams;
use crate::error::{Failure, Kind, Step};
use crate::sys::{self, Forked};

/// The runtimes that can make a process in a cgroup beneath the container's.
const WITH_GROUPS: [&str; 2] = ["runc", "crun"];

/// A process to add.
#[derive(Debug)]
pub struct Addition {
    document: Value,
    process: Process,
}

impl Addition {
    /// Take the spec's process object; what is in it is the runtime's to check.
    pub fn new(document: Value) -> Result<Self, Failure> {
        let process = serde_json::from_value(document.clone())
            .map_err(|error| Failure::new(Kind::InvalidArgument, format!("process: {error}")))?;
        Ok(Self { document, process })
    }

    /// Whether it gets a terminal.
    pub fn has_terminal(&self) -> bool {
        self.process.terminal
    }
}

impl Runtime {
    /// Start the helper that has the process made; returns its id. What becomes of it is said on the channel, whose other
    /// end is `theirs`. `group` is the name of a cgroup beneath the container's that it is to be in.
    pub fn add(
        &self,
        addition: &Addition,
        name: &str,
        group: Option<&str>,
        theirs: &Channel,
        streams: Option<Streams>,
    ) -> Result<i32, Failure> {
        match sys::fork().step(|| "start a helper to enter the container")? {
            Forked::Parent(helper) => Ok(helper),
            Forked::Child => {
                let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
                let _ = rustix::process::setsid();
                keep_only(&[theirs.as_fd()], streams.as_ref());
                let added = self.exec(addition, name, group, theirs, streams);
                let message = added.map_or_else(Message::Failed, |()| Message::Running);
                let _ = theirs.send(&message);
                sys::exit_now(0)
            }
        }
    }

    fn exec(
        &self,
        addition: &Addition,
        name: &str,
        group: Option<&str>,
        channel: &Channel,
        streams: Option<Streams>,
    ) -> Result<(), Failure> {
        let process = Self::file(name, "process");
        let path = self.bundle.join(&process);
        let step = || format!("write {}", path.display());
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).step(step)?;
        file.write_all(addition.document.to_string().as_bytes()).step(step)?;
        let group = group.filter(|_| self.makes_groups());
        let mut words = vec!["--detach", "--process", &process];
        if let Some(group) = group {
            words.extend(["--cgroup", group]);
        }
        let making = Making { verb: "exec", name, words: &words, process: &addition.process };
        let made = self.make(&making, streams, channel);
        for suffix in ["process", "pid"] {
            let _ = fs::remove_file(self.bundle.join(Self::file(name, suffix)));
        }
        made
    }

    /// Whether the runtime makes a process right in a group: all that it starts is in there then, too.
    pub fn makes_groups(&self) -> bool {
        self.program.file_name().is_some_and(|name| WITH_GROUPS.iter().any(|known| name == *known))
    }
}
