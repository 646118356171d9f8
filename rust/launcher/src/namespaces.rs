//! Which namespaces a container gets new, and which existing ones it joins: namespaces(7).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind, Step};
use crate::network::program::Program;
use crate::spec::{IdMapping, Linux, TimeOffset};
use crate::sys::{self, Forked};

/// `statfs` magic of a namespace file.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Those that a process cannot enter itself, only those that it makes.
const CHILDREN: [i32; 2] = [libc::CLONE_NEWPID, sys::CLONE_NEWTIME];

/// Of the thread that makes a network namespace: it makes system calls alone.
const STACK: usize = 64 << 10;

/// A network namespace that is being made, by a thread: the kernel takes half a millisecond for it.
#[derive(Debug)]
pub struct NetworkAhead(JoinHandle<Option<OwnedFd>>);

impl NetworkAhead {
    /// Begin. None where there can be no thread: the container's first process then makes its network namespace itself.
    pub fn begin() -> Option<Self> {
        let make = || {
            sys::unshare(libc::CLONE_NEWNET).ok()?;
            File::open("/proc/thread-self/ns/net").ok().map(OwnedFd::from)
        };
        thread::Builder::new().stack_size(STACK).spawn(make).ok().map(Self)
    }

    /// Wait for it. None where it could not be made: the container's first process then says why not.
    pub fn wait(self) -> Option<OwnedFd> {
        self.0.join().ok().flatten()
    }
}

/// A namespace to join.
#[derive(Debug)]
struct Joined {
    kind: String,
    path: String,
    flag: i32,
    file: OwnedFd,
}

impl Joined {
    fn is_user(&self) -> bool {
        self.flag == libc::CLONE_NEWUSER
    }
}

/// The container's namespaces; files of those to join are open.
#[derive(Debug)]
pub struct Namespaces {
    /// `CLONE_NEW*` flags of the ones that come with the first process, but for what was made ahead.
    made_by_clone: i32,
    /// The next first process's network namespace, where that was made ahead.
    network: RefCell<Option<OwnedFd>>,
    /// The cgroup namespace's root is where the process is when it is made: after it has joined its cgroup.
    pub new_cgroup: bool,
    /// The IPC namespace is made by the root of the container's user namespace, who owns /dev/mqueue then: it belongs to whoever
    /// makes it, and the machine's root would be nobody in there.
    pub new_ipc: bool,
    /// A new network namespace, whose loopback device must be set up.
    pub new_network: bool,
    /// A new time namespace, with what its clocks are ahead of the host's by. It cannot be made by clone3.
    time: Option<BTreeMap<String, TimeOffset>>,
    /// A user namespace that is not the host's, with its mappings; without those where it is joined and nobody says.
    pub mappings: Option<(Vec<IdMapping>, Vec<IdMapping>)>,
    /// Processes of the container are in a PID namespace of their own.
    pub own_pids: bool,
    /// `CLONE_NEW*` flags of all that the container does not share with the host: what a further process enters.
    pub entered: i32,
    joined: Vec<Joined>,
}

fn flag(kind: &str) -> i32 {
    match kind {
        "mount" => libc::CLONE_NEWNS,
        "pid" => libc::CLONE_NEWPID,
        "uts" => libc::CLONE_NEWUTS,
        "ipc" => libc::CLONE_NEWIPC,
        "network" => libc::CLONE_NEWNET,
        "user" => libc::CLONE_NEWUSER,
        "cgroup" => libc::CLONE_NEWCGROUP,
        "time" => sys::CLONE_NEWTIME,
        _ => 0,
    }
}

/// `CLONE_NEW*` flags of all that a (checked) container does not share with the host: what a further process enters.
pub fn entered(linux: &Linux) -> i32 {
    linux.namespaces.iter().fold(0, |flags, namespace| flags | flag(&namespace.kind))
}

/// Whether an open namespace is the one that this process is in.
fn is_hosts(file: &OwnedFd, flag: i32) -> Result<bool, rustix::io::Errno> {
    let name = match flag {
        libc::CLONE_NEWNET => "net",
        libc::CLONE_NEWIPC => "ipc",
        _ => "uts",
    };
    let (joined, own) = (rustix::fs::fstat(file)?, rustix::fs::stat(format!("/proc/self/ns/{name}"))?);
    Ok((joined.st_dev, joined.st_ino) == (own.st_dev, own.st_ino))
}

