//! What a process of a container is before its program starts: identity, privileges, limits, filter.
//!
//! The launcher prepares a [`Plan`] from the spec before anything is made; the container's first process, or one that
//! an exec adds, applies it and becomes the program.

pub mod capabilities;
mod exec;
pub mod rlimits;
mod scheduling;
pub mod seccomp;
mod user;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Failure, Kind, Step, describe};
use crate::init;
use crate::request::Program;
use crate::spec;
use crate::sys;
use capabilities::Sets;
pub use exec::{failure as exec_failure, resolve};
use seccomp::Filter;

const DEFAULT_UMASK: u32 = 0o022;
/// From linux/personality.h.
const PER_LINUX32: u64 = 8;

/// A process, ready to be applied.
#[derive(Debug)]
pub struct Plan {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// Working folder.
    pub folder: String,
    /// Who it runs as.
    pub uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: u32,
    capabilities: Sets,
    limits: Vec<rlimits::Limit>,
    scheduling: scheduling::Plan,
    no_new_privileges: bool,
    filter: Option<Filter>,
    personality: Option<u64>,
    /// Set by the monitor, which sees the host's /proc.
    pub oom_score_adjustment: Option<i32>,
    /// The init that is to run the program.
    pub init: Option<OwnedFd>,
    /// The program is told at the very end; what is here stands for it.
    pub told_late: bool,
    /// It goes on when the process that made it ends.
    pub outlives_parent: bool,
    /// It has its maker's session keyring.
    pub shares_keyring: bool,
    /// What the program finds open besides its standard streams, under these very numbers.
    pub preserved: Vec<OwnedFd>,
}

fn strings(field: &str, texts: &[String]) -> Result<Vec<CString>, Failure> {
    texts
        .iter()
        .map(|text| CString::new(text.as_str()).map_err(|_| Failure::invalid(field, "contains a NUL byte")))
        .collect()
}

fn become_init(init: &OwnedFd, channel: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> Failure {
    let arguments: Vec<CString> =
        [CString::from(c"lamella-init"), c"--".into()].into_iter().chain(arguments.iter().cloned()).collect();
    // The channel's number may be the one that the init has.
    let init = rustix::io::fcntl_dupfd_cloexec(init, init::CHANNEL + 1).map_err(io::Error::from);
    let error = match init.and_then(|init| sys::hand_down(channel, init::CHANNEL).map(|()| init)) {
        Ok(init) => sys::execute_file(init.as_fd(), &arguments, environment),
        Err(error) => error,
    };
    Failure::system("run the container's init", &error)
}

/// Set how readily the kernel kills a process where memory runs out, if that was asked for; what went wrong, if anything did:
/// below the present value it takes CAP_SYS_RESOURCE. proc_pid_oom_score_adj(5)
pub fn adjust_oom_score(pid: i32, score: Option<i32>) -> Option<String> {
    let score = score?;
    let error = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).err()?;
    Some(Failure::system(format!("set oom_score_adj to {score}"), &error).message)
}

