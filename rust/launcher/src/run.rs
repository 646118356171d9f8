//! One run of a container: from its bundle to its first process. A container has one after the other, each made anew, by
//! the launcher or by another runtime.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::cgroup::{Cgroup, CgroupPlan};
use crate::channel::{Channel, Message};
use crate::container::{Plan, Streams, Wait, become_container};
use crate::error::{Failure, Step};
use crate::hooks;
use crate::init;
use crate::monitor::{Shared, Stdio};
use crate::namespaces::Namespaces;
use crate::process::{self, seccomp};
use crate::request::Request;
use crate::rootfs::{Outside, RootfsPlan};
use crate::runtime::{self, Runtime};
use crate::spec::Spec;
use crate::sys::{self, Forked};

const CONFIG: &str = "config.json";
/// A document longer than this is none.
pub const LONGEST_DOCUMENT: u64 = 16 << 20;

/// How many bytes a file has, to read it at once, as far as it can be told and is no more than a document.
pub fn document_length(file: &File) -> usize {
    file.metadata().map_or(0, |status| status.len().min(LONGEST_DOCUMENT) as usize)
}

/// Everything that is needed to make a container, checked.
#[derive(Debug)]
pub struct Run {
    /// The container.
    pub plan: Plan,
    /// Its cgroup.
    pub cgroup: CgroupPlan,
    /// What further processes get from it.
    pub shared: Shared,
    /// What was asked for and cannot be had.
    pub warnings: Vec<String>,
}

impl Run {
    /// Prepare a checked spec, but for its hooks; nothing is made.
    pub fn new(mut spec: Spec, rootfs: RootfsPlan) -> Result<Self, Failure> {
        let filter = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
        let mut process = process::Plan::new(&spec.process, filter, spec.linux.personality.as_ref())?;
        let namespaces = Namespaces::new(&spec.linux)?;
        let mut warnings = Vec::new();
        if namespaces.mappings.is_none() {
            let missing = process.limit_capabilities()?;
            if !missing.is_empty() {
                warnings.push(format!("the launcher itself lacks {}", missing.join(", ")));
            }
        }
        let shared = Shared {
            namespaces: namespaces.entered,
            outer_root: namespaces.outer_root(),
            filter: process.filter().cloned(),
            personality: spec.linux.personality.take(),
            runtime: None,
            hooks: None,
        };
        let plan = Plan {
            namespaces,
            rootfs,
            process,
            hostname: spec.hostname.take().unwrap_or_default(),
            domainname: spec.domainname.take().unwrap_or_default(),
            terminal: spec.process.terminal.then_some(spec.process.console_size),
            wait: Wait::Nothing,
            hooks: None,
        };
        let cgroup = CgroupPlan::new(&mut spec);
        Ok(Self { plan, cgroup, shared, warnings })
    }
}

/// Who makes a container.
#[derive(Debug)]
pub enum Builder {
    /// The launcher, in a cgroup that the monitor makes.
    Launcher(Box<Plan>, Box<CgroupPlan>),
    /// Another OCI runtime, all of it.
    Runtime(Rc<Runtime>),
}

/// A run of a monitor's container that is about to begin, whoever makes that.
#[derive(Debug)]
pub struct Prepared {
    /// How it is made.
    pub builder: Builder,
    /// Whether its processes all end with the first one.
    pub own_pids: bool,
    /// What further processes get from it.
    pub shared: Shared,
    /// What was asked for and cannot be had.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// Read and check the bundle; nothing is made.
    pub fn read(request: &Request, bundle: BorrowedFd<'_>) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let config = rustix::fs::openat(bundle, CONFIG, flags, Mode::empty())
            .step(|| format!("open {}/{CONFIG}", request.bundle))?;
        let config = File::from(config);
        let mut text = String::with_capacity(document_length(&config));
        config.take(LONGEST_DOCUMENT).read_to_string(&mut text).step(|| format!("read {}/{CONFIG}", request.bundle))?;
        if let Some(program) = &request.runtime {
            let runtime = Rc::new(Runtime::new(program, request, &text)?);
            return Ok(Self {
                own_pids: runtime.has_own_pids(),
                shared: Shared {
                    outer_root: runtime.outer_root(),
                    runtime: Some(runtime.clone()),
                    ..Shared::default()
                },
                builder: Builder::Runtime(runtime),
                warnings: Vec::new(),
            });
        }
        let mut spec = Spec::parse(&text)?;
        let hooks = spec.hooks.any().then(|| Rc::new(hooks::Plan::new(&mut spec, &request.bundle, request.id())));
        let snapshot = request.rootfs.iter().cloned().map(Into::into).collect();
        let sources = request.sources.iter().cloned().map(Into::into).collect();
        let rootfs = RootfsPlan::new(&request.bundle, snapshot, sources, &spec)?;
        let mut run = Run::new(spec, rootfs)?;
        run.cgroup.check(request.cgroup_root())?;
        if request.init {
            run.plan.process.init = Some(init::sealed_copy()?);
        }
        run.plan.process.told_late = request.program_at_start;
        if request.hold {
            run.plan.wait = Wait::Monitor;
        }
        let Run { mut plan, cgroup, mut shared, warnings } = run;
        plan.hooks.clone_from(&hooks);
        shared.hooks = hooks;
        if let Some(network) = &request.given.network {
            let network = network.try_clone().step(|| "keep the container's network namespace")?;
            plan.namespaces.have_network(network);
        }
        let own_pids = plan.namespaces.own_pids;
        Ok(Self { builder: Builder::Launcher(Box::new(plan), Box::new(cgroup)), own_pids, shared, warnings })
    }

