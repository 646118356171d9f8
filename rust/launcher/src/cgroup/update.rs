//! Changing the limits of a container that runs: a change holds as a whole, or not at all.
//!
//! What each file held before is read first and written back when a later one is refused. On v1 a controller that the
//! container had no limit for has no folder of its container yet: it is made, and the processes are moved into it last of all.

use std::path::{Path, PathBuf};

use super::settings::Setting;
use super::{ATTEMPTS, Cgroup, Folder, collect_processes, discard, v1, v2, write_file};
use crate::error::{Failure, Kind};
use crate::spec::Resources;

/// What a file held, as it has to be written to hold it again.
type Before = (PathBuf, String);

impl Cgroup {
    /// Change limits of a running container, those alone that are given. Devices cannot be changed. Twice is harmless.
    pub fn update(&mut self, resources: &Resources, warnings: &mut Vec<String>) -> Result<(), Failure> {
        if !resources.devices.is_empty() {
            return Err(Failure::unsupported("a change of resources.devices"));
        }
        if self.folders.is_empty() {
            return Err(Failure::new(Kind::FailedPrecondition, "the container has no cgroup")
                .with_hint("limits take a machine with cgroups, and the right to make some"));
        }
        let settings = super::settings_on(&self.root, resources)?;
        self.check_use(resources)?;
        let own = self.folders.len();
        let mut undo = Vec::new();
        let done = self
            .add_controllers(&settings)
            .and_then(|()| self.replace(&settings, &mut undo, warnings))
            .and_then(|()| self.bring_processes(own));
        if done.is_err() {
            for (file, value) in undo.into_iter().rev() {
                let _ = write_file(&file, &value);
            }
            self.drop_added(own);
        }
        done
    }

    /// v2 kills where a limit is set below what is in use; v1 refuses by itself. What is cached can be given back.
    fn check_use(&self, resources: &Resources) -> Result<(), Failure> {
        let memory = resources.memory.as_ref().filter(|memory| memory.check_before_update == Some(true));
        let limit = memory.and_then(|memory| memory.limit).and_then(|limit| u64::try_from(limit).ok());
        let (Some(limit), Some(folder)) = (limit.filter(|limit| *limit > 0), &self.unified) else { return Ok(()) };
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let cached: u64 = read("memory.stat")
            .lines()
            .filter_map(|line| line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("active_file ")))
            .filter_map(|number| number.parse::<u64>().ok())
            .sum();
        let used = read("memory.current").trim().parse::<u64>().unwrap_or(0).saturating_sub(cached);
        if used <= limit {
            return Ok(());
        }
        let message = format!("linux.resources.memory.limit: the container uses {used} bytes, more than {limit}");
        Err(Failure::new(Kind::Unavailable, message).with_hint("choose a larger limit; it would be killed by this one"))
    }

    /// See to it that every controller that is needed is there for the container.
    fn add_controllers(&mut self, settings: &[Setting]) -> Result<(), Failure> {
        let (root, Some(first)) = (self.root.clone(), self.folders.first()) else { return Ok(()) };
        if self.unified.is_some() {
            return v2::enable_on_the_way(&root, &first.path, settings);
        }
        let Ok(path) = first.path.strip_prefix(root.join(&first.hierarchy)) else { return Ok(()) };
        let path = path.to_string_lossy().into_owned();
        v1::create(self, &path, settings)
    }

    /// Write all limits, and note in `undo` what was there before.
    fn replace(&self, settings: &[Setting], undo: &mut Vec<Before>, warnings: &mut Vec<String>) -> Result<(), Failure> {
        for setting in self.in_order(settings) {
            let Some(folder) = self.folder(setting.controller) else {
                return Err(super::missing_controller(setting));
            };
            let before = before(folder, setting);
            super::write_setting(folder, setting, warnings)?;
            undo.extend(before);
        }
        Ok(())
    }

    /// v1 refuses memory above what memory and swap may be together, so that growing begins with the latter.
    fn in_order<'a>(&self, settings: &'a [Setting]) -> Vec<&'a Setting> {
        let mut order: Vec<&Setting> = settings.iter().collect();
        let position = |file: &str| settings.iter().position(|setting| setting.file == file);
        let both = position("memory.limit_in_bytes").zip(position("memory.memsw.limit_in_bytes"));
        if let (Some((memory, swap)), Some(folder)) = (both, self.folder("memory")) {
            let number = |text: &str| text.trim().parse::<i64>().ok().filter(|limit| *limit >= 0).unwrap_or(i64::MAX);
            let present = std::fs::read_to_string(folder.join(&settings[swap].file)).unwrap_or_default();
            if number(&settings[memory].value) > number(&present) {
                order.swap(memory, swap);
            }
        }
        order
    }

    /// Move all processes into the folders behind the first `own`, until no new one shows up outside.
    fn bring_processes(&self, own: usize) -> Result<(), Failure> {
        for folder in &self.folders[own..] {
            let target = folder.path.join("cgroup.procs");
            let mut done = Vec::new();
            for attempt in 0.. {
                let mut outside = self.processes();
                collect_processes(&folder.path, &mut done);
                outside.retain(|pid| !done.contains(pid));
                if outside.is_empty() {
                    break;
                }
                if attempt == ATTEMPTS {
                    return Err(Failure::new(Kind::Unavailable, "the container forks faster than it can be moved")
                        .with_hint("pause it meanwhile"));
                }
                for pid in outside {
                    match write_file(&target, &pid.to_string()) {
                        // It has just ended.
                        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                        Err(error) => {
                            return Err(Failure::system(format!("move process {pid} to {}", target.display()), &error));
                        }
                        Ok(()) => {}
                    }
                    done.push(pid);
                }
            }
        }
        Ok(())
    }

    /// Take away the folders behind the first `own`; who is in them goes back to where the monitor is.
    fn drop_added(&mut self, own: usize) {
        for folder in self.folders.split_off(own) {
            let mut inside = Vec::new();
            collect_processes(&folder.path, &mut inside);
            let home = monitors_own(&self.root, &folder).join("cgroup.procs");
            for pid in inside {
                let _ = write_file(&home, &pid.to_string());
            }
            discard(folder);
        }
    }
}

