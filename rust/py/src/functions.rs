//! The module's functions.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use lamella_core::digest::Digest;
use lamella_core::helper::{
    CopyMounts, CopyOwner, CopyTree, DiskUsage, FirstDifference, ReadFile, RemoveTree, Resolve, TryMount,
};
use lamella_core::layer::WhiteoutFormat;
use lamella_core::{Error, Result, launch as launching, mount as mounts, sys, tree};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::gate::through;
use crate::place::{self, absolute, all_absolute};
use crate::unpacked::Deferred;

/// The executable that build.rs built.
pub static LAUNCHER: &[u8] = include_bytes!(env!("LAMELLA_LAUNCHER"));

/// Hash bytes: `algorithm:hex`.
#[pyfunction]
#[pyo3(signature = (data, algorithm="sha256"))]
pub fn digest_of(py: Python<'_>, data: &[u8], algorithm: &str) -> PyResult<String> {
    through(py, |_| Ok(Digest::of(algorithm.parse()?, data).to_string()))
}

/// Finish a layer with what lies beneath it (folders of the lower layers, nearest first).
#[pyfunction]
pub fn resolve(py: Python<'_>, layer: PathBuf, lowers: Vec<PathBuf>, deferred: &Deferred) -> PyResult<bool> {
    let deferred = deferred.inner.clone();
    place::call(py, || Ok(Resolve { layer: absolute(&layer)?, lowers: all_absolute(&lowers)?, deferred }))
}

/// Read a regular file from the merged view of layer folders (nearest first) without mounting it.
#[pyfunction]
#[pyo3(signature = (layers, path, limit, *, whiteouts="overlay"))]
pub fn read_file<'py>(
    py: Python<'py>,
    layers: Vec<PathBuf>,
    path: OsString,
    limit: u64,
    whiteouts: &str,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let content = place::call(py, || {
        let format = WhiteoutFormat::from_str(whiteouts)?;
        Ok(ReadFile { layers: all_absolute(&layers)?, format, path: path.into_vec(), limit })
    })?;
    Ok(content.map(|content| PyBytes::new(py, &content)))
}

/// Mount a snapshot's mounts on a folder: new mount API, mount(2) on older kernels. Errors name source and options.
#[pyfunction]
pub fn mount(py: Python<'_>, mounts: Vec<(String, String, Vec<String>)>, target: PathBuf) -> PyResult<()> {
    through(py, |_| mounts::mount(&listed(mounts), &target))
}

/// See whether mounts can be made, and a file in them, where this process's snapshots are mounted.
#[pyfunction]
pub fn try_mount(
    py: Python<'_>,
    mounts: Vec<(String, String, Vec<String>)>,
    target: PathBuf,
    name: String,
) -> PyResult<()> {
    place::call(py, || Ok(TryMount { mounts: listed(mounts), target: absolute(&target)?, name }))
}

/// Copy what mounts show into an empty folder, where this process's snapshots are mounted: on `point`, until it is copied. Gives
/// notes of what was left out. After an error the folder must be thrown away.
#[pyfunction]
pub fn copy_mounts(
    py: Python<'_>,
    mounts: Vec<(String, String, Vec<String>)>,
    point: PathBuf,
    target: PathBuf,
) -> PyResult<Vec<String>> {
    place::call(py, || Ok(CopyMounts { mounts: listed(mounts), point: absolute(&point)?, target: absolute(&target)? }))
}

pub fn listed(mounts: Vec<(String, String, Vec<String>)>) -> Vec<mounts::Mount> {
    mounts.into_iter().map(|(kind, source, options)| mounts::Mount { kind, source, options }).collect()
}

/// Look at mount options; those that `mount` would refuse to read are refused.
#[pyfunction]
pub fn check_mount_options(py: Python<'_>, options: Vec<String>) -> PyResult<()> {
    through(py, |_| mounts::Options::parse(&options).map(drop))
}

/// Unmount everything stacked on a folder, lazily if busy. Harmless when nothing is mounted there.
#[pyfunction]
pub fn unmount(py: Python<'_>, target: PathBuf) -> PyResult<()> {
    through(py, |_| mounts::unmount(&target))
}

