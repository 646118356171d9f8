//! The folders that an overlay's options name.

use std::path::Path;

use rustix::fs::{AtFlags, CWD};

use super::Options;

/// The folders of an overlay, as their paths are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// Nearest first.
    pub lower: Vec<String>,
    /// What is written goes here; its scratch folder lies beside it.
    pub upper: Option<String>,
    /// The scratch folder.
    pub work: Option<String>,
}

impl Layers {
    pub fn of(options: &Options) -> Self {
        Self {
            lower: paths(options.value("lowerdir").unwrap_or_default(), Some(':')),
            upper: paths(options.value("upperdir").unwrap_or_default(), None).pop(),
            work: paths(options.value("workdir").unwrap_or_default(), None).pop(),
        }
    }

    /// The longest path that all folders lie in.
    pub fn common_parent(&self) -> String {
        common_parent(self.lower.iter().chain(&self.upper).chain(&self.work))
    }
}

/// Take away the mark that a mount with `volatile` has left.
///
/// The kernel refuses folders that have it (overlayfs.rst, "Volatile mount"): what was written may not have reached the disk when
/// the machine broke down. Whoever mounts so does not care; while the machine runs the files are as they were written.
pub fn forget_volatile(layers: &Layers) {
    let Some(work) = &layers.work else { return };
    for (mark, flags) in
        [("volatile/dirty", AtFlags::empty()), ("volatile", AtFlags::REMOVEDIR), ("", AtFlags::REMOVEDIR)]
    {
        // NOENT, as a rule. Where it cannot be taken away the kernel says so.
        let _ = rustix::fs::unlinkat(CWD, format!("{work}/work/incompat/{mark}"), flags);
    }
}

/// The longest path that all folders lie in; `/` where there is no other.
pub fn common_parent<'a>(mut folders: impl Iterator<Item = &'a String>) -> String {
    let first = folders.next().and_then(|folder| Path::new(folder).parent());
    let common = folders
        .fold(first, |common, folder| common?.ancestors().find(|ancestor| Path::new(folder).starts_with(ancestor)));
    common.and_then(Path::to_str).filter(|path| !path.is_empty()).unwrap_or("/").to_owned()
}

/// The paths of an option: bare separators part them, a backslash protects the character after it.
fn paths(value: &str, separator: Option<char>) -> Vec<String> {
    let mut paths = vec![String::new()];
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        if Some(character) == separator {
            paths.push(String::new());
        } else if let Some(path) = paths.last_mut() {
            path.extend(if character == '\\' { characters.next() } else { Some(character) });
        }
    }
    paths.retain(|path| !path.is_empty());
    paths
}

/// A path as it stands in mount(2)'s string: colons, commas and backslashes are protected.
pub fn protected(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_may_hold_protected_characters() {
        let options = Options::parse(&[r"lowerdir=/a:/b\:c:/d\\e", r"upperdir=/u:\\", "workdir=/w"]).unwrap();
        let layers = Layers::of(&options);
        assert_eq!(layers.lower, ["/a", "/b:c", r"/d\e"]);
        assert_eq!((layers.upper.as_deref(), layers.work.as_deref()), (Some(r"/u:\"), Some("/w")));
    }

    #[test]
    fn the_common_parent_is_a_folder_that_all_lie_in() {
        let common =
            |folders: &[&str]| common_parent(folders.iter().map(ToString::to_string).collect::<Vec<_>>().iter());
        assert_eq!(common(&["/s/o/aa/fs", "/s/o/bb/fs", "/s/o/aabb/fs"]), "/s/o");
        assert_eq!(common(&["/s/o/aa/fs"]), "/s/o/aa");
        assert_eq!(common(&["/a/x", "/b/x"]), "/");
    }
}