/// The monitor's own folder of a v1 hierarchy.
fn monitors_own(root: &Path, folder: &Folder) -> PathBuf {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let wanted = if folder.hierarchy == v1::BESIDE { "" } else { &folder.hierarchy };
        (controllers == wanted).then(|| path.trim_start_matches('/').to_owned())
    });
    root.join(&folder.hierarchy).join(path.unwrap_or_default())
}

/// What a setting's file holds; None where that cannot be read.
fn before(folder: &Path, setting: &Setting) -> Option<Before> {
    let file = folder.join(&setting.file);
    let text = std::fs::read_to_string(&file).ok()?;
    Some((file, held(&text, setting)))
}

/// The part of a file's text that a setting replaces, in the form that the file takes.
fn held(text: &str, setting: &Setting) -> String {
    let device = setting.value.split_once(' ').map(|(device, _)| device).filter(|device| device.contains(':'));
    if let Some(device) = device {
        let line = text.lines().find(|line| line.strip_prefix(device).is_some_and(|rest| rest.starts_with(' ')));
        let none = match setting.file.as_str() {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            file if file.contains("weight") => "default",
            _ => "0",
        };
        return line.map_or_else(|| format!("{device} {none}"), str::to_owned);
    }
    let value = match setting.file.as_str() {
        "memory.oom_control" => text.lines().find_map(|line| line.strip_prefix("oom_kill_disable ")).unwrap_or("0"),
        file if file.contains("weight") => {
            text.lines().next().map_or("", |line| line.strip_prefix("default ").unwrap_or(line))
        }
        _ => text.trim(),
    };
    // An empty write does nothing at all.
    if value.is_empty() { "\n".to_owned() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(file: &str, value: &str) -> Setting {
        Setting {
            controller: "",
            file: file.to_owned(),
            value: value.to_owned(),
            field: String::new(),
            optional: false,
            otherwise: None,
        }
    }

    #[test]
    fn what_was_there_is_kept_in_the_form_that_the_file_takes() {
        for (file, value, text, kept) in [
            ("pids.max", "5", "max\n", "max"),
            ("cpu.max", "1 2", "max 100000\n", "max 100000"),
            ("cpuset.cpus", "1", "\n", "\n"),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\n", "0"),
            ("io.bfq.weight", "20", "default 100\n8:0 200\n", "100"),
            ("io.bfq.weight", "8:0 20", "default 100\n8:0 200\n", "8:0 200"),
            ("io.bfq.weight", "8:1 20", "default 100\n8:0 200\n", "8:1 default"),
            ("io.max", "8:0 rbps=9", "8:0 rbps=5 wbps=max\n", "8:0 rbps=5 wbps=max"),
            ("io.max", "8:1 rbps=9", "8:16 rbps=5\n", "8:1 rbps=max wbps=max riops=max wiops=max"),
            ("blkio.throttle.read_bps_device", "8:0 9", "", "8:0 0"),
        ] {
            assert_eq!(held(text, &setting(file, value)), kept, "{file} {value}");
        }
    }
}
