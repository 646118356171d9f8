//! The ground that the applier's targets run on: layer folders on a host that must stay as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use crate::host::{Host, MARK};

/// Layers of one execution, at most.
pub const LAYERS: usize = 4;

thread_local! {
    // Made once, since nothing may change it: that is looked at after every execution.
    static HOST: Host = Host::new(0);
}

/// Whether an input says itself what is taken for a sign of the host's files.
pub fn is_misleading(input: &[u8]) -> bool {
    input.windows(MARK.len()).any(|window| window == MARK)
}

/// Do some work with empty layer folders, on a thread as a pull has them. Panics if anything else was changed by it, or got in.
pub fn watch(work: impl FnOnce(&Ground<'_>) + Send) {
    HOST.with(|host| {
        let process = process();
        for layer in 0..LAYERS {
            let layer = host.layer(layer);
            lamella_core::tree::remove(&layer, &mut || Ok(())).unwrap();
            fs::create_dir(&layer).unwrap();
        }
        let ground = Ground { host };
        if let Err(panic) = thread::scope(|scope| scope.spawn(|| work(&ground)).join()) {
            std::panic::resume_unwind(panic);
        }
        assert_eq!(host.differences(), [""; 0], "the host is not what it was");
        assert_eq!(process, self::process(), "the caller's working folder or umask is not what it was");
    });
}

/// What a thread that shares them could change for its process.
fn process() -> (PathBuf, String) {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let umask = status.lines().find(|line| line.starts_with("Umask:")).unwrap_or_default();
    (std::env::current_dir().unwrap(), umask.to_owned())
}

pub struct Ground<'a> {
    host: &'a Host,
}

impl Ground<'_> {
    pub fn layer(&self, number: usize) -> PathBuf {
        self.host.layer(number)
    }

    /// What `{outside}` and `{up}` stand for in breakouts.json: the host's folder, and the way there from anywhere.
    pub fn placed(&self, text: &[u8]) -> Vec<u8> {
        let outside = self.host.outside();
        let outside = outside.to_str().unwrap();
        let up = format!("{}{outside}", "../".repeat(20).trim_end_matches('/'));
        let mut placed = Vec::new();
        let mut rest = text;
        while let Some((first, after)) = rest.split_first() {
            if let Some(after) = rest.strip_prefix(b"{outside}") {
                placed.extend_from_slice(outside.as_bytes());
                rest = after;
            } else if let Some(after) = rest.strip_prefix(b"{up}") {
                placed.extend_from_slice(up.as_bytes());
                rest = after;
            } else {
                placed.push(*first);
                rest = after;
            }
        }
        placed
    }
}

/// See that what applying a layer says of its folder is so.
pub fn check(layer: &Path, applied: &lamella_core::layer::Applied) {
    let usage = lamella_core::tree::usage(layer, &mut || Ok(())).unwrap();
    assert_eq!((applied.disk_bytes, applied.inodes), (usage.bytes, usage.inodes), "the usage of {}", layer.display());
}
