//! Rules that a document must keep beyond its shape. Whatever later steps would trip over is refused here, before
//! anything is done.

use super::{Hook, Linux, Mount, Process, Resources, Spec};
use crate::error::Failure;

/// The kinds of namespaces that a container may have.
pub const NAMESPACES: [&str; 8] = ["mount", "pid", "uts", "ipc", "network", "cgroup", "user", "time"];
/// What `chmod` understands, set-id and sticky bits included.
const MODE_BITS: u32 = 0o7777;

impl Spec {
    pub(super) fn validate(&self) -> Result<(), Failure> {
        if !self.oci_version.starts_with("1.") {
            return Err(Failure::unsupported(format!("ociVersion {:?}", self.oci_version)));
        }
        for (point, hooks) in self.hooks.all() {
            for (index, hook) in hooks.iter().enumerate() {
                hook.validate(&format!("hooks.{point}[{index}]"))?;
            }
        }
        check_text("root.path", &self.root.path)?;
        if self.root.path.is_empty() {
            return Err(Failure::invalid("root.path", "is empty"));
        }
        self.process.validate("process")?;
        for (index, mount) in self.mounts.iter().enumerate() {
            mount.validate(&format!("mounts[{index}]"))?;
        }
        self.linux.validate()?;
        for (field, value) in [("hostname", &self.hostname), ("domainname", &self.domainname)] {
            let Some(value) = value else { continue };
            check_text(field, value)?;
            if value.len() > 64 {
                return Err(Failure::invalid(field, "is longer than 64 bytes"));
            }
            if !value.is_empty() && !self.linux.has_namespace("uts") {
                return Err(Failure::invalid(field, "needs a uts namespace, else the host's would change"));
            }
        }
        if !self.linux.has_namespace("mount") {
            return Err(Failure::unsupported("linux.namespaces without a mount namespace"));
        }
        Ok(())
    }
}

impl Process {
    /// Check a process, `field` being its path in the document.
    pub fn validate(&self, field: &str) -> Result<(), Failure> {
        if self.args.first().is_none_or(String::is_empty) {
            return Err(Failure::invalid(format!("{field}.args"), "names no program"));
        }
        for argument in &self.args {
            check_text(&format!("{field}.args"), argument)?;
        }
        check_environment(&format!("{field}.env"), &self.env)?;
        check_absolute(&format!("{field}.cwd"), &self.cwd)?;
        for (name, value) in [("apparmorProfile", &self.apparmor_profile), ("selinuxLabel", &self.selinux_label)] {
            if value.as_ref().is_some_and(|value| !value.is_empty()) {
                return Err(Failure::unsupported(format!("{field}.{name}")));
            }
        }
        // u32::MAX means "leave as it is" to setresuid: the process would go on as root.
        let user = &self.user;
        for id in [user.uid, user.gid].iter().chain(&user.additional_gids) {
            if *id == u32::MAX {
                return Err(Failure::invalid(format!("{field}.user"), format!("{id} is not an id")));
            }
        }
        if user.umask.is_some_and(|mask| mask > 0o777) {
            return Err(Failure::invalid(format!("{field}.user.umask"), "is larger than 0777 (511)"));
        }
        if self.oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(Failure::invalid(format!("{field}.oomScoreAdj"), "is not between -1000 and 1000"));
        }
        for (index, limit) in self.rlimits.iter().enumerate() {
            let field = format!("{field}.rlimits[{index}]");
            crate::process::rlimits::number(&limit.kind)
                .ok_or_else(|| Failure::invalid(&field, format!("{:?} is not a limit", limit.kind)))?;
            if limit.soft > limit.hard {
                return Err(Failure::invalid(&field, "the soft limit is above the hard one"));
            }
            if self.rlimits.iter().take(index).any(|earlier| earlier.kind == limit.kind) {
                return Err(Failure::invalid(&field, format!("{} is given twice", limit.kind)));
            }
        }
        Ok(())
    }
}

impl Hook {
    fn validate(&self, field: &str) -> Result<(), Failure> {
        check_absolute(&format!("{field}.path"), &self.path)?;
        for argument in &self.args {
            check_text(&format!("{field}.args"), argument)?;
        }
        check_environment(&format!("{field}.env"), &self.env)?;
        if self.timeout == Some(0) {
            return Err(Failure::invalid(format!("{field}.timeout"), "is not greater than zero"));
        }
        Ok(())
    }
}

