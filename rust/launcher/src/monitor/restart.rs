//! Further runs of the container: by its policy, or because a client asks for one.
//!
//! The monitor stays, with its socket, its clients and the log; cgroup, namespaces, mounts and processes go with a run and
//! are made anew for the next. `exit.json` is there when there is no further run; until then `restart.json` says how the last
//! one ended, and between two runs when the next begins. What ends the container from outside (a signal that is to stop it, SIGKILL, a signal
//! to the monitor) ends its runs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;

use super::control::check_signal;
use super::hooks::expect_end;
use super::logger;
use super::memory::Memory;
use super::record::{ExitRecord, RestartRecord};
use super::redirect::{Awaited, Redirected};
use super::{INIT, Monitor, Process, ended, events};
use crate::container::Wait;
use crate::error::{Failure, Kind};
use crate::request::{Request, RestartPolicy};
use crate::run::{Builder, Maker, Prepared};
use crate::time;

/// docker's: so long after the first end, twice as long after each that follows, but for one after a long run.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
const LONG_RUN: Duration = Duration::from_secs(10);

/// What follows when the container has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    /// A run, so long after everything of the last one is gone.
    After(Duration),
    /// A run at this moment.
    At(Instant),
}

/// Where the streams of the next run lead.
#[derive(Debug)]
enum Streams {
    /// To a logger that is not ready yet.
    Awaited(Awaited),
    Ready(Redirected),
}

#[derive(Debug)]
pub(super) struct Restarts {
    pub(super) request: Request,
    /// Further runs by the policy, since the start or the last run that a client asked for.
    count: u32,
    delay: Duration,
    /// When the present run began.
    began: Instant,
    next: Next,
    /// Of the next run, once its moment has come.
    streams: Option<Streams>,
    /// How the run before the present one ended.
    last: Option<ExitRecord>,
    /// It was ended from outside.
    stopped: bool,
    /// The client that asked for a run, and is owed an answer.
    asked: Option<u32>,
    /// When to kill what a client wants to be run again.
    kill_at: Option<Instant>,
}

impl Restarts {
    pub(super) fn new(request: Request) -> Self {
        Self {
            request,
            count: 0,
            delay: Duration::ZERO,
            began: Instant::now(),
            next: Next::Nothing,
            streams: None,
            last: None,
            stopped: false,
            asked: None,
            kill_at: None,
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Whether the present run has others before it.
    pub(super) fn is_further_run(&self) -> bool {
        self.last.is_some()
    }

    /// How long the monitor may sleep; the next run waits for as long as it is `held` back.
    pub(super) fn timeout(&self, held: bool) -> Option<Duration> {
        let next = match (self.next, &self.streams) {
            (Next::At(_), Some(Streams::Awaited(awaited))) => Some(awaited.until),
            (Next::At(moment), _) if !held => Some(moment),
            _ => None,
        };
        let moment = [next, self.kill_at].into_iter().flatten().min();
        moment.map(|moment| moment.saturating_duration_since(Instant::now()))
    }

    /// How long after a run that ended so the next one begins; None when there is none.
    fn decide(&mut self, exit_code: i32, ran: Duration) -> Option<Duration> {
        if self.stopped {
            return None;
        }
        if self.asked.is_some() {
            return Some(Duration::ZERO);
        }
        let wanted = match self.request.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure { max_retries } => {
                exit_code != 0 && (max_retries == 0 || self.count < max_retries)
            }
        };
        if !wanted {
            return None;
        }
        self.count += 1;
        self.delay = if self.delay.is_zero() || ran >= LONG_RUN { FIRST_DELAY } else { self.delay * 2 };
        self.delay = self.delay.min(LONGEST_DELAY);
        Some(self.delay)
    }

    /// Begin to count anew, for a run that a client asks for.
    fn ask(&mut self, client: u32) {
        self.asked = Some(client);
        self.stopped = false;
        self.count = 0;
        self.delay = Duration::ZERO;
    }
}

/// What those are told who come between two runs.
pub(super) fn between_runs() -> Failure {
    Failure::new(Kind::FailedPrecondition, "the container has ended and waits to be run again")
        .with_hint("try again when it runs; stop or remove it to end that")
}

impl Monitor {
    /// Whether a run has ended, or could not begin, that is not the last.
    pub(super) fn will_run_again(&self) -> bool {
        self.restarts.next != Next::Nothing
    }

