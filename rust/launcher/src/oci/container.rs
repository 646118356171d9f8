//! What is kept of a container, and how it stands.
//!
//! ```text
//! <state folder>/<id>/    0700; its lock (flock) is held by whoever makes, starts, changes or deletes the container
//!     config.json         the bundle's document as it was at `create`
//!     state.json          which process is its first one, and the bundle
//!     start.sock          where that one waits for `start`, as long as it waits
//! ```
//! The status is not stored. It follows from the first process, which is known by its id and the time of its start, so
//! that another process that got its id later is not taken for it; from whether somebody listens at `start.sock`; and
//! from the freezer.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::NAME;
use super::arguments::{Global, wrong};
use crate::cgroup::{self, Cgroup, CgroupPlan};
use crate::channel::Channel;
use crate::error::{Failure, Kind, Step};
use crate::hooks::{State, Status};
use crate::run::LONGEST_DOCUMENT;
use crate::spec::{self, Spec};

pub(super) const CONFIG: &str = "config.json";
const RECORD: &str = "state.json";
const START: &str = "start.sock";
const LONGEST_ID: usize = 200;

/// What is written down of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The bundle's absolute path.
    pub(super) bundle: String,
    /// Id of its first process; 0 before it is made.
    pub(super) pid: i32,
    /// When that was started, in clock ticks since the machine was: with the id it names one process.
    pub(super) start_time: u64,
    /// RFC 3339; empty while it is being made.
    pub(super) created: String,
}

/// A container's folder, open.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    path: PathBuf,
    folder: OwnedFd,
    pub(super) record: Record,
}

/// Where containers are kept: the option's folder, or the usual one.
fn state_folder(global: &Global) -> PathBuf {
    if let Some(root) = &global.root {
        return root.clone();
    }
    let run = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    Path::new(&run.unwrap_or_else(|| "/run".into())).join(NAME)
}

/// Refuse what is no identifier: it becomes the name of a folder.
fn check_id(id: &str) -> Result<(), Failure> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_+-.".contains(letter);
    if id.is_empty() || id.len() > LONGEST_ID || id == "." || id == ".." || !id.chars().all(allowed) {
        return Err(wrong(format!("{id:?} is no identifier: letters, digits, and _ + - . make one")));
    }
    Ok(())
}

