//! Where work on layers is done: in this process, or in the helper that a user who is not root has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamella_core::helper::{self, Call, Extent, Helper};
use lamella_core::tree::Check;
use lamella_core::{Error, Result};
use pyo3::prelude::*;

use crate::functions::LAUNCHER;
use crate::gate::{through, through_cancellable};

/// Carry a call out through the gate.
pub fn call<C: Call + Send>(py: Python<'_>, call: impl FnOnce() -> Result<C> + Send) -> PyResult<C::Answer>
where
    C::Answer: Send,
{
    through(py, |check| helper::carry_out(call()?, LAUNCHER, check))
}

/// The same for a call that also ends when the thread's transfer is cancelled.
pub fn call_cancellable<C: Call + Send>(py: Python<'_>, call: impl FnOnce() -> Result<C> + Send) -> PyResult<C::Answer>
where
    C::Answer: Send,
{
    through_cancellable(py, |check| helper::carry_out(call()?, LAUNCHER, check))
}

/// The helper, where this process needs one.
pub fn helper(check: Check<'_>) -> Result<Option<Arc<Helper>>> {
    if helper::is_needed() { Helper::of_this_process(LAUNCHER, check).map(Some) } else { Ok(None) }
}

/// The helper that unpacks layers: where this process needs one, or is to have it `confined`.
pub fn unpacker(confined: bool, check: Check<'_>) -> Result<Option<Arc<Helper>>> {
    if confined || helper::is_needed() { Helper::of_this_process(LAUNCHER, check).map(Some) } else { Ok(None) }
}

/// Start the helper that unpacks layers ahead of the first, in the background; harmless twice, and where none is needed.
#[pyfunction]
pub fn prepare_unpacking(py: Python<'_>, confined: bool) -> PyResult<()> {
    through(py, |_| {
        if confined || helper::is_needed() {
            // What goes wrong is said by who unpacks, which tries again.
            let start = || drop(Helper::of_this_process(LAUNCHER, &mut || Ok(())));
            let _ = std::thread::Builder::new().name("lamella-helper".to_owned()).spawn(start);
        }
        Ok(())
    })
}

/// A path that means the same in the helper, whose working folder is another.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::system(format!("cannot find {}", path.display()), error))
}

/// The same for several.
pub fn all_absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    paths.iter().map(|path| absolute(path)).collect()
}

/// Return how a user's namespace maps ids: `own` to 0, then the ranges that a text like that of /etc/subuid gives the user, or else
/// those in what getsubids(1) prints.
#[pyfunction]
pub fn user_extents(
    py: Python<'_>,
    own: u32,
    name: &str,
    user: u32,
    text: &str,
    printed: &str,
) -> PyResult<Vec<Extent>> {
    through(py, |_| {
        let found = helper::ranges(text, Some(name), user);
        Ok(helper::extents(own, &if found.is_empty() { helper::listed(printed) } else { found }))
    })
}

/// Maps of users and groups as (inside, outside, count), and notes.
type Maps = (Vec<Extent>, Vec<Extent>, Vec<String>);

/// Return what the helper's user namespace maps, and why it is not more; None where this process needs no helper.
#[pyfunction]
pub fn helper_maps(py: Python<'_>) -> PyResult<Option<Maps>> {
    through(py, |check| {
        let found = helper(check)?;
        Ok(found.map(|helper| {
            let maps = helper.maps().clone();
            (maps.users, maps.groups, maps.notes)
        }))
    })
}