/// Return bytes (512-byte blocks) and inodes of a tree; each hard-linked inode once. Never follows a symlink.
#[pyfunction]
pub fn disk_usage(py: Python<'_>, path: PathBuf) -> PyResult<(u64, u64)> {
    let usage = place::call(py, || Ok(DiskUsage { path: absolute(&path)? }))?;
    Ok((usage.bytes, usage.inodes))
}

/// Remove a tree through directory descriptors, never following a symlink. Harmless when it is not there.
#[pyfunction]
pub fn remove_tree(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    place::call(py, || Ok(RemoveTree { path: absolute(&path)? }))
}

/// Copy a tree into an empty folder, as cp -a does; blocks are shared where the file system can. Gives notes of what was left
/// out. After an error the folder must be thrown away.
#[pyfunction]
pub fn copy_tree(py: Python<'_>, source: PathBuf, target: PathBuf) -> PyResult<Vec<String>> {
    place::call(py, || Ok(CopyTree { source: absolute(&source)?, target: absolute(&target)? }))
}

/// Say where two trees differ first and how, as far as an image decides what is in them; None if they don't.
#[pyfunction]
pub fn first_difference(py: Python<'_>, expected: PathBuf, found: PathBuf) -> PyResult<Option<String>> {
    place::call(py, || Ok(FirstDifference { expected: absolute(&expected)?, found: absolute(&found)? }))
}

/// Give a folder the owner and the mode of another.
#[pyfunction]
pub fn copy_owner(py: Python<'_>, source: PathBuf, target: PathBuf) -> PyResult<()> {
    place::call(py, || Ok(CopyOwner { source: absolute(&source)?, target: absolute(&target)? }))
}

/// Set FS_TOPDIR_FL (chattr +T): ext4 then spreads child folders over block groups. False where unsupported.
#[pyfunction]
pub fn set_top_directory(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
    through(py, |_| tree::set_top_directory(&path))
}

/// Return the default seccomp profile, the JSON of the runtime spec's ``linux.seccomp``, for a capability set.
#[pyfunction]
pub fn default_seccomp(py: Python<'_>, capabilities: Vec<String>) -> PyResult<String> {
    through(py, |_| {
        let names: Vec<&str> = capabilities.iter().map(String::as_str).collect();
        Ok(lamella_launcher::default_seccomp(&names))
    })
}

/// Start the launcher (from a sealed memfd) with a request document; return its reply document. For a user who is not root it
/// works in the user namespace of the helper.
#[pyfunction]
#[pyo3(signature = (request, descriptors=Vec::new(), network=None))]
pub fn launch<'py>(
    py: Python<'py>,
    request: &[u8],
    descriptors: Vec<i32>,
    network: Option<(i32, i32)>,
) -> PyResult<Bound<'py, PyBytes>> {
    let reply = through(py, |check| {
        // Duplicates, so that nothing depends on the caller keeping his open meanwhile.
        let held: Vec<OwnedFd> = descriptors.iter().map(|number| duplicate(*number)).collect::<Result<_>>()?;
        let mut borrowed: Vec<BorrowedFd<'_>> = held.iter().map(AsFd::as_fd).collect();
        let network =
            network.map(|(owner, network)| Ok::<_, Error>((duplicate(owner)?, duplicate(network)?))).transpose()?;
        let helper = if network.is_none() { place::helper(check)? } else { None };
        if let Some((owner, network)) = &network {
            borrowed.extend([network.as_fd(), owner.as_fd()]);
        } else if let Some(helper) = &helper {
            borrowed.push(helper.namespace(check)?);
        }
        launching::launch(LAUNCHER, launching::LAUNCHER, request, &borrowed, check)
    })?;
    Ok(PyBytes::new(py, &reply))
}

/// Make what the first `launch` needs ahead of it, in the background; harmless twice.
#[pyfunction]
pub fn prepare_launch(py: Python<'_>) -> PyResult<()> {
    through(py, |_| {
        launching::make_ready(LAUNCHER);
        Ok(())
    })
}

/// Become the launcher (from a sealed memfd), which takes its role from its name, the first argument.
#[pyfunction]
pub fn become_launcher(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<()> {
    through(py, |_| Err(launching::become_program(LAUNCHER, &arguments)))
}

pub fn duplicate(number: i32) -> Result<OwnedFd> {
    sys::duplicate(number).map_err(|error| Error::system(format!("descriptor {number}"), error))
}
