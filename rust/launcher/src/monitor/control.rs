//! What clients can ask for on the control socket.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{INIT, Monitor, events};
use crate::channel::Message;
use crate::error::{Failure, Kind, Step};
use crate::request::{Program, Redirections, RestartPolicy};
use crate::rootfs;
use crate::spec::{Resources, Size};
use crate::sys;

const LAST_SIGNAL: i32 = 64;

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Operation {
    /// How the container is, or the added process of a name; so in what follows.
    State {
        #[serde(default)]
        exec: Option<String>,
    },
    /// Run the program of a held container (the given one where the request left it open), or a process that was described.
    Start {
        #[serde(default)]
        program: Option<Program>,
        #[serde(default)]
        exec: Option<String>,
    },
    /// Tell how it ended, when it has.
    Wait {
        #[serde(default)]
        exec: Option<String>,
    },
    /// Send a signal to the first process, or to all. With `stop` it is to end, and not to be run again.
    Kill {
        signal: i32,
        #[serde(default)]
        exec: Option<String>,
        #[serde(default)]
        all: bool,
        #[serde(default)]
        stop: bool,
    },
    /// End it by a signal, or by SIGKILL after so many seconds, and run it again; the answer comes when it runs.
    Restart { signal: i32, timeout: f64 },
    /// Get the container's output from now on, and maybe give it input.
    Attach {
        #[serde(default)]
        stdin: bool,
    },
    /// Change the terminal's size.
    Resize {
        rows: u16,
        cols: u16,
        #[serde(default)]
        exec: Option<String>,
    },
    /// End standard input.
    CloseInput {
        #[serde(default)]
        exec: Option<String>,
    },
    /// Freeze all processes; with `hold` only until the client lets go or hangs up, however it ends, and between two runs the
    /// next one waits for that.
    Pause {
        #[serde(default)]
        hold: bool,
    },
    /// End the client's hold.
    Release,
    /// Let them go on, whoever paused them.
    Resume,
    /// Add a process; the connection becomes its stream.
    Exec {
        process: Value,
        #[serde(default)]
        stdin: bool,
    },
    /// Describe a process that is to be started by its name.
    Describe {
        exec: String,
        process: Value,
        #[serde(default)]
        stdio: Redirections,
    },
    /// Forget a process with a name that does not run.
    Forget { exec: String },
    /// The container has ended: what nobody has taken of its output from a path is for nobody.
    DropOutput,
    /// Change limits, only those that are given, and whether it is run again: from its next end on.
    Update {
        #[serde(default)]
        resources: Option<Box<Resources>>,
        #[serde(default)]
        restart: Option<RestartPolicy>,
    },
}

/// Do what a client asks for and answer it. A document that is no operation is answered with an error.
pub(super) fn obey(monitor: &mut Monitor, client: u32, document: &[u8]) {
    let operation: Result<Operation, Failure> = serde_json::from_slice(document)
        .map_err(|error| Failure::new(Kind::InvalidArgument, format!("control operation: {error}")));
    let answer = operation.and_then(|operation| monitor.operate(client, operation));
    let answer = match answer {
        Ok(Some(answer)) => answer,
        Ok(None) => return,
        Err(failure) => json!({"error": failure}),
    };
    monitor.tell(client, |client| client.send_document(&answer));
}

/// Refuse a number that is no signal.
pub(super) fn check_signal(signal: i32) -> Result<(), Failure> {
    if (1..=LAST_SIGNAL).contains(&signal) {
        return Ok(());
    }
    Err(Failure::new(Kind::InvalidArgument, format!("{signal} is no signal")))
}