impl Mount {
    fn validate(&self, field: &str) -> Result<(), Failure> {
        check_absolute(&format!("{field}.destination"), &self.destination)?;
        check_text(&format!("{field}.source"), &self.source)?;
        check_text(&format!("{field}.type"), &self.kind)?;
        for option in &self.options {
            check_text(&format!("{field}.options"), option)?;
        }
        if self.is_bind() && self.source.is_empty() {
            return Err(Failure::invalid(field, format!("the bind mount on {} has no source", self.destination)));
        }
        if !self.is_bind() && self.kind.is_empty() {
            return Err(Failure::invalid(field, format!("the mount on {} has no type", self.destination)));
        }
        if self.destination.split('/').all(|part| part.is_empty() || part == ".") {
            return Err(Failure::invalid(format!("{field}.destination"), "is the root itself"));
        }
        Ok(())
    }
}

impl Linux {
    /// Whether the container gets or joins a namespace of this kind.
    pub fn has_namespace(&self, kind: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.kind == kind)
    }

    /// Whether the container gets a new namespace of this kind.
    pub fn makes_namespace(&self, kind: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.kind == kind && namespace.path.is_empty())
    }

    fn validate(&self) -> Result<(), Failure> {
        for (index, namespace) in self.namespaces.iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            if !NAMESPACES.contains(&namespace.kind.as_str()) {
                return Err(Failure::unsupported(format!("{field}.type {:?}", namespace.kind)));
            }
            if self.namespaces.iter().take(index).any(|earlier| earlier.kind == namespace.kind) {
                return Err(Failure::invalid(field, format!("{} is given twice", namespace.kind)));
            }
            if !namespace.path.is_empty() {
                check_absolute(&format!("{field}.path"), &namespace.path)?;
                if namespace.kind == "mount" {
                    return Err(Failure::unsupported(format!("{field}.path of a mount namespace")));
                }
            }
        }
        let new_user = self.makes_namespace("user");
        if new_user && (self.uid_mappings.is_empty() || self.gid_mappings.is_empty()) {
            return Err(Failure::invalid("linux.uidMappings", "a new user namespace needs id mappings"));
        }
        let mapped = !self.uid_mappings.is_empty() || !self.gid_mappings.is_empty();
        if mapped && !self.has_namespace("user") {
            return Err(Failure::invalid("linux.uidMappings", "mappings need a user namespace"));
        }
        if new_user && let Some(joined) = self.namespaces.iter().find(|namespace| !namespace.path.is_empty()) {
            return Err(Failure::unsupported(format!(
                "linux.namespaces: joining a {} namespace from a new user namespace",
                joined.kind
            )));
        }
        if !self.time_offsets.is_empty() && !self.makes_namespace("time") {
            return Err(Failure::invalid("linux.timeOffsets", "needs a new time namespace"));
        }
        for (clock, offset) in &self.time_offsets {
            if !["monotonic", "boottime"].contains(&clock.as_str()) {
                return Err(Failure::unsupported(format!("linux.timeOffsets.{clock}")));
            }
            if offset.nanosecs > 999_999_999 {
                return Err(Failure::invalid(
                    format!("linux.timeOffsets.{clock}"),
                    "has more nanoseconds than a second",
                ));
            }
        }
        for (index, device) in self.devices.iter().enumerate() {
            let field = format!("linux.devices[{index}]");
            check_absolute(&format!("{field}.path"), &device.path)?;
            if !["c", "u", "b", "p"].contains(&device.kind.as_str()) {
                return Err(Failure::invalid(format!("{field}.type"), format!("{:?} is not a device", device.kind)));
            }
            let number = |value: i64| u32::try_from(value).is_ok();
            if !number(device.major) || !number(device.minor) {
                return Err(Failure::invalid(&field, "a device number does not fit"));
            }
            if device.file_mode.is_some_and(|mode| mode & !(MODE_BITS | libc::S_IFMT) != 0) {
                return Err(Failure::invalid(format!("{field}.fileMode"), "is not a file mode"));
            }
        }
        for path in &self.masked_paths {
            check_absolute("linux.maskedPaths", path)?;
        }
        for path in &self.readonly_paths {
            check_absolute("linux.readonlyPaths", path)?;
        }
        for (name, value) in &self.sysctl {
            self.check_sysctl(name)?;
            check_text("linux.sysctl", value)?;
        }
        if self.mount_label.as_ref().is_some_and(|label| !label.is_empty()) {
            return Err(Failure::unsupported("linux.mountLabel"));
        }
        if let Some(path) = &self.cgroups_path {
            check_cgroups_path(path)?;
        }
        if let Some(personality) = &self.personality {
            if !["LINUX", "LINUX32"].contains(&personality.domain.as_str()) {
                return Err(Failure::unsupported(format!("linux.personality.domain {:?}", personality.domain)));
            }
            if !personality.flags.is_empty() {
                return Err(Failure::unsupported("linux.personality.flags"));
            }
        }
        self.resources.as_ref().map_or(Ok(()), Resources::validate)
    }

    /// A kernel parameter must belong to a namespace of the container, else it would change the host's.
    fn check_sysctl(&self, name: &str) -> Result<(), Failure> {
        let dotted = name.replace('/', ".");
        let refuse = |why: &str| Err(Failure::invalid(format!("linux.sysctl {name:?}"), why));
        if name.is_empty() || dotted.split('.').any(str::is_empty) || name.contains('\0') {
            return refuse("is not a parameter's name");
        }
        let Some(kind) = sysctl_namespace(name) else {
            return refuse("belongs to no namespace: it would change the host");
        };
        if !self.has_namespace(kind) {
            return refuse(&format!("needs a {kind} namespace, else it would change the host's"));
        }
        Ok(())
    }

    /// The first of the kernel parameters that belong to the namespace of a kind.
    pub fn sysctl_of(&self, kind: &str) -> Option<&str> {
        self.sysctl.keys().map(String::as_str).find(|name| sysctl_namespace(name) == Some(kind))
    }
}

