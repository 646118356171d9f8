//! The Pipeline class.

use std::path::PathBuf;
use std::str::FromStr;

use lamella_core::compression::Compression;
use lamella_core::cores::Cores;
use lamella_core::digest::Digest;
use lamella_core::layer::WhiteoutFormat;
use lamella_core::pipeline;
use lamella_core::tar::Limits;
use pyo3::prelude::*;

use crate::gate::through;
use crate::place;
use crate::sys::Bytes;
use crate::unpacked::Unpacked;

/// One pass over one blob: hash and write it, and, for a layer, inflate, hash the tar and apply it.
#[pyclass(frozen, module = "lamella._core")]
pub struct Pipeline {
    inner: pipeline::Pipeline,
}

#[pymethods]
impl Pipeline {
    #[new]
    #[pyo3(signature = (*, digest, size, blob=None, offset=0, compression="none", layer=None, diff_id=None,
                        whiteouts="overlay", max_tar_size=None, max_entries=None, confined=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        digest: &str,
        size: u64,
        blob: Option<PathBuf>,
        offset: u64,
        compression: &str,
        layer: Option<PathBuf>,
        diff_id: Option<&str>,
        whiteouts: &str,
        max_tar_size: Option<u64>,
        max_entries: Option<u64>,
        confined: bool,
    ) -> PyResult<Self> {
        through(py, |check| {
            let defaults = Limits::default();
            let helper = if layer.is_some() { place::unpacker(confined, check)? } else { None };
            let layer = layer.as_deref().map(place::absolute).transpose()?;
            let inner = pipeline::Pipeline::new(pipeline::Options {
                digest: Digest::from_str(digest)?,
                size,
                blob,
                offset,
                compression: Compression::from_str(compression)?,
                layer,
                diff_id: diff_id.map(Digest::from_str).transpose()?,
                whiteouts: WhiteoutFormat::from_str(whiteouts)?,
                limits: Limits {
                    archive: max_tar_size.unwrap_or(defaults.archive),
                    entries: max_entries.unwrap_or(defaults.entries),
                    ..defaults
                },
                cores: Cores::of_this_process(),
                helper,
            })?;
            Ok(Self { inner })
        })
    }

    /// Hand over bytes; blocks while the stages are behind. Raises what a stage failed with, as soon as it did.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = Bytes::get(data)?;
        through(py, |check| self.inner.write_with(data.len(), check, &mut |start, target| data.copy(start, target)))
    }

    /// Feed a whole file.
    fn read_from(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        through(py, |check| self.inner.read_from(&path, check))
    }

    /// Wait for all stages and check size, digest and diffID (FailedPrecondition when one is wrong).
    fn finish(&self, py: Python<'_>) -> PyResult<Unpacked> {
        let found = through(py, |check| self.inner.finish(check))?;
        Unpacked::new(py, found)
    }

    /// Stop all stages and wait for them. Harmless twice, and after finish.
    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        through(py, |_| {
            self.inner.abort();
            Ok(())
        })
    }

    /// Bytes of the blob taken so far, the resumed ones included.
    #[getter]
    fn received(&self) -> u64 {
        self.inner.received()
    }

    /// Bytes of the tar applied so far.
    #[getter]
    fn unpacked(&self) -> u64 {
        self.inner.unpacked()
    }
}
