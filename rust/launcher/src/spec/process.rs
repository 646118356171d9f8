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
    /// How likely the kernel's out-of-memory killer takes it: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
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