/// The ids of the host that are root by maps of ids.
pub fn outer_root(uids: &[IdMapping], gids: &[IdMapping]) -> Option<(u32, u32)> {
    let root = |map: &[IdMapping]| map.iter().find(|range| range.container_id == 0).map(|range| range.host_id);
    root(uids).zip(root(gids))
}

impl Namespaces {
    /// Prepare the (checked) namespaces of a spec. A path that is not a namespace is refused.
    pub fn new(linux: &Linux) -> Result<Self, Failure> {
        let new_ipc = linux.has_namespace("user") && linux.makes_namespace("ipc");
        let mut apart = libc::CLONE_NEWCGROUP | sys::CLONE_NEWTIME;
        if new_ipc {
            apart |= libc::CLONE_NEWIPC;
        }
        let mut made_by_clone = 0;
        let mut joined = Vec::new();
        for namespace in &linux.namespaces {
            let flag = flag(&namespace.kind);
            if namespace.path.is_empty() {
                made_by_clone |= flag & !apart;
                continue;
            }
            let step = || format!("open the {} namespace {}", namespace.kind, namespace.path);
            let file = OwnedFd::from(File::open(&namespace.path).step(step)?);
            let magic = rustix::fs::fstatfs(&file).step(step)?.f_type as u64;
            if magic != NSFS_MAGIC {
                return Err(Failure::new(Kind::InvalidArgument, format!("{}: it is no namespace", step())));
            }
            if let Some(name) = linux.sysctl_of(&namespace.kind)
                && is_hosts(&file, flag).step(step)?
            {
                let why = format!("would change the host's: {} is its {} namespace", namespace.path, namespace.kind);
                return Err(Failure::invalid(format!("linux.sysctl {name:?}"), why));
            }
            joined.push(Joined { kind: namespace.kind.clone(), path: namespace.path.clone(), flag, file });
        }
        Ok(Self {
            made_by_clone,
            network: RefCell::new(None),
            new_cgroup: linux.makes_namespace("cgroup"),
            new_ipc,
            new_network: linux.makes_namespace("network"),
            time: linux.makes_namespace("time").then(|| linux.time_offsets.clone()),
            mappings: linux.has_namespace("user").then(|| (linux.uid_mappings.clone(), linux.gid_mappings.clone())),
            own_pids: linux.has_namespace("pid"),
            entered: entered(linux),
            joined,
        })
    }

    /// The ids of the host that are root in the container's user namespace.
    pub fn outer_root(&self) -> Option<(u32, u32)> {
        self.mappings.as_ref().and_then(|(uids, gids)| outer_root(uids, gids))
    }

    /// Whether another thread can make the network namespace: a new user namespace would have to own it.
    pub fn can_have_network(&self) -> bool {
        self.new_network && self.mappings.is_none()
    }

    /// Let the next first process have a network namespace that was made ahead.
    pub fn have_network(&self, namespace: OwnedFd) {
        *self.network.borrow_mut() = Some(namespace);
    }

    /// Let go of it, once there is that process.
    pub fn forget_network(&self) {
        *self.network.borrow_mut() = None;
    }

    /// `CLONE_NEW*` flags of those that are to come with the first process.
    pub fn clone_flags(&self) -> i32 {
        let ahead = if self.network.borrow().is_some() { libc::CLONE_NEWNET } else { 0 };
        self.made_by_clone & !ahead
    }

