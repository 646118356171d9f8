//! cgroup v1: one hierarchy a controller, also on hybrid machines.

use std::io;
use std::path::{Path, PathBuf};

use super::settings::Setting;
use super::{ATTEMPTS, Cgroup, Folder, PAUSE, devices, kept_parent, make_folder, open_to_join, v2, write_file};
use crate::error::{Failure, Kind, Step};

/// Every container has these (35 microseconds each, from making to removing), where the machine has them: memory for
/// out-of-memory kills, pids for who is in it, devices for safety, freezer for pause, cpuacct and blkio for statistics.
const ALWAYS: [&str; 6] = ["memory", "pids", "devices", "freezer", "cpuacct", "blkio"];

/// Where hybrid machines have the hierarchy of v2.
pub(super) const BESIDE: &str = "unified";

/// The controllers of the v2 hierarchy that a hybrid machine has beside those of v1.
pub(super) fn beside(root: &Path) -> Vec<String> {
    v2::controllers(&root.join(BESIDE), "cgroup.controllers")
}

/// Make the folders.
pub(super) fn create(cgroup: &mut Cgroup, path: &str, settings: &[Setting]) -> Result<(), Failure> {
    let needed = settings.iter().map(|setting| setting.controller);
    for controller in ALWAYS.into_iter().chain(needed) {
        if cgroup.folder(controller).is_some() {
            continue;
        }
        // Hierarchies of several controllers are mounted under both names: cpu -> cpu,cpuacct.
        let mount = cgroup.root.join(controller);
        let hierarchy = match std::fs::read_link(&mount) {
            Ok(link) => {
                link.file_name().map_or_else(|| controller.to_owned(), |name| name.to_string_lossy().into_owned())
            }
            Err(_) => controller.to_owned(),
        };
        let top = cgroup.root.join(&hierarchy);
        if !top.is_dir() {
            match settings.iter().find(|setting| setting.controller == controller) {
                Some(setting) if beside(&cgroup.root).iter().any(|name| name == setting.controller) => {
                    create_beside(cgroup, path, settings)?;
                    continue;
                }
                Some(setting) => return Err(super::missing_controller(setting)),
                None => continue,
            }
        }
        let kept = kept_parent(&top, path);
        let cpuset = hierarchy.split(',').any(|name| name == "cpuset");
        let leaf = make_folder(&top, path, &mut |folder| if cpuset { inherit_cpuset(folder) } else { Ok(()) })?;
        add(cgroup, hierarchy, leaf, kept)?;
    }
    if cgroup.folders.is_empty() {
        return Err(Failure::new(
            Kind::NotFound,
            format!("no cgroup hierarchy is mounted at {}", cgroup.root.display()),
        ));
    }
    Ok(())
}

/// Find the folders that [`create`] made, whichever controllers it needed.
pub(super) fn open(cgroup: &mut Cgroup, path: &str) {
    // systemd's is one without a controller.
    for hierarchy in super::hierarchies(&cgroup.root).filter(|name| name != "systemd") {
        let top = cgroup.root.join(&hierarchy);
        let kept = kept_parent(&top, path);
        cgroup.folders.extend(folder(&cgroup.root, hierarchy, top.join(path), kept));
    }
}

/// Make the folder in the v2 hierarchy, for the controllers that are there.
fn create_beside(cgroup: &mut Cgroup, path: &str, settings: &[Setting]) -> Result<(), Failure> {
    let top = cgroup.root.join(BESIDE);
    let controllers = beside(&cgroup.root);
    let there: Vec<Setting> =
        settings.iter().filter(|setting| controllers.iter().any(|name| name == setting.controller)).cloned().collect();
    let kept = kept_parent(&top, path);
    let leaf = v2::make_leaf(&top, path, &there)?;
    add(cgroup, BESIDE.to_owned(), leaf, kept)
}

/// Open a folder of a hierarchy to be joined.
fn folder(root: &Path, hierarchy: String, path: PathBuf, kept: PathBuf) -> io::Result<Folder> {
    let (file, controllers) = match hierarchy.as_str() {
        BESIDE => ("cgroup.procs", beside(root)),
        names => ("tasks", names.split(',').map(str::to_owned).collect()),
    };
    let joining = open_to_join(&path.join(file))?;
    Ok(Folder { hierarchy, controllers, path, kept, joining })
}

/// Take a folder that was made among those of the cgroup; on failure it is removed.
fn add(cgroup: &mut Cgroup, hierarchy: String, leaf: PathBuf, kept: PathBuf) -> Result<(), Failure> {
    match folder(&cgroup.root, hierarchy, leaf.clone(), kept) {
        Ok(folder) => cgroup.folders.push(folder),
        Err(error) => {
            let _ = std::fs::remove_dir(&leaf);
            return Err(Failure::system(format!("open the cgroup {}", leaf.display()), &error));
        }
    }
    Ok(())
}

/// A new cpuset is empty, and nothing can join it then.
fn inherit_cpuset(folder: &Path) -> Result<(), Failure> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let step = || format!("set {}/{file}", folder.display());
        let Some(parent) = folder.parent() else { continue };
        let value = std::fs::read_to_string(parent.join(file)).step(step)?;
        write_file(&folder.join(file), value.trim()).step(step)?;
    }
    Ok(())
}

impl Cgroup {
    /// Set the device allow-list.
    pub(super) fn list_devices(&self, rules: &[devices::Rule]) -> Result<(), Failure> {
        let Some(folder) = self.folder("devices") else { return Ok(()) };
        for rule in rules {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            let line = rule.line();
            write_file(&folder.join(file), &line).step(|| format!("write {line:?} to {}/{file}", folder.display()))?;
        }
        Ok(())
    }

    pub(super) fn freeze_legacy(&self, frozen: bool) -> Result<(), Failure> {
        let Some(folder) = self.folder("freezer") else {
            return Err(super::none_to_freeze());
        };
        let file = folder.join("freezer.state");
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        let step = || format!("write {wanted} to {}", file.display());
        for _ in 0..ATTEMPTS {
            // Written again while FREEZING: a process that was forking meanwhile is caught then.
            write_file(&file, wanted).step(step)?;
            if std::fs::read_to_string(&file).step(step)?.trim() == wanted {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        let _ = write_file(&file, "THAWED");
        Err(Failure::new(Kind::Unavailable, format!("{}: it takes too long", step())))
    }
}
