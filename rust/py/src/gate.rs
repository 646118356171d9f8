//! The gate: every call into the core goes through [`through`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lamella_core::{Error, Kind, Result, pipeline::panic_text};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

/// How often Python's pending signals are looked at.
const SIGNALS: Duration = Duration::from_millis(100);

/// Run `work` without the GIL; give it a way to ask whether to go on, which lets Ctrl-C through; map its error.
///
/// No lock of ours is held while the GIL is taken, except those that only `work` itself needs.
pub fn through<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<T> + Send,
) -> PyResult<T> {
    asking(py, |py| py.check_signals(), work)
}

/// The same for work that also ends when the thread's transfer is cancelled (`lamella.transfer.cancellation`).
///
/// It stays cancelled, so that this is for no work which cleans up.
pub fn through_cancellable<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<T> + Send,
) -> PyResult<T> {
    let current = py.import("lamella.transfer.cancellation")?.getattr("current")?.call_method0("get")?.unbind();
    let ask = |py: Python<'_>| {
        py.check_signals()?;
        if current.is_none(py) { Ok(()) } else { current.call_method0(py, "check").map(drop) }
    };
    asking(py, ask, work)
}

fn asking<T: Send>(
    py: Python<'_>,
    ask: impl Fn(Python<'_>) -> PyResult<()> + Send + Sync,
    work: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut raised: Option<PyErr> = None;
    let result = py.detach(|| {
        let mut last = Instant::now();
        let mut check = || {
            if last.elapsed() < SIGNALS {
                return Ok(());
            }
            last = Instant::now();
            Python::attach(&ask).map_err(|error| {
                raised = Some(error);
                Error::cancelled()
            })
        };
        catch_unwind(AssertUnwindSafe(|| work(&mut check)))
            .unwrap_or_else(|panic| Err(Error::new(Kind::Internal, panic_text(&*panic))))
    });
    match (raised, result) {
        (Some(signal), Err(_)) => Err(signal),
        (_, result) => result.map_err(|error| to_python(py, error)),
    }
}

/// Make the exception of `lamella.errors` that fits.
pub fn to_python(py: Python<'_>, error: Error) -> PyErr {
    build(py, &error).unwrap_or_else(|failure| {
        let report = PyRuntimeError::new_err(error.to_string());
        report.set_cause(py, Some(failure));
        report
    })
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    static CLASSES: PyOnceLock<Vec<Py<PyType>>> = PyOnceLock::new();
    let classes = CLASSES.get_or_try_init(py, || {
        let module = py.import("lamella.errors")?;
        let class = |kind: &Kind| Ok(module.getattr(kind.name())?.cast_into::<PyType>()?.unbind());
        Kind::ALL.iter().map(class).collect::<PyResult<Vec<_>>>()
    })?;
    let index = Kind::ALL.iter().position(|kind| *kind == error.kind).unwrap_or_default();
    let keywords = PyDict::new(py);
    keywords.set_item("hint", error.hint.as_deref())?;
    let exception = classes[index].bind(py).call((error.message.as_str(),), Some(&keywords))?;
    Ok(PyErr::from_value(exception))
}