impl Container {
    /// Make a container's folder and take its lock. `AlreadyExists` when there is one of that name.
    pub(super) fn make(global: &Global, id: &str, record: Record) -> Result<Self, Failure> {
        check_id(id)?;
        let root = state_folder(global);
        let step = || format!("make {}", root.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).step(step)?;
        let path = root.join(id);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Failure::new(Kind::AlreadyExists, format!("there is a container {id:?}"))
                    .with_hint(format!("delete it ({NAME} delete --force {id}), or take another identifier")));
            }
            result => result.step(|| format!("make {}", path.display()))?,
        }
        let container = Self { id: id.to_owned(), folder: open_folder(&path)?, path, record };
        container.lock()?;
        Ok(container)
    }

    /// Open a container. `NotFound` when there is none.
    pub(super) fn open(global: &Global, id: &str) -> Result<Self, Failure> {
        check_id(id)?;
        let path = state_folder(global).join(id);
        let absent = || Failure::new(Kind::NotFound, format!("there is no container {id:?}"));
        let folder = match open_folder(&path) {
            Err(failure) if failure.kind == Kind::NotFound => return Err(absent()),
            result => result?,
        };
        let mut container = Self { id: id.to_owned(), path, folder, record: Record::default() };
        container.read()?;
        Ok(container)
    }

    /// Open a container and take its lock; it is as it was when the lock was taken.
    pub(super) fn open_locked(global: &Global, id: &str) -> Result<Self, Failure> {
        let mut container = Self::open(global, id)?;
        container.lock()?;
        // Whoever held it may have deleted the container.
        if !container.path.join(RECORD).exists() && container.record.pid != 0 {
            return Err(Failure::new(Kind::NotFound, format!("there is no container {id:?}")));
        }
        container.read()?;
        Ok(container)
    }

    /// All containers, by name. What is gone meanwhile, or cannot be read, is passed over.
    pub(super) fn all(global: &Global) -> Vec<Self> {
        let names = std::fs::read_dir(state_folder(global)).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names.iter().filter_map(|id| Self::open(global, id).ok()).collect()
    }

    fn lock(&self) -> Result<(), Failure> {
        rustix::fs::flock(&self.folder, FlockOperation::LockExclusive).step(|| format!("lock {}", self.path.display()))
    }

    /// Read the record anew; one that was killed before there was any has an empty one.
    fn read(&mut self) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = self.path.join(RECORD);
        let text = match rustix::fs::openat(&self.folder, RECORD, flags, Mode::empty()) {
            Ok(file) => read_text(file.into(), &name)?,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).step(|| format!("open {}", name.display())),
        };
        self.record = serde_json::from_str(&text)
            .map_err(|error| Failure::new(Kind::Internal, format!("{}: {error}", name.display())))?;
        Ok(())
    }

    /// Write a file of the folder: whole, or not at all.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        write_whole(&self.path.join(name), text)
    }

    /// Write the record.
    pub(super) fn save(&self) -> Result<(), Failure> {
        self.write(RECORD, &serde_json::to_string(&self.record).unwrap_or_default())
    }

    /// The document that it was made from.
    pub(super) fn spec(&self) -> Result<Spec, Failure> {
        let name = self.path.join(CONFIG);
        let file = File::open(&name).step(|| format!("open {}", name.display()))?;
        Spec::parse(&read_text(file, &name)?)
    }

    /// What it asked of its cgroup.
    pub(super) fn cgroup_plan(&self, spec: &mut Spec) -> CgroupPlan {
        spec.linux.cgroups_path.get_or_insert_with(|| format!("/{NAME}/{}", self.id));
        CgroupPlan::new(spec)
    }

    /// Its cgroup, as far as it is there.
    pub(super) fn cgroup(&self) -> Result<Cgroup, Failure> {
        Ok(self.cgroup_plan(&mut self.spec()?).open(Path::new(cgroup::ROOT)))
    }

    /// Make the socket at which its first process waits for `start`.
    pub(super) fn listen(&self) -> Result<OwnedFd, Failure> {
        let step = || format!("make {}", self.path.join(START).display());
        let socket = datagrams().step(step)?;
        // The name may be longer than a socket's address takes, so it is bound from within.
        let bound = self.within(|| rustix::net::bind(&socket, &SocketAddrUnix::new(START)?));
        bound.step(step)?;
        Ok(socket)
    }

    /// The way to its first process while that waits for `start`.
    pub(super) fn starter(&self) -> Option<Channel> {
        let socket = datagrams().ok()?;
        self.within(|| rustix::net::connect(&socket, &SocketAddrUnix::new(START)?)).ok()?;
        Some(Channel::from(socket))
    }

    fn within(&self, act: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        let here = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::process::fchdir(&self.folder)?;
        let done = act();
        rustix::process::fchdir(&here)?;
        done
    }

    /// Its program has been started, so that nobody waits any more.
    pub(super) fn forget_starter(&self) {
        let _ = rustix::fs::unlinkat(&self.folder, START, rustix::fs::AtFlags::empty());
    }

    /// Remove the folder. Harmless when it is gone.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        self.forget_starter();
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).step(|| format!("remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Its first process, as a pidfd; None when that has ended.
    pub(super) fn process(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.record.pid)?;
        let file = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // After it was opened: the id cannot be another's any more if it is still this one's.
        (start_time(self.record.pid) == Some(self.record.start_time)).then_some(file)
    }

    /// How it stands.
    pub(super) fn status(&self) -> Status {
        if self.process().is_none() {
            // While it is being made it has no process at first; whoever makes it holds the lock.
            let held = self.record.pid == 0
                && rustix::fs::flock(&self.folder, FlockOperation::NonBlockingLockShared)
                    == Err(rustix::io::Errno::WOULDBLOCK);
            return if held { Status::Creating } else { Status::Stopped };
        }
        if self.record.created.is_empty() {
            return Status::Creating;
        }
        if self.starter().is_some() {
            return Status::Created;
        }
        if self.cgroup().is_ok_and(|cgroup| cgroup.is_frozen()) { Status::Paused } else { Status::Running }
    }

    /// Its state, as hooks and callers are told it.
    pub(super) fn state(&self) -> State {
        let status = self.status();
        State {
            oci_version: spec::VERSION.into(),
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.record.pid },
            bundle: self.record.bundle.clone(),
            annotations: self.spec().map(|spec| spec.annotations).unwrap_or_default(),
        }
    }

    /// Refuse an operation that another status is needed for.
    pub(super) fn expect(&self, wanted: &[Status]) -> Result<Status, Failure> {
        let status = self.status();
        if wanted.contains(&status) {
            return Ok(status);
        }
        let name = |status: &Status| format!("{status:?}").to_lowercase();
        let wanted = wanted.iter().map(name).collect::<Vec<_>>().join(" or ");
        let message = format!("the container {:?} is {}, not {wanted}", self.id, name(&status));
        Err(Failure::new(Kind::FailedPrecondition, message))
    }
}

