//! `hooks`: programs to run at points of a container's life.

use serde::{Deserialize, Serialize};

/// Programs by the point at which they run, in order.
/// <https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks>
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hooks {
    /// Once namespaces and mounts are there, in the caller's namespaces; as `create_runtime`, and before those.
    #[serde(default)]
    pub prestart: Vec<Hook>,
    /// Once namespaces and mounts are there, in the caller's namespaces.
    #[serde(default)]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root becomes the root.
    #[serde(default)]
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    #[serde(default)]
    pub start_container: Vec<Hook>,
    /// Once the program runs, in the caller's namespaces.
    #[serde(default)]
    pub poststart: Vec<Hook>,
    /// Once the container is gone, in the caller's namespaces.
    #[serde(default)]
    pub poststop: Vec<Hook>,
}

/// One program.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Absolute.
    pub path: String,
    /// Its arguments, the name first; the path alone when absent.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its whole environment, as `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds until it is killed, and has failed; none when absent.
    pub timeout: Option<u32>,
}

impl Hooks {
    /// Whether there is any program.
    pub fn any(&self) -> bool {
        self.all().any(|(_, hooks)| !hooks.is_empty())
    }

    /// All programs, with the name of the point they belong to.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Vec<Hook>)> {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
        .into_iter()
    }
}
