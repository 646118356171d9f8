//! Another OCI runtime (runc, crun, youki) in the place of our own set-up: it makes the container from the very same bundle.
//!
//! ```text
//! monitor ──fork──> keeper ──create, start──> runtime ──> first process, a child of the monitor when the runtime has ended
//!    └─────fork──> helper ──exec─────────────> runtime ──> added process, the same
//! ```
//! The monitor stays what it is: the parent of the container's processes (it is their subreaper), with their streams, log,
//! socket and cgroup. A [`keeper`] speaks to it on the channel that a first process of our own speaks on, and an [`exec`]
//! helper on that of an added one, so that the monitor need not know who made them. A runtime asks for no signal at its
//! parent's death, as our own first process does: the keeper stays as long as the run, and ends it when the monitor is
//! gone.
//!
//! On disk, in the bundle: `runtime/state` is what the runtime knows (its `--root`); beside it lie, for the length of one
//! command, its log, the process to add, the id of what it made, and the socket on which a terminal comes.
//!
//! The runtime is run by its path, with nothing of our environment and no descriptor but its standard streams: what it
//! leaked would be the container's (CVE-2024-21626). Its command line: runc(8); what it is asked: the runtime spec,
//! runtime.md, "Operations".

mod console;
mod exec;
mod failure;
mod keeper;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, WaitOptions};
use serde::Deserialize;

use crate::cgroup::{Cgroup, Place};
use crate::channel::{Channel, Message};
use crate::container::Streams;
use crate::error::{Failure, Kind, Step};
use crate::namespaces::outer_root;
use crate::request::Request;
use crate::rootfs;
use crate::spec::{IdMapping, Size, check_cgroups_path, parse_document};
use crate::sys;
use console::ConsoleSocket;
pub use exec::Addition;

/// Where the runtime's files lie, from the bundle's folder on.
const FOLDER: &str = "runtime";
/// How long a process may take to end when it is killed.
const PATIENCE: Duration = Duration::from_secs(5);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A runtime, and the one container that it is to make.
#[derive(Debug)]
pub struct Runtime {
    program: PathBuf,
    bundle: PathBuf,
    /// What it calls the container.
    id: String,
    /// Where its cgroup is; None when it has none of its own.
    place: Option<Place>,
    config: Config,
    snapshot: Vec<lamella_core::mount::Mount>,
    sources: Vec<rootfs::Source>,
    /// The network namespace that it is to have, where its config.json cannot name one by a path.
    network: Option<Arc<OwnedFd>>,
    init: bool,
    /// It is made, and not started before the monitor says so.
    hold: bool,
}

/// What the monitor has to know of a config.json: the rest is the runtime's to check.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    root: Root,
    #[serde(default)]
    process: Process,
    #[serde(default)]
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
struct Root {
    #[serde(default)]
    path: String,
}

/// The part of a process that says what it runs, and whether it has a terminal.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    terminal: bool,
    console_size: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
    cgroups_path: Option<String>,
    rootfs_propagation: Option<String>,
    #[serde(default)]
    uid_mappings: Vec<IdMapping>,
    #[serde(default)]
    gid_mappings: Vec<IdMapping>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
}

impl Runtime {
    /// Prepare the container of a bundle, whose config.json is `config`. Nothing is made.
    pub fn new(program: &str, request: &Request, config: &str) -> Result<Self, Failure> {
        let bundle = PathBuf::from(&request.bundle);
        let id = bundle.file_name().map(|name| name.to_string_lossy().into_owned());
        let config: Config = parse_document(config, "config.json")?;
        if let Some(path) = &config.linux.cgroups_path {
            check_cgroups_path(path)?;
        }
        Ok(Self {
            program: program.into(),
            id: id.ok_or_else(|| Failure::invalid("bundle", "has no name"))?,
            bundle,
            place: config.linux.cgroups_path.as_deref().map(|path| Place::new(request.cgroup_root(), path)),
            config,
            snapshot: request.rootfs.iter().cloned().map(Into::into).collect(),
            sources: request.sources.iter().cloned().map(Into::into).collect(),
            network: request.given.network.clone(),
            init: request.init,
            hold: request.hold,
        })
    }

    /// Where the container's cgroup is, from the root of each hierarchy.
    pub fn cgroups_path(&self) -> Option<&str> {
        self.place.as_ref().map(Place::path)
    }

    /// Whether the container's processes all end with its first one.
    pub fn has_own_pids(&self) -> bool {
        self.config.linux.namespaces.iter().any(|namespace| namespace.kind == "pid")
    }

    /// The ids of the host that are root in the container's user namespace.
    pub fn outer_root(&self) -> Option<(u32, u32)> {
        outer_root(&self.config.linux.uid_mappings, &self.config.linux.gid_mappings)
    }

    /// Whether the first process gets a terminal.
    pub fn has_terminal(&self) -> bool {
        self.config.process.terminal
    }

