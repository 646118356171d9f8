//! The names by which containers of one network find each other: lines in the hosts file of each, kept right as others come
//! and go. There is no daemon that could answer for names, and files need none.
//!
//! ```text
//! <state>/networks/names/<namespace>/          flock: one change after the other
//! <state>/networks/names/<namespace>/<id>      what one container that is plugged in has to tell
//! ```
//!
//! A hosts file is bound into its container, so that it is written in place: what a reader sees is the old lines or the new
//! ones, unless it reads in pieces just then. Everything outside the two comments is left alone, and so is a file that has
//! lost them: it is the container's own then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use serde::Deserialize;

use crate::error::{Failure, Step};
use crate::spec;

/// Above the lines.
pub const BEGIN: &str =
    "# Containers of the same networks, kept by lamella; take this line out to keep the file as it is.\n";
/// Below the lines.
pub const END: &str = "# End of the containers.\n";
/// A hosts file that is longer is left alone.
const LONGEST_FILE: u64 = 4 << 20;
/// How long the lines may be together; those of containers that come last are left out.
const LONGEST_LINES: usize = 1 << 20;

/// What one container tells.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Its hosts file.
    hosts: PathBuf,
    /// The lines of its own addresses, as it sees them.
    #[serde(default)]
    own: Vec<String>,
    /// The lines that others of a network see.
    #[serde(default)]
    networks: BTreeMap<String, Vec<String>>,
}

/// Note what a container tells (JSON), in the file `path`; bring its hosts file and those of its networks up to date. Harmless
/// twice.
pub fn tell(path: &Path, text: &str) -> Result<(), Failure> {
    spec::parse_document::<Entry>(text, "names")?;
    let (folder, name) = parts(path)?;
    std::fs::create_dir_all(folder).step(|| format!("make {}", folder.display()))?;
    let _lock = lock(folder)?;
    let mut changed = networks_of(path);
    let fresh = folder.join(format!(".{name}"));
    File::create(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&fresh, path))
        .step(|| format!("write {}", path.display()))?;
    changed.extend(networks_of(path));
    refresh(folder, &changed, &|_| false)
}

/// Take back what a container told. Harmless twice.
pub fn forget(path: &Path) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    let (folder, name) = parts(path)?;
    let _lock = lock(folder)?;
    // The file goes last: whoever looks after this was killed does it again.
    let refreshed = refresh(folder, &networks_of(path), &|other| other == name);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).step(|| format!("remove {}", path.display())),
        _ => refreshed,
    }
}

fn parts(path: &Path) -> Result<(&Path, &str), Failure> {
    match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(folder), Some(name)) => Ok((folder, name)),
        _ => Err(Failure::invalid("names", format!("{} is no path of a file", path.display()))),
    }
}

fn lock(folder: &Path) -> Result<File, Failure> {
    let step = || format!("lock {}", folder.display());
    let file =
        rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).step(step)?;
    Ok(file.into())
}

fn read(path: &Path) -> Option<Entry> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

fn networks_of(path: &Path) -> BTreeSet<String> {
    read(path).unwrap_or_default().networks.into_keys().collect()
}

/// Write the hosts files of all that are in one of the networks, without those that are left out. All is tried.
fn refresh(folder: &Path, networks: &BTreeSet<String>, left_out: &dyn Fn(&str) -> bool) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for found in std::fs::read_dir(folder).step(|| format!("read {}", folder.display()))?.flatten() {
        let name = found.file_name().to_string_lossy().into_owned();
        // One with a dot in front was not finished.
        if !name.starts_with('.')
            && !left_out(&name)
            && let Some(entry) = read(&found.path())
        {
            entries.push((name, entry));
        }
    }
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    let mut result = Ok(());
    for (name, entry) in &entries {
        if !entry.networks.keys().any(|network| networks.contains(network)) {
            continue;
        }
        let mut lines = String::new();
        for line in &entry.own {
            let _ = writeln!(lines, "{line}");
        }
        for (_, other) in entries.iter().filter(|(other, _)| other != name) {
            for network in entry.networks.keys() {
                for line in other.networks.get(network).into_iter().flatten() {
                    if lines.len() + line.len() < LONGEST_LINES {
                        let _ = writeln!(lines, "{line}");
                    }
                }
            }
        }
        result = result.and(rewrite(&entry.hosts, &lines));
    }
    result
}

