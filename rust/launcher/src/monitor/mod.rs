//! The monitor: what the launcher is while its container runs.
//!
//! One thread, one epoll. It reaps ([`reap`]), pumps the standard streams to clients and to the log ([`pump`]), takes
//! orders on the control socket ([`serve`], [`control`]), adds processes ([`exec`]), and writes down how the container
//! ended ([`record`]). Nothing in its loop waits for a client: what one does not take is queued up to a bound, and then
//! its process is not read any more until the client has caught up (lossless back-pressure); but what the container has
//! left in its pipes at its end is read at once, so that its log is complete. It ends when the container is gone and
//! every client has what it is owed.
//!
//! The container's lock is held (flock) as long as the monitor lives. When it is killed, so is the container's first
//! process (PR_SET_PDEATHSIG), and with it the PID namespace: nothing runs unobserved.

mod clients;
mod control;
mod events;
mod exec;
mod frames;
mod hooks;
mod log;
mod log_file;
mod logger;
mod memory;
mod named;
mod pump;
mod reap;
mod record;
mod redirect;
mod restart;
mod serve;
mod stdio;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::WaitStatus;
use serde_json::json;

use crate::cgroup::{Cgroup, Group};
use crate::channel::Channel;
use crate::error::{Failure, Kind, Step};
use crate::hooks::Plan as Hooks;
use crate::network::{self, Network};
use crate::process::seccomp::Filter;
use crate::request::{Redirections, Request};
use crate::runtime::Runtime;
use crate::spec::{Personality, Size};
use crate::sys;
use clients::Client;
use events::Events;
use hooks::RunningHooks;
pub use hooks::{expect_end, run_at_end};
use log::Log;
use log_file::Limits;
use logger::Logger;
pub use logger::Owner;
use memory::Memory;
use named::Named;
use record::ExitRecord;
pub use record::forget as forget_exit;
pub use redirect::Redirected;
use redirect::{Feed, Sink};
use restart::Restarts;
pub use stdio::Stdio;

/// The container's first process in the table of processes.
const INIT: u32 = 0;
const EVENTS: usize = 32;
/// How long a terminal may stay open after its process's end: another one holds it, or its last output is on its way.
const STRAY_OUTPUT: Duration = Duration::from_secs(1);

/// What the monitor starts with.
#[derive(Debug)]
pub struct Start {
    /// Id of the container's first process.
    pub pid: i32,
    /// The process that has had another runtime make the container.
    pub keeper: Option<i32>,
    /// When its program was started; None while it is held.
    pub started_at: Option<String>,
    /// The way to its first process while it is held.
    pub channel: Option<Channel>,
    /// Its standard streams.
    pub stdio: Stdio,
    /// The paths that they lead to.
    pub redirected: Redirected,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The network to let go of at its end, if it is plugged into one by then.
    pub network: Option<Network>,
    /// Whether its processes all end with the first one.
    pub own_pids: bool,
    /// The bundle's folder.
    pub bundle: OwnedFd,
    /// The control socket.
    pub listener: OwnedFd,
    /// The first attached client.
    pub client: Option<OwnedFd>,
    /// The container's lock.
    pub lock: BorrowedFd<'static>,
    /// What further processes get from the container.
    pub shared: Shared,
    /// What the launcher was asked for.
    pub request: Request,
}

/// What every process of the container has in common.
#[derive(Debug, Default)]
pub struct Shared {
    /// Namespaces to enter, as `CLONE_NEW*` flags.
    pub namespaces: i32,
    /// System call filter.
    pub filter: Option<Filter>,
    /// The ids of the host that are root in a user namespace of the container's own.
    pub outer_root: Option<(u32, u32)>,
    /// Execution domain.
    pub personality: Option<Personality>,
    /// The other runtime that makes it, if one does.
    pub runtime: Option<Rc<Runtime>>,
    /// Programs to run at points of its life, where we make it and there are any.
    pub hooks: Option<Rc<Hooks>>,
}

#[derive(Debug, Default)]
struct Process {
    /// None until the helper that makes it has said it.
    pid: Option<i32>,
    /// The helper that makes it; of the first process the one that has a runtime make it, as long as the run lasts.
    helper: Option<i32>,
    /// The way to it until its program runs.
    channel: Option<Channel>,
    /// It said that the next thing is exec.
    running: bool,
    /// When its program was started, where the monitor's loop has seen that.
    started_at: Option<String>,
    /// Who asked for the start and is owed an answer.
    starter: Option<u32>,
    warnings: Vec<String>,
    oom_score_adjustment: Option<i32>,
    stdio: Stdio,
    /// Its output is not read: it is not started yet, or a client is behind.
    stalled: bool,
    ended: Option<ExitRecord>,
    group: Option<Group>,
    /// A signal that came before it was there to get it.
    early_signal: Option<i32>,
    /// What it is called by whoever had it added, for whom its end is kept.
    name: Option<String>,
    /// Where its streams lead.
    paths: Redirections,
}

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Channel(u32),
    Input(u32),
    Output(u32, u8),
    Client(u32),
    Memory,
    Feed(u32),
    Sink(u32, u8),
    Hooks,
    Logger(u32),
}