    /// Make the container's first process, in the namespaces that are made with it.
    ///
    /// A user namespace that is joined is entered before, by a process that makes it in this one's stead: other namespaces
    /// belong to the user namespace that they are made in.
    pub fn make_process(&self, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Failure> {
        let step = || "make the container's namespaces";
        let flags = self.clone_flags() as u64;
        if !self.joined.iter().any(Joined::is_user) {
            self.prepare_children()?;
            return sys::clone_process(flags, cgroup).step(step);
        }
        let (ours, theirs) = Channel::pair()?;
        let between = match sys::fork().step(step)? {
            Forked::Parent(between) => between,
            Forked::Child => {
                let made = self
                    .enter_user()
                    .and_then(|()| sys::clone_process(flags | libc::CLONE_PARENT as u64, cgroup).step(step));
                let told = match made {
                    Ok(Forked::Child) => return Ok(Forked::Child),
                    Ok(Forked::Parent(pid)) => Message::Pid(pid),
                    Err(failure) => Message::Failed(failure),
                };
                let _ = theirs.send(&told);
                sys::exit_now(0)
            }
        };
        drop(theirs);
        let told = ours.receive();
        let _ = rustix::process::waitpid(Pid::from_raw(between), WaitOptions::empty());
        match told? {
            Some(Message::Pid(pid)) => Ok(Forked::Parent(pid)),
            Some(Message::Failed(failure)) => Err(failure),
            _ => Err(Failure::new(Kind::Internal, format!("{}: it was killed meanwhile", step()))),
        }
    }

    /// In the process between: nobody who is in the user namespace already may look into it.
    fn enter_user(&self) -> Result<(), Failure> {
        self.prepare_children()?;
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "hide from other containers")?;
        self.join(Joined::is_user)
    }

