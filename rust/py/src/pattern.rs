//! Regular expressions that take time in proportion to the text, whatever they are: those of filters, which clients send.

use lamella_core::{Error, Kind};
use pyo3::prelude::*;

use crate::gate::through;

/// A pattern, as RE2 reads it but for rarities.
#[pyclass(frozen, module = "lamella._core")]
pub struct Pattern {
    inner: regex::Regex,
}

#[pymethods]
impl Pattern {
    #[new]
    fn new(py: Python<'_>, text: &str) -> PyResult<Self> {
        let inner = through(py, |_| {
            regex::Regex::new(text).map_err(|error| Error::new(Kind::InvalidArgument, error.to_string()))
        })?;
        Ok(Self { inner })
    }

    // Without the gate: it takes less time than letting the GIL go.
    fn search(&self, text: &str) -> bool {
        self.inner.is_match(text)
    }
}