/// Put lines between the two comments of a hosts file; one that is gone, or has lost them, stays as it is.
fn rewrite(path: &Path, lines: &str) -> Result<(), Failure> {
    let step = || format!("write {}", path.display());
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        result => result.step(step)?,
    };
    let metadata = file.metadata().step(step)?;
    if !metadata.is_file() || metadata.len() > LONGEST_FILE {
        return Ok(());
    }
    let mut before = Vec::new();
    (&file).take(LONGEST_FILE).read_to_end(&mut before).step(step)?;
    let Some(start) = find(&before, BEGIN.as_bytes()).map(|at| at + BEGIN.len()) else { return Ok(()) };
    let Some(end) = find(&before[start..], END.as_bytes()).map(|at| start + at) else { return Ok(()) };
    let mut after = [&before[..start], lines.as_bytes(), &before[end..]].concat();
    if after == before {
        return Ok(());
    }
    let length = after.len() as u64;
    // Room for the whole first, so that a full disk leaves the old lines; where that cannot be had, the write tells.
    let room = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, length);
    if matches!(room, Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) {
        return room.step(step);
    }
    if after.len() < before.len() {
        after.resize(before.len(), b'\n'); // nobody is to read the end of old lines behind the new ones
    }
    file.write_all_at(&after[start..], start as u64).step(step)?;
    file.set_len(length).step(step)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        folder: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder") }
        }

        fn hosts(&self, name: &str) -> PathBuf {
            self.folder.path().join(format!("{name}.hosts"))
        }

        fn entry(&self, name: &str) -> PathBuf {
            self.folder.path().join("names").join(name)
        }

        fn tell(&self, name: &str, networks: &[&str]) {
            if !self.hosts(name).exists() {
                std::fs::write(self.hosts(name), format!("127.0.0.1 localhost\n{BEGIN}{END}after\n")).expect("written");
            }
            let networks: BTreeMap<_, _> =
                networks.iter().map(|network| (*network, [format!("{network}-address\t{name}")])).collect();
            let text =
                serde_json::json!({"hosts": self.hosts(name), "own": [format!("own\t{name}")], "networks": networks});
            tell(&self.entry(name), &text.to_string()).expect("told");
        }

        fn lines(&self, name: &str) -> Vec<String> {
            let text = std::fs::read_to_string(self.hosts(name)).expect("read");
            let inner = text.strip_prefix("127.0.0.1 localhost\n").and_then(|text| text.strip_prefix(BEGIN));
            let inner = inner.and_then(|text| text.strip_suffix("after\n")).and_then(|text| text.strip_suffix(END));
            inner.expect("the rest is as it was").lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn each_sees_itself_and_those_of_its_networks() {
        let scene = Scene::new();
        scene.tell("a", &["one"]);
        scene.tell("b", &["one", "two"]);
        scene.tell("c", &["two"]);
        assert_eq!(scene.lines("a"), ["own\ta", "one-address\tb"]);
        assert_eq!(scene.lines("b"), ["own\tb", "one-address\ta", "two-address\tc"]);
        assert_eq!(scene.lines("c"), ["own\tc", "two-address\tb"]);
        scene.tell("b", &["two"]);
        assert_eq!(scene.lines("a"), ["own\ta"]);
        forget(&scene.entry("c")).expect("forgotten");
        forget(&scene.entry("c")).expect("harmless twice");
        assert_eq!(scene.lines("b"), ["own\tb"]);
    }

    #[test]
    fn a_file_without_the_comment_is_its_containers_own() {
        let scene = Scene::new();
        scene.tell("a", &["one"]);
        std::fs::write(scene.hosts("a"), "mine\n").expect("written");
        scene.tell("b", &["one"]);
        assert_eq!(std::fs::read_to_string(scene.hosts("a")).expect("read"), "mine\n");
        std::fs::remove_file(scene.hosts("a")).expect("removed");
        scene.tell("c", &["one"]);
        assert_eq!(scene.lines("b"), ["own\tb", "one-address\ta", "one-address\tc"]);
    }

    #[test]
    fn a_link_in_place_of_a_file_is_not_followed() {
        let scene = Scene::new();
        let outside = scene.folder.path().join("outside");
        std::fs::write(&outside, format!("{BEGIN}{END}")).expect("written");
        std::os::unix::fs::symlink(&outside, scene.hosts("a")).expect("linked");
        let text = serde_json::json!({"hosts": scene.hosts("a"), "own": ["x"], "networks": {"one": []}});
        tell(&scene.entry("a"), &text.to_string()).expect_err("refused");
        assert_eq!(std::fs::read_to_string(&outside).expect("read"), format!("{BEGIN}{END}"));
    }
}