impl Source {
    fn encode(self) -> epoll::EventData {
        let (kind, index, id) = match self {
            Self::Signals => (0, 0, 0),
            Self::Listener => (1, 0, 0),
            Self::Channel(process) => (2, 0, process),
            Self::Input(process) => (3, 0, process),
            Self::Output(process, index) => (4, index, process),
            Self::Client(client) => (5, 0, client),
            Self::Memory => (6, 0, 0),
            Self::Feed(process) => (7, 0, process),
            Self::Sink(process, index) => (8, index, process),
            Self::Hooks => (9, 0, 0),
            Self::Logger(id) => (10, 0, id),
        };
        epoll::EventData::new_u64(kind | u64::from(index) << 8 | u64::from(id) << 32)
    }

    fn decode(data: epoll::EventData) -> Option<Self> {
        let data = data.u64();
        let (index, id) = ((data >> 8) as u8, (data >> 32) as u32);
        Some(match data as u8 {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Channel(id),
            3 => Self::Input(id),
            4 => Self::Output(id, index),
            5 => Self::Client(id),
            6 => Self::Memory,
            7 => Self::Feed(id),
            8 => Self::Sink(id, index),
            9 => Self::Hooks,
            10 => Self::Logger(id),
            _ => return None,
        })
    }
}

/// The monitor of one container.
#[derive(Debug)]
pub struct Monitor {
    epoll: OwnedFd,
    signals: OwnedFd,
    listener: OwnedFd,
    bundle: OwnedFd,
    cgroup: Cgroup,
    /// None once it is let go of, too.
    network: Option<Network>,
    own_pids: bool,
    lock: BorrowedFd<'static>,
    shared: Shared,
    started_at: Option<String>,
    paused: bool,
    /// The clients without whom it would not be paused, or the next run would begin.
    holders: BTreeSet<u32>,
    log: Option<Log>,
    events: Events,
    memory: Memory,
    processes: BTreeMap<u32, Process>,
    next_process: u32,
    named: Named,
    /// Paths that processes read.
    feeds: BTreeMap<u32, Feed>,
    /// Paths that processes write to, or have written to while somebody has not taken all: by process and stream.
    sinks: BTreeMap<(u32, u8), Sink>,
    /// Programs that take what is written, until they have ended.
    loggers: Vec<Logger>,
    /// When those are killed that have not ended by then.
    loggers_end: Option<Instant>,
    /// Children that ended before the monitor learned what they are.
    unclaimed: BTreeMap<i32, WaitStatus>,
    clients: BTreeMap<u32, Client>,
    next_client: u32,
    input_ends_with: Option<u32>,
    /// What a client has given the container's terminal.
    terminal_size: Option<Size>,
    /// How the run ended; there may be another one ([`Monitor::will_run_again`]).
    exit: Option<ExitRecord>,
    restarts: Restarts,
    /// Hooks that run.
    hooks: Option<RunningHooks>,
    /// Everybody was told about the end.
    told: bool,
    /// What was read last; kept for the next read.
    buffer: Vec<u8>,
}

