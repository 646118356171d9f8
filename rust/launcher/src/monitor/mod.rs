//! The monitor: what the launcher is while its container runs.
//!
//! One thread, one epoll. It reaps, pumps the standard streams to clients and to the log, takes orders on the control
//! socket, and writes down how the container ended. Nothing in its loop waits for a client: what one does not take is
//! queued up to a bound, and then its process is not read any more until the client has caught up (lossless
//! back-pressure). It ends when the container is gone and every client has what it is owed.
//!
//! The bundle's `lock` is held (flock) as long as the monitor lives. When it is killed, so is the container's first
//! process (PR_SET_PDEATHSIG), and with it the PID namespace: nothing runs unobserved.

mod clients;
mod control;
mod frames;
mod log;
mod record;
mod stdio;

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind, Step};
use crate::sys;
use crate::time;
use clients::{Client, Gone, HIGH_WATER, LOW_WATER};
use frames::FrameKind;
use log::{Log, Stream};
use record::ExitRecord;
pub use record::forget as forget_exit;
pub use stdio::Stdio;

/// The container's first process in the table of processes.
const INIT: u32 = 0;
const CHUNK: usize = 64 * 1024;
const EVENTS: usize = 32;
/// How long output may stay open after the container's end: a descriptor of it was passed out of the container.
const STRAY_OUTPUT: Duration = Duration::from_secs(1);

/// What the monitor starts with.
#[derive(Debug)]
pub struct Start {
    /// Id of the container's first process.
    pub pid: i32,
    /// When its program was started; None while it is held.
    pub started_at: Option<String>,
    /// The way to its first process while it is held.
    pub channel: Option<Channel>,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Whether its processes all end with the first one.
    pub own_pids: bool,
    /// The bundle's folder.
    pub bundle: OwnedFd,
    /// The control socket.
    pub listener: OwnedFd,
    /// Where output is recorded.
    pub log: Option<String>,
    /// The first attached client, whether it gives input, and whether input ends with it.
    pub client: Option<(OwnedFd, bool, bool)>,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    stdio: Stdio,
    /// Its output is not read, because a client is behind.
    stalled: bool,
    status: Option<WaitStatus>,
}

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Channel,
    Input(u32),
    Output(u32, u8),
    Client(u32),
}

impl Source {
    fn encode(self) -> epoll::EventData {
        let (kind, index, id) = match self {
            Self::Signals => (0, 0, 0),
            Self::Listener => (1, 0, 0),
            Self::Channel => (2, 0, 0),
            Self::Input(process) => (3, 0, process),
            Self::Output(process, index) => (4, index, process),
            Self::Client(client) => (5, 0, client),
        };
        epoll::EventData::new_u64(kind | u64::from(index) << 8 | u64::from(id) << 32)
    }

