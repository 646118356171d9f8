//! Files of a container.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lamella_core::files::{self, Input, Links, Output, Packing, Root, Unpacking};
use lamella_core::mount::IdMaps;
use lamella_core::{Error, Kind, Result, sys};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::gate::through;

/// A root folder in which paths are walked as a process does that has it as its root.
#[pyclass(frozen, module = "lamella._core")]
pub struct Files {
    root: Mutex<Option<Arc<Root>>>,
}

impl Files {
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
    #[pyo3(signature = (root, *, symlinks=true, ids=None))]
    fn new(py: Python<'_>, root: PathBuf, symlinks: bool, ids: Option<(String, String)>) -> PyResult<Self> {
        let links = if symlinks { Links::InRoot } else { Links::None };
        let root = through(py, |_| {
            let root = Root::open(&root, links)?;
            Ok(match ids {
                Some((users, groups)) => root.with_ids(IdMaps::parse(&users, &groups)?),
                None => root,
            })
        })?;
        Ok(Self { root: Mutex::new(Some(Arc::new(root))) })
    }

    /// Let go of the root, so that what is mounted there can be unmounted. Harmless twice.
    fn close(&self) {
        drop(self.root.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Give a folder beneath the root as a root of its own.
    fn beneath(&self, py: Python<'_>, path: OsString) -> PyResult<Self> {
        let root = through(py, |_| self.root()?.beneath(path.as_bytes()))?;
        Ok(Self { root: Mutex::new(Some(Arc::new(root))) })
    }

    /// Describe what is at a path.
    #[pyo3(signature = (path, *, follow=false))]
    fn stat<'py>(&self, py: Python<'py>, path: OsString, follow: bool) -> PyResult<Status<'py>> {
        let (stat, target, place) = through(py, |_| self.root()?.stat(path.as_bytes(), follow))?;
        Ok((
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            u64::try_from(stat.st_size).unwrap_or(0),
            i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            stat.st_dev,
            PyBytes::new(py, &target),
            PyBytes::new(py, &place),
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
            let output = Output::new(duplicate(descriptor)?, &mut check);
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
            let input = Input::new(duplicate(descriptor)?, &mut check);
            files::unpack(&*self.root()?, folder.as_bytes(), Unpacking { owner, devices }, input)
        })
    }
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
