//! The OCI runtime spec (config.json), as far as the launcher implements it.
//!
//! A field that is not declared here is refused by name and path with kind Unsupported, never dropped: a container that
//! silently lacks a limit is worse than one that does not start. Annotations are free, as the spec says.
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>

mod hooks;
mod linux;
mod mount;
mod path;
mod process;
mod resources;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use hooks::{Hook, Hooks};
pub use linux::{Device, IdMapping, Linux, Namespace, Personality, Seccomp, SeccompArgument, SeccompRule, TimeOffset};
pub use mount::Mount;
pub use process::{Capabilities, IoPriority, Process, Rlimit, Scheduler, Size, User};
pub use resources::{BlockIo, Cpu, DeviceRule, HugepageLimit, Memory, Pids, Resources, ThrottleDevice, WeightDevice};
pub use validate::{NAMESPACES, check_cgroups_path, check_text};

use crate::error::Failure;

/// The newest version whose documents are read.
pub const VERSION: &str = "1.2.0";

/// A container, as `config.json` describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The spec's version; any 1.x is taken, as fields are checked one by one.
    pub oci_version: String,
    /// The root file system.
    pub root: Root,
    /// The program to run.
    pub process: Process,
    /// Name of the host in the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Mounts beyond the root, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Programs to run at points of the container's life.
    #[serde(default)]
    pub hooks: Hooks,
    /// Free for all; hooks are told them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What is particular to Linux.
    #[serde(default)]
    pub linux: Linux,
}

/// Where the root file system is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Root {
    /// A folder, relative to the bundle or absolute.
    pub path: String,
    /// Mount it read-only.
    #[serde(default)]
    pub readonly: bool,
}

impl Spec {
    /// Parse and check a whole document. Refuses what the launcher does not implement; nothing has been done yet then.
    pub fn parse(document: &str) -> Result<Self, Failure> {
        let spec: Self = parse_document(document, "config.json")?;
        spec.validate()?;
        Ok(spec)
    }
}

/// Parse a JSON document; the error names the path of the offending value.
pub fn parse_document<'text, T: Deserialize<'text>>(document: &'text str, name: &str) -> Result<T, Failure> {
    serde_json::from_str(document).map_err(|error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        let path = path::at(document, error.line(), error.column());
        if message.starts_with("unknown field") || message.starts_with("unknown variant") {
            return Failure::unsupported(format!("{name}: {path} ({message})"));
        }
        Failure::invalid(name, format!("{path}: {message}"))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::Kind;

    /// The smallest document that is valid.
    pub(crate) const MINIMAL: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
        "process":{"args":["/bin/true"],"cwd":"/","user":{"uid":0,"gid":0}},
        "linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#;

    fn refused(document: &str) -> Failure {
        Spec::parse(document).expect_err("the document should be refused")
    }

    #[test]
    fn a_minimal_document_is_enough() {
        let spec = Spec::parse(MINIMAL).expect("valid");
        assert_eq!(spec.process.args, ["/bin/true"]);
        assert!(!spec.process.terminal);
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_path() {
        let failure = refused(&MINIMAL.replace(r#""linux":{"#, r#""linux":{"intelRdt":{},"#));
        assert_eq!(failure.kind, Kind::Unsupported);
        assert!(failure.message.contains("linux.intelRdt"), "{}", failure.message);
        let failure = refused(&MINIMAL.replace(r#"{"type":"pid"}"#, r#"{"type":"pid","colour":1}"#));
        assert!(failure.message.contains("linux.namespaces[1].colour"), "{}", failure.message);
    }

    #[test]
    fn annotations_are_free() {
        Spec::parse(&MINIMAL.replacen('{', r#"{"annotations":{"a.b/c":"d"},"#, 1)).expect("valid");
    }

    #[test]
    fn a_hook_that_breaks_a_rule_is_refused_with_its_path() {
        Spec::parse(&MINIMAL.replacen('{', r#"{"hooks":{"prestart":[{"path":"/x","timeout":1}]},"#, 1)).expect("valid");
        for (hook, path) in [
            (r#"{"path":"x"}"#, "hooks.poststop[0].path"),
            (r#"{"path":"/x","timeout":0}"#, "hooks.poststop[0].timeout"),
            (r#"{"path":"/x","env":["x"]}"#, "hooks.poststop[0].env"),
            (r#"{"path":"/x","colour":1}"#, "hooks.poststop[0].colour"),
        ] {
            let failure = refused(&MINIMAL.replacen('{', &format!(r#"{{"hooks":{{"poststop":[{hook}]}},"#), 1));
            assert!(failure.message.contains(path), "{}", failure.message);
        }
    }

    #[test]
    fn a_user_id_that_does_not_fit_is_an_error_not_root() {
        let failure = refused(&MINIMAL.replace(r#""uid":0"#, r#""uid":4294967296"#));
        assert_eq!(failure.kind, Kind::InvalidArgument);
        assert!(failure.message.contains("process.user.uid"), "{}", failure.message);
        let failure = refused(&MINIMAL.replace(r#""uid":0"#, r#""uid":4294967295"#));
        assert_eq!(failure.kind, Kind::InvalidArgument);
    }
}
