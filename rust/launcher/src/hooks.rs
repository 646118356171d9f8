//! Running a container's hooks: programs that the spec names for points of its life.
//!
//! Each gets the container's state on its standard input, and an environment that is the spec's alone. What it says is
//! told when it fails. They run one after the other; the first that fails ends the row.
//!
//! ```text
//! host's side:       whoever makes the container ──fork──> runner ──exec──> one hook after the other
//! container's side:  its first process ──exec──> one hook after the other
//! ```
//! The runner is there so that nobody has to wait who has something else to do, and so that all ends that a hook has started:
//! as their subreaper it is in the end the parent of all of them. It kills them when a hook fails or takes too long, and when
//! whoever wants to know is gone. What a hook that succeeds leaves running goes on. On the container's side its end does that.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpid};
use serde::Serialize;

use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind, Step, describe};
use crate::spec::{self, Hook, Hooks, Spec};
use crate::sys::{self, Forked};

/// How much of what a failed hook said is told, in bytes.
const LONGEST_WORDS: u64 = 2048;

/// Where a container stands in its life.
/// <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// It is ready, and its program has not been started.
    Created,
    /// Its program runs.
    Running,
    /// As running, but frozen: a value that runc added to the spec's.
    Paused,
    /// Its first process has ended.
    Stopped,
}

/// A container's state, as hooks and whoever asks for it read it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The spec's version that this document keeps to.
    pub oci_version: String,
    /// The container's identifier.
    pub id: String,
    /// Where it stands.
    pub status: Status,
    /// Id of its first process, as the reader sees it; 0 when that has ended.
    pub pid: i32,
    /// The bundle's absolute path.
    pub bundle: String,
    /// As in the spec.
    pub annotations: BTreeMap<String, String>,
}

/// A point of a container's life at which hooks run on the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Namespaces and mounts are there: prestart, createRuntime.
    Creation,
    /// The program runs: poststart.
    Start,
    /// All is gone: poststop. All of them are run, whatever fails.
    End,
}

/// A container's hooks, and what they are told.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The programs.
    pub hooks: Hooks,
    /// The state, but for status and pid.
    pub state: State,
}

impl Plan {
    /// Take a checked spec's hooks.
    pub fn new(spec: &mut Spec, bundle: &str, container: &str) -> Self {
        let state = State {
            oci_version: spec::VERSION.into(),
            id: container.into(),
            status: Status::Creating,
            pid: 0,
            bundle: bundle.into(),
            annotations: std::mem::take(&mut spec.annotations),
        };
        Self { hooks: std::mem::take(&mut spec.hooks), state }
    }

    /// Whether any program runs before the container's root becomes the root.
    pub fn any_at_creation(&self) -> bool {
        let Hooks { prestart, create_runtime, create_container, .. } = &self.hooks;
        [prestart, create_runtime, create_container].into_iter().any(|hooks| !hooks.is_empty())
    }

    /// Begin to run those of the host's side for a container whose first process is `pid`; None where there are none. Twice is twice.
    pub fn begin(&self, point: Point, pid: i32) -> Result<Option<Running>, Failure> {
        let (hooks, status, pid) = match point {
            Point::Creation => {
                let both = [("prestart", &self.hooks.prestart), ("createRuntime", &self.hooks.create_runtime)];
                (both.into_iter().flat_map(named).collect(), Status::Creating, pid)
            }
            Point::Start => (named(("poststart", &self.hooks.poststart)).collect::<Vec<_>>(), Status::Running, pid),
            Point::End => (named(("poststop", &self.hooks.poststop)).collect(), Status::Stopped, 0),
        };
        if hooks.is_empty() {
            return Ok(None);
        }
        let state = State { status, pid, ..self.state.clone() };
        let (ours, theirs) = Channel::pair()?;
        match sys::fork_plainly().step(|| "start the runner of hooks")? {
            Forked::Parent(runner) => Ok(Some(Running { runner, channel: ours })),
            Forked::Child => run_row(&hooks, &state, point == Point::End, &theirs),
        }
    }

    /// As [`Plan::begin`], to the end. Returns what failed where that stops nothing.
    pub fn run(&self, point: Point, pid: i32) -> Result<Vec<String>, Failure> {
        self.begin(point, pid)?.map_or(Ok(Vec::new()), |mut running| running.wait(|_| Ok(())))
    }