    /// The cgroup that the runtime has made; none before that.
    pub fn cgroup(&self) -> Cgroup {
        self.place.as_ref().map(Place::open).unwrap_or_default()
    }

    /// Have the runtime let go of what it keeps of a container that has ended. Harmless twice, and where there is nothing.
    pub fn delete(&self) -> Result<(), Failure> {
        if !self.state().join(&self.id).exists() {
            return Ok(());
        }
        self.run("delete", "delete", &["--force", &self.id], [Stdio::null(), Stdio::null(), Stdio::null()])
    }

    /// The command by which others have the runtime let go of the container.
    pub fn deletion(&self) -> [String; 6] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let [delete, force] = ["delete", "--force"].map(String::from);
        [text(&self.program), "--root".into(), text(&self.state()), delete, force, self.id.clone()]
    }

    /// End all that there is of the container, at whatever step its making was. Harmless twice.
    pub fn clear(&self) {
        let cgroup = self.cgroup();
        let opened = |pid| rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
        let processes: Vec<OwnedFd> = cgroup.processes().into_iter().filter_map(opened).collect();
        cgroup.signal_all(libc::SIGKILL);
        // A runtime that has to kill by itself looks only every tenth of a second.
        for process in &processes {
            sys::ends_within(process.as_fd(), Some(PATIENCE));
        }
        let _ = self.delete();
        self.remove_cgroup();
    }

    /// Remove the cgroup wherever the runtime has made it, and parents that are empty then, but for those that were there
    /// before: a runtime leaves parents. Harmless twice.
    pub fn remove_cgroup(&self) {
        if let Some(place) = &self.place {
            place.remove();
        }
    }

    fn folder(&self) -> PathBuf {
        self.bundle.join(FOLDER)
    }

    fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// Remove the files of commands that were killed: a runtime makes none that is there.
    fn forget_commands(&self) {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir())) {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// A file for the length of the command that `name` stands for, from the bundle's folder on: a socket's path is short.
    fn file(name: &str, suffix: &str) -> String {
        format!("{FOLDER}/{name}.{suffix}")
    }

    /// The id, as the host sees it, of the process that a command has made.
    fn made(&self, name: &str) -> Option<i32> {
        fs::read_to_string(self.bundle.join(Self::file(name, "pid"))).ok()?.trim().parse().ok()
    }

    /// Begin a command of the runtime. `name` is what its files are called.
    fn spawn(&self, verb: &str, name: &str, words: &[&str], streams: [Stdio; 3]) -> Result<Child, Failure> {
        let [input, output, error] = streams;
        Command::new(&self.program)
            .arg("--root")
            .arg(self.state())
            .args(["--log", &Self::file(name, "log"), "--log-format", "json", verb])
            .args(words)
            .env_clear()
            .env("PATH", PATH)
            .current_dir(&self.bundle)
            .stdin(input)
            .stdout(output)
            .stderr(error)
            .spawn()
            .map_err(|error| {
                Failure::system(format!("run {}", self.program.display()), &error)
                    .with_hint("install it, or run the container without runtime=")
            })
    }

    /// Wait for the end of a command; what it has complained of becomes the failure.
    fn finish(&self, verb: &str, name: &str, mut child: Child) -> Result<(), Failure> {
        let status = child.wait().step(|| format!("wait for {}", self.program.display()));
        let log = self.bundle.join(Self::file(name, "log"));
        let complaints = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        let status = status?;
        if status.success() {
            return Ok(());
        }
        let program = self.program.file_name().unwrap_or_default().to_string_lossy();
        Err(failure::explain(&format!("{program} {verb}"), &complaints, &status.to_string()))
    }

    fn run(&self, verb: &str, name: &str, words: &[&str], streams: [Stdio; 3]) -> Result<(), Failure> {
        self.spawn(verb, name, words, streams).and_then(|child| self.finish(verb, name, child))
    }

    /// Have the runtime make a process, in the process that was forked for that, and tell the monitor of it.
    fn make(&self, making: &Making<'_>, streams: Option<Streams>, channel: &Channel) -> Result<(), Failure> {
        let Making { verb, name, .. } = *making;
        let pid_file = Self::file(name, "pid");
        let mut words = vec!["--pid-file", &pid_file];
        words.extend(making.words);
        let console = if making.process.terminal {
            Some(ConsoleSocket::listen(&self.bundle, Self::file(name, "sock"))?)
        } else {
            None
        };
        if let Some(console) = &console {
            words.extend(["--console-socket", console.path()]);
        }
        words.push(&self.id);
        let streams = streams.map_or_else(|| Ok([Stdio::null(), Stdio::null(), Stdio::null()]), inherited)?;
        let child = self.spawn(verb, name, &words, streams)?;
        self.finish(verb, name, child).map_err(|failure| failure::name(failure, making.process.args.first()))?;
        let pid = self.made(name).ok_or_else(|| {
            Failure::new(Kind::Internal, format!("{} {verb} has named no process", self.program.display()))
        })?;
        if let Some(console) = console {
            let terminal = console.receive()?;
            if let Some(size) = making.process.console_size {
                rootfs::set_terminal_size(&terminal, size).step(|| "set the terminal's size")?;
            }
            channel.send(&Message::Terminal(terminal))?;
        }
        channel.send(&Message::Pid(pid))
    }
}

