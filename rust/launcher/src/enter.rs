//! A further process of a running container, from fork to exec.
//!
//! A helper joins the container's cgroup and namespaces, makes the process as a child of the monitor (CLONE_PARENT) in
//! the container's PID namespace, says its id and ends. Until exec the process cannot be looked into by others of the container
//! (PR_SET_DUMPABLE), and it has nothing open that leads to the host: who has CAP_SYS_PTRACE can look into it all the same.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{DumpableBehavior, Pid, PidfdFlags};

use crate::cgroup::{Cgroup, Group};
use crate::channel::{Channel, Message};
use crate::container::{Streams, Wait, fail, run, take_streams, take_terminal};
use crate::error::{Failure, Step};
use crate::process::{self, seccomp::Filter};
use crate::rootfs::{Console, Root};
use crate::spec::{self, Personality, Size};
use crate::sys::{self, Forked};

/// A process to add, checked.
#[derive(Debug)]
pub struct Entry {
    /// What it is to be.
    pub process: process::Plan,
    /// It gets a terminal, of this size if one is given.
    pub terminal: Option<Option<Size>>,
}

impl Entry {
    /// Prepare a process for a container whose `namespaces` it is to enter. That `who` lacks capabilities that it asks for is
    /// said in `warnings`.
    pub fn new(
        process: &spec::Process,
        filter: Option<Filter>,
        personality: Option<&Personality>,
        namespaces: i32,
        who: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Failure> {
        process.validate("process")?;
        let mut plan = process::Plan::new(process, filter, personality)?;
        if namespaces & libc::CLONE_NEWUSER == 0 {
            let missing = plan.limit_capabilities()?;
            if !missing.is_empty() {
                warnings.push(format!("{who} itself lacks {}", missing.join(", ")));
            }
        }
        Ok(Self { process: plan, terminal: process.terminal.then_some(process.console_size) })
    }
}

/// Start the helper; returns its id. What becomes of the process is said on the channel, whose other end is `theirs`.
pub fn enter(
    init: i32,
    namespaces: i32,
    cgroup: &Cgroup,
    group: Option<&Group>,
    entry: &Entry,
    theirs: &Channel,
    streams: Option<Streams>,
) -> Result<i32, Failure> {
    let step = || "look at the container's first process";
    let pid = Pid::from_raw(init).ok_or(rustix::io::Errno::SRCH).step(step)?;
    let init = rustix::process::pidfd_open(pid, PidfdFlags::empty()).step(step)?;
    let target = group.and_then(Group::clone_target).or_else(|| cgroup.clone_target());
    match sys::clone_process(0, target).step(|| "start a helper to enter the container")? {
        Forked::Parent(helper) => Ok(helper),
        Forked::Child => {
            let kept = streams.iter().flat_map(Streams::all).chain(entry.process.files());
            match join(init.as_fd(), namespaces, cgroup, group, theirs, kept) {
                Ok(Forked::Parent(_)) => sys::exit_now(0),
                Ok(Forked::Child) => become_process(entry, theirs, streams),
                Err(failure) => fail(failure, theirs),
            }
        }
    }
}

/// In the helper: join the container and make the process, which finds nothing open but its channel and what is `kept`.
fn join<'a>(
    init: BorrowedFd<'_>,
    namespaces: i32,
    cgroup: &Cgroup,
    group: Option<&Group>,
    channel: &'a Channel,
    kept: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<Forked, Failure> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "hide from the container")?;
    cgroup.join()?;
    if let Some(group) = group {
        group.join()?;
    }
    sys::move_into(init, namespaces).step(|| "enter the container's namespaces")?;
    sys::close_all_but(kept.chain([channel.as_fd()]));
    let forked = sys::clone_process(libc::CLONE_PARENT as u64, None).step(|| "start the process in the container")?;
    if let Forked::Parent(pid) = forked {
        channel.send(&Message::Pid(pid))?;
    }
    Ok(forked)
}

/// In the process itself: become the program.
fn become_process(entry: &Entry, channel: &Channel, streams: Option<Streams>) -> ! {
    match set_up(entry, channel, streams) {
        Ok(()) => run(&entry.process, channel, &Wait::Nothing, None),
        Err(failure) => fail(failure, channel),
    }
}

fn set_up(entry: &Entry, channel: &Channel, streams: Option<Streams>) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step(|| "set the parent death signal")?;
    rustix::process::setsid().step(|| "start a session")?;
    match (entry.terminal, streams) {
        (Some(size), _) => {
            let console = Console::open(&Root::present()?, size, false)?;
            take_terminal(&console.slave)?;
            channel.send(&Message::Terminal(console.master))
        }
        (None, Some(streams)) => take_streams(streams, &Root::present()?),
        (None, None) => Ok(()),
    }
}
