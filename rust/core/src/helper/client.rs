//! The caller's side: starting the helper, and asking it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::NAME;
use super::calls::{Call, Reply, Request};
use super::connection::{self, Connection, decode, encode, ended};
use super::setup::{Maps, Setup};
use crate::error::{Error, Kind, Result};
use crate::tree::Check;
use crate::{launch, sys};

/// A helper of this process.
#[derive(Debug)]
pub struct Helper {
    control: OwnedFd,
    process: u32,
    maps: Maps,
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
    /// `PermissionDenied` or `Unsupported` where the kernel does not give a user namespace.
    pub fn of_this_process(program: &[u8], check: Check<'_>) -> Result<Arc<Self>> {
        let mut slot = HELPER.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        let usable = |helper: &Arc<Self>| helper.process == process && !connection::is_closed(helper.control.as_fd());
        if let Some(helper) = slot.take().filter(usable) {
            return Ok(Arc::clone(slot.insert(helper)));
        }
        Ok(Arc::clone(slot.insert(Arc::new(Self::start(program, check)?))))
    }

    /// A helper that serves the other end already.
    #[cfg(test)]
    pub(super) fn over(control: OwnedFd) -> Self {
        Self { control, process: std::process::id(), maps: Maps::default() }
    }

    fn start(program: &[u8], check: Check<'_>) -> Result<Self> {
        let (control, theirs) = connection::control()?;
        let setup = Setup { user: sys::user_name(), search: std::env::var("PATH").unwrap_or_default() };
        let reply = launch::launch(program, NAME, &encode(&setup)?, &[theirs.as_fd()], check)?;
        let maps = decode::<Result<Maps>>(&reply)??;
        Ok(Self { control, process: std::process::id(), maps })
    }

    /// What its user namespace maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Have it do something.
    pub fn call<C: Call>(&self, call: C, check: Check<'_>) -> Result<C::Answer> {
        let mut connection = self.open(&call.into(), &[])?;
        loop {
            match connection.hear(check)? {
                Some(Reply::Answer(answer)) => return answer,
                Some(Reply::Free(_)) => {}
                None => return Err(ended()),
            }
        }
    }

    /// Begin a call, with a descriptor that it needs.
    pub(crate) fn open(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Connection> {
        let (ours, theirs) = Connection::pair()?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(theirs.as_fd()).chain(descriptors.iter().copied()).collect();
        connection::pass(self.control.as_fd(), &all).map_err(|error| match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ended(),
            _ => Error::system("cannot ask the helper", error),
        })?;
        drop(theirs);
        ours.say(request)?;
        Ok(ours)
    }
}
