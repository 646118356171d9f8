//! The container's cgroup: limits, the device allow-list, the freezer, and who is in it.
//!
//! On disk, with the hierarchies at /sys/fs/cgroup:
//! ```text
//! v1 (also hybrid)  <root>/<controller>/<cgroupsPath>/...   memory, pids, devices, freezer and cpuacct always, the others
//!                                                           where a limit needs them
//! hybrid            <root>/unified/<cgroupsPath>/...        beside, where a limit needs a controller that v2 has there
//! v2                <root>/<cgroupsPath>/...
//! ```
//! The monitor makes the folders before the container's first process exists and removes them after its last is gone, with
//! parents that are empty then: those from a name of [`OURS`] on, and others that were not there before. Whoever finds a
//! cgroup again does not know the latter, and leaves them. The container's lock guards the folders: two monitors never share
//! a cgroupsPath.
//!
//! On v1 a process joins by writing 0 to an already open `tasks` file: a parent that writes a child's id waits for an
//! RCU grace period (12-29 ms when cold). On v2 clone3 makes the process right in the cgroup.

pub mod devices;
mod oom;
mod settings;
mod update;
mod v1;
mod v2;

use std::fs::{DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Failure, Kind, describe};
use crate::spec::{Resources, Spec};
use crate::sys;
pub use oom::OomWatch;
use settings::Setting;

/// Where the hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Parents with these names are ours, whoever made them: the library's, and lamella-oci's.
const OURS: [&str; 2] = ["lamella", crate::oci::NAME];
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// How often to try again what the kernel refuses for a moment, and how long to wait in between.
const ATTEMPTS: u32 = 400;
const PAUSE: Duration = Duration::from_millis(5);

/// What a container asks of its cgroup, checked.
#[derive(Debug)]
pub struct CgroupPlan {
    /// From the root of each hierarchy, without a slash in front; None when the container has no cgroup of its own.
    path: Option<String>,
    resources: Resources,
}

impl CgroupPlan {
    /// Take the cgroup part out of a checked spec.
    pub fn new(spec: &mut Spec) -> Self {
        let path = spec.linux.cgroups_path.take();
        Self { path: path.as_deref().map(clean), resources: spec.linux.resources.take().unwrap_or_default() }
    }

    /// Where it is, from the root of each hierarchy.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// See whether this machine can have the limits, so that nothing is made for ones that it cannot.
    pub fn check(&self, root: &Path) -> Result<(), Failure> {
        self.settings(root).map(drop)
    }

    /// What the limits become on this machine; limits without a cgroup are refused.
    fn settings(&self, root: &Path) -> Result<Vec<Setting>, Failure> {
        if self.path.is_none() && self.resources.ask_for_limits() {
            return Err(Failure::invalid("linux.resources", "limits need a linux.cgroupsPath"));
        }
        settings_on(root, &self.resources)
    }

    /// Make the cgroup below `root` and set the limits. On failure nothing is left. What could not be had and was not
    /// asked for is said in `warnings`.
    pub fn create(&self, root: &Path, warnings: &mut Vec<String>) -> Result<Cgroup, Failure> {
        let settings = self.settings(root)?;
        let Some(path) = &self.path else { return Ok(Cgroup::default()) };
        let unified = is_unified(root);
        let mut cgroup = Cgroup { root: root.to_owned(), folders: Vec::new(), unified: None };
        let made =
            if unified { v2::create(&mut cgroup, path, &settings) } else { v1::create(&mut cgroup, path, &settings) };
        match made {
            Ok(()) => {}
            // A user without the right to make cgroups, or a machine without them: fine, unless limits were asked for.
            Err(failure)
                if !self.resources.ask_for_limits()
                    && matches!(failure.kind, Kind::PermissionDenied | Kind::NotFound) =>
            {
                cgroup.remove();
                warnings.push(format!("the container has no cgroup: {}", failure.message));
                return Ok(Cgroup::default());
            }
            Err(failure) => {
                cgroup.remove();
                let is_bare = failure.kind == Kind::PermissionDenied && failure.hint.is_none();
                return Err(if is_bare { failure.with_hint(DELEGATION) } else { failure });
            }
        }
        let done = cgroup.apply(&settings, warnings).and_then(|()| {
            let rules = devices::rules(&self.resources.devices);
            if unified { cgroup.filter_devices_by_program(&rules, warnings) } else { cgroup.list_devices(&rules) }
        });
        if let Err(failure) = done {
            cgroup.remove();
            return Err(failure);
        }
        Ok(cgroup)
    }

