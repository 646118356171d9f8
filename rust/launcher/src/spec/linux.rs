//! `linux`: namespaces, devices, seccomp, paths to hide.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Resources;

/// What is particular to Linux.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Linux {
    /// User id mappings of a new user namespace, or those that the one to join has.
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    /// Group id mappings of it.
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
    /// How far the clocks of a new time namespace are from the host's, by clock: `monotonic` and `boottime`.
    #[serde(default)]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Kernel parameters of the container's namespaces, by dotted name.
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    /// Limits.
    pub resources: Option<Resources>,
    /// The cgroup's path, from the root of each hierarchy.
    pub cgroups_path: Option<String>,
    /// Namespaces to make or to join; those not named are the launcher's.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// Device nodes beyond the default ones.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Propagation of the root mount: `private`, `slave`, `shared`, `unbindable`, or their recursive forms.
    pub rootfs_propagation: Option<String>,
    /// Paths in the container that nothing can be read from.
    #[serde(default)]
    pub masked_paths: Vec<String>,
    /// Paths in the container that cannot be written.
    #[serde(default)]
    pub readonly_paths: Vec<String>,
    /// Refused unless empty.
    pub(super) mount_label: Option<String>,
    /// Execution domain.
    pub personality: Option<Personality>,
}

/// One namespace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// `mount`, `pid`, `uts`, `ipc`, `network`, `cgroup`, `user` or `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Join this one (a file of /proc/PID/ns or a bind mount of one) instead of making a new one.
    #[serde(default)]
    pub path: String,
}

/// How far a clock is from the host's.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeOffset {
    /// Seconds.
    #[serde(default)]
    pub secs: i64,
    /// Nanoseconds beyond.
    #[serde(default)]
    pub nanosecs: u32,
}

/// A range of ids of a user namespace.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// A device node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// `c` or `u` (character), `b` (block), `p` (FIFO).
    #[serde(rename = "type")]
    pub kind: String,
    /// Absolute path in the container.
    pub path: String,
    /// Major number.
    #[serde(default)]
    pub major: i64,
    /// Minor number.
    #[serde(default)]
    pub minor: i64,
    /// Permission bits; those of the host's node when absent.
    pub file_mode: Option<u32>,
    /// Owner; that of the host's node when absent.
    pub uid: Option<u32>,
    /// Group; that of the host's node when absent.
    pub gid: Option<u32>,
}

/// `linux.personality`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// Must be empty.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// A system call filter.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seccomp {
    /// For calls that no rule names.
    pub default_action: String,
    /// The errno of a default action of SCMP_ACT_ERRNO or SCMP_ACT_TRACE; EPERM when absent.
    pub default_errno_ret: Option<u32>,
    /// Architectures whose calls may be made at all; the machine's own is always among them.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*` names; SPEC_ALLOW alone when absent.
    pub flags: Option<Vec<String>>,
    /// Rules; of those that match a call the first with arguments, else the first without, decides.
    #[serde(default)]
    pub syscalls: Vec<SeccompRule>,
}

/// One rule of a system call filter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompRule {
    /// Calls by name.
    pub names: Vec<String>,
    /// `SCMP_ACT_*`.
    pub action: String,
    /// The errno of SCMP_ACT_ERRNO or SCMP_ACT_TRACE.
    pub errno_ret: Option<u32>,
    /// Conditions, all of which must hold; several on one argument are alternatives, as with runc.
    #[serde(default)]
    pub args: Vec<SeccompArgument>,
}

/// A condition on one argument of a call.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompArgument {
    /// Which argument, from 0.
    pub index: u32,
    /// The value to compare with, or the mask.
    pub value: u64,
    /// The value to compare the masked argument with.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_*`.
    pub op: String,
}