fn datagrams() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn open_folder(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).step(|| format!("open {}", path.display()))
}

/// Read a document with a bound on its length.
pub(super) fn read_text(file: File, name: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    file.take(LONGEST_DOCUMENT).read_to_string(&mut text).step(|| format!("read {}", name.display()))?;
    Ok(text)
}

/// Write a file so that nobody ever sees a part of it.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let step = || format!("write {}", path.display());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial"));
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path)).step(step)
}

/// When a process was started, in clock ticks since the machine was; None when there is none, or it has ended and waits
/// to be reaped. proc_pid_stat(5)
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if ["Z", "X", "x"].contains(&state) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_the_name_of_a_folder_and_nothing_more() {
        for id in ["a", "A-b_c.d+1", "...", "-x"] {
            check_id(id).expect(id);
        }
        for id in ["", ".", "..", "a/b", "../x", "a b", "a\0", "ä", &"x".repeat(201)] {
            assert_eq!(check_id(id).expect_err(id).kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn a_process_is_known_by_its_id_and_the_time_of_its_start() {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let started = start_time(pid).expect("it runs");
        let folder = tempfile::tempdir().expect("a folder");
        let global = Global { root: Some(folder.path().to_owned()), ..Global::default() };
        let record = Record { pid, start_time: started, created: "now".into(), ..Record::default() };
        let mut container = Container::make(&global, "box", record).expect("made");
        container.save().expect("saved");
        assert!(container.process().is_some());
        container.record.start_time += 1;
        assert!(container.process().is_none());
        assert_eq!(Container::make(&global, "box", Record::default()).expect_err("there").kind, Kind::AlreadyExists);
        assert_eq!(Container::open(&global, "other").expect_err("absent").kind, Kind::NotFound);
        assert_eq!(Container::all(&global).len(), 1);
        container.remove().expect("removed");
        container.remove().expect("harmless");
    }

    #[test]
    fn a_container_waits_for_its_start_as_long_as_somebody_listens() {
        let folder = tempfile::tempdir().expect("a folder");
        let global = Global { root: Some(folder.path().join("x".repeat(120))), ..Global::default() };
        let container = Container::make(&global, "box", Record::default()).expect("made");
        let socket = container.listen().expect("made");
        assert!(container.starter().is_some());
        drop(socket);
        assert!(container.starter().is_none());
    }
}