    fn decode(data: epoll::EventData) -> Option<Self> {
        let data = data.u64();
        let (index, id) = ((data >> 8) as u8, (data >> 32) as u32);
        Some(match data as u8 {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Channel,
            3 => Self::Input(id),
            4 => Self::Output(id, index),
            5 => Self::Client(id),
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
    own_pids: bool,
    channel: Option<Channel>,
    started_at: Option<String>,
    starter: Option<u32>,
    paused: bool,
    log: Option<Log>,
    processes: BTreeMap<u32, Process>,
    clients: BTreeMap<u32, Client>,
    next_client: u32,
    input_ends_with: Option<u32>,
    exit: Option<ExitRecord>,
    /// Everybody was told about the end.
    told: bool,
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
            own_pids: start.own_pids,
            channel: start.channel,
            started_at: start.started_at,
            starter: None,
            paused: false,
            log: start.log.as_deref().map(Log::new),
            processes: BTreeMap::new(),
            clients: BTreeMap::new(),
            next_client: 0,
            input_ends_with: None,
            exit: None,
            told: false,
            buffer: Vec::new(),
        };
        let step = || "watch the container";
        monitor.watch(monitor.signals.as_fd(), Source::Signals, epoll::EventFlags::IN).step(step)?;
        monitor.watch(monitor.listener.as_fd(), Source::Listener, epoll::EventFlags::IN).step(step)?;
        if let Some(channel) = &monitor.channel {
            monitor.watch(channel.as_fd(), Source::Channel, epoll::EventFlags::IN).step(step)?;
        }
        monitor.add_process(INIT, start.pid, start.stdio).step(step)?;
        if let Some((socket, gives_input, input_ends)) = start.client {
            let id = monitor.add_client(socket);
            if let Some(client) = monitor.clients.get_mut(&id) {
                client.attached = Some(INIT);
                client.gives_input = gives_input;
            }
            monitor.input_ends_with = input_ends.then_some(id);
        }
        Ok(monitor)
    }

    fn watch(&self, file: BorrowedFd<'_>, source: Source, events: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, file, source.encode(), events)
    }

    fn add_process(&mut self, id: u32, pid: i32, stdio: Stdio) -> Result<(), Errno> {
        if let Some(input) = &stdio.input {
            // No event is asked for: only that its reader is gone is reported.
            self.watch(input.target.as_fd(), Source::Input(id), epoll::EventFlags::empty())?;
        }
        let process = Process { pid, stdio, stalled: true, status: None };
        self.processes.insert(id, process);
        self.go_on_reading(id);
        Ok(())
    }

    fn add_client(&mut self, socket: OwnedFd) -> u32 {
        let id = self.next_client;
        self.next_client += 1;
        self.clients.insert(id, Client::new(socket));
        self.watch_client(id);
        id
    }

    /// Serve until the container is gone and all is said.
    pub fn run(&mut self) {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        loop {
            if self.exit.is_some() && self.finish() {
                return;
            }
            let waits_for_strays =
                self.exit.is_some() && self.processes.values().any(|it| it.stdio.has_output() && !it.stalled);
            let timeout = waits_for_strays.then(|| Timespec { tv_sec: STRAY_OUTPUT.as_secs() as i64, tv_nsec: 0 });
            let events: Vec<(Source, epoll::EventFlags)> = match epoll::wait(&self.epoll, &mut space, timeout.as_ref())
            {
                Ok((events, _)) => {
                    events.iter().filter_map(|event| Some((Source::decode(event.data)?, event.flags))).collect()
                }
                Err(_) => Vec::new(),
            };
            if events.is_empty() && waits_for_strays {
                self.close_outputs();
            }
            for (source, flags) in events {
                match source {
                    Source::Signals => self.take_signals(),
                    Source::Listener => self.accept(),
                    Source::Channel => self.listen_to_held(),
                    Source::Input(process) => self.feed(process, flags.contains(epoll::EventFlags::ERR)),
                    Source::Output(process, index) => self.pump(process, index),
                    Source::Client(client) => self.serve(client, flags),
                }
            }
        }
    }

    // ---- the container's processes

    fn take_signals(&mut self) {
        for signal in sys::read_signals(self.signals.as_fd()) {
            if signal != libc::SIGCHLD
                && let Some(init) = self.processes.get(&INIT)
                && init.status.is_none()
            {
                // Somebody shuts the machine or the session down: the container is what they mean.
                let _ = sys::kill(init.pid, signal);
            }
        }
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            if let Some((id, process)) = self.processes.iter_mut().find(|(_, process)| process.pid == pid) {
                process.status = Some(status);
                if *id == INIT {
                    self.note_end(status);
                }
            }
        }
    }

    fn note_end(&mut self, status: WaitStatus) {
        if !self.own_pids {
            // Nothing of a container outlives its first process; with a PID namespace the kernel sees to it.
            self.cgroup.signal_all(libc::SIGKILL);
        }
        if self.exit.is_none() {
            let oom_killed = self.cgroup.oom_kills() > 0;
            self.end_with(ExitRecord::new(status, oom_killed));
        }
    }

