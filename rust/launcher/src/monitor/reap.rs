//! Ends: of processes, and of the container.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use serde_json::json;

use super::record::ExitRecord;
use super::{INIT, Monitor, events};
use crate::{runtime, sys};

impl Monitor {
    pub(super) fn take_signals(&mut self) {
        for signal in sys::read_signals(self.signals.as_fd()) {
            if signal == libc::SIGCHLD {
                continue;
            }
            // Somebody shuts the machine or the session down: the container is what they mean.
            self.run_no_more();
            if let Ok(init) = self.running()
                && let (Some(pid), None) = (init.pid, &init.ended)
            {
                let _ = sys::kill(pid, signal);
            }
        }
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            match self.processes.iter().find(|(_, process)| process.pid == Some(pid)).map(|(id, _)| *id) {
                Some(id) => self.note_end(id, status),
                None if self.processes.values().any(|process| process.helper == Some(pid)) => {}
                None if self.loggers.iter().any(|logger| logger.pid() == pid) => {
                    self.loggers.retain(|logger| logger.pid() != pid);
                }
                // A process whose helper has not spoken yet, or an orphan of a container without PID namespace.
                None if self.processes.values().any(|process| process.pid.is_none()) => {
                    self.unclaimed.insert(pid, status);
                }
                None => {}
            }
        }
    }

    /// A process has ended.
    pub(super) fn note_end(&mut self, id: u32, status: WaitStatus) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let oom_killed = id == INIT && self.cgroup.oom_kills() > 0;
        let record = ExitRecord::new(process.pid, status, oom_killed);
        process.ended = Some(record.clone());
        if id == INIT {
            // A runtime may be about to say that it has started it: that comes first.
            let held = process.starter.is_none() && self.restarts.request.hold;
            if process.helper.is_none() || process.channel.is_none() || held {
                // Whoever hears of the end finds all output in its paths.
                self.drain(id);
                self.end_run(record);
            }
        } else if process.channel.is_none() {
            self.tell_exec_exit(id);
            let name = self.processes.get(&id).and_then(|process| process.name.clone());
            self.drain(id);
            if let Some(name) = name {
                self.tell_waiting_for(&name, &record);
            }
            if self.exit.is_some() {
                self.go_on_reading(id);
            }
        }
        self.drop_feed(id);
        self.drain(id);
        self.settle(id);
    }

    /// The first process has ended, and with it the run.
    pub(super) fn end_run(&mut self, record: ExitRecord) {
        if let Some(keeper) = self.processes.get_mut(&INIT).and_then(|init| init.helper.take()) {
            runtime::dismiss(keeper);
        }
        if !self.own_pids {
            // Nothing of a container outlives its first process; with a PID namespace the kernel sees to it.
            self.cgroup.signal_all(libc::SIGKILL);
        }
        if self.exit.is_none() {
            self.end_with(record);
        }
        // Nobody's reader holds the end up any more.
        for id in self.processes.keys().copied().collect::<Vec<u32>>() {
            self.go_on_reading(id);
        }
    }

    /// Whether something of a container without PID namespace is left, which has become the monitor's child.
    pub(super) fn has_orphans(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if matches!(rustix::process::waitid(WaitId::All, options), Err(Errno::CHILD)) {
            return false;
        }
        // It was killed with the cgroup; where there is none, its orphans are found one generation after the other.
        let is_logger = |child: &i32| self.loggers.iter().any(|logger| logger.pid() == *child);
        let mut found = self.loggers.is_empty();
        for child in sys::children().into_iter().filter(|it| !is_logger(it)) {
            found = true;
            let _ = sys::kill(child, libc::SIGKILL);
        }
        found
    }

    /// Tell those who follow events that an added process has ended, if it has.
    pub(super) fn tell_exec_exit(&self, id: u32) {
        if let Some(process) = self.processes.get(&id)
            && let Some(record) = &process.ended
        {
            self.events.tell([(events::EXIT, self.events.exit(Some(&process.exec_id(id)), process.pid, record))]);
        }
    }

    /// A run has ended: tell it, and see what follows.
    pub(super) fn end_with(&mut self, record: ExitRecord) {
        // First of all, so that whoever knows the exit finds it among the events.
        let pid = self.processes.get(&INIT).and_then(|init| init.pid);
        let exit = (events::EXIT, self.events.exit(None, pid, &record));
        if self.has_untold_kills() {
            self.events.tell([(events::OOM, json!({})), exit]);
        } else {
            self.events.tell([exit]);
        }
        self.conclude(record, None);
    }

    /// The container has ended for good: write it down, then tell who waits. Who is attached hears it after all output.
    pub(super) fn end_for_good(&mut self, record: ExitRecord) {
        // Where it cannot be written (a full disk), clients still learn it.
        let _ = record.write(self.bundle.as_fd());
        self.exit = Some(record);
        if !self.is_plugged_in() {
            self.tell_waiting();
        }
    }

    /// Tell those who wait for the container's end and hear nothing of its output.
    pub(super) fn tell_waiting(&mut self) {
        let document = json!({"exit": &self.exit});
        let waiting: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| client.waiting && client.attached.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.tell(id, |client| {
                client.finished = true;
                client.send_document(&document)
            });
        }
    }

    /// Take leave of an added process that has ended and said all: tell its client how.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(process) = self.processes.get(&id).filter(|_| id != INIT) else { return };
        let (Some(record), None, false) = (&process.ended, &process.channel, process.stdio.has_output()) else {
            return;
        };
        let record = record.clone();
        let document = json!({"exit": &record});
        for client in self.clients_of(id) {
            self.tell(client, |client| {
                client.finished = true;
                client.send_document(&document)
            });
        }
        self.finish_paths(id);
        self.keep_end(id, record);
    }
}