impl Monitor {
    /// The answer, or None when it comes later.
    fn operate(&mut self, client: u32, operation: Operation) -> Result<Option<Value>, Failure> {
        match operation {
            Operation::State { exec: None } => return Ok(Some(self.describe())),
            Operation::State { exec: Some(name) } => return self.state_of(&name).map(Some),
            Operation::Start { exec: Some(name), program: _ } => {
                self.start_named(client, name)?;
                return Ok(None);
            }
            Operation::Start { program, exec: None } => {
                self.start(client, program)?;
                return Ok(None);
            }
            Operation::Wait { exec: None } => return Ok(self.wait(client)),
            Operation::Wait { exec: Some(name) } => return self.wait_for(client, &name),
            Operation::Kill { signal, exec, all, stop } => self.kill(client, exec.as_deref(), signal, all, stop)?,
            Operation::Restart { signal, timeout } => {
                self.restart(client, signal, timeout)?;
                return Ok(None);
            }
            Operation::Attach { stdin } => self.attach(client, stdin)?,
            Operation::Resize { rows, cols, exec } => {
                let process = self.find_running(exec.as_deref(), client)?;
                self.resize(process, Size { height: rows, width: cols })?;
            }
            Operation::CloseInput { exec } => {
                let process = self.find_running(exec.as_deref(), client)?;
                self.close_input(process);
            }
            Operation::Describe { exec, process, stdio } => self.describe_process(exec, process, stdio)?,
            Operation::Forget { exec } => return self.forget_named(&exec).map(Some),
            Operation::DropOutput => {
                if self.exit.is_none() || self.will_run_again() {
                    return Err(Failure::new(Kind::FailedPrecondition, "the container has not ended"));
                }
                self.sinks.clear();
            }
            Operation::Exec { process, stdin } => {
                self.exec(client, process, stdin)?;
                return Ok(None);
            }
            Operation::Pause { hold: false } => self.pause()?,
            Operation::Pause { hold: true } => self.hold(client)?,
            Operation::Release => self.release(client),
            Operation::Resume => self.resume()?,
            Operation::Update { resources, restart } => {
                let mut warnings = Vec::new();
                if let Some(resources) = resources {
                    self.running()?;
                    resources.validate()?;
                    self.cgroup.update(&resources, &mut warnings)?;
                }
                if let Some(policy) = restart {
                    self.restarts.request.restart = policy;
                }
                return Ok(Some(json!({"ok": true, "warnings": warnings})));
            }
        }
        Ok(Some(json!({"ok": true})))
    }

    fn describe(&self) -> Value {
        let init = self.processes.get(&INIT);
        let channel = init.and_then(|init| init.channel.as_ref());
        let status = match (&self.exit, channel, self.paused) {
            (Some(_), ..) if self.will_run_again() => "restarting",
            (Some(_), ..) => "stopped",
            (None, Some(_), _) => "created",
            (None, None, true) => "paused",
            (None, None, false) => "running",
        };
        let mut state = json!({
            "ok": true,
            "status": status,
            "pid": init.and_then(|init| init.pid),
            "monitor_pid": rustix::process::getpid().as_raw_nonzero(),
            "started_at": &self.started_at,
            "restart_count": self.restarts.count(),
            "execs": self.named_pids(),
            "log_lost": self.log.as_ref().map_or(0, super::log::Log::lost),
        });
        if let (Some(exit), Some(state)) = (&self.exit, state.as_object_mut()) {
            state.insert("exit".to_owned(), json!(exit));
        }
        state
    }

    fn start(&mut self, client: u32, program: Option<Program>) -> Result<(), Failure> {
        self.running()?;
        if program.is_some() != self.restarts.request.program_at_start {
            let message = "a program is given where the request left it open, and only there";
            return Err(Failure::new(Kind::InvalidArgument, message));
        }
        let init = self.processes.get_mut(&INIT).filter(|init| init.starter.is_none());
        let Some((channel, starter)) = init.and_then(|init| Some((init.channel.as_ref()?, &mut init.starter))) else {
            return Err(Failure::new(Kind::FailedPrecondition, "the container has been started"));
        };
        channel.send(&Message::Go(program.map(|program| program.into_file()).transpose()?))?;
        *starter = Some(client);
        Ok(())
    }

