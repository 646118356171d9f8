//! The Appender class: a file that grows at its end, hashed.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lamella_core::appender;
use lamella_core::digest::Algorithm;
use lamella_serve::Sink;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::gate::to_python;
use crate::sys;

/// Bytes of an object that can change, copied at once.
const CHUNK: usize = 128 << 10;

/// A file that grows at its end.
#[pyclass(frozen, module = "lamella._core")]
pub struct Appender {
    shared: Arc<Shared>,
}

struct Shared(Mutex<State>);

struct State {
    file: Option<appender::Appender>,
    /// How many bytes counted when it was closed, and their digest if it was known.
    closed: (u64, Option<String>),
    /// What a server has put at the end: how much, and what went wrong.
    poured: u64,
    failure: Option<io::Error>,
}

#[pymethods]
impl Appender {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let file = py.detach(|| appender::Appender::open(&path)).map_err(|error| os_error(&error))?;
        let state = State { file: Some(file), closed: (0, None), poured: 0, failure: None };
        Ok(Self { shared: Arc::new(Shared(Mutex::new(state))) })
    }

    #[getter]
    fn offset(&self, py: Python<'_>) -> u64 {
        py.detach(|| {
            let state = self.shared.lock();
            state.file.as_ref().map_or(state.closed.0, appender::Appender::offset)
        })
    }

    #[getter]
    fn length(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |file| appender::Appender::length(file))
    }

    fn hash_with(&self, py: Python<'_>, algorithm: &str) -> PyResult<()> {
        let algorithm: Algorithm = algorithm.parse().map_err(|error| to_python(py, error))?;
        self.with(py, |file| {
            file.hash_with(algorithm);
            Ok(())
        })
    }

    fn append(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            return self.with(py, |file| file.append(&[bytes]));
        }
        let bytes = sys::Bytes::get(data)?;
        self.with(py, |file| {
            let mut chunk = vec![0; CHUNK.min(bytes.len())];
            let mut at = 0;
            while at < bytes.len() {
                let size = CHUNK.min(bytes.len() - at);
                bytes.copy(at, &mut chunk[..size]);
                file.append(&[&chunk[..size]])?;
                at += size;
            }
            Ok(())
        })
    }

    /// None: the file has become shorter than what counts.
    fn digest(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let digest = py.detach(|| {
            let mut state = self.shared.lock();
            match &mut state.file {
                Some(file) => file.digest().map(|digest| digest.to_string()),
                None => state.closed.1.clone().ok_or_else(closed),
            }
        });
        match digest {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(os_error(&error)),
        }
    }

    fn cut(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        self.with(py, |file| file.cut(size))
    }

    fn count(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        self.with(py, |file| {
            file.count(size);
            Ok(())
        })
    }

    fn poured(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| {
            let mut state = self.shared.lock();
            let poured = std::mem::take(&mut state.poured);
            state.failure.take().map_or(Ok(poured), Err)
        })
        .map_err(|error| os_error(&error))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let mut state = self.shared.lock();
            if let Some(file) = state.file.take() {
                state.closed = (file.offset(), file.known_digest().map(|digest| digest.to_string()));
            }
        });
    }
}

impl Appender {
    pub fn sink(&self) -> Arc<dyn Sink> {
        Arc::<Shared>::clone(&self.shared)
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut appender::Appender) -> io::Result<T> + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| match &mut self.shared.lock().file {
            Some(file) => work(file),
            None => Err(closed()),
        });
        done.map_err(|error| os_error(&error))
    }
}

/// Make an OSError that has the number, by which callers tell what to do.
fn os_error(error: &io::Error) -> PyErr {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
    PyOSError::new_err((error.raw_os_error(), text))
}

fn closed() -> io::Error {
    io::Error::from_raw_os_error(9) // EBADF
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Shared {
    fn take(&self, pieces: &[Bytes]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.failure.is_some() {
            return; // what follows has no place either
        }
        if let Some(file) = &mut state.file {
            let before = file.offset();
            let parts: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
            state.failure = file.append(&parts).err();
            state.poured += file.offset() - before;
        }
    }
}
