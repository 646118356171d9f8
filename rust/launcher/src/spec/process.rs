//! `process`: the program, its identity and its privileges.

use serde::Deserialize;

/// The program that a container (or an exec) runs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Give it a terminal of its own.
    #[serde(default)]
    pub terminal: bool,
    /// The terminal's size at the start.
    pub console_size: Option<Size>,
    /// Who it runs as.
    #[serde(default)]
    pub user: User,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value` strings.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working folder, absolute; made when it is missing.
    pub cwd: String,
    /// Capability sets; None leaves a non-root user none and is refused nothing else.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Set no_new_privs.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Refused unless empty.
    pub(super) apparmor_profile: Option<String>,
    /// Refused unless empty.
    pub(super) selinux_label: Option<String>,
    /// How the kernel orders its disk accesses.
    pub io_priority: Option<IoPriority>,
    /// How the kernel gives it processor time.
    pub scheduler: Option<Scheduler>,
    /// How likely the kernel's out-of-memory killer takes it: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// `process.ioPriority`: ioprio_set(2).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// From 0, the first, to 7.
    #[serde(default)]
    pub priority: u32,
}

/// `process.scheduler`: sched_setattr(2). Times are in nanoseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// `SCHED_OTHER`, `SCHED_BATCH`, `SCHED_IDLE`, `SCHED_FIFO`, `SCHED_RR`, `SCHED_ISO` or `SCHED_DEADLINE`.
    pub policy: String,
    /// From -20, the first, to 19: for `SCHED_OTHER` and `SCHED_BATCH`.
    #[serde(default)]
    pub nice: i32,
    /// From 1 to 99, the first: for `SCHED_FIFO` and `SCHED_RR`.
    #[serde(default)]
    pub priority: u32,
    /// `SCHED_FLAG_*` names.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Processor time a period: for `SCHED_DEADLINE`, as the next two.
    #[serde(default)]
    pub runtime: u64,
    /// When that has to be had, from the period's begin.
    #[serde(default)]
    pub deadline: u64,
    /// Length of a period.
    #[serde(default)]
    pub period: u64,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Numeric identity of a process.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Supplementary groups; there are no others.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// Capability sets, each a list of `CAP_*` names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Capabilities {
    #[serde(default)]
    pub bounding: Vec<String>,
    #[serde(default)]
    pub effective: Vec<String>,
    #[serde(default)]
    pub permitted: Vec<String>,
    #[serde(default)]
    pub inheritable: Vec<String>,
    #[serde(default)]
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// `RLIMIT_*` name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}
