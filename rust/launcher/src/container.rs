//! The container's first process, from clone to exec.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use lamella_core::helper::is_closed;
use rustix::fs::{FileType, Gid, Uid};
use rustix::process::DumpableBehavior;

use crate::cgroup::Cgroup;
use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind, Step};
use crate::hooks;
use crate::namespaces::Namespaces;
use crate::process;
use crate::request::Program;
use crate::rootfs::{Console, Outside, Root, RootfsPlan, empty_input};
use crate::spec::Size;
use crate::sys;

/// A whole container, checked and ready to be made.
#[derive(Debug)]
pub struct Plan {
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its file systems.
    pub rootfs: RootfsPlan,
    /// Its program.
    pub process: process::Plan,
    /// Host name; empty to leave it.
    pub hostname: String,
    /// NIS domain name; empty to leave it.
    pub domainname: String,
    /// The program gets a terminal, of this size if one is given.
    pub terminal: Option<Option<Size>>,
    /// What the program waits for once all is set up.
    pub wait: Wait,
    /// Programs to run on the way, where whoever makes the container runs any.
    pub hooks: Option<Rc<hooks::Plan>>,
}

/// What is waited for before a container's program is run.
#[derive(Debug)]
pub enum Wait {
    /// Nothing.
    Nothing,
    /// `Go` from the monitor.
    Monitor,
    /// `Go` on this datagram socket, with the way to whoever sends it, who is told how the start went.
    Starter(OwnedFd),
}

/// The program's ends of its standard streams; none with a terminal.
#[derive(Debug)]
pub struct Streams {
    /// Standard input; without one the program gets the container's own /dev/null.
    pub input: Option<OwnedFd>,
    /// Standard output.
    pub output: OwnedFd,
    /// Standard error.
    pub error: OwnedFd,
}

impl Streams {
    /// Those that are there.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.input.iter().chain([&self.output, &self.error]).map(AsFd::as_fd)
    }

    /// Let the root of a user namespace own those that are pipes: it hands them on to the program's user, and could not take
    /// what belongs to nobody of its own.
    pub fn give_to(&self, (uid, gid): (u32, u32)) {
        for stream in self.all() {
            let is_pipe = |status: rustix::fs::Stat| FileType::from_raw_mode(status.st_mode) == FileType::Fifo;
            if rustix::fs::fstat(stream).is_ok_and(is_pipe) {
                let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            }
        }
    }
}

/// Become the container's program, in the process that clone made. Says what failed and ends the process otherwise.
pub fn become_container(
    plan: &Plan,
    channel: &Channel,
    cgroup: &Cgroup,
    streams: Option<Streams>,
    outside: Outside,
) -> ! {
    if let Err(failure) = set_up(plan, channel, cgroup, streams, outside) {
        fail(failure, channel);
    }
    run(&plan.process, channel, &plan.wait, plan.hooks.as_deref())
}

/// Say what failed, and end.
pub fn fail(failure: Failure, channel: &Channel) -> ! {
    let code = failure.exit_code.unwrap_or(1);
    let _ = channel.send(&Message::Failed(failure));
    sys::exit_now(code)
}

fn set_up(
    plan: &Plan,
    channel: &Channel,
    cgroup: &Cgroup,
    streams: Option<Streams>,
    outside: Outside,
) -> Result<(), Failure> {
    // Again after the change of identity, which clears it; until then a killed monitor must not leave us behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step(|| "set the parent death signal")?;
    let mut place = None;
    if plan.namespaces.mappings.is_some() {
        // While this is still the machine's root, though without its capabilities: nobody else gets to the bundle.
        place = Some(plan.rootfs.open_place()?);
        expect(channel, |message| matches!(message, Message::Mapped))?;
        let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| "become group 0 of the user namespace")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| "become user 0 of the user namespace")?;
        if plan.namespaces.new_ipc {
            sys::unshare(libc::CLONE_NEWIPC).step(|| "make an IPC namespace")?;
        }
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::setsid().step(|| "start a session")?;
    if plan.namespaces.joins_any() {
        // Processes of the container whose namespaces these are may see this one: until exec it holds descriptors of the
        // host, and a held one waits for long.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "hide from other containers")?;
    }
    plan.namespaces.join_others()?;
    cgroup.join()?;
    if plan.namespaces.new_cgroup {
        sys::unshare(libc::CLONE_NEWCGROUP).step(|| "make a cgroup namespace")?;
    }
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes())
            .step(|| format!("set the host name {:?}", plan.hostname))?;
    }
    if !plan.domainname.is_empty() {
        rustix::system::setdomainname(plan.domainname.as_bytes())
            .step(|| format!("set the domain name {:?}", plan.domainname))?;
    }
    if plan.namespaces.new_network {
        lamella_core::sys::bring_loopback_up().step(|| "set the loopback device up")?;
    }
    let root = plan.rootfs.mount(cgroup, outside, place.as_ref())?;
    root.make_working_folder(&plan.process.folder);
    let streams = match (plan.terminal, streams) {
        (Some(size), _) => {
            let console = Console::open(&root, size, true)?;
            channel.send(&Message::Terminal(console.master))?;
            take_terminal(&console.slave)?;
            None
        }
        (None, streams) => streams,
    };
    if let Some(hooks) = plan.hooks.as_ref().filter(|hooks| hooks.any_at_creation()) {
        channel.send(&Message::Made)?;
        expect(channel, |message| matches!(message, Message::Proceed))?;
        hooks.in_container()?;
    }
    plan.rootfs.enter(&root)?;
    if let Some(streams) = streams {
        take_streams(streams, &root)?;
    }
    Ok(())
}