    /// Find what [`CgroupPlan::create`] made, as far as it is still there.
    pub fn open(&self, root: &Path) -> Cgroup {
        self.path.as_deref().map_or_else(Cgroup::default, |path| Cgroup::open(root, path))
    }
}

/// A path of the spec, from the root of a hierarchy.
fn clean(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// The hierarchies of v1; names that stand for another (cpu -> cpu,cpuacct) are passed over.
fn hierarchies(root: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    // Something else may lie between them.
    let is_hierarchy = |entry: &DirEntry| cfg!(test) || entry.path().join("cgroup.procs").exists();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter(is_hierarchy).map(|entry| entry.file_name().to_string_lossy().into_owned())
}

const DELEGATION: &str = "limits, pause and statistics take a cgroup that belongs to you: start this within one that was delegated \
    (systemd-run --user --scope -p Delegate=yes ...), or name one by cgroup_parent";

fn none_to_freeze() -> Failure {
    Failure::new(Kind::FailedPrecondition, "the container has no cgroup whose processes could be stopped")
        .with_hint(DELEGATION)
}

/// The settings that limits become on this machine.
fn settings_on(root: &Path, resources: &Resources) -> Result<Vec<Setting>, Failure> {
    if is_unified(root) { settings::unified(resources) } else { settings::hybrid(resources, &v1::beside(root)) }
}

/// Whether `root` is a v2 hierarchy; a faked tree is one when it has `cgroup.controllers`.
fn is_unified(root: &Path) -> bool {
    rustix::fs::statfs(root).is_ok_and(|status| status.f_type as u64 == CGROUP2_MAGIC)
        || root.join("cgroup.controllers").exists()
}

/// One controller's folder of a v1 hierarchy, or the only one of v2.
#[derive(Debug)]
struct Folder {
    /// Name of the hierarchy's mount point: `memory`, `cpu,cpuacct`, [`v1::BESIDE`]; empty for v2.
    hierarchy: String,
    /// The controllers whose files are in it; none are named for v2, which has all.
    controllers: Vec<String>,
    path: PathBuf,
    /// The parent that is left, empty or not.
    kept: PathBuf,
    /// v1: the `tasks` file, or `cgroup.procs` of the v2 hierarchy beside; v2: the folder itself.
    joining: OwnedFd,
}

impl Folder {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// The parent of a cgroup that is to stay: what is beneath it is ours to remove when it is empty.
fn kept_parent(top: &Path, path: &str) -> PathBuf {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.iter().position(|part| OURS.contains(part)) {
        Some(position) => parts[..position].iter().fold(top.to_owned(), |parent, part| parent.join(part)),
        None => top.join(path).ancestors().skip(1).find(|parent| parent.is_dir()).unwrap_or(top).to_owned(),
    }
}

/// Where another runtime makes a container's cgroup: at a path of every hierarchy, which are more than those that
/// [`Cgroup`] counts and limits by.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    path: String,
    /// The top of each hierarchy, and the parent that is left there.
    hierarchies: Vec<(PathBuf, PathBuf)>,
}

impl Place {
    /// Look where it will be; nothing is made. Parents that are not there yet will go with it.
    pub fn new(root: &Path, path: &str) -> Self {
        let path = clean(path);
        let tops = if is_unified(root) {
            vec![root.to_owned()]
        } else {
            hierarchies(root).map(|name| root.join(name)).collect()
        };
        let kept = tops.iter().map(|top| kept_parent(top, &path)).collect::<Vec<_>>();
        let hierarchies = tops.into_iter().zip(kept).collect();
        Self { root: root.to_owned(), path, hierarchies }
    }

    /// Where it is, from the root of each hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Make the folders that the runtime is about to make, which does not try again when a container that ends at the same
    /// moment removes a parent. On v2 processes in the way of its controllers are moved aside, which no runtime does: a delegated
    /// cgroup has who starts the container in it. What cannot be made is left to the runtime.
    pub fn reserve(&self) {
        if is_unified(&self.root) {
            let _ = v2::make_leaf(&self.root, &self.path, &[]);
            return;
        }
        for (top, _) in &self.hierarchies {
            let _ = make_folder(top, &self.path, &mut |_| Ok(()));
        }
    }

    /// Take over what the runtime has made; none where there is nothing.
    pub fn open(&self) -> Cgroup {
        Cgroup::open(&self.root, &self.path)
    }

    /// Remove what the runtime has made, or has left when it failed, and parents that are empty then. Harmless twice.
    pub fn remove(&self) {
        for (top, kept) in &self.hierarchies {
            remove_with_parents(kept, &top.join(&self.path));
        }
    }
}

/// A container's cgroup. The default one is none at all.
#[derive(Debug, Default)]
pub struct Cgroup {
    root: PathBuf,
    folders: Vec<Folder>,
    unified: Option<PathBuf>,
}

impl Cgroup {
    /// Find what was made at a path of every hierarchy; none where there is nothing.
    fn open(root: &Path, path: &str) -> Self {
        let mut cgroup = Self { root: root.to_owned(), ..Self::default() };
        if is_unified(root) {
            v2::open(&mut cgroup, path)
        } else {
            v1::open(&mut cgroup, path)
        }
        cgroup
    }

    /// The folder that clone3 shall make the first process in (v2).
    pub fn clone_target(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref()?;
        self.folders.first().map(|folder| folder.joining.as_fd())
    }

    /// Join the cgroup (v1): for the container's first process, and those that an exec adds.
    pub fn join(&self) -> Result<(), Failure> {
        if self.unified.is_some() {
            return Ok(());
        }
        for folder in &self.folders {
            rustix::io::write(&folder.joining, b"0").map_err(|error| {
                Failure::system(format!("join the cgroup {}", folder.path.display()), &error.into())
            })?;
        }
        Ok(())
    }

    /// The v2 folder.
    pub fn unified_folder(&self) -> Option<String> {
        self.unified.as_ref().map(|path| path.to_string_lossy().into_owned())
    }

    /// The v1 folders by hierarchy.
    pub fn legacy_folders(&self) -> impl Iterator<Item = (&str, String)> {
        self.folders
            .iter()
            .filter(|folder| !folder.hierarchy.is_empty())
            .map(|folder| (folder.hierarchy.as_str(), folder.path.to_string_lossy().into_owned()))
    }

    /// A controller's folder.
    fn folder(&self, controller: &str) -> Option<&Path> {
        self.unified
            .as_deref()
            .or_else(|| self.folders.iter().find(|folder| folder.has(controller)).map(|folder| folder.path.as_path()))
    }

    /// Write limits.
    fn apply(&self, settings: &[Setting], warnings: &mut Vec<String>) -> Result<(), Failure> {
        for setting in settings {
            let Some(folder) = self.folder(setting.controller) else {
                return Err(missing_controller(setting));
            };
            write_setting(folder, setting, warnings)?;
        }
        Ok(())
    }

    /// Ids of all processes in the cgroup, as the host sees them.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        if let Some(folder) = self.process_folder() {
            collect_processes(folder, &mut found);
        }
        found
    }

    /// Send a signal to every process, again and again until no new one shows up.
    pub fn signal_all(&self, signal: i32) {
        if let Some(folder) = self.process_folder() {
            signal_all_in(folder, signal);
        }
    }

    /// A folder whose `cgroup.procs` names all processes.
    fn process_folder(&self) -> Option<&Path> {
        self.folder("pids").or_else(|| self.folders.first().map(|folder| folder.path.as_path()))
    }

    /// Stop (or let go on) every process; returns when the kernel says so.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), Failure> {
        if self.unified.is_some() { self.freeze_unified(frozen) } else { self.freeze_legacy(frozen) }
    }

    /// Whether its processes are stopped.
    pub fn is_frozen(&self) -> bool {
        let read = |file: &str| {
            self.folder("freezer")
                .and_then(|folder| std::fs::read_to_string(folder.join(file)).ok())
                .unwrap_or_default()
        };
        match &self.unified {
            Some(_) => read("cgroup.events").lines().any(|line| line == "frozen 1"),
            None => read("freezer.state").starts_with("FR"),
        }
    }

    /// Leave the parents when it is removed.
    pub fn keep_parents(&mut self) {
        for folder in &mut self.folders {
            folder.kept = folder.path.parent().unwrap_or(&folder.path).to_owned();
        }
    }

    /// Remove the folders, those that the container made in them, and parents that are empty then. Harmless twice.
    pub fn remove(&mut self) {
        std::mem::take(&mut self.folders).into_iter().for_each(discard);
        self.unified = None;
    }
}