    fn wait(&mut self, client: u32) -> Option<Value> {
        if self.exit.is_some() && !self.is_plugged_in() && !self.will_run_again() {
            return Some(json!({"exit": &self.exit}));
        }
        if let Some(client) = self.clients.get_mut(&client) {
            client.waiting = true;
        }
        None
    }

    /// Send a signal to the container, or, on the connection of an added process, to that one.
    fn kill(&mut self, client: u32, exec: Option<&str>, signal: i32, all: bool, stop: bool) -> Result<(), Failure> {
        check_signal(signal)?;
        let id = self.find_running(exec, client)?;
        if id == INIT && (stop || signal == libc::SIGKILL) && self.run_no_more() {
            return Ok(());
        }
        self.running()?;
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.ended.is_none()) else {
            // A container that has just ended has been stopped.
            let error = || Failure::new(Kind::FailedPrecondition, "the process has ended");
            return (id == INIT && stop).then_some(()).ok_or_else(error);
        };
        let Some(pid) = process.pid else {
            process.early_signal = Some(signal);
            return Ok(());
        };
        if all {
            match &process.group {
                Some(group) => group.signal_all(signal),
                None if id == INIT => self.cgroup.signal_all(signal),
                // Without a cgroup it is what stayed in the session that each begins with.
                None => sys::signal_session(pid, signal),
            }
        }
        self.send_signal(pid, signal)
    }

    /// Send a signal to a process of the container.
    pub(super) fn send_signal(&mut self, pid: i32, signal: i32) -> Result<(), Failure> {
        match sys::kill(pid, signal) {
            // Killed with all the others, and not reaped yet.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result.step(|| format!("send signal {signal}"))?,
        }
        if signal == libc::SIGKILL && self.paused {
            // A frozen process takes even this one only when it goes on.
            self.resume()?;
        }
        Ok(())
    }

    fn attach(&mut self, client: u32, stdin: bool) -> Result<(), Failure> {
        let process = self.running()?;
        if stdin && process.stdio.input.is_none() {
            return Err(Failure::new(Kind::FailedPrecondition, "the container has no open standard input")
                .with_hint("create it with stdin=True"));
        }
        if let Some(client) = self.clients.get_mut(&client) {
            client.attached = Some(INIT);
            client.gives_input = stdin;
        }
        Ok(())
    }

    fn resize(&mut self, process: u32, size: Size) -> Result<(), Failure> {
        self.running()?;
        let terminal = self.processes.get(&process).and_then(|process| process.stdio.terminal.as_ref());
        let Some(terminal) = terminal else {
            return Err(Failure::new(Kind::FailedPrecondition, "the process has no terminal"));
        };
        rootfs::set_terminal_size(terminal, size).step(|| "set the terminal's size")?;
        if process == INIT {
            self.terminal_size = Some(size);
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Failure> {
        self.freeze()?;
        self.holders.clear();
        Ok(())
    }

    /// Freeze for as long as a client is there, or between two runs keep the next one back. What was paused without a hold
    /// stays so.
    fn hold(&mut self, client: u32) -> Result<(), Failure> {
        if self.is_between_runs() {
            self.holders.insert(client);
            return Ok(());
        }
        let held = !self.paused || !self.holders.is_empty();
        self.freeze()?;
        if held {
            self.holders.insert(client);
        }
        Ok(())
    }

    pub(super) fn release(&mut self, client: u32) {
        if self.holders.remove(&client) && self.holders.is_empty() {
            let _ = self.resume();
        }
    }

    fn freeze(&mut self) -> Result<(), Failure> {
        self.running()?;
        self.cgroup.set_frozen(true)?;
        if !std::mem::replace(&mut self.paused, true) {
            self.events.tell([(events::PAUSED, json!({}))]);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Failure> {
        self.running()?;
        self.cgroup.set_frozen(false)?;
        self.holders.clear();
        if std::mem::replace(&mut self.paused, false) {
            self.events.tell([(events::RESUMED, json!({}))]);
        }
        Ok(())
    }
}