/// What `make` has the runtime do.
struct Making<'a> {
    /// `create` or `exec`.
    verb: &'a str,
    /// What its files are called.
    name: &'a str,
    /// Beyond those for the process's id and its terminal.
    words: &'a [&'a str],
    process: &'a Process,
}

/// The streams of a process, for the runtime to hand down. Without an input there is one that is at its end: of the host's
/// /dev/null a container could change owner and mode.
fn inherited(streams: Streams) -> Result<[Stdio; 3], Failure> {
    let input: OwnedFd = match streams.input {
        Some(input) => input,
        None => rootfs::empty_pipe()?,
    };
    Ok([input.into(), streams.output.into(), streams.error.into()])
}

/// End the process that was forked to speak to a runtime, with the runtime, and reap it.
pub fn dismiss(helper: i32) {
    for target in [-helper, helper] {
        let _ = sys::kill(target, libc::SIGKILL);
    }
    let _ = rustix::process::waitpid(Pid::from_raw(helper), WaitOptions::empty());
}

/// In a process that was forked: let go of every descriptor but some and the streams that it is to hand down. The monitor's
/// socket and its ends of pipes are among them, and others wait for the end of those.
fn keep_only(kept: &[BorrowedFd<'_>], streams: Option<&Streams>) {
    sys::close_all_but(kept.iter().copied().chain(streams.into_iter().flat_map(Streams::all)));
}

/// Make a folder that is there or not.
fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).step(|| format!("make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(folder: &Path, script: &str, config: &str) -> Runtime {
        let program = folder.join("runx");
        crate::write_program(&program, &format!("#!/bin/sh\n{script}\n"));
        let bundle = folder.join("box");
        make_folder(&bundle.join(FOLDER)).expect("made");
        let request = format!(r#"{{"version":2,"bundle":{bundle:?}}}"#);
        Runtime::new(&program.to_string_lossy(), &Request::parse(&request).expect("valid"), config).expect("valid")
    }

    #[test]
    fn it_is_run_with_a_clean_environment_in_the_bundle_and_its_complaint_is_the_failure() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = r#"env | grep -v ^PWD= | grep -v ^_= | grep -v ^SHLVL= > seen; echo "$@" >> seen
            echo '{"level":"error","msg":"exec: \"no\": executable file not found in $PATH"}' > "$4"; exit 1"#;
        let runtime = runtime(folder.path(), script, "{}");
        let failure = runtime
            .run("create", "create", &["word"], [Stdio::null(), Stdio::null(), Stdio::null()])
            .expect_err("refused");
        assert_eq!((failure.kind, failure.exit_code), (Kind::CommandNotFound, Some(127)));
        let seen = fs::read_to_string(folder.path().join("box/seen")).expect("it ran there");
        let state = folder.path().join("box/runtime/state");
        let expected =
            format!("PATH={PATH}\n--root {} --log runtime/create.log --log-format json create word\n", state.display());
        assert_eq!(seen, expected);
        assert!(!folder.path().join("box/runtime/create.log").exists(), "a log is read once");
    }

    #[test]
    fn what_the_monitor_reads_of_a_config_is_little_and_the_rest_is_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = r#"{"hooks":{"prestart":[{"path":"/x"}]},"process":{"terminal":true,"apparmorProfile":"x"},
            "linux":{"namespaces":[{"type":"pid"},{"type":"time"}],"intelRdt":{}}}"#;
        let runtime = runtime(folder.path(), "", config);
        assert!(runtime.has_own_pids() && runtime.has_terminal());
        assert_eq!(runtime.id, "box");
    }

    #[test]
    fn a_cgroup_that_is_the_root_of_all_is_refused() {
        let request = Request::parse(r#"{"version":2,"bundle":"/box"}"#).expect("valid");
        for path in ["", "/", "/a/../.."] {
            let config = format!(r#"{{"linux":{{"cgroupsPath":{path:?}}}}}"#);
            let failure = Runtime::new("/runx", &request, &config).expect_err(path);
            assert_eq!(failure.kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn nothing_is_deleted_where_the_runtime_knows_of_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = runtime(folder.path(), "touch asked", "{}");
        runtime.delete().expect("nothing to do");
        assert!(!folder.path().join("box/asked").exists());
        make_folder(&runtime.state().join("box")).expect("made");
        runtime.delete().expect("asked");
        assert!(folder.path().join("box/asked").exists());
    }
}