impl Cgroup {
    /// Make a group of its own for an added process and all that descends from it, so that they can be killed together.
    /// It lies in the container's cgroup and limits nothing. None where the container has no cgroup.
    pub fn group(&self, name: &str) -> Option<Group> {
        // Where it can be frozen while it is killed: what forks all the time would get away otherwise.
        let parent = self.folder("freezer").or_else(|| self.process_folder())?;
        let hierarchy = self.folders.iter().find(|folder| folder.path == parent)?.hierarchy.clone();
        let path = parent.join(name);
        std::fs::create_dir(&path).ok()?;
        let made = if self.unified.is_some() {
            File::open(&path).map(OwnedFd::from)
        } else {
            open_to_join(&path.join("tasks"))
        };
        match made {
            Ok(joining) => Some(Group { path, hierarchy, joining, unified: self.unified.is_some() }),
            Err(_) => {
                let _ = std::fs::remove_dir(&path);
                None
            }
        }
    }
}

/// The processes that an exec brought into a container. Dropping it removes the folder if nothing lives in it; else it
/// stays until the container's cgroup is removed.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    hierarchy: String,
    joining: OwnedFd,
    unified: bool,
}

impl Group {
    /// What runc(8) calls it (`exec --cgroup`): on v1 with the controller in whose hierarchy it lies.
    pub fn name_for_runtime(&self) -> Option<String> {
        let name = self.path.file_name()?.to_string_lossy().into_owned();
        Some(if self.unified { name } else { format!("{}:{name}", self.hierarchy) })
    }

