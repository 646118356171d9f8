//! What the launcher is asked to do, and its one answer.
//!
//! The request comes as a JSON document on descriptor 3; the reply leaves on descriptor 4.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::{Failure, Kind, Step};
use crate::monitor::Owner;
use crate::rootfs::Source;
use crate::spec;
use crate::sys;

/// The version of the protocol that this launcher speaks.
pub const VERSION: u32 = 2;

/// A container to start.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Must be [`VERSION`].
    pub version: u32,
    /// The OCI bundle: a folder with `config.json`; `rootfs`, `control.sock`, `pid` and `exit.json` go there.
    pub bundle: String,
    /// The file whose lock (flock) the monitor holds while it lives; `<bundle>/lock` when absent.
    #[serde(default)]
    pub lock: Option<String>,
    /// The snapshot's mounts, made on `<bundle>/rootfs` inside the container's mount namespace; empty when the spec's
    /// root is ready as it is.
    #[serde(default)]
    pub rootfs: Vec<SnapshotMount>,
    /// What the spec's bind mounts of `sources/N` show, N counting from 0.
    #[serde(default)]
    pub sources: Vec<BindSource>,
    /// Where a copy of `exit.json` is to be, if anywhere: the bundle may lie in memory, and end with the machine.
    #[serde(default)]
    pub exit_record: Option<String>,
    /// Where output is recorded, if anywhere; made at the first output.
    #[serde(default)]
    pub log: Option<LogTarget>,
    /// Descriptor 5 is a stream socket: the first attached client.
    #[serde(default)]
    pub attach: bool,
    /// The container has a standard input; otherwise it reads /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// Standard input ends when the first attached client goes away.
    #[serde(default)]
    pub stdin_once: bool,
    /// Paths that its streams lead to, beside clients and the log.
    #[serde(default)]
    pub stdio: Redirections,
    /// Where the task's events go, if they go anywhere.
    #[serde(default)]
    pub events: Option<EventTarget>,
    /// The file that says how the container's network is let go of at its end; see [`crate::network`].
    #[serde(default)]
    pub network: Option<String>,
    /// The container has a network namespace with nothing but loopback: it is made while the bundle is read. The bundle alone
    /// says what it has, so that this costs time where it is wrong, and no more.
    #[serde(default)]
    pub own_network: bool,
    /// Parents of the cgroup stay when it is removed, empty or not: whoever asks for that removes them.
    #[serde(default)]
    pub keep_cgroup_parents: bool,
    /// Where the cgroup hierarchies are mounted; /sys/fs/cgroup when absent.
    #[serde(default)]
    pub cgroup_root: Option<String>,
    /// The program runs beneath an init, which passes signals on and reaps ([`crate::init`]).
    #[serde(default)]
    pub init: bool,
    /// The path of another OCI runtime, which makes the container in the place of the launcher ([`crate::runtime`]).
    #[serde(default)]
    pub runtime: Option<String>,
    /// Whether a container that has ended is run again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Set everything up and wait for the `start` operation before the program is run.
    #[serde(default)]
    pub hold: bool,
    /// What ends a container for good is done by whoever takes leave of it, as in containerd, and not at its end: poststop hooks,
    /// another runtime's `delete`.
    #[serde(default)]
    pub deleted_later: bool,
    /// The program of a held container comes with the `start` operation: the spec's is not looked for. When the first
    /// attached client hangs up before, the container ends.
    #[serde(default)]
    pub program_at_start: bool,
    /// What a caller who is not root has passed besides.
    #[serde(skip)]
    pub given: Given,
}

/// What a caller who is not root passes besides the request.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// A user namespace, in which everything is done.
    pub as_user: bool,
    /// The container's network namespace, in all its runs.
    pub network: Option<Arc<OwnedFd>>,
}

/// What the launcher has to know of a request before it reads it. What is wrong with the request is seen later.
#[derive(Debug, Default, Deserialize)]
pub struct Outline {
    /// As in the request.
    #[serde(default)]
    pub attach: bool,
    /// As in the request.
    #[serde(default)]
    pub own_network: bool,
}

impl Outline {
    /// Take it from a request.
    pub fn of(document: &str) -> Self {
        serde_json::from_str(document).unwrap_or_default()
    }
}

/// Where the streams of a process lead, as containerd's API has it: an empty path for nowhere, the path of a FIFO, or, of
/// output, a URI whose scheme is `file` or `binary`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Redirections {
    #[serde(default)]
    pub stdin: String,
    #[serde(default)]
    pub stdout: String,
    #[serde(default)]
    pub stderr: String,
}

impl Redirections {
    /// Refuse what would be cut at a NUL.
    pub fn check(&self) -> Result<(), Failure> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().try_for_each(|path| spec::check_text("stdio", path))
    }
}