/// Make a terminal the controlling one and all three standard streams.
pub fn take_terminal(slave: &OwnedFd) -> Result<(), Failure> {
    let step = || "take the terminal as standard streams";
    rustix::process::ioctl_tiocsctty(slave).step(|| "take the terminal as controlling terminal")?;
    rustix::stdio::dup2_stdin(slave).step(step)?;
    rustix::stdio::dup2_stdout(slave).step(step)?;
    rustix::stdio::dup2_stderr(slave).step(step)
}

/// Make pipes the standard streams, in the container whose root is `root`.
pub fn take_streams(streams: Streams, root: &Root) -> Result<(), Failure> {
    let step = || "take the standard streams";
    let input = match streams.input {
        Some(input) => input,
        None => empty_input(root)?,
    };
    rustix::stdio::dup2_stdin(&input).step(step)?;
    rustix::stdio::dup2_stdout(&streams.output).step(step)?;
    rustix::stdio::dup2_stderr(&streams.error).step(step)
}

/// Apply the process and become its program. Says what failed and ends the process otherwise.
pub fn run(process: &process::Plan, channel: &Channel, wait: &Wait, hooks: Option<&hooks::Plan>) -> ! {
    let starter = match wait {
        Wait::Starter(socket) => Some(socket.as_fd()),
        Wait::Nothing | Wait::Monitor => None,
    };
    // Everything that was open for the set-up goes now: a descriptor of a host folder would be a way out
    // (CVE-2024-21626). The owners of those descriptors live in our caller and are never dropped.
    sys::close_all_but([channel.as_fd()].into_iter().chain(starter).chain(process.files()));
    // Whoever starts the program takes the place of whoever set it up.
    let starting = OnceCell::new();
    let mut warn = |text| {
        let _ = channel.send(&Message::Warning(text));
    };
    let mut before_exec = || {
        let mut program = None;
        match wait {
            Wait::Nothing => {}
            Wait::Monitor => {
                channel.send(&Message::Ready)?;
                if let Message::Go(Some(file)) = expect(channel, |message| matches!(message, Message::Go(_)))? {
                    program = Some(Program::from_file(file)?);
                }
            }
            Wait::Starter(socket) => {
                // A first process of a PID namespace heeds no signal that it has no handler for.
                sys::end_on_signals();
                channel.send(&Message::Ready)?;
                let _ = starting.set(await_starter(socket)?);
            }
        }
        if let Some(hooks) = hooks {
            hooks.before_program()?;
        }
        // A filter may forbid it already; then it is seen from whether the process lives.
        let other_side = starting.get().unwrap_or(channel);
        if let Err(failure) = other_side.send(&Message::Running)
            && !process.outlives_parent
            && is_closed(other_side.as_fd())
        {
            // The monitor died before its death was asked for again (process::Plan::prepare).
            return Err(failure);
        }
        Ok(program)
    };
    let failure = process.apply(channel.as_fd(), &mut warn, &mut before_exec);
    fail(failure, starting.get().unwrap_or(channel))
}

/// Wait until the program is to be started. What else arrives at the socket means nothing.
fn await_starter(socket: &OwnedFd) -> Result<Channel, Failure> {
    let socket = Channel::from(socket.try_clone().step(|| "wait for the start")?);
    loop {
        if let Some(Message::Go(Some(way))) = socket.receive()? {
            return Ok(Channel::from(way));
        }
    }
}

fn expect(channel: &Channel, wanted: impl Fn(&Message) -> bool) -> Result<Message, Failure> {
    match channel.receive()? {
        Some(message) if wanted(&message) => Ok(message),
        Some(_) => Err(Failure::new(Kind::Internal, "the monitor spoke out of turn")),
        // The monitor is gone: nobody listens, and nothing may run without it.
        None => sys::exit_now(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Forked;

    /// Run a process that ends well, in a child of this one; give its exit status.
    fn run_true(channel: &Channel) -> Option<i32> {
        let process = r#"{"cwd": "/", "args": ["/bin/true"], "user": {"uid": 0, "gid": 0}}"#;
        let process = serde_json::from_str(process).expect("a process of the spec");
        let plan = process::Plan::new(&process, None, None).expect("checked");
        match sys::fork().expect("started") {
            Forked::Child => run(&plan, channel, &Wait::Nothing, None),
            Forked::Parent(pid) => {
                let pid = rustix::process::Pid::from_raw(pid);
                let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).expect("a child");
                ended.and_then(|(_, status)| status.exit_status())
            }
        }
    }

    #[test]
    fn no_program_runs_whose_monitor_died_while_the_identity_changed() {
        if !rustix::process::geteuid().is_root() {
            return; // nobody else may become a user
        }
        let (monitor, first) = Channel::pair().expect("made");
        assert_eq!(run_true(&first), Some(0));
        drop(monitor);
        assert_eq!(run_true(&first), Some(1));
    }
}