    /// Move a process there that is elsewhere in the container.
    pub fn take_in(&self, pid: i32) {
        let _ = write_file(&self.path.join("cgroup.procs"), &pid.to_string());
    }

    /// The folder that clone3 shall make the process in (v2).
    pub fn clone_target(&self) -> Option<BorrowedFd<'_>> {
        self.unified.then(|| self.joining.as_fd())
    }

    /// Join the group (v1).
    pub fn join(&self) -> Result<(), Failure> {
        if self.unified {
            return Ok(());
        }
        rustix::io::write(&self.joining, b"0")
            .map(drop)
            .map_err(|error| Failure::system(format!("join the cgroup {}", self.path.display()), &error.into()))
    }

    /// Send a signal to every process in it.
    pub fn signal_all(&self, signal: i32) {
        signal_all_in(&self.path, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = remove_folder(&self.path);
    }
}

/// Send a signal to every process of a cgroup, again and again until no new one shows up.
fn signal_all_in(folder: &Path, signal: i32) {
    let kills = signal == libc::SIGKILL && !cfg!(test);
    if kills && write_file(&folder.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let state = folder.join("freezer.state");
    let frozen = kills && write_file(&state, "FROZEN").is_ok();
    let mut done = Vec::new();
    loop {
        let mut present = Vec::new();
        collect_processes(folder, &mut present);
        present.retain(|pid| !done.contains(pid));
        if present.is_empty() {
            break;
        }
        for pid in &present {
            let _ = sys::kill(*pid, signal);
        }
        done.extend(present);
    }
    if frozen {
        let _ = write_file(&state, "THAWED");
    }
}

/// Remove a folder, and parents of ours that are empty then.
fn discard(folder: Folder) {
    drop(folder.joining);
    remove_with_parents(&folder.kept, &folder.path);
}

fn remove_with_parents(kept: &Path, leaf: &Path) {
    for attempt in 0..ATTEMPTS {
        match remove_folder(leaf) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt + 1 < ATTEMPTS => {
                std::thread::sleep(PAUSE);
            }
            _ => break,
        }
    }
    let mut parent = leaf.parent();
    while let Some(path) = parent.filter(|path| path.starts_with(kept) && *path != kept) {
        if std::fs::remove_dir(path).is_err() {
            break;
        }
        parent = path.parent();
    }
}

/// Write one limit. What the kernel has no file for is a warning or an error, as the setting says.
fn write_setting(folder: &Path, setting: &Setting, warnings: &mut Vec<String>) -> Result<(), Failure> {
    let first = (setting.file.as_str(), setting.value.as_str());
    let second = setting.otherwise.as_ref().map(|(file, value)| (file.as_str(), value.as_str()));
    for (name, value) in std::iter::once(first).chain(second) {
        let file = folder.join(name);
        match write_file(&file, value) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(setting, &file, value, &error)),
        }
    }
    let message = format!("{} is not set: the kernel has no {}", setting.field, setting.file);
    if !setting.optional {
        let failure = Failure::new(Kind::Unsupported, message);
        return Err(match setting.controller {
            "hugetlb" => failure.with_hint("the sizes that this machine has are in /sys/kernel/mm/hugepages"),
            _ => failure,
        });
    }
    warnings.push(message);
    Ok(())
}