    /// Whether everything of a run is gone, and the next one has its moment.
    pub(super) fn is_between_runs(&self) -> bool {
        matches!(self.restarts.next, Next::At(_))
    }

    /// A run has ended, or could not begin (`error` says why): what follows?
    pub(super) fn conclude(&mut self, record: ExitRecord, error: Option<String>) {
        let ran = if error.is_none() { self.restarts.began.elapsed() } else { Duration::ZERO };
        self.restarts.kill_at = None;
        let Some(delay) = self.restarts.decide(record.exit_code, ran) else {
            self.restarts.next = Next::Nothing;
            if error.is_some() {
                // It never had one. As long as it is there nobody takes what is about to be cleared, and hooks, for done.
                let _ = self.open_pid(OFlags::empty());
            }
            return self.end_for_good(record);
        };
        self.restarts.next = Next::After(delay);
        let note = RestartRecord {
            count: self.restarts.count,
            exit: &record,
            error: error.as_deref(),
            next_run_at: Some(time::after(delay)),
        };
        // Where it cannot be written (a full disk), it is run again all the same.
        let _ = note.write(self.bundle.as_fd());
        self.restarts.last = Some(record.clone());
        self.exit = Some(record);
    }

    /// Everything of a run is gone, or about to: clear up behind it and wait for the next one.
    pub(super) fn await_next_run(&mut self) {
        let Next::After(delay) = self.restarts.next else { return };
        self.restarts.next = Next::At(Instant::now() + delay);
        self.finish_paths(INIT);
        self.forget_described();
        self.processes.clear();
        self.unclaimed.clear();
        self.memory = Memory::default();
        // Before the clearing, which takes another runtime a while: until then it would count as running.
        let _ = rustix::fs::unlinkat(&self.bundle, "pid", AtFlags::empty());
        self.clear_behind_run();
        self.run_hooks_at_end();
        (self.paused, self.started_at) = (false, None);
        // What waited for room in the last run's input is for nobody.
        for client in self.clients.values_mut() {
            client.resumed |= std::mem::replace(&mut client.held_back, false);
        }
        self.take_resumed();
    }

    /// Kill what was given its time to end; begin the next run.
    pub(super) fn do_what_is_due(&mut self) {
        let now = Instant::now();
        self.give_up_late_loggers(now);
        if self.restarts.kill_at.is_some_and(|moment| moment <= now) {
            self.restarts.kill_at = None;
            if let Ok(Some(pid)) = self.running().map(|init| init.pid) {
                let _ = self.send_signal(pid, libc::SIGKILL);
            }
        }
        let Next::At(moment) = self.restarts.next else { return };
        let streams = match &self.restarts.streams {
            Some(Streams::Awaited(awaited)) if awaited.until <= now => {
                self.let_go_of_streams();
                Err(logger::late())
            }
            _ if moment > now || self.is_held_back() => return,
            _ => self.streams_of_next_run(),
        };
        if let Some(streams) = streams.transpose() {
            self.restarts.next = Next::Nothing;
            if let Err(failure) = streams.and_then(|streams| self.run_again(streams)) {
                let record = ExitRecord::of_failed_start(failure.exit_code.unwrap_or(1));
                self.clear_behind_run();
                let message = failure.message.clone();
                if let Some(client) = self.restarts.asked.take() {
                    self.tell(client, |client| client.send_document(&json!({"error": failure})));
                }
                self.conclude(record, Some(message));
            }
        }
    }