/// The kind of namespace that a kernel parameter belongs to; None for the whole machine's.
fn sysctl_namespace(name: &str) -> Option<&'static str> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "fs.mqueue",
    ];
    let dotted = name.replace('/', ".");
    if dotted.starts_with("net.") {
        Some("network")
    } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        Some("ipc")
    } else {
        (dotted == "kernel.domainname" || dotted == "kernel.hostname").then_some("uts")
    }
}

impl Resources {
    /// Check limits by themselves, as an update of a running container gives them too.
    pub fn validate(&self) -> Result<(), Failure> {
        for (index, rule) in self.devices.iter().enumerate() {
            let field = format!("linux.resources.devices[{index}]");
            if !["a", "b", "c", "u", ""].contains(&rule.kind.as_deref().unwrap_or("a")) {
                return Err(Failure::invalid(format!("{field}.type"), "is none of a, b, c"));
            }
            if rule.access.as_ref().is_some_and(|access| access.chars().any(|letter| !"rwm".contains(letter))) {
                return Err(Failure::invalid(format!("{field}.access"), "is not made of r, w and m"));
            }
        }
        if self.memory.as_ref().is_some_and(|memory| memory.use_hierarchy == Some(false)) {
            return Err(Failure::unsupported("linux.resources.memory.useHierarchy false"));
        }
        for (name, value) in &self.unified {
            if name.contains('/') || !name.contains('.') || name.starts_with('.') {
                return Err(Failure::invalid("linux.resources.unified", format!("{name:?} is not a cgroup file")));
            }
            check_text("linux.resources.unified", value)?;
        }
        for limit in &self.hugepage_limits {
            if limit.page_size.is_empty() || !limit.page_size.chars().all(|letter| letter.is_ascii_alphanumeric()) {
                return Err(Failure::invalid("linux.resources.hugepageLimits", "pageSize is not like 2MB"));
            }
        }
        Ok(())
    }
}

fn check_environment(field: &str, variables: &[String]) -> Result<(), Failure> {
    for variable in variables {
        check_text(field, variable)?;
        if variable.find('=').is_none_or(|position| position == 0) {
            let name = variable.split('=').next().unwrap_or_default();
            return Err(Failure::invalid(field, format!("{name:?} is not NAME=value")));
        }
    }
    Ok(())
}

/// Nothing that reaches the kernel as a C string may hold a NUL byte: it would be cut there.
pub fn check_text(field: &str, value: &str) -> Result<(), Failure> {
    if value.contains('\0') { Err(Failure::invalid(field, "contains a NUL byte")) } else { Ok(()) }
}

