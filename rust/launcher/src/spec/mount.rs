//! `mounts[]`.

use serde::Deserialize;

/// One mount, with options as fstab has them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// File-system type; `bind` or none for a bind mount.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Device, or the path on the host that is bound, relative to the bundle or absolute.
    #[serde(default)]
    pub source: String,
    /// Mount options.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Mount {
    /// Whether a path of the host is bound, rather than a file system mounted.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}