    /// The container's namespaces; those of another runtime are its own affair.
    pub fn namespaces(&self) -> Option<&Namespaces> {
        if let Builder::Launcher(plan, _) = &self.builder { Some(&plan.namespaces) } else { None }
    }

    /// Where the container's cgroup is to be, from the root of each hierarchy; None where it has none of its own.
    pub fn cgroups_path(&self) -> Option<&str> {
        match &self.builder {
            Builder::Launcher(_, plan) => plan.path(),
            Builder::Runtime(runtime) => runtime.cgroups_path(),
        }
    }

    /// Make the container's cgroup; none where that is the runtime's to do.
    pub fn make_cgroup(&mut self, request: &Request) -> Result<Cgroup, Failure> {
        let Builder::Launcher(_, plan) = &self.builder else { return Ok(Cgroup::default()) };
        let mut unsaid = Vec::new();
        // That an ordinary user's container has none, and no allow-list of devices that cannot be made, is no news.
        let warnings = if request.given.as_user { &mut unsaid } else { &mut self.warnings };
        let mut cgroup = plan.create(request.cgroup_root(), warnings)?;
        if request.keep_cgroup_parents {
            cgroup.keep_parents();
        }
        Ok(cgroup)
    }

    /// Begin to make the container. It is said on the channel how that fares. `lock` is the container's.
    pub fn begin(&mut self, stdin: bool, cgroup: &Cgroup, lock: BorrowedFd<'_>) -> Result<Begun, Failure> {
        match &self.builder {
            Builder::Launcher(plan, _) => begin(plan, stdin, cgroup, &mut self.warnings),
            Builder::Runtime(runtime) => runtime.begin(stdin, lock),
        }
    }
}

/// What stands for a container that is being made.
#[derive(Clone, Copy, Debug)]
pub enum Maker {
    /// Its first process, which sets it up: its id, as the host sees it.
    Process(i32),
    /// A process that has it made.
    Helper(i32),
}

impl Maker {
    /// End a process that is of no use, and reap it.
    pub fn end(self) {
        match self {
            Self::Process(pid) => end(pid),
            Self::Helper(pid) => runtime::dismiss(pid),
        }
    }
}

/// A container that is being made.
#[derive(Debug)]
pub struct Begun {
    /// Who is at it.
    pub maker: Maker,
    /// The way to it until its program runs.
    pub channel: Channel,
    /// Its standard streams; a terminal comes through the channel.
    pub stdio: Stdio,
}

fn begin(plan: &Plan, stdin: bool, cgroup: &Cgroup, warnings: &mut Vec<String>) -> Result<Begun, Failure> {
    let (stdio, streams) = Stdio::for_process(plan.terminal.is_some(), stdin)?;
    let (pid, channel) = make_first_process(plan, streams, cgroup, warnings)?;
    Ok(Begun { maker: Maker::Process(pid), channel, stdio })
}

/// Make the container's first process, and give it what it cannot give itself. It says on the channel how it fares. Without
/// streams it has those of this process.
pub fn make_first_process(
    plan: &Plan,
    streams: Option<Streams>,
    cgroup: &Cgroup,
    warnings: &mut Vec<String>,
) -> Result<(i32, Channel), Failure> {
    let (ours, theirs) = Channel::pair()?;
    let outside = if plan.namespaces.mappings.is_some() && rustix::process::geteuid().is_root() {
        plan.rootfs.make_outside()?
    } else {
        Outside::default()
    };
    if let (Some(streams), Some(root)) = (&streams, plan.namespaces.outer_root()) {
        streams.give_to(root);
    }
    // What cannot be looked into has files in /proc that only the machine's root may write.
    let hidden = matches!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    let set = |dumpable| {
        if hidden { rustix::process::set_dumpable_behavior(dumpable).step(|| "make a process") } else { Ok(()) }
    };
    set(DumpableBehavior::Dumpable)?;
    let made = plan.namespaces.make_process(cgroup.clone_target());
    if !matches!(made, Ok(Forked::Child)) {
        set(DumpableBehavior::NotDumpable)?;
    }
    let pid = match made? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            drop(ours);
            become_container(plan, &theirs, cgroup, streams, outside);
        }
    };
    drop((theirs, streams, outside));
    plan.namespaces.forget_network();
    warnings.extend(process::adjust_oom_score(pid, plan.process.oom_score_adjustment));
    if plan.namespaces.mappings.is_some() {
        let mapped = plan.namespaces.write_mappings(pid).and_then(|()| ours.send(&Message::Mapped));
        if let Err(failure) = mapped {
            end(pid);
            return Err(failure);
        }
    }
    Ok((pid, ours))
}

/// End a process that is of no use, and reap it.
pub fn end(pid: i32) {
    let _ = sys::kill(pid, libc::SIGKILL);
    let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty());
}
