//! Running a container's hooks: programs that the spec names for points of its life.
//!
//! Each gets the container's state on its standard input, and an environment that is the spec's alone. What it says is
//! told when it fails. They run one after the other; the first that fails ends the row.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::error::{Failure, Kind, Step, describe};
use crate::spec::{self, Hook, Hooks, Spec};
use crate::sys;

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

/// A container's hooks, and what they are told.
#[derive(Clone, Debug)]
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

    /// Those of the caller's side, once namespaces and mounts are there.
    pub fn at_creation(&self, pid: i32) -> Result<(), Failure> {
        self.run("prestart", &self.hooks.prestart, Status::Creating, pid)?;
        self.run("createRuntime", &self.hooks.create_runtime, Status::Creating, pid)
    }

    /// Those of the container's side, right afterwards. To be called in its first process.
    pub fn in_container(&self) -> Result<(), Failure> {
        self.run("createContainer", &self.hooks.create_container, Status::Creating, own_pid())
    }

    /// Those before the program. To be called in the process that becomes it.
    pub fn before_program(&self) -> Result<(), Failure> {
        self.run("startContainer", &self.hooks.start_container, Status::Created, own_pid())
    }

    /// Those after the program's start.
    pub fn after_start(&self, pid: i32) -> Result<(), Failure> {
        self.run("poststart", &self.hooks.poststart, Status::Running, pid)
    }

    /// Those after the end. All are run; returns what failed.
    pub fn after_end(&self) -> Vec<Failure> {
        let state = State { status: Status::Stopped, pid: 0, ..self.state.clone() };
        let one = |(index, hook): (usize, &Hook)| run_one(&field("poststop", index, hook), hook, &state).err();
        self.hooks.poststop.iter().enumerate().filter_map(one).collect()
    }

    fn run(&self, point: &str, hooks: &[Hook], status: Status, pid: i32) -> Result<(), Failure> {
        if hooks.is_empty() {
            return Ok(());
        }
        let state = State { status, pid, ..self.state.clone() };
        hooks.iter().enumerate().try_for_each(|(index, hook)| run_one(&field(point, index, hook), hook, &state))
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn field(point: &str, index: usize, hook: &Hook) -> String {
    format!("hooks.{point}[{index}] {}", hook.path)
}

/// Run one program to its end, or to its time-out.
fn run_one(name: &str, hook: &Hook, state: &State) -> Result<(), Failure> {
    let prepare = || format!("prepare {name}");
    let memory = |content: &[u8]| sys::memory_file("lamella-hook", content).step(prepare);
    let input = memory(&serde_json::to_vec(state).unwrap_or_default())?;
    let mut words = memory(&[])?;
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    command.stdin(Stdio::from(input));
    for set in [Command::stdout, Command::stderr] {
        set(&mut command, Stdio::from(words.try_clone().step(prepare)?));
    }
    let mut child = command.spawn().map_err(|error| failed(name, &describe(&error)))?;
    let Some(status) = wait(&mut child, hook.timeout).step(|| format!("wait for {name}"))? else {
        return Err(failed(name, &format!("it was killed after {} s", hook.timeout.unwrap_or_default())));
    };
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = words.rewind().and_then(|_| words.take(LONGEST_WORDS).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    Err(failed(name, format!("{status}: {}", text.trim()).trim_end_matches(": ")))
}

fn failed(name: &str, why: &str) -> Failure {
    Failure::new(Kind::FailedPrecondition, format!("{name}: {why}"))
}

/// Wait for a child; None when it had to be killed for its time was over.
fn wait(child: &mut Child, seconds: Option<u32>) -> std::io::Result<Option<ExitStatus>> {
    let Some(seconds) = seconds else { return child.wait().map(Some) };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    let file = pidfd_open(pid, PidfdFlags::empty())?;
    let ended = sys::ends_within(file.as_fd(), Some(Duration::from_secs(seconds.into())));
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended.then_some(status))
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
        plan(&script, Some(60)).after_start(7).expect("it ran");
        let told = std::fs::read_to_string(file).expect("written");
        let state =
            r#"{"ociVersion":"1.2.0","id":"box","status":"running","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#;
        assert_eq!(told, format!("{state}\nname b=c\n"));
    }

    #[test]
    fn a_hook_that_fails_says_why() {
        let failure = plan("echo no; echo way >&2; exit 3", None).after_start(7).expect_err("failed");
        let message = "hooks.poststart[0] /bin/sh: exit status: 3: no\\nway";
        assert_eq!(failure.message, message);
        assert!(plan("exit 1", None).after_end()[0].message.starts_with("hooks.poststop[0]"));
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let failure = plan("exec sleep 600", Some(0)).after_start(7).expect_err("killed");
        assert!(failure.message.ends_with("killed after 0 s"), "{}", failure.message);
    }
}