    /// Join the PID namespace, and join or make the time namespace, which takes effect for processes made afterwards.
    fn prepare_children(&self) -> Result<(), Failure> {
        if let Some(offsets) = &self.time {
            sys::unshare(sys::CLONE_NEWTIME).step(|| "make a time namespace")?;
            let line =
                |(clock, offset): (&String, &TimeOffset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
            let text: String = offsets.iter().map(line).collect();
            if !text.is_empty() {
                std::fs::write("/proc/self/timens_offsets", &text)
                    .step(|| format!("set the offsets {text:?} of the time namespace"))?;
            }
        }
        self.join(|namespace| CHILDREN.contains(&namespace.flag))
    }

    /// Whether namespaces are joined that other processes are in.
    pub fn joins_any(&self) -> bool {
        !self.joined.is_empty()
    }

    /// Write the user namespace's mappings, where it is made with the first process.
    pub fn write_mappings(&self, pid: i32) -> Result<(), Failure> {
        match &self.mappings {
            Some((uids, gids)) if !self.joined.iter().any(Joined::is_user) => write_mappings(pid, uids, gids),
            _ => Ok(()),
        }
    }

    /// Join the others: for the container's first process.
    pub fn join_others(&self) -> Result<(), Failure> {
        if let Some(network) = self.network.borrow().as_ref() {
            sys::move_into(network.as_fd(), libc::CLONE_NEWNET).step(|| "enter the container's network namespace")?;
        }
        self.join(|namespace| !CHILDREN.contains(&namespace.flag) && !namespace.is_user())
    }

    fn join(&self, wanted: impl Fn(&Joined) -> bool) -> Result<(), Failure> {
        for namespace in self.joined.iter().filter(|namespace| wanted(namespace)) {
            sys::move_into(namespace.file.as_fd(), namespace.flag)
                .step(|| format!("join the {} namespace {}", namespace.kind, namespace.path))?;
        }
        Ok(())
    }
}

/// Write a new user namespace's mappings, from outside. Without privilege over the outer namespace only one's own id
/// can be mapped directly; the set-uid programs of Debian's uidmap do the rest, within /etc/subuid and /etc/subgid.
fn write_mappings(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), Failure> {
    write_mapping(pid, &USERS, uids, None)?;
    write_mapping(pid, &GROUPS, gids, None)
}

/// One of the two kinds of ids.
pub struct Ids {
    /// Whether it is the groups: a user may map his own only in a namespace that never sets others.
    pub groups: bool,
    file: &'static str,
    program: &'static str,
}

/// Users.
pub const USERS: Ids = Ids { groups: false, file: "uid_map", program: "newuidmap" };
/// Groups.
pub const GROUPS: Ids = Ids { groups: true, file: "gid_map", program: "newgidmap" };

/// How long a program may take to write or to look up ids: a directory of users that does not answer takes half a minute.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Write one of the two mappings of a process's new user namespace; nothing is written after an error.
///
/// `search`: the PATH in which the set-uid program is looked for, where it is not this process's. Unavailable when that does not
/// come to an end.
pub fn write_mapping(pid: i32, ids: &Ids, mappings: &[IdMapping], search: Option<&str>) -> Result<(), Failure> {
    let line = |mapping: &IdMapping| format!("{} {} {}\n", mapping.container_id, mapping.host_id, mapping.size);
    let text: String = mappings.iter().map(line).collect();
    let folder = Path::new("/proc").join(pid.to_string());
    let user = rustix::process::geteuid();
    let own = if ids.groups { rustix::process::getegid().as_raw() } else { user.as_raw() };
    let single = matches!(mappings, [only] if only.host_id == own && only.size == 1);
    if user.is_root() || single {
        if ids.groups && !user.is_root() {
            std::fs::write(folder.join("setgroups"), "deny").step(|| "forbid setgroups in the user namespace")?;
        }
        return std::fs::write(folder.join(ids.file), &text)
            .step(|| format!("write the {} {text:?} of the user namespace", ids.file));
    }
    let search = search.map(str::to_owned).or_else(|| std::env::var("PATH").ok());
    write_by_program(pid, ids, &text, search.as_deref(), PATIENCE)
}

fn write_by_program(pid: i32, ids: &Ids, text: &str, search: Option<&str>, patience: Duration) -> Result<(), Failure> {
    let pid = pid.to_string();
    let program = Program {
        args: [ids.program, &pid].into_iter().chain(text.split_whitespace()).map(str::to_owned).collect(),
        env: search.map(|search| format!("PATH={search}")).into_iter().collect(),
        input: String::new(),
    };
    let ended = program.run(patience, &mut || Ok(())).map_err(|failure| {
        Failure::new(failure.kind, format!("run {}", failure.message))
            .with_hint("install the package uidmap, and give the user ranges in /etc/subuid and /etc/subgid")
    })?;
    match ended.status {
        Some(0) => Ok(()),
        Some(_) => {
            let why = String::from_utf8_lossy(&ended.said).trim().to_owned();
            Err(Failure::new(Kind::PermissionDenied, format!("{}: {why}", ids.program))
                .with_hint("the ranges must lie within those of /etc/subuid and /etc/subgid"))
        }
        None => {
            let text =
                format!("{} was killed: it did not come to an end in {} seconds", ids.program, patience.as_secs());
            Err(Failure::new(Kind::Unavailable, text)
                .with_hint("see what it waits for: it looks the user up (nsswitch.conf, passwd and subid)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(kinds: &[&str]) -> Namespaces {
        let list: Vec<_> = kinds.iter().map(|kind| serde_json::json!({ "type": kind })).collect();
        let linux = serde_json::from_value(serde_json::json!({ "namespaces": list })).expect("of the spec");
        Namespaces::new(&linux).expect("valid")
    }

    #[test]
    fn a_network_that_was_made_ahead_is_for_one_first_process() {
        let namespaces = namespaces(&["mount", "network"]);
        assert!(namespaces.can_have_network());
        let both = libc::CLONE_NEWNS | libc::CLONE_NEWNET;
        assert_eq!(namespaces.clone_flags(), both);
        namespaces.have_network(File::open("/proc/self/ns/net").expect("opened").into());
        assert_eq!(namespaces.clone_flags(), libc::CLONE_NEWNS);
        namespaces.forget_network();
        assert_eq!(namespaces.clone_flags(), both);
    }

    #[test]
    fn a_program_that_does_not_come_to_an_end_is_killed_and_an_error_of_its_own() {
        let write = |program, patience| {
            let ids = Ids { groups: false, file: "uid_map", program };
            write_by_program(7, &ids, "0 1000 1\n1 100000 5\n", Some("/usr/bin:/bin"), patience)
        };
        assert_eq!(write("true", PATIENCE), Ok(()));
        let refused = write("ls", PATIENCE).expect_err("there is no 7 to be listed");
        assert_eq!(refused.kind, Kind::PermissionDenied);
        assert!(refused.message.starts_with("ls: ls: ") && refused.message.contains('7'));
        assert_eq!(write("no-such-program", PATIENCE).expect_err("none").kind, Kind::NotFound);
        let killed = write("sleep", Duration::from_millis(100)).expect_err("it sleeps for a day");
        assert_eq!(killed.kind, Kind::Unavailable);
        assert!(killed.message.starts_with("sleep was killed"));
    }

    #[test]
    fn a_network_of_another_owner_or_of_the_host_is_not_made_ahead() {
        assert!(!namespaces(&["mount", "network", "user"]).can_have_network());
        assert!(!namespaces(&["mount"]).can_have_network());
    }
}