    fn end_with(&mut self, record: ExitRecord) {
        // Before anybody is told. Where it cannot be written (a full disk), clients still learn it.
        let _ = record.write(self.bundle.as_fd());
        let _ = rustix::fs::unlinkat(&self.bundle, "pid", rustix::fs::AtFlags::empty());
        let document = json!({"exit": &record});
        let waiting: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| client.waiting && client.attached.is_none())
            .map(|(id, _)| *id)
            .collect();
        self.exit = Some(record);
        for id in waiting {
            self.tell(id, |client| {
                client.finished = true;
                client.send_document(&document)
            });
        }
    }

    /// The program of a held container: started, or not.
    fn listen_to_held(&mut self) {
        let Some(channel) = &self.channel else { return };
        let answer = match channel.receive() {
            Ok(Some(Message::Failed(failure))) => {
                let code = failure.exit_code.unwrap_or(1);
                self.end_with(ExitRecord::of_failed_start(code));
                json!({"error": failure})
            }
            Ok(Some(_)) => return,
            // Closed by exec, or by the end of the process, which a signal will tell.
            Ok(None) | Err(_) => {
                let started_at = time::now();
                self.started_at = Some(started_at.clone());
                let pid = self.processes.get(&INIT).map_or(0, |process| process.pid);
                json!({"ok": true, "pid": pid, "started_at": started_at})
            }
        };
        if let Some(channel) = self.channel.take() {
            let _ = epoll::delete(&self.epoll, &channel);
        }
        if let Some(starter) = self.starter.take() {
            self.tell(starter, |client| client.send_document(&answer));
        }
    }

    // ---- output

    /// Read some output and pass it on.
    fn pump(&mut self, id: u32, index: u8) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK, 0);
        let Some(output) = self.processes.get(&id).and_then(|it| it.stdio.outputs.get(usize::from(index))) else {
            return;
        };
        let Some(source) = &output.source else { return };
        let kind = output.kind;
        match rustix::io::read(source, buffer.as_mut_slice()) {
            // EIO is how a terminal's end shows.
            Ok(0) | Err(Errno::IO) => self.close_output(id, index),
            Ok(length) => self.pass_on(id, kind, buffer.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) if self.exit.is_some() && !self.own_pids => self.close_output(id, index),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close_output(id, index),
        }
        self.buffer = buffer;
    }

    fn pass_on(&mut self, id: u32, kind: FrameKind, data: &[u8]) {
        if id == INIT
            && let Some(log) = &mut self.log
        {
            log.record(if kind == FrameKind::Error { Stream::Error } else { Stream::Output }, data);
        }
        let attached: Vec<u32> =
            self.clients.iter().filter(|(_, it)| it.attached == Some(id)).map(|(client, _)| *client).collect();
        for client in attached {
            self.tell(client, |client| client.send(kind, data));
        }
        if self.behind(id, HIGH_WATER) {
            self.stop_reading(id);
        }
    }

    /// Whether a client of a process has more than this to get still.
    fn behind(&self, process: u32, limit: usize) -> bool {
        self.clients.values().any(|client| client.attached == Some(process) && client.queued() > limit)
    }

    fn stop_reading(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.stalled = true;
        // Not merely without events: the end of a stream would be reported again and again.
        for source in process.stdio.outputs.iter().filter_map(|output| output.source.as_ref()) {
            let _ = epoll::delete(&self.epoll, source);
        }
    }

    fn go_on_reading(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if !std::mem::replace(&mut process.stalled, false) {
            return;
        }
        for (index, output) in process.stdio.outputs.iter().enumerate() {
            if let Some(source) = &output.source {
                let data = Source::Output(id, index as u8).encode();
                let _ = epoll::add(&self.epoll, source, data, epoll::EventFlags::IN);
            }
        }
    }

    fn close_output(&mut self, id: u32, index: u8) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(output) = process.stdio.outputs.get_mut(usize::from(index)) else { return };
        if let Some(source) = output.source.take() {
            let _ = epoll::delete(&self.epoll, &source);
            if id == INIT
                && let Some(log) = &mut self.log
            {
                log.finish(if output.kind == FrameKind::Error { Stream::Error } else { Stream::Output });
            }
        }
    }

    fn close_outputs(&mut self) {
        let open: Vec<(u32, usize)> =
            self.processes.iter().map(|(id, process)| (*id, process.stdio.outputs.len())).collect();
        for (id, count) in open {
            (0..count).for_each(|index| self.close_output(id, index as u8));
        }
    }

    // ---- input

    /// Hand input over to a process, as much as it takes.
    fn feed(&mut self, id: u32, reader_is_gone: bool) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(input) = &mut process.stdio.input else { return };
        if reader_is_gone || !input.flush() {
            let _ = epoll::delete(&self.epoll, &input.target);
            process.stdio.input = None;
        } else {
            let events = if input.queued() > 0 { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let _ = epoll::modify(&self.epoll, &input.target, Source::Input(id).encode(), events);
            if input.queued() > stdio::INPUT_LIMIT {
                return;
            }
        }
        let held_back: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| client.held_back && client.attached == Some(id))
            .map(|(client, _)| *client)
            .collect();
        for client in held_back {
            if let Some(client) = self.clients.get_mut(&client) {
                client.held_back = false;
            }
            self.take_frames(client);
        }
    }

    // ---- clients

    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            if clients::may_command(socket.as_fd()) {
                self.add_client(socket);
            }
        }
    }

    fn serve(&mut self, id: u32, flags: epoll::EventFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if flags.contains(epoll::EventFlags::OUT) && client.flush().is_err() {
            return self.drop_client(id);
        }
        if flags.contains(epoll::EventFlags::IN) && client.read().is_err() {
            return self.drop_client(id);
        }
        let lost = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let (attached, silent) = (client.attached, client.silent);
        self.take_frames(id);
        let Some(client) = self.clients.get(&id) else { return };
        // Half closed: it may still listen, if there is something to hear.
        let listens = client.attached.is_some() || client.waiting || client.queued() > 0 || self.starter == Some(id);
        if silent && (lost || !listens) {
            return self.drop_client(id);
        }
        if let Some(process) = attached
            && !self.behind(process, LOW_WATER)
        {
            self.go_on_reading(process);
        }
        self.watch_client(id);
    }

    /// Handle what a client sent, as far as it is whole.
    fn take_frames(&mut self, id: u32) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.held_back {
                break;
            }
            match client.frame() {
                Ok(Some((FrameKind::Control, document))) => control::obey(self, id, &document),
                Ok(Some((_, data))) => self.take_input(id, &data),
                Ok(None) => break,
                Err(frames::Malformed) => return self.drop_client(id),
            }
        }
        self.watch_client(id);
    }

    fn take_input(&mut self, id: u32, data: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let (Some(process), true) = (client.attached, client.gives_input) else { return };
        let Some(input) = self.processes.get_mut(&process).and_then(|it| it.stdio.input.as_mut()) else { return };
        input.push(data);
        if input.queued() > stdio::INPUT_LIMIT {
            client.held_back = true;
        }
        self.feed(process, false);
    }

    /// Watch a client for what matters now.
    fn watch_client(&mut self, id: u32) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let reads = !client.held_back && !client.silent;
        let writes = client.queued() > 0;
        let wanted = (reads, writes);
        if client.watched == Some(wanted) {
            return;
        }
        let mut events = epoll::EventFlags::empty();
        events.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, reads);
        events.set(epoll::EventFlags::OUT, writes);
        let data = Source::Client(id).encode();
        let held_back = client.held_back && !writes;
        if held_back {
            // Its end would be reported at once, and what it sent before must not be lost.
            let _ = epoll::delete(&self.epoll, client.socket());
            client.watched = None;
            return;
        }
        let result = match client.watched {
            Some(_) => epoll::modify(&self.epoll, client.socket(), data, events),
            None => epoll::add(&self.epoll, client.socket(), data, events),
        };
        client.watched = Some(wanted);
        if result.is_err() {
            self.drop_client(id);
        }
    }

    /// Send something to a client; one that is gone is dropped.
    fn tell(&mut self, id: u32, send: impl FnOnce(&mut Client) -> Result<(), Gone>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match send(client) {
            Ok(()) => self.watch_client(id),
            Err(Gone) => self.drop_client(id),
        }
    }

    fn drop_client(&mut self, id: u32) {
        let Some(client) = self.clients.remove(&id) else { return };
        if client.watched.is_some() {
            let _ = epoll::delete(&self.epoll, client.socket());
        }
        if let Some(process) = client.attached {
            if self.input_ends_with == Some(id)
                && let Some(input) = self.processes.get_mut(&process).and_then(|it| it.stdio.input.as_mut())
            {
                input.push(b"");
                self.feed(process, false);
            }
            if !self.behind(process, LOW_WATER) {
                self.go_on_reading(process);
            }
        }
    }

    // ---- the end

    /// Bring the end about, step by step; true when nothing is left to do.
    fn finish(&mut self) -> bool {
        if !self.told {
            if self.processes.values().any(|process| process.stdio.has_output()) {
                return false;
            }
            self.told = true;
            let document = json!({"exit": &self.exit});
            let attached: Vec<u32> =
                self.clients.iter().filter(|(_, client)| client.attached.is_some()).map(|(id, _)| *id).collect();
            for id in attached {
                self.tell(id, |client| {
                    client.finished = true;
                    client.send_document(&document)
                });
            }
            self.cgroup.remove();
        }
        // Whoever asked something in the last moment gets its answer.
        self.accept();
        let done: Vec<u32> =
            self.clients.iter().filter(|(_, client)| client.queued() == 0).map(|(id, _)| *id).collect();
        for id in done {
            self.take_last_words(id);
        }
        self.clients.is_empty()
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

    /// Refuse what needs a running container.
    fn running(&self) -> Result<&Process, Failure> {
        self.processes
            .get(&INIT)
            .filter(|_| self.exit.is_none())
            .ok_or_else(|| Failure::new(Kind::FailedPrecondition, "the container has ended"))
    }
}
