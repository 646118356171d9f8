//! Counters.

use std::path::PathBuf;
use std::sync::Arc;

use lamella_core::counters;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use crate::gate::through;

/// Counters that all processes add to.
#[pyclass(frozen, module = "lamella._core")]
pub struct Counters {
    inner: Arc<counters::Counters>,
}

impl Counters {
    /// Give them to somebody who counts without Python.
    pub fn counting(&self) -> Arc<counters::Counters> {
        Arc::clone(&self.inner)
    }
}

#[pymethods]
impl Counters {
    #[new]
    #[pyo3(signature = (path, count))]
    fn new(py: Python<'_>, path: Option<PathBuf>, count: usize) -> PyResult<Self> {
        let inner = through(py, |_| match path {
            Some(path) => counters::Counters::open(&path, count),
            None => Ok(counters::Counters::own(count)),
        })?;
        Ok(Self { inner: Arc::new(inner) })
    }

    // Without the gate: it neither waits nor fails, and takes less time than letting the GIL go.
    #[pyo3(signature = (index, amount=1))]
    fn add(&self, index: usize, amount: u64) -> PyResult<()> {
        if self.inner.add(index, amount) { Ok(()) } else { Err(PyIndexError::new_err("there is no such counter")) }
    }

    fn read(&self) -> Vec<u64> {
        self.inner.read()
    }

    #[getter]
    fn shared(&self) -> bool {
        self.inner.shared()
    }
}