/// When a container that has ended is run again, but for one that was ended from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When its exit status is not 0.
    OnFailure {
        /// At most so many times; 0 for no limit.
        #[serde(default)]
        max_retries: u32,
    },
    /// However it ended.
    Always,
}

/// The program that a held container is to run, in place of the spec's.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its arguments, the name first.
    pub args: Vec<String>,
    /// Its whole environment, as `NAME=value`.
    pub env: Vec<String>,
}

impl Program {
    /// Write it to a file in memory: arguments may be longer than a message.
    pub fn into_file(self) -> Result<OwnedFd, Failure> {
        let text = serde_json::to_vec(&self).unwrap_or_default();
        Ok(sys::memory_file("lamella-program", &text).step(|| "write down the program")?.into())
    }

    /// Read what [`Program::into_file`] wrote.
    pub fn from_file(file: OwnedFd) -> Result<Self, Failure> {
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text).step(|| "read the program")?;
        serde_json::from_slice(&text).map_err(|error| Failure::new(Kind::Internal, format!("the program: {error}")))
    }
}

/// The files that output is recorded in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogTarget {
    /// The one that is written to; full ones get a number behind their name.
    pub path: String,
    /// When one is full, in bytes; never when absent.
    #[serde(default)]
    pub max_size: Option<u64>,
    /// How many there may be, the one that is written to among them.
    #[serde(default = "one")]
    pub max_file: u32,
}

fn one() -> u32 {
    1
}

/// Where events of the task are told, and what the task is called in them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventTarget {
    /// The store's spool; it is made when it is not there, and so is its folder.
    pub spool: String,
    /// The container's namespace.
    pub namespace: String,
    /// The container's identifier.
    pub container: String,
}

/// One mount of a snapshot, as containerd's mount structure has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMount {
    /// `overlay`, `bind`, or a file system's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Device or folder.
    pub source: String,
    /// Options as fstab has them.
    #[serde(default)]
    pub options: Vec<String>,
}

/// The source of a bind mount that is no path of the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindSource {
    /// What shows it.
    pub mount: SnapshotMount,
    /// A relative path in that; all of it when absent.
    #[serde(default)]
    pub subpath: String,
}

impl From<BindSource> for Source {
    fn from(source: BindSource) -> Self {
        Self { mount: source.mount.into(), subpath: source.subpath }
    }
}

impl From<SnapshotMount> for lamella_core::mount::Mount {
    fn from(mount: SnapshotMount) -> Self {
        Self { kind: mount.kind, source: mount.source, options: mount.options }
    }
}

impl Request {
    /// For whom streams are redirected.
    pub fn owner(&self) -> Owner {
        match &self.events {
            Some(EventTarget { container, namespace, .. }) => {
                Owner { container: container.clone(), namespace: namespace.clone() }
            }
            None => Owner { container: self.id().into(), namespace: String::new() },
        }
    }