/// A cgroup's path leads below the root of a hierarchy: what is in it is killed, and removed.
pub fn check_cgroups_path(path: &str) -> Result<(), Failure> {
    check_text("linux.cgroupsPath", path)?;
    if !path.starts_with('/') && path.contains(':') {
        return Err(Failure::unsupported(format!("linux.cgroupsPath {path:?}, a systemd unit,"))
            .with_hint("give a path; podman and containerd do with cgroup_manager = cgroupfs"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| *part == "." || *part == "..") {
        return Err(Failure::invalid("linux.cgroupsPath", format!("{path:?} is not a plain path")));
    }
    Ok(())
}

fn check_absolute(field: &str, value: &str) -> Result<(), Failure> {
    check_text(field, value)?;
    if value.starts_with('/') { Ok(()) } else { Err(Failure::invalid(field, format!("{value:?} is not absolute"))) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::MINIMAL;
    use super::*;
    use crate::error::Kind;

    fn refusal(from: &str, to: &str) -> Failure {
        let document = MINIMAL.replace(from, to);
        assert_ne!(document, MINIMAL);
        Spec::parse(&document).expect_err(to)
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (from, to, name) in [
            (r#""cwd":"/""#, r#""cwd":"/","apparmorProfile":"x""#, "process.apparmorProfile"),
            (r#""cwd":"/""#, r#""cwd":"/","selinuxLabel":"x""#, "process.selinuxLabel"),
            (r#""linux":{"#, r#""linux":{"mountLabel":"x","#, "linux.mountLabel"),
            (r#"{"type":"pid"}"#, r#"{"type":"colour"}"#, "linux.namespaces[1].type"),
            (r#"{"type":"mount"}"#, r#"{"type":"mount","path":"/x"}"#, "mount namespace"),
            (r#"{"type":"mount"},"#, "", "without a mount namespace"),
            (r#""1.0.2""#, r#""2.0.0""#, "ociVersion"),
        ] {
            let failure = refusal(from, to);
            assert_eq!(failure.kind, Kind::Unsupported, "{to}");
            assert!(failure.message.contains(name), "{}", failure.message);
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused_before_anything_is_done() {
        for (from, to) in [
            (r#""cwd":"/""#, r#""cwd":"relative""#),
            (r#""/bin/true""#, r#""a\u0000b""#),
            (r#"["/bin/true"]"#, "[]"),
            (r#""cwd":"/""#, r#""cwd":"/","env":["=x"]"#),
            (r#""cwd":"/""#, r#""cwd":"/","rlimits":[{"type":"RLIMIT_X","soft":1,"hard":1}]"#),
            (r#""cwd":"/""#, r#""cwd":"/","oomScoreAdj":1001"#),
            (r#"{"type":"pid"}"#, r#"{"type":"pid"},{"type":"pid"}"#),
            (r#"{"type":"pid"}"#, r#"{"type":"user"}"#),
            (r#""linux":{"#, r#""hostname":"x","linux":{"#),
            (r#""linux":{"#, r#""linux":{"cgroupsPath":"/a/../b","#),
            (r#""linux":{"#, r#""linux":{"sysctl":{"kernel.panic":"1"},"#),
            (r#""linux":{"#, r#""linux":{"sysctl":{"net.ipv4.ip_forward":"1"},"#),
            (r#""linux":{"#, r#""linux":{"resources":{"unified":{"../x.y":"1"}},"#),
            (r#""linux":{"#, r#""mounts":[{"destination":"/.","type":"tmpfs"}],"linux":{"#),
            (r#""linux":{"#, r#""mounts":[{"destination":"/x","type":"bind"}],"linux":{"#),
            (r#""linux":{"#, r#""linux":{"devices":[{"type":"c","path":"/dev/x","major":-1}],"#),
        ] {
            assert_eq!(refusal(from, to).kind, Kind::InvalidArgument, "{to}");
        }
    }

    #[test]
    fn a_sysctl_of_an_own_namespace_is_fine() {
        let document = MINIMAL
            .replace(r#"{"type":"pid"}"#, r#"{"type":"pid"},{"type":"network"}"#)
            .replace(r#""linux":{"#, r#""linux":{"sysctl":{"net.ipv4.ip_forward":"1"},"#);
        Spec::parse(&document).expect("valid");
    }
}
