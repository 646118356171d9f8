//! Added processes that have a name, as containerd's clients give them one: they are described first, started later, and
//! their end is kept until somebody takes leave of them. Their streams are paths, not the connection of whoever asks.
//!
//! What is kept when the monitor goes, with the container, is `execs.json` in the bundle: the ends by name.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::AtFlags;
use serde::Serialize;
use serde_json::{Value, json};

use super::logger;
use super::record::{self, ExitRecord};
use super::redirect::{Awaited, Redirected};
use super::{INIT, Monitor, Process, ended, events};
use crate::error::{Failure, Kind};
use crate::request::Redirections;
use crate::spec::check_text;

/// How long a name may be: containerd's bound of an identifier.
const LONGEST_NAME: usize = 76;

/// Those that do not run: yet, or any more.
#[derive(Debug, Default)]
pub(super) struct Named {
    described: BTreeMap<String, Description>,
    /// Described ones whose logger is not ready yet.
    waiting: BTreeMap<u32, Waiting>,
    ended: BTreeMap<String, Ended>,
}

/// A process that is to be started.
#[derive(Debug)]
struct Description {
    process: Value,
    paths: Redirections,
}

/// A process that is started once its logger is ready, for whose answer a client waits.
#[derive(Debug)]
struct Waiting {
    name: String,
    client: u32,
    streams: Awaited,
}

/// How one ended.
#[derive(Clone, Debug, Serialize)]
struct Ended {
    pid: Option<i32>,
    paths: Redirections,
    terminal: bool,
    exit: ExitRecord,
}

/// What a client says of a process: the container's first one, or one by its name.
pub(super) enum Found {
    /// In the table of processes.
    Process(u32),
    /// Described, not started.
    Described,
    /// Ended, and all its output read.
    Ended,
}

