//! What makes networks and takes them away: namespaces, programs, names.

use std::os::fd::{AsFd, IntoRawFd};
use std::path::PathBuf;
use std::time::Duration;

use lamella_core::helper::Connect;
use lamella_core::mount::IdMaps;
use lamella_core::{Error, Kind};
use lamella_launcher::error::Failure;
use lamella_launcher::network::program::{Ended, Program};
use lamella_launcher::network::{Failed, Network, names, strays};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::functions::duplicate;
use crate::gate::through;
use crate::place;

/// The comments between which the lines of other containers stand in a hosts file.
pub const HOSTS_COMMENTS: (&str, &str) = (names::BEGIN, names::END);

/// Exit status (None: it took too long and was killed), output, what it said.
type Answer<'py> = (Option<i32>, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

/// Make a network namespace and keep it on a file; with maps of ids with the user namespace that it belongs to.
#[pyfunction]
#[pyo3(signature = (path, maps=None))]
pub fn pin_network(py: Python<'_>, path: PathBuf, maps: Option<(String, String)>) -> PyResult<()> {
    through(py, |_| {
        let maps = maps.map(|(users, groups)| IdMaps::parse(&users, &groups)).transpose()?;
        lamella_core::network::pin(&path, maps.as_ref())
    })
}

/// Make a network namespace in the helper's user namespace; give descriptors of both.
#[pyfunction]
pub fn make_network(py: Python<'_>) -> PyResult<(i32, i32)> {
    let (owner, network) = through(py, |check| {
        let missing = || Error::new(Kind::FailedPrecondition, "root needs no helper, and makes networks itself");
        let helper = place::helper(check)?.ok_or_else(missing)?;
        let failed = |error| Error::system("cannot keep the user namespace open", error);
        let owner = helper.namespace(check)?.try_clone_to_owned().map_err(failed)?;
        Ok((owner, helper.make_network(check)?))
    })?;
    Ok((owner.into_raw_fd(), network.into_raw_fd()))
}

/// Have a program connect a network namespace of the helper's, for which that is kept on `path` in the helper's mount namespace;
/// give its exit status and what it said.
#[pyfunction]
pub fn connect_network(
    py: Python<'_>,
    network: i32,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    patience: f64,
) -> PyResult<(Option<i32>, Bound<'_, PyBytes>)> {
    let (status, said) = through(py, |check| {
        let missing = || Error::new(Kind::FailedPrecondition, "root needs no helper to connect networks");
        let helper = place::helper(check)?.ok_or_else(missing)?;
        let network = duplicate(network)?;
        let patience = u64::try_from(Duration::from_secs_f64(patience).as_millis()).unwrap_or(u64::MAX);
        helper.connect(Connect { path, args, env, patience }, network.as_fd(), check)
    })?;
    Ok((status, PyBytes::new(py, &said)))
}

/// Say where the user namespace is kept that a network namespace belongs to.
#[pyfunction]
pub fn network_owner(path: PathBuf) -> String {
    lamella_core::network::owner(&path).to_string_lossy().into_owned()
}

/// Let go of a network namespace.
#[pyfunction]
pub fn unpin_network(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    through(py, |_| lamella_core::network::unpin(&path))
}

/// Open a socket of netlink for routes in a network namespace; give its descriptor.
#[pyfunction]
pub fn route_socket(py: Python<'_>, namespace: PathBuf) -> PyResult<i32> {
    through(py, |_| lamella_core::network::route_socket(&namespace)).map(IntoRawFd::into_raw_fd)
}

/// Run a program to its end.
#[pyfunction]
pub fn run_program(
    py: Python<'_>,
    args: Vec<String>,
    env: Vec<String>,
    input: String,
    patience: f64,
) -> PyResult<Answer<'_>> {
    let program = Program { args, env, input };
    let ended = interruptible(py, |check| program.run(Duration::from_secs_f64(patience), check))?;
    Ok(answer(py, &ended))
}

/// Let go of the network of a record; give the program that failed.
#[pyfunction]
pub fn release_network(py: Python<'_>, record: PathBuf, patience: f64) -> PyResult<Option<(String, Answer<'_>)>> {
    let patience = Duration::from_secs_f64(patience);
    let failed = interruptible(py, |check| Network::new(record).release(true, patience, check))?;
    Ok(failed.map(|Failed { path, ended }| (path, answer(py, &ended))))
}

/// Tell whether a process still serves a namespace.
#[pyfunction]
pub fn serves_network(pid: i32, namespace: PathBuf) -> bool {
    lamella_launcher::network::serves(pid, &namespace)
}

/// Wait for the plugins that a killed process has left at work for a container.
#[pyfunction]
pub fn await_strays(py: Python<'_>, container: String) -> PyResult<()> {
    interruptible(py, |_| {
        strays::await_strays(&container);
        Ok(())
    })
}

/// Note what a container is called and where, and bring the hosts files of its networks up to date.
#[pyfunction]
pub fn tell_names(py: Python<'_>, path: PathBuf, text: String) -> PyResult<()> {
    interruptible(py, |_| names::tell(&path, &text))
}

fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut dyn FnMut() -> std::result::Result<(), Failure>) -> std::result::Result<T, Failure> + Send,
) -> PyResult<T> {
    through(py, |check| {
        let mut check = || check().map_err(Failure::from);
        work(&mut check).map_err(to_core)
    })
}

/// The core's form of a failure: the kinds are spelled alike.
fn to_core(failure: Failure) -> Error {
    let name = format!("{:?}", failure.kind);
    let kind = Kind::ALL.iter().copied().find(|kind| kind.name() == name).unwrap_or(Kind::Internal);
    let error = Error::new(kind, failure.message);
    match failure.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn answer<'py>(py: Python<'py>, ended: &Ended) -> Answer<'py> {
    (ended.status, PyBytes::new(py, &ended.output), PyBytes::new(py, &ended.said))
}
