//! The caller's side: starting the helper, and asking it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::de::DeserializeOwned;

use super::NAME;
use super::calls::{Call, Reply, Request};
use super::connect::Connect;
use super::connection::{self, Connection, decode, encode, ended};
use super::files::{Done, OnFiles};
use super::setup::{Maps, Setup};
use crate::error::{Error, Kind, Result};
use crate::mount::Mount;
use crate::tree::Check;
use crate::{launch, sys};

/// A helper of this process.
#[derive(Debug)]
pub struct Helper {
    control: OwnedFd,
    process: u32,
    /// It is in a user namespace of its own, where this process is not root.
    namespace: bool,
    maps: Maps,
    opened: OnceLock<OwnedFd>,
}

static HELPER: Mutex<Option<Arc<Helper>>> = Mutex::new(None);

/// Whether this process may not do to layers what root may: it is not root, and has not root's rights over files either.
#[must_use]
pub fn is_needed() -> bool {
    let wanted = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
    let may = || rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted));
    !rustix::process::geteuid().is_root() && !may()
}

/// Do it where it may be done: here, or in the helper, for which `program` is the launcher's executable.
pub fn carry_out<C: Call>(call: C, program: &[u8], check: Check<'_>) -> Result<C::Answer> {
    if !is_needed() {
        return call.run(check);
    }
    if C::HERE_FIRST {
        match call.clone().run(check) {
            Err(error) if error.kind == Kind::PermissionDenied => {}
            result => return result,
        }
    }
    Helper::of_this_process(program, check)?.call(call, check)
}

impl Helper {
    /// The helper of this process; it is started if there is none, or it has ended.
    ///
    /// Of a root it is a process like this one, confined; else it is in a user namespace: `PermissionDenied` or `Unsupported`
    /// where the kernel does not give one.
    pub fn of_this_process(program: &[u8], check: Check<'_>) -> Result<Arc<Self>> {
        let mut slot = HELPER.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        // A process that is not root any more must not have a root's helper.
        let usable = |helper: &Arc<Self>| {
            let fits = helper.process == process && helper.namespace == is_needed();
            fits && !connection::is_closed(helper.control.as_fd())
        };
        if let Some(helper) = slot.take().filter(usable) {
            return Ok(Arc::clone(slot.insert(helper)));
        }
        Ok(Arc::clone(slot.insert(Arc::new(Self::start(program, check)?))))
    }

    /// A helper that serves the other end already.
    #[cfg(test)]
    pub(super) fn over(control: OwnedFd) -> Self {
        Self {
            control,
            process: std::process::id(),
            namespace: is_needed(),
            maps: Maps::default(),
            opened: OnceLock::new(),
        }
    }

    fn start(program: &[u8], check: Check<'_>) -> Result<Self> {
        let (control, theirs) = connection::control()?;
        let namespace = is_needed();
        let setup = Setup {
            namespace,
            user: sys::user_name(),
            search: std::env::var("PATH").unwrap_or_else(|_| launch::DEFAULT_PATH.to_owned()),
        };
        let reply = launch::launch(program, NAME, &encode(&setup)?, &[theirs.as_fd()], check)?;
        let maps = decode::<Result<Maps>>(&reply)??;
        Ok(Self { control, process: std::process::id(), namespace, maps, opened: OnceLock::new() })
    }

    /// What its user namespace maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Its user namespace, which lasts as long as anybody is in it or has it open.
    pub fn namespace(&self, check: Check<'_>) -> Result<BorrowedFd<'_>> {
        if self.opened.get().is_none() {
            // Another thread may have been first; it is the same one.
            let _ = self.opened.set(self.take_over(&Request::Namespace, check)?);
        }
        self.opened.get().map(AsFd::as_fd).ok_or_else(ended)
    }

    /// Make a mount that is attached nowhere: what is in it can be reached by its descriptor, and it goes with that.
    pub fn make_mount(&self, mount: Mount, check: Check<'_>) -> Result<OwnedFd> {
        self.take_over(&Request::Mount(mount), check)
    }

    /// Make a network namespace that belongs to its user namespace, with nothing but loopback.
    pub fn make_network(&self, check: Check<'_>) -> Result<OwnedFd> {
        self.take_over(&Request::Network, check)
    }

    /// Have a program connect a network namespace ([`Connect`]). Gives its exit status and what it said.
    pub fn connect(&self, call: Connect, network: BorrowedFd<'_>, check: Check<'_>) -> Result<(Option<i32>, Vec<u8>)> {
        self.ask(&Request::Connect(call), &[network], check)
    }

    /// Ask for something that comes as a descriptor.
    fn take_over(&self, request: &Request, check: Check<'_>) -> Result<OwnedFd> {
        let mut connection = self.open(request, &[], check)?;
        if let Some(handed) = connection.take_over(check)? {
            return Ok(handed);
        }
        match connection.hear::<Reply<()>>(check)? {
            Some(Reply::Answer(Err(error))) => Err(error),
            _ => Err(ended()),
        }
    }

    /// Have it do something.
    pub fn call<C: Call>(&self, call: C, check: Check<'_>) -> Result<C::Answer> {
        self.ask(&call.into(), &[], check)
    }

    /// Have it work on a container's files: `descriptors` are the root, and the pipe with the archive where there is one.
    pub fn work_on(&self, files: OnFiles, descriptors: &[BorrowedFd<'_>], check: Check<'_>) -> Result<Done> {
        self.ask(&Request::OnFiles(files), descriptors, check)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        check: Check<'_>,
    ) -> Result<T> {
        let mut connection = self.open(request, descriptors, check)?;
        loop {
            match connection.hear(check)? {
                Some(Reply::Answer(answer)) => return answer,
                Some(Reply::Free(_)) => {}
                None => return Err(ended()),
            }
        }
    }

    /// Begin a call, with the descriptors that it needs.
    pub(crate) fn open(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        check: Check<'_>,
    ) -> Result<Connection> {
        let (ours, theirs) = Connection::pair()?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(theirs.as_fd()).chain(descriptors.iter().copied()).collect();
        connection::pass(self.control.as_fd(), &all).map_err(|error| match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ended(),
            _ => Error::system("cannot ask the helper", error),
        })?;
        drop(theirs);
        let mut ours = ours.of_helper(self.maps.helper);
        ours.ask(request, check)?;
        Ok(ours)
    }
}
