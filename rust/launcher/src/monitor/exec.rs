//! Starting: of a held container's program, and of processes that an exec adds.

use std::os::fd::AsFd;

use rustix::event::epoll;
use serde_json::{Value, json};

use super::record::ExitRecord;
use super::{INIT, Monitor, Process, Shared, Stdio, ended, events};
use crate::cgroup::Group;
use crate::channel::{Channel, Message};
use crate::container::Streams;
use crate::enter::{Entry, enter};
use crate::error::{Failure, Kind};
use crate::hooks::Point;
use crate::process::adjust_oom_score;
use crate::rootfs;
use crate::runtime::Addition;
use crate::spec;
use crate::sys;
use crate::time;

impl Monitor {
    /// Add a process to the container; the client's connection becomes its stream. The answer comes when its program
    /// runs, or does not.
    pub(super) fn exec(&mut self, client: u32, process: Value, stdin: bool) -> Result<(), Failure> {
        if self.clients.get(&client).is_none_or(|client| client.attached.is_some()) {
            return Err(Failure::new(Kind::FailedPrecondition, "this connection is a stream already"));
        }
        let id = self.begin_exec(client, process, stdin, None)?;
        if let Some(client) = self.clients.get_mut(&client) {
            client.attached = Some(id);
            client.gives_input = stdin;
        }
        Ok(())
    }

    /// Begin to add a process. Returns its number in the table.
    pub(super) fn begin_exec(
        &mut self,
        client: u32,
        process: Value,
        stdin: bool,
        called: Option<String>,
    ) -> Result<u32, Failure> {
        let init = self.running()?;
        let refuse = |why: &str| Err(Failure::new(Kind::FailedPrecondition, why));
        let (Some(pid), None) = (init.pid, &init.channel) else {
            return refuse("the container has not been started");
        };
        if self.paused {
            return refuse("the container is paused");
        }
        let id = self.next_process;
        let name = events::exec_id(id);
        let (ours, theirs) = Channel::pair()?;
        let (mut warnings, mut oom_score_adjustment) = (Vec::new(), None);
        let (helper, stdio, group) = if let Some(runtime) = self.shared.runtime.clone() {
            let addition = Addition::new(process)?;
            let (stdio, streams) = Stdio::for_process(addition.has_terminal(), stdin)?;
            self.give_to_root(streams.as_ref());
            let group = self.cgroup.group(&name);
            let group_name = group.as_ref().and_then(Group::name_for_runtime);
            (runtime.add(&addition, &name, group_name.as_deref(), &theirs, streams), stdio, group)
        } else {
            let process = self.prepare(process, &mut warnings)?;
            oom_score_adjustment = process.process.oom_score_adjustment;
            let (stdio, streams) = Stdio::for_process(process.terminal.is_some(), stdin)?;
            self.give_to_root(streams.as_ref());
            let group = self.cgroup.group(&name);
            let entered = enter(pid, self.shared.namespaces, &self.cgroup, group.as_ref(), &process, &theirs, streams);
            (entered, stdio, group)
        };
        let helper = helper.map_err(|failure| if self.has_ended() { ended() } else { failure })?;
        self.next_process += 1;
        let added = self.add_process(
            id,
            Process {
                helper: Some(helper),
                channel: Some(ours),
                starter: Some(client),
                warnings,
                oom_score_adjustment,
                stdio,
                group,
                name: called,
                ..Process::default()
            },
        );
        added.map_err(|error| Failure::system("watch the new process", &error.into()))?;
        Ok(id)
    }

    /// Let the root of the container's user namespace own a new process's streams.
    fn give_to_root(&self, streams: Option<&Streams>) {
        if let (Some(streams), Some(root)) = (streams, self.shared.outer_root) {
            streams.give_to(root);
        }
    }

    /// Check a process that our own launcher is to add.
    fn prepare(&self, process: Value, warnings: &mut Vec<String>) -> Result<Entry, Failure> {
        let process: spec::Process = serde_json::from_value(process).map_err(|error| {
            let message = format!("control operation: process: {error}");
            if error.to_string().starts_with("unknown field") {
                Failure::unsupported(message)
            } else {
                Failure::new(Kind::InvalidArgument, message)
            }
        })?;
        let Shared { filter, personality, namespaces, .. } = &self.shared;
        Entry::new(&process, filter.clone(), personality.as_ref(), *namespaces, "the launcher", warnings)
    }

    /// Hear what a process that is being started has to say.
    pub(super) fn listen(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(channel) = &process.channel else { return };
        match channel.receive() {
            Ok(Some(Message::Pid(pid))) => self.learn_pid(id, pid),
            Ok(Some(Message::Terminal(master))) => match Stdio::of_terminal(master) {
                Ok(stdio) => self.take_terminal(id, stdio),
                Err(failure) => self.start_failed(id, failure),
            },
            Ok(Some(Message::Warning(text))) => process.warnings.push(text),
            Ok(Some(Message::Running)) => process.running = true,
            Ok(Some(Message::Failed(failure))) => self.start_failed(id, failure),
            Ok(Some(Message::Made)) => self.run_hooks_at_creation(),
            Ok(Some(Message::Proceed | Message::Ready | Message::Mapped | Message::Go(_))) => {}
            // Closed by exec, or by the end of the process.
            Ok(None) => self.started(id),
            Err(failure) => self.start_failed(id, failure),
        }
    }