    /// Those of the container's side, right after those of the host's. To be called in its first process.
    pub fn in_container(&self) -> Result<(), Failure> {
        self.run_here("createContainer", &self.hooks.create_container, Status::Creating)
    }

    /// Those before the program. To be called in the process that becomes it.
    pub fn before_program(&self) -> Result<(), Failure> {
        self.run_here("startContainer", &self.hooks.start_container, Status::Created)
    }

    fn run_here(&self, point: &str, hooks: &[Hook], status: Status) -> Result<(), Failure> {
        if hooks.is_empty() {
            return Ok(());
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let state = State { status, pid, ..self.state.clone() };
        let mut hooks = hooks.iter().enumerate();
        hooks.try_for_each(|(index, hook)| run_one(&field(point, index, hook), hook, &state, None))
    }
}

/// Hooks of the host's side that run.
#[derive(Debug)]
pub struct Running {
    runner: i32,
    /// Readable when there is something to hear.
    channel: Channel,
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Running {
    /// Hear what there is, waiting for it: true when all have run, and none of them has failed that must not.
    pub fn hear(&mut self, warnings: &mut Vec<String>) -> Result<bool, Failure> {
        match self.channel.receive()? {
            Some(Message::Warning(text)) => warnings.push(text),
            Some(Message::Failed(failure)) => return Err(failure),
            Some(Message::Proceed) => return Ok(true),
            None => return Err(Failure::new(Kind::FailedPrecondition, "the runner of the hooks was killed")),
            Some(_) => {}
        }
        Ok(false)
    }

    /// Hear all. `before` is called each time before something is waited for, and gives up by a failure.
    pub fn wait(&mut self, mut before: impl FnMut(&Channel) -> Result<(), Failure>) -> Result<Vec<String>, Failure> {
        let mut warnings = Vec::new();
        loop {
            before(&self.channel)?;
            if self.hear(&mut warnings)? {
                return Ok(warnings);
            }
        }
    }
}

impl Drop for Running {
    /// End what runs yet, and reap the runner.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both);
        let _ = waitpid(Pid::from_raw(self.runner), WaitOptions::empty());
    }
}

/// Be the runner.
fn run_row(hooks: &[(String, &Hook)], state: &State, all: bool, channel: &Channel) -> ! {
    sys::close_all_but([channel.as_fd()]);
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"lamella-hooks");
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    for (name, hook) in hooks {
        if let Err(failure) = run_one(name, hook, state, Some(channel)) {
            end_descendants();
            let told = channel.send(&if all { Message::Warning(failure.message) } else { Message::Failed(failure) });
            if !all || told.is_err() {
                sys::exit_now(1);
            }
        }
    }
    let _ = channel.send(&Message::Proceed);
    sys::exit_now(0)
}

/// Kill whatever has been started from here, one generation after the other.
fn end_descendants() {
    loop {
        let children = sys::children();
        for child in &children {
            let _ = sys::kill(*child, libc::SIGKILL);
        }
        if children.is_empty() || rustix::process::wait(WaitOptions::empty()).is_err() {
            return;
        }
    }
}

fn named<'a>((point, hooks): (&'static str, &'a Vec<Hook>)) -> impl Iterator<Item = (String, &'a Hook)> {
    hooks.iter().enumerate().map(move |(index, hook)| (field(point, index, hook), hook))
}

fn field(point: &str, index: usize, hook: &Hook) -> String {
    format!("hooks.{point}[{index}] {}", hook.path)
}

