//! Results.

use lamella_core::layer;
use lamella_core::pipeline;
use pyo3::prelude::*;

/// Entries of a layer that depend on the layers beneath: unnamed parent folders, hard links into lower layers.
#[pyclass(frozen, module = "lamella._core")]
pub struct Deferred {
    pub inner: layer::Deferred,
}

#[pymethods]
impl Deferred {
    fn __bool__(&self) -> bool {
        !self.inner.is_empty()
    }

    fn __repr__(&self) -> String {
        let (folders, links) = (self.inner.folders.len(), self.inner.links.len());
        let root = if self.inner.root { "True" } else { "False" };
        format!("Deferred(root={root}, folders={folders}, links={links})")
    }
}

/// What a Pipeline found.
#[pyclass(frozen, get_all, module = "lamella._core")]
pub struct Unpacked {
    digest: String,
    size: u64,
    diff_id: Option<String>,
    tar_size: u64,
    disk_bytes: u64,
    inodes: u64,
    opaque_root: bool,
    deferred: Py<Deferred>,
    notes: Vec<String>,
}

impl Unpacked {
    pub fn new(py: Python<'_>, found: pipeline::Unpacked) -> PyResult<Self> {
        Ok(Self {
            digest: found.digest.to_string(),
            size: found.size,
            diff_id: found.diff_id.map(|digest| digest.to_string()),
            tar_size: found.tar_size,
            disk_bytes: found.layer.disk_bytes,
            inodes: found.layer.inodes,
            opaque_root: found.layer.opaque_root,
            deferred: Py::new(py, Deferred { inner: found.layer.deferred })?,
            notes: found.layer.notes,
        })
    }
}

#[pymethods]
impl Unpacked {
    fn __repr__(&self) -> String {
        let diff_id = self.diff_id.as_ref().map_or("None".to_owned(), |diff_id| format!("'{diff_id}'"));
        format!("Unpacked(digest='{}', size={}, diff_id={diff_id}, inodes={})", self.digest, self.size, self.inodes)
    }
}