    /// Give where the streams of the next run lead; None while its logger is not ready, which wakes the monitor when it is.
    fn streams_of_next_run(&mut self) -> Result<Option<Redirected>, Failure> {
        match self.restarts.streams.take() {
            Some(Streams::Ready(redirected)) => return Ok(Some(redirected)),
            Some(awaited) => {
                self.restarts.streams = Some(awaited);
                return Ok(None);
            }
            None => {}
        }
        let (redirected, ready) = Redirected::begin(&self.restarts.request.stdio, &self.restarts.request.owner())?;
        let Some(ready) = ready else { return Ok(Some(redirected)) };
        self.restarts.streams = Some(Streams::Awaited(self.await_logger(INIT, redirected, ready)?));
        Ok(None)
    }

    /// The logger of the next run is ready.
    pub(super) fn run_logger_is_ready(&mut self) {
        self.restarts.streams = match self.restarts.streams.take() {
            Some(Streams::Awaited(awaited)) => Some(Streams::Ready(awaited.into_ready())),
            other => other,
        };
    }

    /// The next run has none: a logger that was not ready yet is killed, another sees its streams end.
    fn let_go_of_streams(&mut self) {
        if let Some(Streams::Awaited(awaited)) = self.restarts.streams.take() {
            self.give_up_logger(&awaited);
        }
    }

    /// Make a run; how its first process fares is heard later ([`Monitor::listen`]).
    fn run_again(&mut self, redirected: Redirected) -> Result<(), Failure> {
        self.restarts.request.hold = false; // which is of the first run
        let mut run = Prepared::read(&self.restarts.request, self.bundle.as_fd())?;
        if let Builder::Launcher(plan, _) = &mut run.builder {
            (plan.wait, plan.process.told_late) = (Wait::Nothing, false);
        }
        expect_end(self.bundle.as_fd(), &self.restarts.request, &run.shared)?;
        self.shared.hooks.clone_from(&run.shared.hooks); // for the end of one that cannot begin
        self.cgroup = run.make_cgroup(&self.restarts.request)?;
        let begun = run.begin(self.restarts.request.stdin, &self.cgroup, self.lock)?;
        (self.own_pids, self.shared) = (run.own_pids, run.shared);
        let (pid, helper) = match begun.maker {
            Maker::Process(pid) => (Some(pid), None),
            Maker::Helper(helper) => (None, Some(helper)),
        };
        let process = Process {
            pid,
            helper,
            channel: Some(begun.channel),
            stdio: begun.stdio,
            starter: self.restarts.asked,
            warnings: run.warnings,
            ..Process::default()
        };
        if let Err(error) = self.add_process(INIT, process) {
            begun.maker.end();
            return Err(Failure::system("watch the container", &error.into()));
        }
        self.redirect(INIT, redirected);
        self.restarts.asked = None;
        self.restarts.began = Instant::now();
        self.exit = None;
        self.watch_memory();
        Ok(())
    }

    fn open_pid(&self, more: OFlags) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        rustix::fs::openat(&self.bundle, "pid", flags, Mode::from_raw_mode(0o644))
    }

    /// The program of a further run has been started.
    pub(super) fn announce_further_run(&mut self) {
        self.restarts.began = Instant::now();
        let Some(pid) = self.processes.get(&INIT).and_then(|init| init.pid) else { return };
        if let Ok(file) = self.open_pid(OFlags::TRUNC) {
            let _ = rustix::io::write(&file, pid.to_string().as_bytes());
        }
        let Some(last) = &self.restarts.last else { return };
        let note = RestartRecord { count: self.restarts.count, exit: last, error: None, next_run_at: None };
        let _ = note.write(self.bundle.as_fd());
        self.events.tell([
            (events::DELETE, json!({"exit_status": last.exit_code, "exited_at": &last.exited_at})),
            (events::CREATE, json!({"bundle": &self.restarts.request.bundle, "pid": pid})),
            (events::START, json!({"pid": pid})),
        ]);
    }