    fn learn_pid(&mut self, id: u32, pid: i32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.pid = Some(pid);
        if let (Some(runtime), INIT) = (&self.shared.runtime, id) {
            self.cgroup = runtime.cgroup();
            self.watch_memory();
        }
        let Some(process) = self.processes.get_mut(&id) else { return };
        if let (Some(runtime), Some(group)) = (&self.shared.runtime, &process.group)
            && !runtime.makes_groups()
        {
            group.take_in(pid);
        }
        process.warnings.extend(adjust_oom_score(pid, process.oom_score_adjustment));
        let ended = self.unclaimed.remove(&pid);
        if !self.processes.values().any(|process| process.pid.is_none()) {
            self.unclaimed.clear();
        }
        if let Some(status) = ended {
            self.note_end(id, status);
        }
    }

    fn take_terminal(&mut self, id: u32, stdio: Stdio) {
        if let Some(input) = &stdio.input {
            let data = super::Source::Input(id).encode();
            let _ = epoll::add(&self.epoll, input.target.as_fd(), data, epoll::EventFlags::empty());
        }
        if let (Some(terminal), Some(size)) = (&stdio.terminal, self.terminal_size)
            && id == INIT
        {
            let _ = rootfs::set_terminal_size(terminal, size); // as the last run's was
        }
        if let Some(process) = self.processes.get_mut(&id) {
            process.stdio = stdio;
        }
    }

    fn started(&mut self, id: u32) {
        let Some(process) = self.processes.get(&id) else { return };
        if !process.running && (process.ended.is_some() || process.pid.is_none()) {
            let failure = Failure::new(Kind::FailedPrecondition, "the process was killed before its program started");
            return self.start_failed(id, failure);
        }
        let started_at = time::now();
        if let Some(process) = self.processes.get_mut(&id) {
            process.started_at = Some(started_at.clone());
        }
        let Some(process) = self.processes.get(&id) else { return };
        if id == INIT {
            self.started_at = Some(started_at);
            // A held one that nobody has started was killed.
            if self.restarts.is_further_run() {
                self.announce_further_run();
            } else if process.starter.is_some() {
                self.events.tell([(events::START, json!({"pid": process.pid}))]);
            }
        } else {
            let exec_id = process.exec_id(id);
            let started = (events::EXEC_STARTED, json!({"exec_id": &exec_id, "pid": process.pid}));
            if process.name.is_some() {
                self.events.tell([started]); // it was added before
            } else {
                self.events.tell([(events::EXEC_ADDED, json!({"exec_id": &exec_id})), started]);
            }
            self.tell_exec_exit(id);
        }
        let Some(process) = self.processes.get(&id) else { return };
        let (ended, name) = (process.ended.clone(), process.name.clone());
        let was_asked_for = process.starter.is_some() || self.restarts.is_further_run();
        if id == INIT && was_asked_for && matches!(self.run_hooks(Point::Start), Ok(true)) {
            self.close_channel(id); // and the answer follows them
        } else {
            let answer = self.start_answer(id);
            self.answer_starter(id, &answer);
        }
        self.go_on_reading(id);
        if let (Some(record), Some(name)) = (&ended, name) {
            self.tell_waiting_for(&name, record); // that waited for this, too, and finds all output in its paths
        }
        let early = self.processes.get_mut(&id).and_then(|process| process.early_signal.take().zip(process.pid));
        if let (Some((signal, pid)), None) = (early, &ended) {
            let _ = self.send_signal(pid, signal);
        }
        self.watch_feed(id);
        if let (Some(record), INIT, None) = (ended, id, &self.exit) {
            self.end_run(record); // that waited for this
            self.drain(id);
        }
        self.settle(id);
    }

    /// What whoever has started a process is told.
    pub(super) fn start_answer(&self, id: u32) -> Value {
        let process = self.processes.get(&id);
        let started_at = process.and_then(|process| process.started_at.as_ref());
        json!({"ok": true, "pid": process.and_then(|process| process.pid), "started_at": started_at,
            "warnings": process.map(|process| &process.warnings)})
    }

    pub(super) fn start_failed(&mut self, id: u32, failure: Failure) {
        // Its end takes the namespaces, cgroups and processes away at whatever step an exec is.
        let failure = if id != INIT && self.has_ended() { ended() } else { failure };
        let code = failure.exit_code.unwrap_or(1);
        let message = failure.message.clone();
        self.answer_starter(id, &json!({"error": failure}));
        if id == INIT {
            if let (Some(_), Some(init)) = (&self.shared.runtime, self.processes.get_mut(&INIT)) {
                // What a runtime has complained of there is in the failure: the container has said nothing.
                init.stdio = Stdio::default();
            }
            if self.exit.is_none() {
                let record = ExitRecord::of_failed_start(code);
                if self.restarts.is_further_run() {
                    self.conclude(record, Some(message));
                } else {
                    self.end_with(record);
                }
            }
            return self.go_on_reading(id);
        }
        let Some(process) = self.processes.get(&id) else { return };
        // It ends by itself; this is for one that hangs.
        if let (Some(pid), None) = (process.pid, &process.ended) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        let record = ExitRecord::of_failed_start(code);
        if let Some(name) = process.name.clone() {
            self.tell_waiting_for(&name, &record);
        }
        self.finish_paths(id);
        self.keep_end(id, record);
        // The connection is an ordinary one again.
        for client in self.clients_of(id) {
            if let Some(client) = self.clients.get_mut(&client) {
                client.attached = None;
                client.gives_input = false;
            }
        }
    }

    /// Close the way to a process.
    fn close_channel(&mut self, id: u32) {
        if let Some(channel) = self.processes.get_mut(&id).and_then(|process| process.channel.take()) {
            let _ = epoll::delete(&self.epoll, &channel);
        }
    }

    /// Close the way to a process, and answer whoever started it.
    pub(super) fn answer_starter(&mut self, id: u32, answer: &Value) {
        self.close_channel(id);
        let Some(process) = self.processes.get_mut(&id) else { return };
        if let Some(starter) = process.starter.take() {
            self.tell(starter, |client| client.send_document(answer));
        }
    }
}