impl Plan {
    /// Prepare a checked process of the spec.
    pub fn new(
        process: &spec::Process,
        filter: Option<Filter>,
        personality: Option<&spec::Personality>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            arguments: strings("process.args", &process.args)?,
            environment: strings("process.env", &process.env)?,
            folder: process.cwd.clone(),
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids.clone(),
            umask: process.user.umask.unwrap_or(DEFAULT_UMASK),
            capabilities: Sets::parse(process.capabilities.as_ref())?,
            limits: rlimits::parse(&process.rlimits)?,
            scheduling: scheduling::Plan::new(process.io_priority.as_ref(), process.scheduler.as_ref())?,
            no_new_privileges: process.no_new_privileges,
            filter,
            personality: personality.map(|it| if it.domain == "LINUX32" { PER_LINUX32 } else { 0 }),
            oom_score_adjustment: process.oom_score_adj,
            init: None,
            told_late: false,
            outlives_parent: false,
            shares_keyring: false,
            preserved: Vec::new(),
        })
    }

    /// The system call filter.
    pub fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    /// What its program, or its init, is to find open, or is made of.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.init.iter().chain(&self.preserved).map(AsFd::as_fd)
    }

    /// Drop the capabilities that this process does not have itself; returns their names.
    pub fn limit_capabilities(&mut self) -> Result<Vec<String>, Failure> {
        self.capabilities.limit_to_own()
    }

    /// Become the process: called inside the container's root, with no descriptor open but the standard ones, the init's,
    /// and `channel`, which exec closes unless an init needs it. Returns only when something failed. `warn` is told what
    /// could not be had; `before_exec` is called when all is done but exec itself, and may tell another program.
    pub fn apply(
        &self,
        channel: BorrowedFd<'_>,
        warn: &mut dyn FnMut(String),
        before_exec: &mut dyn FnMut() -> Result<Option<Program>, Failure>,
    ) -> Failure {
        match self.prepare(warn) {
            Err(failure) => failure,
            Ok(program) => {
                let (program, arguments, environment) = match before_exec().and_then(|told| self.told(told, program)) {
                    Ok(told) => told,
                    Err(failure) => return failure,
                };
                // As late as can be, so that the profile need not allow what happened until here.
                if self.no_new_privileges
                    && let Err(failure) = self.install_filter()
                {
                    return failure;
                }
                for file in &self.preserved {
                    if let Err(error) = sys::hand_down(file.as_fd(), file.as_raw_fd()) {
                        return Failure::system("hand down an open file", &error);
                    }
                }
                match &self.init {
                    Some(init) => become_init(init, channel, &arguments, &environment),
                    None => exec::failure(&program, &sys::execute(&program, &arguments, &environment)),
                }
            }
        }
    }

    /// Give the program that was found, its arguments and environment: those that were told at the end, or its own.
    fn told(
        &self,
        told: Option<Program>,
        found: Option<CString>,
    ) -> Result<(CString, Vec<CString>, Vec<CString>), Failure> {
        let (arguments, environment) = match told {
            Some(program) => (strings("program.args", &program.args)?, strings("program.env", &program.env)?),
            None => (self.arguments.clone(), self.environment.clone()),
        };
        let Some(name) = arguments.first() else {
            return Err(Failure::invalid("program.args", "is empty"));
        };
        let program = found.map_or_else(|| exec::resolve(name, &environment), Ok)?;
        Ok((program, arguments, environment))
    }

    /// Give the program, where it is known already.
    fn prepare(&self, warn: &mut dyn FnMut(String)) -> Result<Option<CString>, Failure> {
        if !self.shares_keyring
            && let Err(error) = sys::join_session_keyring()
        {
            // Without keyrings in the kernel there is nothing to hide; a full quota must not stop a container.
            if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
                warn(format!("the session keyring is shared: {}", describe(&error)));
            }
        }
        for limit in &self.limits {
            if let Some(warning) = limit.apply()? {
                warn(warning);
            }
        }
        self.scheduling.apply()?;
        if let Some(personality) = self.personality {
            sys::set_personality(personality).step(|| "set the personality")?;
        }
        let entered = self.enter_folder();
        // Afterwards it would fail silently: it needs CAP_SETPCAP.
        self.capabilities.drop_bounding()?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs")?;
        } else {
            // Needs CAP_SYS_ADMIN, which is about to go.
            self.install_filter()?;
        }
        user::own_standard_streams(self.uid);
        user::become_user(self.uid, self.gid, &self.groups)?;
        self.capabilities.apply()?;
        if let Err(failure) = entered {
            // A folder that only the user may enter (a network file system that maps root to nobody).
            self.enter_folder().map_err(|_| failure)?;
        }
        // A change of identity clears it, so not earlier: without the monitor nothing may run on unobserved.
        let at_parents_death = (!self.outlives_parent).then_some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(at_parents_death).step(|| "set the parent death signal")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask));
        let program = if self.told_late { None } else { Some(exec::resolve(&self.arguments[0], &self.environment)?) };
        sys::reset_signals();
        Ok(program)
    }

    fn install_filter(&self) -> Result<(), Failure> {
        self.filter.as_ref().map_or(Ok(()), |filter| {
            sys::install_seccomp(&filter.program, filter.flags).step(|| "install the seccomp filter")
        })
    }

    /// Change to the working folder and make sure that it lies inside the container (CVE-2024-21626).
    fn enter_folder(&self) -> Result<(), Failure> {
        let step = || format!("change to the working folder {:?}", self.folder);
        rustix::process::chdir(self.folder.as_str()).step(step)?;
        let folder = rustix::process::getcwd(Vec::new()).map_err(io::Error::from).step(step)?;
        if folder.to_bytes().first() == Some(&b'/') {
            return Ok(());
        }
        let _ = rustix::process::chdir("/");
        Err(Failure::new(Kind::InvalidArgument, format!("{}: it lies outside the container's root", step())))
    }
}
