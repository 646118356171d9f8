//! Files of a container.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lamella_core::files::{self, Input, Links, Output, Packing, Root, Unpacking};
use lamella_core::helper::{Done, OnFiles, Work};
use lamella_core::mount::IdMaps;
use lamella_core::tree::Check;
use lamella_core::{Error, Kind, Result, sys};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::functions::listed;
use crate::gate::through;
use crate::place;

/// A root folder in which paths are walked as a process does that has it as its root.
#[pyclass(frozen, module = "lamella._core")]
pub struct Files {
    root: Mutex<Option<Arc<Root>>>,
    /// A container's, which a user who is not root may not do everything to.
    theirs: bool,
}

impl Files {
    fn of(root: Root, theirs: bool) -> Self {
        Self { root: Mutex::new(Some(Arc::new(root))), theirs }
    }

    /// Have the helper do it, where one is needed.
    fn by_helper(
        &self,
        archive: Option<&OwnedFd>,
        check: Check<'_>,
        work: impl FnOnce() -> Work,
    ) -> Result<Option<Done>> {
        let Some(helper) = self.theirs.then(|| place::helper(check)).transpose()?.flatten() else { return Ok(None) };
        let root = self.root()?;
        let descriptors: Vec<_> = std::iter::once(root.as_fd()).chain(archive.map(AsFd::as_fd)).collect();
        helper.work_on(OnFiles { links: root.links(), work: work() }, &descriptors, check).map(Some)
    }

    fn root(&self) -> Result<Arc<Root>> {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        root.clone().ok_or_else(|| Error::new(Kind::FailedPrecondition, "the files are closed"))
    }
}

/// Mode, uid, gid, size, nanoseconds of the last change, device, target of a symlink, place.
type Status<'py> = (u32, u32, u32, u64, i128, u64, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl Files {
    #[new]
    #[pyo3(signature = (root, *, symlinks=true, ids=None, theirs=false))]
    fn new(
        py: Python<'_>,
        root: PathBuf,
        symlinks: bool,
        ids: Option<(String, String)>,
        theirs: bool,
    ) -> PyResult<Self> {
        let links = if symlinks { Links::InRoot } else { Links::None };
        let root = through(py, |_| {
            let root = Root::open(&root, links)?;
            Ok(match ids {
                Some((users, groups)) => root.with_ids(IdMaps::parse(&users, &groups)?),
                None => root,
            })
        })?;
        Ok(Self::of(root, theirs))
    }

    /// Open what a mount shows that is attached nowhere, and goes when this does: for a user who is not root.
    #[staticmethod]
    fn of_mount(py: Python<'_>, mount: (String, String, Vec<String>)) -> PyResult<Self> {
        let root = through(py, |check| {
            let missing = || Error::new(Kind::FailedPrecondition, "root needs no helper to mount anything");
            let helper = place::helper(check)?.ok_or_else(missing)?;
            let mount = listed(vec![mount]).pop().ok_or_else(|| Error::invalid("there is no mount"))?;
            Ok(Root::of(helper.make_mount(mount, check)?, Links::InRoot))
        })?;
        Ok(Self::of(root, true))
    }

    /// Let go of the root, so that what is mounted there can be unmounted. Harmless twice.
    fn close(&self) {
        drop(self.root.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Give a folder beneath the root as a root of its own.
    fn beneath(&self, py: Python<'_>, path: OsString) -> PyResult<Self> {
        let root = through(py, |_| self.root()?.beneath(path.as_bytes()))?;
        Ok(Self::of(root, self.theirs))
    }

    /// Describe what is at a path.
    #[pyo3(signature = (path, *, follow=false))]
    fn stat<'py>(&self, py: Python<'py>, path: OsString, follow: bool) -> PyResult<Status<'py>> {
        let found = through(py, |check| {
            let work = || Work::Stat { path: path.as_bytes().to_vec(), follow };
            match self.by_helper(None, check, work)? {
                Some(Done::Found(found)) => Ok(found),
                Some(Done::Notes(_)) => Err(spoke_out_of_turn()),
                None => self.root()?.stat(path.as_bytes(), follow),
            }
        })?;
        Ok((
            found.mode,
            found.uid,
            found.gid,
            u64::try_from(found.size).unwrap_or(0),
            found.mtime,
            found.device,
            PyBytes::new(py, &found.target),
            PyBytes::new(py, &found.place),
        ))
    }

    /// Write a file or a tree as an archive to a descriptor.
    #[pyo3(signature = (path, descriptor, *, name, follow=false, timeout=None))]
    fn pack(
        &self,
        py: Python<'_>,
        path: OsString,
        descriptor: i32,
        name: OsString,
        follow: bool,
        timeout: Option<f64>,
    ) -> PyResult<Vec<String>> {
        through(py, |check| {
            let mut check = until(timeout, check);
            let archive = duplicate(descriptor)?;
            let work = || Work::Pack { path: path.as_bytes().to_vec(), name: name.as_bytes().to_vec(), follow };
            if let Some(done) = self.by_helper(Some(&archive), &mut check, work)? {
                return notes(done);
            }
            let output = Output::new(archive, &mut check);
            files::pack(&*self.root()?, path.as_bytes(), Packing { name: name.as_bytes(), follow }, output)
        })
    }

    /// Take an archive from a descriptor into a folder.
    #[pyo3(signature = (folder, descriptor, *, owner=None, devices=true, timeout=None))]
    fn unpack(
        &self,
        py: Python<'_>,
        folder: OsString,
        descriptor: i32,
        owner: Option<(u32, u32)>,
        devices: bool,
        timeout: Option<f64>,
    ) -> PyResult<Vec<String>> {
        through(py, |check| {
            let mut check = until(timeout, check);
            let archive = duplicate(descriptor)?;
            let work = || Work::Unpack { folder: folder.as_bytes().to_vec(), owner, devices };
            if let Some(done) = self.by_helper(Some(&archive), &mut check, work)? {
                return notes(done);
            }
            let input = Input::new(archive, &mut check);
            files::unpack(&*self.root()?, folder.as_bytes(), Unpacking { owner, devices }, input)
        })
    }
}

fn notes(done: Done) -> Result<Vec<String>> {
    if let Done::Notes(notes) = done { Ok(notes) } else { Err(spoke_out_of_turn()) }
}

fn spoke_out_of_turn() -> Error {
    Error::new(Kind::Internal, "the helper answered what it was not asked")
}

/// Ask whether to go on, and stop after so many seconds.
fn until(timeout: Option<f64>, check: &mut dyn FnMut() -> Result<()>) -> impl FnMut() -> Result<()> {
    let end = timeout.and_then(|seconds| Instant::now().checked_add(Duration::try_from_secs_f64(seconds).ok()?));
    move || {
        if end.is_some_and(|end| Instant::now() >= end) {
            return Err(Error::new(Kind::DeadlineExceeded, "the copy was not complete in time")
                .hint("What was copied by then is there."));
        }
        check()
    }
}

fn duplicate(number: i32) -> Result<OwnedFd> {
    sys::duplicate(number).map_err(|error| Error::system(format!("descriptor {number}"), error))
}