    /// The container's identifier.
    pub fn id(&self) -> &str {
        self.bundle.rsplit('/').find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// Where the cgroup hierarchies are mounted.
    pub fn cgroup_root(&self) -> &Path {
        Path::new(self.cgroup_root.as_deref().unwrap_or(cgroup::ROOT))
    }

    /// Parse and check a request.
    pub fn parse(document: &str) -> Result<Self, Failure> {
        let request: Self = spec::parse_document(document, "request")?;
        if request.version != VERSION {
            return Err(Failure::unsupported(format!("request version {}", request.version))
                .with_hint("the launcher and the library come from different releases; install lamella again"));
        }
        if request.program_at_start && !request.hold {
            return Err(Failure::invalid("program_at_start", "is for a container that is held"));
        }
        if request.runtime.is_some() && request.program_at_start {
            return Err(Failure::unsupported("program_at_start beside a runtime")
                .with_hint("another OCI runtime has its program from the beginning: leave runtime out"));
        }
        request.stdio.check()?;
        spec::check_text("bundle", &request.bundle)?;
        if !request.bundle.starts_with('/') {
            return Err(Failure::invalid("bundle", format!("{:?} is not absolute", request.bundle)));
        }
        let snapshot = request.rootfs.iter().map(|mount| ("rootfs", mount));
        for (field, mount) in snapshot.chain(request.sources.iter().map(|source| ("sources", &source.mount))) {
            for text in [&mount.kind, &mount.source].into_iter().chain(&mount.options) {
                spec::check_text(field, text)?;
            }
        }
        for (index, source) in request.sources.iter().enumerate() {
            spec::check_text("sources", &source.subpath)?;
            if source.subpath.starts_with('/') || source.subpath.split('/').any(|part| part == "..") {
                let field = format!("sources[{index}].subpath");
                return Err(Failure::invalid(field, format!("{:?} is not a path beneath", source.subpath)));
            }
        }
        let spool = request.events.as_ref().map(|target| &target.spool);
        let log = request.log.as_ref().map(|target| &target.path);
        for (field, path) in [
            ("log", log),
            ("network", request.network.as_ref()),
            ("runtime", request.runtime.as_ref()),
            ("cgroup_root", request.cgroup_root.as_ref()),
            ("events.spool", spool),
            ("exit_record", request.exit_record.as_ref()),
        ] {
            let Some(path) = path else { continue };
            spec::check_text(field, path)?;
            if !path.starts_with('/') {
                return Err(Failure::invalid(field, "is not an absolute path"));
            }
        }
        Ok(request)
    }
}

/// The answer to a request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// The container's first process runs, or is held.
    Started {
        /// Its id, as the host sees it.
        pid: i32,
        /// The monitor's id.
        monitor_pid: i32,
        /// RFC 3339 with nanoseconds.
        started_at: String,
        /// What was asked for and could not be had, though it did not stop the start.
        warnings: Vec<String>,
    },
    /// Nothing runs, nothing is left.
    Failed {
        /// Why.
        error: Failure,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_says_what_the_request_does_and_refuses_nothing() {
        let outline = Outline::of(r#"{"version":2,"bundle":"/b","attach":true,"own_network":true,"x":[{}]}"#);
        assert!(outline.attach && outline.own_network);
        for document in [r#"{"version":2,"bundle":"/b"}"#, r#"{"attach":"#, "", "[]", r#"{"attach":3}"#] {
            let outline = Outline::of(document);
            assert!(!outline.attach && !outline.own_network, "{document}");
        }
    }

    #[test]
    fn a_request_has_few_required_fields() {
        let request = Request::parse(r#"{"version":2,"bundle":"/b"}"#).expect("valid");
        assert!(!request.attach && !request.hold && request.log.is_none() && request.rootfs.is_empty());
    }

    #[test]
    fn a_restart_policy_has_a_name_and_maybe_a_number() {
        let parse = |policy: &str| Request::parse(&format!(r#"{{"version":2,"bundle":"/b","restart":{policy}}}"#));
        assert_eq!(parse(r#"{"name":"always"}"#).expect("valid").restart, RestartPolicy::Always);
        let retried = RestartPolicy::OnFailure { max_retries: 3 };
        assert_eq!(parse(r#"{"name":"on-failure","max_retries":3}"#).expect("valid").restart, retried);
        parse(r#"{"name":"sometimes"}"#).expect_err("unknown");
    }

    #[test]
    fn a_program_is_the_same_after_its_file() {
        let program = Program { args: vec!["a\n\"b".into(), "x".repeat(100_000)], env: vec!["A=\u{e9}".into()] };
        let read = Program::from_file(program.clone().into_file().expect("written")).expect("read");
        assert_eq!((read.args, read.env), (program.args, program.env));
    }

    #[test]
    fn another_version_or_an_unknown_field_is_refused() {
        for document in [r#"{"version":3,"bundle":"/b"}"#, r#"{"version":2,"bundle":"/b","x":1}"#] {
            assert_eq!(Request::parse(document).expect_err(document).kind, crate::error::Kind::Unsupported);
        }
        Request::parse(r#"{"version":2,"bundle":"/b","program_at_start":true}"#).expect_err("not held");
        Request::parse(r#"{"version":2,"bundle":"b"}"#).expect_err("relative");
        Request::parse(r#"{"version":2,"bundle":"/b","log":{"path":"/a\u0000b"}}"#).expect_err("cut at the NUL");
        let options =
            r#"{"version":2,"bundle":"/b","rootfs":[{"type":"overlay","source":"o","options":["a\u0000b"]}]}"#;
        assert_eq!(Request::parse(options).expect_err("cut at the NUL").kind, Kind::InvalidArgument);
        for path in ["/a", "..", "a/../../b"] {
            let source = format!(r#"{{"mount":{{"type":"bind","source":"/s"}},"subpath":"{path}"}}"#);
            Request::parse(&format!(r#"{{"version":2,"bundle":"/b","sources":[{source}]}}"#)).expect_err("leads out");
        }
        Request::parse(r#"{"version":2,"bundle":"/b","runtime":"runc"}"#).expect_err("relative");
        let held =
            Request::parse(r#"{"version":2,"bundle":"/b","runtime":"/runc","hold":true,"program_at_start":true}"#);
        let held = held.expect_err("it has its program from the beginning");
        assert_eq!(held.kind, Kind::Unsupported);
        let events = r#"{"version":2,"bundle":"/b","events":{"spool":"s","namespace":"n","container":"c"}}"#;
        Request::parse(events).expect_err("relative");
    }
}
