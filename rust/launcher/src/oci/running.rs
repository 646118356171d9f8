//! Looking at containers, and what is done to them while they run.

use std::os::fd::AsFd;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::arguments::{Arguments, Global, wrong};
use super::container::{Container, read_text};
use super::journal::Journal;
use super::{print, signals};
use crate::error::{Failure, Kind, Step};
use crate::hooks::Status;
use crate::spec::{self, Resources};
use crate::sys;

const ALIVE: [Status; 3] = [Status::Created, Status::Running, Status::Paused];

/// A container's state, with what runc adds to the spec's.
fn document(container: &Container) -> Value {
    let mut document = json!(container.state());
    let root = container.spec().map(|spec| spec.root.path).unwrap_or_default();
    document["rootfs"] = PathBuf::from(&container.record.bundle).join(root).to_string_lossy().into_owned().into();
    document["created"] = container.record.created.clone().into();
    document
}

/// Print a container's state.
pub(super) fn state(global: &Global, arguments: Arguments) -> Result<i32, Failure> {
    let container = Container::open(global, arguments.only_id()?)?;
    print(&serde_json::to_string_pretty(&document(&container)).unwrap_or_default())
}

/// Print all containers.
pub(super) fn list(global: &Global, arguments: Arguments) -> Result<i32, Failure> {
    arguments.nothing()?;
    let containers = Container::all(global);
    if arguments.has("quiet") {
        return containers.iter().try_fold(0, |_, container| print(&container.id));
    }
    let documents: Vec<Value> = containers.iter().map(document).collect();
    if arguments.as_json()? {
        return print(&serde_json::to_string(&documents).unwrap_or_default());
    }
    let rows = documents.iter().map(|row| {
        ["id", "pid", "status", "bundle", "created"].map(|name| match &row[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    });
    let rows: Vec<[String; 5]> =
        std::iter::once(["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(String::from)).chain(rows).collect();
    let widths = [0, 1, 2, 3, 4].map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    rows.iter().try_fold(0, |_, row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        print(cells.collect::<Vec<_>>().join("   ").trim_end())
    })
}

/// Print the ids of a container's processes.
pub(super) fn ps(global: &Global, arguments: Arguments) -> Result<i32, Failure> {
    let container = Container::open(global, arguments.only_id()?)?;
    let processes = container.cgroup()?.processes();
    if arguments.as_json()? {
        return print(&json!(processes).to_string());
    }
    print("PID")?;
    processes.iter().try_fold(0, |_, pid| print(&pid.to_string()))
}

/// Send a container's first process, or all of them, a signal.
pub(super) fn kill(global: &Global, arguments: Arguments) -> Result<i32, Failure> {
    let (id, rest) = arguments.id()?;
    let signal = match rest {
        [] => libc::SIGTERM,
        [signal] => signals::number(signal)?,
        _ => return Err(wrong("it takes one signal")),
    };
    let container = Container::open(global, id)?;
    if arguments.has("all") {
        container.cgroup()?.signal_all(signal);
        return Ok(0);
    }
    container.expect(&ALIVE)?;
    send(&container, signal)?;
    Ok(0)
}

/// Send a container's first process a signal. SIGKILL reaches all when it does not end them by itself, and frozen ones.
pub(super) fn send(container: &Container, signal: i32) -> Result<(), Failure> {
    let ended = || Failure::new(Kind::FailedPrecondition, format!("the container {:?} has ended", container.id));
    let process = container.process().ok_or_else(ended)?;
    match sys::signal_process(process.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(ended()),
        result => result.step(|| format!("send signal {signal} to the container {:?}", container.id))?,
    }
    if signal == libc::SIGKILL {
        let cgroup = container.cgroup()?;
        if !container.spec()?.linux.has_namespace("pid") {
            cgroup.signal_all(signal);
        }
        if cgroup.is_frozen() {
            cgroup.set_frozen(false)?;
        }
    }
    Ok(())
}

/// Stop all processes of a container, or let them go on.
pub(super) fn set_frozen(global: &Global, arguments: Arguments, frozen: bool) -> Result<i32, Failure> {
    let container = Container::open_locked(global, arguments.only_id()?)?;
    container.expect(if frozen { &[Status::Created, Status::Running] } else { &[Status::Paused] })?;
    container.cgroup()?.set_frozen(frozen)?;
    Ok(0)
}

/// Change a container's limits.
pub(super) fn update(global: &Global, arguments: Arguments, journal: &mut Journal) -> Result<i32, Failure> {
    let container = Container::open_locked(global, arguments.only_id()?)?;
    container.expect(&ALIVE)?;
    let path = arguments.value("resources").unwrap_or("-");
    let path = PathBuf::from(if path == "-" { "/proc/self/fd/0" } else { path });
    let text = read_text(std::fs::File::open(&path).step(|| format!("open {}", path.display()))?, &path)?;
    let mut resources: Resources = spec::parse_document(&text, "resources")?;
    resources.validate()?;
    // Engines send the whole document along: the devices in it are those of the start.
    resources.devices.clear();
    let mut warnings = Vec::new();
    let done = container.cgroup()?.update(&resources, &mut warnings);
    for warning in warnings {
        journal.warn(&warning);
    }
    done.map(|()| 0)
}
