//! cgroup v2: one hierarchy for all controllers.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::settings::Setting;
use super::{
    ATTEMPTS, Cgroup, Folder, PAUSE, devices, kept_parent, make_folder, missing_controller, warn_devices, write_file,
};
use crate::error::{Failure, Kind, Step};
use crate::sys;

/// Enabled for every container where the machine has them; the others where a limit needs them.
const ALWAYS: [&str; 4] = ["memory", "pids", "cpu", "io"];

/// Where processes go that are in a cgroup whose controllers are to be had by those beneath it.
const ASIDE: &str = "init";

/// Make the folder below `top`, with the controllers that are needed enabled on the way to it.
pub(super) fn make_leaf(top: &Path, path: &str, settings: &[Setting]) -> Result<PathBuf, Failure> {
    let needed = needed(top, settings)?;
    let leaf_path = top.join(path);
    enable_down(top, &leaf_path, &needed)?;
    make_folder(top, path, &mut |folder| {
        // The leaf holds processes: a folder with controllers for its children must not.
        if folder == leaf_path { Ok(()) } else { enable(folder, &needed) }
    })
}

/// Make the container's cgroup.
pub(super) fn create(cgroup: &mut Cgroup, path: &str, settings: &[Setting]) -> Result<(), Failure> {
    let kept = kept_parent(&cgroup.root, path);
    let leaf = make_leaf(&cgroup.root, path, settings)?;
    let folder = rustix::fs::openat(CWD, &leaf, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    match folder {
        Ok(joining) => {
            let (hierarchy, controllers) = (String::new(), Vec::new());
            cgroup.folders.push(Folder { hierarchy, controllers, path: leaf.clone(), kept, joining });
            cgroup.unified = Some(leaf);
            Ok(())
        }
        Err(error) => {
            let _ = std::fs::remove_dir(&leaf);
            Err(Failure::system(format!("open the cgroup {}", leaf.display()), &error.into()))
        }
    }
}

/// Find the folder that [`create`] made.
pub(super) fn open(cgroup: &mut Cgroup, path: &str) {
    let leaf = cgroup.root.join(path);
    if let Ok(joining) = rustix::fs::openat(CWD, &leaf, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        let (hierarchy, controllers, kept) = (String::new(), Vec::new(), kept_parent(&cgroup.root, path));
        cgroup.folders.push(Folder { hierarchy, controllers, path: leaf.clone(), kept, joining });
        cgroup.unified = Some(leaf);
    }
}

/// The controllers that settings need; FailedPrecondition for one that the machine lacks.
fn needed<'a>(root: &Path, settings: &'a [Setting]) -> Result<BTreeSet<&'a str>, Failure> {
    let available = controllers(root, "cgroup.controllers");
    let mut needed = BTreeSet::new();
    for setting in settings.iter().filter(|setting| !setting.controller.is_empty()) {
        if !available.iter().any(|name| name == setting.controller) {
            return Err(missing_controller(setting));
        }
        needed.insert(setting.controller);
    }
    Ok(needed)
}

/// Enable what settings need for a folder that is there already, from `root` down.
pub(super) fn enable_on_the_way(root: &Path, leaf: &Path, settings: &[Setting]) -> Result<(), Failure> {
    enable_down(root, leaf, &needed(root, settings)?)
}

/// Enable controllers in those folders that are there from `top` to the parent of `leaf`: each has them from its parent.
fn enable_down(top: &Path, leaf: &Path, needed: &BTreeSet<&str>) -> Result<(), Failure> {
    let mut way: Vec<&Path> = leaf.ancestors().skip(1).take_while(|folder| folder.starts_with(top)).collect();
    way.reverse();
    way.into_iter().filter(|folder| folder.is_dir()).try_for_each(|folder| enable(folder, needed))
}

/// The controllers that a file of a cgroup names; none where there is no such file.
pub(super) fn controllers(folder: &Path, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Enable controllers for a folder's children: those in `needed` must work, the usual ones may.
///
/// A delegated cgroup, and that of a container, has the very processes in it that ask for this: they are moved aside, into
/// a cgroup beneath it. Source: cgroup-v2.rst, "No Internal Process Constraint" and "Threads".
fn enable(folder: &Path, needed: &BTreeSet<&str>) -> Result<(), Failure> {
    let available = controllers(folder, "cgroup.controllers");
    let enabled = controllers(folder, "cgroup.subtree_control");
    let mut wanted: BTreeSet<&str> = needed.iter().copied().chain(ALWAYS).collect();
    wanted.retain(|wanted| available.iter().any(|name| name == wanted) && !enabled.iter().any(|name| name == wanted));
    // The root of the hierarchy, which has no type, may have processes. Elsewhere some controllers (cpu, pids) are not
    // refused for them, but would make a domain of threads of the cgroup, beneath which no process can be.
    if !wanted.is_empty()
        && folder.join("cgroup.type").exists()
        && let Err(error) = move_aside(folder)
    {
        let must = wanted.iter().any(|name| needed.contains(name));
        let step = || format!("move the processes of {} aside", folder.display());
        return if must { Err(error).step(step) } else { Ok(()) };
    }
    let file = folder.join("cgroup.subtree_control");
    for controller in wanted {
        let result = write_file(&file, &format!("+{controller}"));
        if needed.contains(controller) {
            result.step(|| format!("enable the controller {controller} in {}", folder.display()))?;
        }
    }
    Ok(())
}

/// Move the processes of a cgroup itself, not those beneath it, into one of their own, until none is left: one that is not moved
/// yet may start another.
fn move_aside(folder: &Path) -> io::Result<()> {
    let aside = folder.join(ASIDE);
    for _ in 0..ATTEMPTS {
        let processes = std::fs::read_to_string(folder.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        match std::fs::create_dir(&aside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for pid in processes.split_whitespace() {
            match write_file(&aside.join("cgroup.procs"), pid) {
                // It has just ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Whether it is no wonder that a filter is refused.
fn may_not_filter() -> bool {
    !rustix::process::geteuid().is_root() || sys::in_user_namespace()
}

impl Cgroup {
    /// Attach the device filter. Without the right to load one (in a user namespace, where device nodes cannot be made
    /// anyway) the container goes without.
    pub(super) fn filter_devices_by_program(
        &self,
        rules: &[devices::Rule],
        warnings: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let Some(folder) = self.folders.first() else { return Ok(()) };
        if cfg!(test) {
            return Ok(());
        }
        match sys::attach_device_program(folder.joining.as_fd(), &devices::program(rules)) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && may_not_filter() => {
                warn_devices(warnings, &error);
                Ok(())
            }
            result => result.step(|| format!("attach the device filter to {}", folder.path.display())),
        }
    }

    pub(super) fn freeze_unified(&self, frozen: bool) -> Result<(), Failure> {
        let Some(folder) = &self.unified else {
            return Err(super::none_to_freeze());
        };
        let value = if frozen { "1" } else { "0" };
        let step = || format!("write {value} to {}/cgroup.freeze", folder.display());
        write_file(&folder.join("cgroup.freeze"), value).step(step)?;
        let wanted = format!("frozen {value}");
        for _ in 0..ATTEMPTS {
            let events = std::fs::read_to_string(folder.join("cgroup.events")).step(step)?;
            if events.lines().any(|line| line == wanted) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        let _ = write_file(&folder.join("cgroup.freeze"), "0");
        Err(Failure::new(Kind::Unavailable, format!("{}: it takes too long", step())))
    }
}