    /// There shall be no further run; true when that has ended the container.
    pub(super) fn run_no_more(&mut self) -> bool {
        self.restarts.stopped = true;
        if let Some(client) = self.restarts.asked.take() {
            let failure = Failure::new(Kind::FailedPrecondition, "the container was stopped meanwhile");
            self.tell(client, |client| client.send_document(&json!({"error": failure})));
        }
        if !self.will_run_again() {
            return false;
        }
        self.restarts.next = Next::Nothing;
        self.let_go_of_streams();
        if let Some(record) = self.exit.clone() {
            self.end_for_good(record);
        }
        true
    }

    /// End the container and run it again, or only the latter between two runs.
    pub(super) fn restart(&mut self, client: u32, signal: i32, timeout: f64) -> Result<(), Failure> {
        check_signal(signal)?;
        let Ok(timeout) = Duration::try_from_secs_f64(timeout) else {
            return Err(Failure::new(Kind::InvalidArgument, format!("{timeout} is no number of seconds")));
        };
        if self.restarts.asked.is_some() {
            return Err(Failure::new(Kind::FailedPrecondition, "the container is being restarted"));
        }
        match self.restarts.next {
            Next::After(_) => self.restarts.next = Next::After(Duration::ZERO),
            Next::At(_) => self.restarts.next = Next::At(Instant::now()),
            Next::Nothing => {
                let init = self.running()?;
                let (Some(pid), None) = (init.pid, &init.channel) else {
                    return Err(Failure::new(Kind::FailedPrecondition, "the container has not been started"));
                };
                if init.ended.is_some() {
                    return Err(ended());
                }
                self.send_signal(pid, signal)?;
                self.restarts.kill_at = Instant::now().checked_add(timeout);
            }
        }
        self.restarts.ask(client);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts(policy: &str) -> Restarts {
        let text = format!(r#"{{"version":2,"bundle":"/b","restart":{policy}}}"#);
        Restarts::new(Request::parse(&text).expect("valid"))
    }

    fn delays(restarts: &mut Restarts, exit_code: i32, ran: Duration, count: usize) -> Vec<Option<u128>> {
        (0..count).map(|_| restarts.decide(exit_code, ran).map(|delay| delay.as_millis())).collect()
    }

    #[test]
    fn waiting_doubles_from_a_tenth_of_a_second_to_a_minute_and_a_long_run_begins_anew() {
        let mut always = restarts(r#"{"name":"always"}"#);
        let found = delays(&mut always, 0, Duration::ZERO, 12);
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000];
        assert_eq!(found, expected.map(Some));
        assert_eq!(delays(&mut always, 0, LONG_RUN, 2), [Some(100), Some(100)]);
        assert_eq!(delays(&mut always, 0, Duration::ZERO, 1), [Some(200)]);
    }

    #[test]
    fn a_failure_is_tried_again_as_often_as_the_policy_says_and_a_success_is_the_end() {
        let mut thrice = restarts(r#"{"name":"on-failure","max_retries":3}"#);
        assert_eq!(delays(&mut thrice, 1, Duration::ZERO, 4), [Some(100), Some(200), Some(400), None]);
        assert_eq!(thrice.count(), 3);
        let mut ever = restarts(r#"{"name":"on-failure"}"#);
        assert!(delays(&mut ever, 137, LONG_RUN, 100).iter().all(Option::is_some));
        assert_eq!(ever.decide(0, Duration::ZERO), None);
        assert_eq!(restarts(r#"{"name":"no"}"#).decide(1, Duration::ZERO), None);
    }

    #[test]
    fn what_was_stopped_is_not_run_again_and_what_is_asked_for_is_whatever_the_policy() {
        let mut always = restarts(r#"{"name":"always"}"#);
        always.stopped = true;
        assert_eq!(always.decide(1, Duration::ZERO), None);
        let mut no = restarts(r#"{"name":"no"}"#);
        no.ask(7);
        assert_eq!(no.decide(0, Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(no.count(), 0);
    }
}
