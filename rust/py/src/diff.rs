//! Differences of trees, and the layers made of them.

use std::path::PathBuf;
use std::str::FromStr;

use lamella_core::blob::{self, Blob, Form};
use lamella_core::compression::Compression;
use lamella_core::helper::{self, DiffTrees, DiffUpper};
use lamella_core::layer::WhiteoutFormat;
use lamella_core::layer::diff::{self, ChangeKind};
use lamella_core::tar::Timestamp;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::functions::LAUNCHER;
use crate::gate::through_cancellable;
use crate::place::{self, absolute, all_absolute};

/// The differences between two trees, in the order of a layer.
#[pyclass(frozen, module = "lamella._core")]
pub struct Changes {
    found: diff::Changes,
}

/// A blob that was packed.
#[pyclass(frozen, get_all, module = "lamella._core")]
pub struct Packed {
    digest: String,
    size: u64,
    diff_id: String,
    tar_size: u64,
}

/// Find what turns the tree ``before`` (nothing by default) into ``after``.
#[pyfunction]
#[pyo3(signature = (after, before=None))]
pub fn diff_trees(py: Python<'_>, after: PathBuf, before: Option<PathBuf>) -> PyResult<Changes> {
    let found = place::call_cancellable(py, || {
        Ok(DiffTrees { before: before.as_deref().map(absolute).transpose()?, after: absolute(&after)? })
    })?;
    Ok(Changes { found })
}

/// Find what an overlay's upper folder changes of the layers beneath it (nearest first).
#[pyfunction]
#[pyo3(signature = (folder, lowers, *, opaque=false, whiteouts="overlay"))]
pub fn diff_upper(
    py: Python<'_>,
    folder: PathBuf,
    lowers: Vec<PathBuf>,
    opaque: bool,
    whiteouts: &str,
) -> PyResult<Changes> {
    let found = place::call_cancellable(py, || {
        let format = WhiteoutFormat::from_str(whiteouts)?;
        Ok(DiffUpper { folder: absolute(&folder)?, lowers: all_absolute(&lowers)?, opaque, format })
    })?;
    Ok(Changes { found })
}

#[pymethods]
impl Changes {
    fn __len__(&self) -> usize {
        self.found.changes.len()
    }

    fn __repr__(&self) -> String {
        format!("Changes({} in '{}')", self.found.changes.len(), self.found.tree.display())
    }

    /// What was left out on purpose.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.found.notes.clone()
    }

    /// The changes: "added", "modified" or "deleted", and a path without a leading slash.
    fn list<'py>(&self, py: Python<'py>) -> Vec<(&'static str, Bound<'py, PyBytes>)> {
        let word = |kind| match kind {
            ChangeKind::Added => "added",
            ChangeKind::Modified => "modified",
            ChangeKind::Deleted => "deleted",
        };
        self.found.changes.iter().map(|change| (word(change.kind), PyBytes::new(py, &change.path))).collect()
    }

    /// Write the changes as a layer's blob to a file; nothing in it is younger than `latest`, in seconds since 1970.
    #[pyo3(signature = (target, *, compression="gzip", level=None, threads=2, latest=None))]
    fn pack(
        &self,
        py: Python<'_>,
        target: PathBuf,
        compression: &str,
        level: Option<u32>,
        threads: usize,
        latest: Option<i64>,
    ) -> PyResult<Packed> {
        let latest = latest.map(|seconds| Timestamp { seconds, nanoseconds: 0 });
        let blob = through_cancellable(py, |check| {
            let form = Form { compression: compression.parse::<Compression>()?, level, threads };
            helper::pack(&self.found, &target, form, latest, LAUNCHER, check)
        })?;
        Ok(blob.into())
    }
}

/// Write the layer in a file in another form to another file, over what is in it.
#[pyfunction]
#[pyo3(signature = (source, target, *, diff_id, compression="gzip", level=None, threads=2))]
pub fn recompress(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    diff_id: &str,
    compression: &str,
    level: Option<u32>,
    threads: usize,
) -> PyResult<Packed> {
    let blob = through_cancellable(py, |check| {
        let form = Form { compression: compression.parse::<Compression>()?, level, threads };
        blob::recompress(&source, &target, &diff_id.parse()?, form, check)
    })?;
    Ok(blob.into())
}

impl From<Blob> for Packed {
    fn from(blob: Blob) -> Self {
        Self {
            digest: blob.digest.to_string(),
            size: blob.size,
            diff_id: blob.diff_id.to_string(),
            tar_size: blob.tar_size,
        }
    }
}

#[pymethods]
impl Packed {
    fn __repr__(&self) -> String {
        format!("Packed(digest='{}', size={}, diff_id='{}')", self.digest, self.size, self.diff_id)
    }
}