impl Monitor {
    /// Describe a process. AlreadyExists for a name that is taken, FailedPrecondition when the container does not run.
    pub(super) fn describe_process(
        &mut self,
        name: String,
        process: Value,
        paths: Redirections,
    ) -> Result<(), Failure> {
        self.running()?;
        if self.paused {
            return Err(Failure::new(Kind::FailedPrecondition, "cannot exec in a paused state"));
        }
        check_text("exec id", &name)?;
        paths.check()?;
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(Failure::invalid("exec id", format!("has {} bytes, not 1 to {LONGEST_NAME}", name.len())));
        }
        if self.find(&name).is_ok() {
            return Err(Failure::new(Kind::AlreadyExists, format!("id {name}")));
        }
        self.events.tell([(events::EXEC_ADDED, json!({"exec_id": &name}))]);
        self.named.described.insert(name, Description { process, paths });
        Ok(())
    }

    /// Start a process that was described; the client gets its answer when the program runs, or does not.
    pub(super) fn start_named(&mut self, client: u32, name: String) -> Result<(), Failure> {
        match self.find(&name)? {
            Found::Described => {}
            Found::Process(_) => return Err(Failure::new(Kind::FailedPrecondition, "cannot start a running process")),
            Found::Ended => return Err(Failure::new(Kind::FailedPrecondition, "cannot start a stopped process")),
        }
        if self.named.waiting.values().any(|waiting| waiting.name == name) {
            return Err(Failure::new(Kind::FailedPrecondition, "cannot start a process that is being started"));
        }
        let Some(Description { paths, .. }) = self.named.described.get(&name) else { return Ok(()) };
        let (redirected, ready) = Redirected::begin(paths, &self.restarts.request.owner())?;
        let Some(ready) = ready else { return self.start_described(client, name, redirected) };
        let id = self.next_process;
        self.next_process += 1;
        let streams = self.await_logger(id, redirected, ready)?;
        self.named.waiting.insert(id, Waiting { name, client, streams });
        Ok(())
    }

    /// A logger is ready: start the process; that of the next run is for [`Monitor::do_what_is_due`].
    pub(super) fn logger_is_ready(&mut self, id: u32) {
        if id == INIT {
            return self.run_logger_is_ready();
        }
        let Some(Waiting { name, client, streams }) = self.named.waiting.remove(&id) else { return };
        if let Err(failure) = self.start_described(client, name, streams.into_ready()) {
            self.tell(client, |client| client.send_document(&json!({"error": failure})));
        }
    }

    /// Until the next logger has to be ready.
    pub(super) fn loggers_timeout(&self) -> Option<Duration> {
        let next = self.named.waiting.values().map(|waiting| waiting.streams.until).min();
        next.map(|moment| moment.saturating_duration_since(Instant::now()))
    }

    /// Give up processes whose loggers were not ready in time.
    pub(super) fn give_up_late_loggers(&mut self, now: Instant) {
        let is_late = |(_, waiting): &(&u32, &Waiting)| waiting.streams.until <= now;
        while let Some(id) = self.named.waiting.iter().find(is_late).map(|(id, _)| *id) {
            let Some(waiting) = self.named.waiting.remove(&id) else { return };
            self.give_up_logger(&waiting.streams);
            self.tell(waiting.client, |client| client.send_document(&json!({"error": logger::late()})));
        }
    }

    /// Start a process that was described, with its paths; as [`Self::start_named`].
    fn start_described(&mut self, client: u32, name: String, redirected: Redirected) -> Result<(), Failure> {
        let Some(Description { process, paths }) = self.named.described.get(&name) else {
            return Err(Failure::new(Kind::NotFound, format!("process does not exist {name}")));
        };
        let (process, paths) = (process.clone(), paths.clone());
        let id = self.begin_exec(client, process, !paths.stdin.is_empty(), Some(name.clone()))?;
        self.named.described.remove(&name);
        if let Some(process) = self.processes.get_mut(&id) {
            process.paths = paths;
        }
        self.redirect(id, redirected);
        Ok(())
    }

    /// Where a process is that has a name. NotFound.
    pub(super) fn find(&self, name: &str) -> Result<Found, Failure> {
        let named = |(_, process): &(&u32, &Process)| process.name.as_deref() == Some(name);
        if let Some((id, _)) = self.processes.iter().find(named) {
            return Ok(Found::Process(*id));
        }
        if self.named.described.contains_key(name) {
            return Ok(Found::Described);
        }
        if self.named.ended.contains_key(name) {
            return Ok(Found::Ended);
        }
        Err(Failure::new(Kind::NotFound, format!("process does not exist {name}")))
    }

    /// The process that an operation is about, which runs. NotFound for one that has ended.
    pub(super) fn find_running(&self, name: Option<&str>, client: u32) -> Result<u32, Failure> {
        let Some(name) = name else {
            return Ok(self.clients.get(&client).and_then(|client| client.attached).unwrap_or(INIT));
        };
        match self.find(name)? {
            Found::Process(id) => Ok(id),
            Found::Described => Err(Failure::new(Kind::FailedPrecondition, "process not created")),
            Found::Ended => Err(Failure::new(Kind::NotFound, "process already finished")),
        }
    }

    /// Take a process out of the table; the end of one with a name is kept.
    pub(super) fn keep_end(&mut self, id: u32, exit: ExitRecord) {
        let Some(Process { name: Some(name), pid, stdio, paths, .. }) = self.processes.remove(&id) else { return };
        let ended = Ended { pid, paths, terminal: stdio.terminal.is_some(), exit };
        self.named.ended.insert(name, ended);
    }

    /// How a process with a name is.
    pub(super) fn state_of(&self, name: &str) -> Result<Value, Failure> {
        Ok(match self.find(name)? {
            Found::Described => {
                let described = self.named.described.get(name);
                let terminal = described.is_some_and(|it| it.process["terminal"] == true);
                json!({"ok": true, "status": "created", "stdio": described.map(|it| &it.paths), "terminal": terminal})
            }
            Found::Process(id) => {
                let process = self.processes.get(&id);
                let exit = process.and_then(|it| it.ended.as_ref());
                let status = match exit {
                    Some(_) => "stopped",
                    None if process.is_some_and(|it| it.channel.is_some()) => "created",
                    None if self.paused => "paused",
                    None => "running",
                };
                json!({"ok": true, "status": status, "pid": process.and_then(|it| it.pid), "exit": exit,
                    "stdio": process.map(|it| &it.paths),
                    "terminal": process.is_some_and(|it| it.stdio.terminal.is_some())})
            }
            Found::Ended => {
                let ended = self.named.ended.get(name);
                json!({"ok": true, "status": "stopped", "pid": ended.and_then(|it| it.pid),
                    "exit": ended.map(|it| &it.exit), "stdio": ended.map(|it| &it.paths),
                    "terminal": ended.is_some_and(|it| it.terminal)})
            }
        })
    }

    /// The ids, as the host sees them, of the named processes that run.
    pub(super) fn named_pids(&self) -> BTreeMap<&str, i32> {
        let running = self.processes.values().filter(|process| process.ended.is_none());
        running.filter_map(|process| Some((process.name.as_deref()?, process.pid?))).collect()
    }

    /// How a process ended, or None while it runs: the client is told then.
    pub(super) fn wait_for(&mut self, client: u32, name: &str) -> Result<Option<Value>, Failure> {
        match self.find(name)? {
            Found::Ended => return Ok(Some(json!({"exit": self.named.ended.get(name).map(|it| &it.exit)}))),
            Found::Process(id) => {
                let process = self.processes.get(&id);
                if let Some(exit) = process.filter(|it| it.channel.is_none()).and_then(|it| it.ended.as_ref()) {
                    return Ok(Some(json!({"exit": exit})));
                }
            }
            Found::Described => {}
        }
        if let Some(client) = self.clients.get_mut(&client) {
            client.waiting_for = Some(name.to_owned());
        }
        Ok(None)
    }

    /// Tell who waits for the end of a named process.
    pub(super) fn tell_waiting_for(&mut self, name: &str, exit: &ExitRecord) {
        let document = json!({"exit": exit});
        let waits = |(_, client): &(&u32, &super::Client)| client.waiting_for.as_deref() == Some(name);
        let waiting: Vec<u32> = self.clients.iter().filter(waits).map(|(id, _)| *id).collect();
        for id in waiting {
            self.tell(id, |client| {
                client.finished = true;
                client.send_document(&document)
            });
        }
    }

    /// Forget a process that does not run, and how it ended; what nobody has taken of its output is dropped.
    pub(super) fn forget_named(&mut self, name: &str) -> Result<Value, Failure> {
        match self.find(name)? {
            Found::Process(id) => {
                let process = self.processes.get(&id).filter(|it| it.channel.is_none());
                let Some(exit) = process.and_then(|it| it.ended.clone()) else {
                    return Err(Failure::new(Kind::FailedPrecondition, "cannot delete a running process"));
                };
                self.drop_paths(id);
                self.keep_end(id, exit);
            }
            Found::Described => {
                self.named.described.remove(name);
                return Ok(json!({"ok": true}));
            }
            Found::Ended => {}
        }
        let ended = self.named.ended.remove(name).ok_or_else(ended)?;
        if self.told {
            self.leave_named();
        }
        Ok(json!({"ok": true, "pid": ended.pid, "exit": ended.exit}))
    }

    /// What was described between two runs, or before the end, is for no run any more.
    pub(super) fn forget_described(&mut self) {
        self.named.described.clear();
        for waiting in std::mem::take(&mut self.named.waiting).into_values() {
            self.tell(waiting.client, |client| client.send_document(&json!({"error": ended()})));
        }
    }

    /// Leave behind how named processes ended of which nobody has taken leave: the container has ended.
    pub(super) fn leave_named(&self) {
        if self.named.ended.is_empty() {
            let _ = rustix::fs::unlinkat(&self.bundle, record::EXECS, AtFlags::empty());
        } else {
            let _ = record::write(self.bundle.as_fd(), record::EXECS, &self.named.ended);
        }
    }
}
