//! `exec`: a further process in a running container.

use std::path::PathBuf;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::arguments::{Arguments, Global, wrong};
use super::container::{Container, read_text};
use super::create::{Wishes, follow, send};
use super::foreground::Foreground;
use super::journal::Journal;
use crate::channel::Channel;
use crate::enter::{Entry, enter};
use crate::error::{Failure, Step};
use crate::hooks::Status;
use crate::namespaces;
use crate::process::{adjust_oom_score, seccomp};
use crate::run;
use crate::spec::{self, Process, User};

/// Run a process; without `--detach` wait for its end.
pub(super) fn exec(global: &Global, arguments: Arguments, journal: &mut Journal) -> Result<i32, Failure> {
    let (id, command) = arguments.id()?;
    let wishes = Wishes::new(&arguments)?;
    let container = Container::open(global, id)?;
    container.expect(&[Status::Created, Status::Running])?;
    let mut spec = container.spec()?;
    let process = match arguments.value("process") {
        Some(path) => {
            let path = PathBuf::from(path);
            let file = std::fs::File::open(&path).step(|| format!("open {}", path.display()))?;
            spec::parse_document(&read_text(file, &path)?, "process")?
        }
        None => process(std::mem::take(&mut spec.process), command, &arguments)?,
    };
    let filter = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    let mut warnings = Vec::new();
    let flags = namespaces::entered(&spec.linux);
    let personality = spec.linux.personality.as_ref();
    let mut entry = Entry::new(&process, filter, personality, flags, "this process", &mut warnings)?;
    wishes.apply(&mut entry.process)?;
    let detach = arguments.has("detach");
    let console =
        if detach || arguments.value("console-socket").is_some() { wishes.console(process.terminal)? } else { None };
    let (ours, theirs) = Channel::pair()?;
    let mut foreground = Foreground::default();
    let helper = enter(container.record.pid, flags, &container.cgroup()?, None, &entry, &theirs, None)?;
    drop(theirs);
    let mut pid = 0;
    let begun = follow(&mut pid, &ours, None, &mut warnings, |master| match &console {
        Some(way) => send(way, &master),
        None => foreground.take(master),
    });
    let _ = waitpid(Pid::from_raw(helper), WaitOptions::empty());
    for warning in warnings {
        journal.warn(&warning);
    }
    if let Err(failure) = begun {
        // Its PID namespace ends no sooner than it is reaped.
        if pid > 0 {
            run::end(pid);
        }
        return Err(failure);
    }
    if let Some(warning) = adjust_oom_score(pid, entry.process.oom_score_adjustment) {
        journal.warn(&warning);
    }
    wishes.tell(pid)?;
    if detach {
        return Ok(0);
    }
    foreground.begin()?;
    foreground.wait(pid)
}

/// The container's own process, but for what the command line says.
fn process(own: Process, command: &[String], arguments: &Arguments) -> Result<Process, Failure> {
    let mut process = own;
    process.args = command.to_vec();
    process.terminal = arguments.has("tty");
    process.env.extend_from_slice(arguments.values("env"));
    if let Some(folder) = arguments.value("cwd") {
        folder.clone_into(&mut process.cwd);
    }
    if let Some(text) = arguments.value("user") {
        let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
        let number = |text: &str| text.parse().map_err(|_| wrong(format!("--user {text:?} is no number")));
        process.user = User { uid: number(uid)?, gid: number(gid)?, ..User::default() };
    }
    Ok(process)
}
