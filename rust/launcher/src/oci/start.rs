//! `start`: letting a container's first process become its program.

use super::arguments::{Arguments, Global};
use super::container::Container;
use super::create::follow;
use super::journal::Journal;
use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind};
use crate::hooks::{self, Point, Status};
use crate::sys;

/// Run the program of a container that is created.
pub(super) fn start(global: &Global, arguments: Arguments, journal: &mut Journal) -> Result<i32, Failure> {
    start_program(global, arguments.only_id()?, journal)?;
    Ok(0)
}

/// As [`start`]. When a hook fails that runs after the start, the program is killed, as the spec has it.
pub(super) fn start_program(global: &Global, id: &str, journal: &mut Journal) -> Result<(), Failure> {
    let container = Container::open_locked(global, id)?;
    container.expect(&[Status::Created])?;
    let mut spec = container.spec()?;
    let plan = hooks::Plan::new(&mut spec, &container.record.bundle, id);
    let Some(starter) = container.starter() else {
        return Err(Failure::new(Kind::FailedPrecondition, format!("the container {id:?} has just ended")));
    };
    let (ours, theirs) = Channel::pair()?;
    starter.send(&Message::Go(Some(theirs.into())))?;
    let mut pid = container.record.pid;
    let mut warnings = Vec::new();
    let started = follow(&mut pid, &ours, None, &mut warnings, |_| Ok(()));
    for warning in warnings {
        journal.warn(&warning);
    }
    container.forget_starter();
    started?;
    plan.run(Point::Start, pid).map(drop).inspect_err(|_| {
        let _ =
            container.process().map(|process| sys::signal_process(std::os::fd::AsFd::as_fd(&process), libc::SIGKILL));
    })
}