/// Run one program to its end, or to its time-out. It is killed, too, when `listener` has no other end any more.
fn run_one(name: &str, hook: &Hook, state: &State, listener: Option<&Channel>) -> Result<(), Failure> {
    let prepare = || format!("prepare {name}");
    let memory = |content: &[u8]| sys::memory_file("lamella-hook", content).step(prepare);
    let input = memory(&serde_json::to_vec(state).unwrap_or_default())?;
    let mut words = memory(&[])?;
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('='))).process_group(0);
    command.stdin(Stdio::from(input));
    for set in [Command::stdout, Command::stderr] {
        set(&mut command, Stdio::from(words.try_clone().step(prepare)?));
    }
    let mut child = command.spawn().map_err(|error| failed(name, &describe(&error)))?;
    match wait(&mut child, hook.timeout, listener).step(|| format!("wait for {name}"))? {
        Ended::Itself(status) if status.success() => Ok(()),
        Ended::Itself(status) => {
            let mut text = Vec::new();
            let _ = words.rewind().and_then(|()| words.take(LONGEST_WORDS).read_to_end(&mut text));
            let text = String::from_utf8_lossy(&text);
            Err(failed(name, format!("{status}: {}", text.trim()).trim_end_matches(": ")))
        }
        Ended::TooLate => Err(failed(name, &format!("it was killed after {} s", hook.timeout.unwrap_or_default()))),
        Ended::ForNobody => Err(failed(name, "it was killed: nobody waits for it any more")),
    }
}

fn failed(name: &str, why: &str) -> Failure {
    Failure::new(Kind::FailedPrecondition, format!("{name}: {why}"))
}

/// How a hook came to its end.
enum Ended {
    Itself(ExitStatus),
    TooLate,
    ForNobody,
}

/// Wait for a child, the leader of a process group, or kill that.
fn wait(child: &mut Child, seconds: Option<u32>, listener: Option<&Channel>) -> std::io::Result<Ended> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(Errno::SRCH)?;
    let file = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    let mut watched = vec![PollFd::new(&file, PollFlags::IN)];
    watched.extend(listener.map(|listener| PollFd::new(listener, PollFlags::empty())));
    let ended = loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match poll(&mut watched, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => break Ended::TooLate,
            Ok(_) if !watched[0].revents().is_empty() => return child.wait().map(Ended::Itself),
            Ok(_) => break Ended::ForNobody,
        }
    };
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait()?;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(script: &str, timeout: Option<u32>) -> Plan {
        let args = ["name", "-c", script].map(String::from).to_vec();
        let hook = Hook { path: "/bin/sh".into(), args, env: vec!["A=b=c".into()], timeout };
        let state = State {
            oci_version: "1.2.0".into(),
            id: "box".into(),
            status: Status::Creating,
            pid: 0,
            bundle: "/b".into(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
        };
        Plan { hooks: Hooks { poststart: vec![hook.clone()], poststop: vec![hook], ..Hooks::default() }, state }
    }

    #[test]
    fn a_hook_gets_the_state_and_its_own_environment() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("told");
        let script = format!("{{ cat; echo; echo $0 $A $HOME; }} > {}", file.display());
        plan(&script, Some(60)).run(Point::Start, 7).expect("it ran");
        let told = std::fs::read_to_string(file).expect("written");
        let state =
            r#"{"ociVersion":"1.2.0","id":"box","status":"running","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#;
        assert_eq!(told, format!("{state}\nname b=c\n"));
    }

    #[test]
    fn a_hook_that_fails_says_why() {
        let failure = plan("echo no; echo way >&2; exit 3", None).run(Point::Start, 7).expect_err("failed");
        let message = "hooks.poststart[0] /bin/sh: exit status: 3: no\\nway";
        assert_eq!(failure.message, message);
        let complaints = plan("exit 1", None).run(Point::End, 7).expect("failures stop nothing");
        assert!(complaints[0].starts_with("hooks.poststop[0]"));
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_all_that_it_has_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let started = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600", file.display());
        let script = format!("setsid sh -c '{started}' & sleep 600");
        for seconds in (1..).take_while(|_| !file.exists()) {
            let failure = plan(&script, Some(seconds)).run(Point::Start, 7).expect_err("killed");
            let message = format!("killed after {seconds} s"); // which may be before a slow machine has come so far
            assert!(failure.message.ends_with(&message), "{}", failure.message);
        }
        let pid = std::fs::read_to_string(file).expect("it ran");
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn hooks_that_nobody_waits_for_any_more_are_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600", file.display());
        let running = plan(&script, None).begin(Point::Start, 7).expect("begun").expect("there is one");
        while !file.exists() {
            std::thread::yield_now();
        }
        drop(running);
        let pid = std::fs::read_to_string(file).expect("read");
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn nothing_is_forked_where_there_is_no_hook() {
        let plan = plan("exit 1", None);
        assert!(plan.begin(Point::Creation, 7).expect("nothing to do").is_none());
    }
}
