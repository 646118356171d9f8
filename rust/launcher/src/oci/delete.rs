//! `delete`: taking away what a container has left.

use std::os::fd::AsFd;
use std::time::Duration;

use super::arguments::{Arguments, Global};
use super::container::Container;
use super::journal::Journal;
use super::running;
use crate::error::{Failure, Kind};
use crate::hooks::{self, Point, Status};
use crate::sys;

/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Delete a container that has ended; with `--force` one that has not, too, and then it is harmless twice.
pub(super) fn delete(global: &Global, arguments: Arguments, journal: &mut Journal) -> Result<i32, Failure> {
    remove(global, arguments.only_id()?, arguments.has("force"), journal)?;
    Ok(0)
}

/// As [`delete`].
pub(super) fn remove(global: &Global, id: &str, force: bool, journal: &mut Journal) -> Result<(), Failure> {
    if force && let Ok(container) = Container::open(global, id) {
        // Before the lock: whoever holds it may wait for this very end.
        end(&container)?;
    }
    let container = match Container::open_locked(global, id) {
        Err(failure) if force && failure.kind == Kind::NotFound => return Ok(()),
        result => result?,
    };
    if force {
        end(&container)?;
    } else {
        container.expect(&[Status::Stopped])?;
    }
    // One that was killed while it was made may have no document yet, and no cgroup then.
    let plan = match container.spec() {
        Ok(mut spec) => {
            let mut cgroup = container.cgroup_plan(&mut spec).open(std::path::Path::new(crate::cgroup::ROOT));
            cgroup.signal_all(libc::SIGKILL);
            cgroup.remove();
            Some(hooks::Plan::new(&mut spec, &container.record.bundle, id))
        }
        Err(failure) if failure.kind == Kind::NotFound => None,
        Err(failure) => {
            journal.warn(&failure.message);
            None
        }
    };
    container.remove()?;
    if let Some(plan) = plan {
        for complaint in plan.run(Point::End, 0)? {
            journal.warn(&complaint);
        }
    }
    Ok(())
}

/// Kill the first process, and with it its PID namespace, and wait until it has ended.
fn end(container: &Container) -> Result<(), Failure> {
    let Some(process) = container.process() else { return Ok(()) };
    match running::send(container, libc::SIGKILL) {
        Err(failure) if failure.kind != Kind::FailedPrecondition => return Err(failure),
        _ => {}
    }
    if sys::ends_within(process.as_fd(), Some(PATIENCE)) {
        return Ok(());
    }
    Err(Failure::new(Kind::Unavailable, format!("the container {:?} does not end", container.id)))
}