/// A limit that the kernel did not take, and what can be done about that.
fn refused(setting: &Setting, file: &Path, value: &str, error: &io::Error) -> Failure {
    let mut failure = Failure::system(format!("{}: write {value} to {}", setting.field, file.display()), error);
    let number = error.raw_os_error().unwrap_or(0);
    let hint = match (setting.controller, number) {
        ("cpuset", libc::EACCES | libc::EINVAL | libc::ERANGE | libc::ENOSPC) => {
            failure.kind = Kind::InvalidArgument;
            let offered = file.parent().and_then(Path::parent).and_then(|parent| {
                let read = |name: String| std::fs::read_to_string(parent.join(name)).ok();
                read(format!("{}.effective", setting.file)).or_else(|| read(setting.file.clone()))
            });
            match offered.as_deref().map(str::trim) {
                Some(offered) if !offered.is_empty() => format!("choose among {offered}"),
                _ => "choose among what the parent cgroup has".to_owned(),
            }
        }
        ("memory", libc::EBUSY) => "the container uses more than that; choose a larger limit".to_owned(),
        ("memory", libc::EINVAL) => {
            "memory and swap together cannot be less than memory: change both at the same time".to_owned()
        }
        ("cpu", libc::EINVAL) => {
            "a period is 1000 to 1000000 microseconds, a quota at least 1000; no parent may allow less".to_owned()
        }
        ("blkio" | "io", libc::ENODEV | libc::ENXIO | libc::EINVAL) => {
            "give the major and minor number of a whole disk (lsblk), not of a partition".to_owned()
        }
        (_, libc::EACCES | libc::EPERM) => {
            "the cgroup's files have to belong to the user who starts the container (delegation)".to_owned()
        }
        _ => return failure,
    };
    failure.with_hint(hint)
}

fn missing_controller(setting: &Setting) -> Failure {
    Failure::new(
        Kind::FailedPrecondition,
        format!("{}: this machine has no cgroup controller {}", setting.field, setting.controller),
    )
    .with_hint("drop the limit, or enable the controller (cgroup.subtree_control, kernel command line)")
}

fn collect_processes(folder: &Path, found: &mut Vec<i32>) {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 0));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

/// Remove a cgroup; when that is refused, first those beneath it.
fn remove_folder(folder: &Path) -> io::Result<()> {
    // A faked tree holds real files, which a cgroup's folder does not.
    let remove = |folder: &Path| if cfg!(test) { std::fs::remove_dir_all(folder) } else { std::fs::remove_dir(folder) };
    match remove(folder) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => {
            for entry in std::fs::read_dir(folder)?.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_folder(&entry.path())?;
                }
            }
            remove(folder)
        }
        result => result,
    }
}

/// Make a folder that is ours alone, and its parents; `each` is called for every one that was made. A folder that a
/// killed monitor left is made anew, so that its counters start from zero.
fn make_folder(top: &Path, path: &str, each: &mut dyn FnMut(&Path) -> Result<(), Failure>) -> Result<PathBuf, Failure> {
    let leaf = top.join(path);
    let fail =
        |folder: &Path, error: &io::Error| Failure::system(format!("make the cgroup {}", folder.display()), error);
    // A container that ends at the same moment may remove a parent that was just found.
    for _ in 0..ATTEMPTS {
        match std::fs::create_dir(&leaf) {
            Ok(()) => {
                each(&leaf)?;
                return Ok(leaf);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut busy = Vec::new();
                collect_processes(&leaf, &mut busy);
                if !busy.is_empty() {
                    return Err(Failure::new(
                        Kind::FailedPrecondition,
                        format!("the cgroup {} is in use by {} processes", leaf.display(), busy.len()),
                    )
                    .with_hint("another container has the same linux.cgroupsPath"));
                }
                remove_folder(&leaf).map_err(|error| fail(&leaf, &error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && top.is_dir() => {
                let mut parent = top.to_owned();
                let parts: Vec<&str> = path.split('/').collect();
                for part in parts.iter().take(parts.len().saturating_sub(1)) {
                    parent.push(part);
                    match std::fs::create_dir(&parent) {
                        Ok(()) => each(&parent)?,
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                        Err(error) => return Err(fail(&parent, &error)),
                    }
                }
            }
            Err(error) => return Err(fail(&leaf, &error)),
        }
    }
    Err(Failure::new(Kind::Unavailable, format!("make the cgroup {}: its parents come and go", leaf.display())))
}

/// Open the file of a cgroup by which processes join it; it is made in a test's tree alone.
fn open_to_join(file: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().write(true).create(cfg!(test)).truncate(cfg!(test)).open(file)?.into())
}

/// Write a control file in one write, as the kernel wants it. Control files are never made, but in a test's tree.
fn write_file(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create(cfg!(test)).truncate(cfg!(test)).open(file)?.write_all(value.as_bytes())
}

fn warn_devices(warnings: &mut Vec<String>, error: &io::Error) {
    warnings.push(format!("no device filter: {}; nodes other than the container's own stay unusable", describe(error)));
}

#[cfg(test)]
mod tests;