impl Monitor {
    /// Take over a container whose first process was made. Signals must be blocked already.
    pub fn new(start: Start) -> Result<Self, Failure> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).step(|| "make the monitor's epoll")?;
        let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .step(|| "make the monitor's signal descriptor")?;
        let mut monitor = Self {
            epoll,
            signals,
            listener: start.listener,
            bundle: start.bundle,
            cgroup: start.cgroup,
            network: start.network,
            own_pids: start.own_pids,
            lock: start.lock,
            shared: start.shared,
            started_at: start.started_at,
            paused: false,
            holders: BTreeSet::new(),
            log: start
                .request
                .log
                .as_ref()
                .map(|log| Log::new(&log.path, Limits { size: log.max_size, files: log.max_file })),
            events: Events(start.request.events.clone()),
            memory: Memory::default(),
            processes: BTreeMap::new(),
            next_process: INIT + 1,
            named: Named::default(),
            feeds: BTreeMap::new(),
            sinks: BTreeMap::new(),
            loggers: Vec::new(),
            loggers_end: None,
            unclaimed: BTreeMap::new(),
            clients: BTreeMap::new(),
            next_client: 0,
            input_ends_with: None,
            terminal_size: None,
            exit: None,
            restarts: Restarts::new(start.request),
            hooks: None,
            told: false,
            buffer: Vec::new(),
        };
        let step = || "watch the container";
        monitor.watch(monitor.signals.as_fd(), Source::Signals, epoll::EventFlags::IN).step(step)?;
        monitor.watch(monitor.listener.as_fd(), Source::Listener, epoll::EventFlags::IN).step(step)?;
        monitor.redirect(INIT, start.redirected);
        let held = start.channel.is_some();
        let process = Process {
            pid: Some(start.pid),
            helper: start.keeper,
            channel: start.channel,
            stdio: start.stdio,
            ..Process::default()
        };
        monitor.add_process(INIT, process).step(step)?;
        if !held {
            monitor.go_on_reading(INIT);
            monitor.watch_feed(INIT);
        }
        if let Some(socket) = start.client {
            let id = monitor.add_client(socket);
            let (stdin, stdin_once) = (monitor.restarts.request.stdin, monitor.restarts.request.stdin_once);
            if let Some(client) = monitor.clients.get_mut(&id) {
                client.attached = Some(INIT);
                client.gives_input = stdin;
            }
            monitor.input_ends_with = stdin_once.then_some(id);
        }
        Ok(monitor)
    }

    /// Tell those who follow events that the container was made, and, unless it is held, started.
    #[must_use]
    pub fn announce(self) -> Self {
        let pid = self.processes.get(&INIT).and_then(|init| init.pid);
        let request = &self.restarts.request;
        let create = (events::CREATE, json!({"bundle": &request.bundle, "pid": pid, "io": &request.stdio}));
        match self.started_at {
            Some(_) => self.events.tell([create, (events::START, json!({"pid": pid}))]),
            None => self.events.tell([create]),
        }
        self
    }

    fn watch(&self, file: BorrowedFd<'_>, source: Source, events: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, file, source.encode(), events)
    }

    /// Take a process into the table; its output is not read before `go_on_reading`.
    fn add_process(&mut self, id: u32, mut process: Process) -> Result<(), Errno> {
        if let Some(channel) = &process.channel {
            self.watch(channel.as_fd(), Source::Channel(id), epoll::EventFlags::IN)?;
        }
        if let Some(input) = &process.stdio.input {
            // No event is asked for: only that its reader is gone is reported.
            self.watch(input.target.as_fd(), Source::Input(id), epoll::EventFlags::empty())?;
        }
        process.stalled = true;
        self.processes.insert(id, process);
        Ok(())
    }

    /// Serve until the container is gone and all is said.
    pub fn run(&mut self) {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        self.watch_memory();
        loop {
            self.look_at_memory();
            if let Some(log) = &mut self.log {
                log.record_unfinished();
            }
            self.do_what_is_due();
            if self.exit.is_some() && self.finish() {
                return;
            }
            let stray = self.processes.values().any(Process::has_stray_output);
            let log = self.log.as_ref().and_then(Log::timeout);
            let timeouts = [
                stray.then_some(STRAY_OUTPUT),
                self.memory.timeout(),
                log,
                self.restarts.timeout(self.is_held_back()),
                self.loggers_end.map(|moment| moment.saturating_duration_since(Instant::now())),
                self.loggers_timeout(),
            ];
            let timeout = timeouts.into_iter().flatten().min();
            let began = Instant::now();
            let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
            let events: Vec<(Source, epoll::EventFlags)> = match epoll::wait(&self.epoll, &mut space, timeout.as_ref())
            {
                Ok((events, _)) => {
                    events.iter().filter_map(|event| Some((Source::decode(event.data)?, event.flags))).collect()
                }
                Err(_) => continue,
            };
            if events.is_empty() && began.elapsed() >= STRAY_OUTPUT {
                self.close_stray_outputs();
            }
            for (source, flags) in events {
                match source {
                    Source::Signals => self.take_signals(),
                    Source::Listener => self.accept(),
                    Source::Channel(process) => self.listen(process),
                    Source::Input(process) => self.feed(process, flags.contains(epoll::EventFlags::ERR)),
                    Source::Output(process, index) => self.pump(process, index),
                    Source::Client(client) => self.serve(client, flags),
                    Source::Memory => self.memory_ran_out(),
                    Source::Feed(process) => self.take_fed(process),
                    Source::Sink(process, index) => self.take_up((process, index)),
                    Source::Hooks => self.hear_hooks(),
                    Source::Logger(id) => self.logger_is_ready(id),
                }
            }
        }
    }

    /// Whether there is a network to let go of, of which nobody is told the end before.
    fn is_plugged_in(&self) -> bool {
        self.network.as_ref().is_some_and(Network::is_recorded)
    }

    /// Bring the end about, step by step; true when nothing is left to do.
    fn finish(&mut self) -> bool {
        if !self.told {
            if self.hooks.is_some() {
                return false;
            }
            let busy = |(id, process): (&u32, &Process)| *id != INIT || process.stdio.has_output();
            if self.processes.iter().any(busy) || !self.own_pids && self.has_orphans() {
                return false;
            }
            if self.will_run_again() {
                self.await_next_run();
                return false;
            }
            self.told = true;
            self.finish_paths(INIT);
            let document = json!({"exit": &self.exit});
            if let Some(network) = self.network.take() {
                // Before anybody is told, so that whoever knows of the end finds its ports free. A failure is left to who
                // looks next: the record is still there then.
                let _ = network.release(false, network::PATIENCE, &mut || Ok(()));
                self.tell_waiting();
            }
            for id in self.clients_of(INIT) {
                self.tell(id, |client| {
                    client.finished = true;
                    client.send_document(&document)
                });
            }
            // Those who were told need not wait for a disk.
            if let (Some(record), Some(path)) = (&self.exit, &self.restarts.request.exit_record) {
                let _ = record.write_copy(path);
            }
            self.leave_named();
            self.clear_behind_run();
            self.run_hooks_at_end();
        }
        // Whoever asked something in the last moment gets its answer.
        self.accept();
        let done: Vec<u32> =
            self.clients.iter().filter(|(_, client)| client.queued() == 0).map(|(id, _)| *id).collect();
        for id in done {
            self.take_last_words(id);
        }
        if self.hooks.is_none() {
            // After the cgroups, and the last file: whoever removes the bundle, which says where they are, waits for this.
            let _ = rustix::fs::unlinkat(&self.bundle, "pid", rustix::fs::AtFlags::empty());
        }
        self.sinks.is_empty() && self.await_loggers() && self.clients.is_empty() && self.hooks.is_none()
    }

    /// Whether no logger is left; they have a while from the moment on at which their streams have ended.
    fn await_loggers(&mut self) -> bool {
        if !self.loggers.is_empty() {
            let end = *self.loggers_end.get_or_insert_with(|| Instant::now() + logger::PATIENCE);
            if end <= Instant::now() {
                for logger in self.loggers.drain(..) {
                    logger.kill();
                }
            }
        }
        if self.loggers.is_empty() {
            self.loggers_end = None;
        }
        self.loggers.is_empty()
    }

    /// Remove what an ended run leaves on the machine. Harmless twice.
    fn clear_behind_run(&mut self) {
        if let Some(runtime) = &self.shared.runtime {
            // What it still keeps the next run, or the removal of the bundle, takes away.
            if self.will_run_again() || !self.restarts.request.deleted_later {
                let _ = runtime.delete();
            }
            runtime.remove_cgroup();
        }
        self.cgroup.remove();
    }

    fn take_last_words(&mut self, id: u32) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.finished
            && client.read().is_ok()
        {
            self.take_frames(id);
        }
        if self.clients.get(&id).is_some_and(|client| client.queued() == 0) {
            self.drop_client(id);
        }
    }

    /// The first process; refuses what needs a container that has not ended.
    fn running(&self) -> Result<&Process, Failure> {
        let absent = || if self.will_run_again() { restart::between_runs() } else { ended() };
        self.processes.get(&INIT).filter(|_| self.exit.is_none()).ok_or_else(absent)
    }

    /// Whether the first process has ended or is about to, which the kernel knows before the monitor can reap it.
    fn has_ended(&self) -> bool {
        let Ok(init) = self.running() else { return true };
        init.ended.is_some() || init.pid.is_some_and(sys::is_exiting)
    }
}

/// What those are told who come too late. NotFound, as for one who finds no monitor any more.
fn ended() -> Failure {
    Failure::new(Kind::NotFound, "the container has ended")
}

impl Process {
    /// How events name it.
    fn exec_id(&self, id: u32) -> String {
        self.name.clone().unwrap_or_else(|| events::exec_id(id))
    }

    /// It has ended, and something of its output is still open although nothing is to be read from it.
    fn has_stray_output(&self) -> bool {
        self.ended.is_some() && !self.stalled && self.stdio.has_output()
    }
}
