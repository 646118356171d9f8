//! The hooks of a run on the host's side: when the monitor has them run, and what follows.
//!
//! The first run's, but for poststop, are the launcher's to wait for, which owes its caller an answer; all others run beside the
//! monitor's loop. `poststop.json` in the bundle is there from before a run's first hook until its poststop hooks have run: with
//! it whoever finds the monitor killed runs them in its place (containers/hooks.py), as containerd has `runc delete` do it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::epoll;
use rustix::fs::AtFlags;
use serde_json::json;

use super::{INIT, Monitor, Shared, Source, record};
use crate::channel::Message;
use crate::error::Failure;
use crate::hooks::{Plan, Point, Running};
use crate::request::Request;

const FILE: &str = "poststop.json";

/// Hooks that run beside the loop.
#[derive(Debug)]
pub(super) struct RunningHooks {
    point: Point,
    running: Running,
}

/// A run begins that something is to follow, whoever is there then: poststop hooks, or a runtime's `delete`, which runs them, where
/// that is not the monitor's to do. Harmless twice.
pub fn expect_end(bundle: BorrowedFd<'_>, request: &Request, shared: &Shared) -> Result<(), Failure> {
    match (&shared.hooks, &shared.runtime) {
        (Some(hooks), _) if !hooks.hooks.poststop.is_empty() => record::write(bundle, FILE, &**hooks),
        (_, Some(runtime)) if request.deleted_later => {
            record::write(bundle, FILE, &json!({"delete": runtime.deletion()}))
        }
        _ => Ok(()),
    }
}

/// Run the poststop hooks of a run that could not begin, to their end. Harmless twice.
pub fn run_at_end(bundle: BorrowedFd<'_>, hooks: Option<&Plan>) {
    if !is_end_expected(bundle) {
        return;
    }
    // What they complain of has nowhere to go: the container has no log yet.
    let _ = hooks.map(|hooks| hooks.run(Point::End, 0));
    forget_end(bundle);
}

fn is_end_expected(bundle: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(bundle, FILE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn forget_end(bundle: BorrowedFd<'_>) {
    let _ = rustix::fs::unlinkat(bundle, FILE, AtFlags::empty());
}

impl Monitor {
    /// Begin to run those of a point; false when there are none. Poststop hooks are run once after each run.
    pub(super) fn run_hooks(&mut self, point: Point) -> Result<bool, Failure> {
        let Some(hooks) = &self.shared.hooks else { return Ok(false) };
        let is_anothers = self.restarts.request.deleted_later && !self.will_run_again();
        if point == Point::End && (is_anothers || !is_end_expected(self.bundle.as_fd())) {
            return Ok(false);
        }
        let pid = self.processes.get(&INIT).and_then(|init| init.pid).unwrap_or_default();
        let Some(running) = hooks.begin(point, pid)? else { return Ok(false) };
        self.watch(running.as_fd(), Source::Hooks, epoll::EventFlags::IN)
            .map_err(|error| Failure::system("watch the hooks", &error.into()))?;
        self.hooks = Some(RunningHooks { point, running });
        Ok(true)
    }

    /// A further run's namespaces and mounts are there.
    pub(super) fn run_hooks_at_creation(&mut self) {
        match self.run_hooks(Point::Creation) {
            Ok(true) => {}
            Ok(false) => self.let_proceed(),
            Err(failure) => self.start_failed(INIT, failure),
        }
    }

    fn let_proceed(&self) {
        // Where it has ended meanwhile there is nobody to hear it.
        if let Some(channel) = self.processes.get(&INIT).and_then(|init| init.channel.as_ref()) {
            let _ = channel.send(&Message::Proceed);
        }
    }

    /// All of a run is gone: begin to run its poststop hooks. What stops them is logged only.
    pub(super) fn run_hooks_at_end(&mut self) {
        if let Err(failure) = self.run_hooks(Point::End) {
            self.complain(&failure.message);
        }
    }

    /// Whether the next run has to wait.
    pub(super) fn is_held_back(&self) -> bool {
        !self.holders.is_empty() || self.hooks.is_some()
    }

    /// Hear what running hooks have to say.
    pub(super) fn hear_hooks(&mut self) {
        let Some(hooks) = &mut self.hooks else { return };
        let mut warnings = Vec::new();
        let heard = hooks.running.hear(&mut warnings);
        for text in warnings {
            self.complain(&text);
        }
        let result = match heard {
            Ok(false) => return,
            Ok(true) => Ok(()),
            Err(failure) => Err(failure),
        };
        let Some(RunningHooks { point, running }) = self.hooks.take() else { return };
        let _ = epoll::delete(&self.epoll, &running);
        drop(running);
        match (point, result) {
            (Point::Creation, Ok(())) => self.let_proceed(),
            (Point::Creation, Err(failure)) => self.start_failed(INIT, failure),
            (Point::Start, result) => self.hooks_after_start_ended(result),
            (Point::End, result) => {
                if let Err(failure) = result {
                    self.complain(&failure.message);
                }
                forget_end(self.bundle.as_fd());
            }
        }
    }

    /// The poststart hooks have run: whoever started the program gets the answer. When one fails the program is killed.
    fn hooks_after_start_ended(&mut self, result: Result<(), Failure>) {
        let answer = match result {
            Ok(()) => self.start_answer(INIT),
            Err(failure) => {
                self.complain(&failure.message);
                if let Ok(Some(pid)) = self.running().map(|init| init.pid) {
                    let _ = self.send_signal(pid, libc::SIGKILL);
                }
                json!({"error": failure})
            }
        };
        self.answer_starter(INIT, &answer);
    }

    /// Write into the container's log, as a line of its errors, what failed without stopping anything.
    fn complain(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            log.note(text);
        }
    }
}
