//! `lamella._core`: the core for Python. Thin: this crate registers, converts and calls; nothing is decided here.

mod appender;
mod counters;
mod diff;
mod files;
mod functions;
mod gate;
mod networks;
mod pattern;
mod pipeline;
mod place;
mod serve;
mod sys;
mod unpacked;

use pyo3::prelude::*;

/// The Rust core of lamella.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::appender::Appender;
    #[pymodule_export]
    use super::counters::Counters;
    #[pymodule_export]
    use super::diff::{Changes, Packed, diff_trees, diff_upper, recompress};
    #[pymodule_export]
    use super::files::Files;
    #[pymodule_export]
    use super::functions::{
        become_launcher, check_mount_options, copy_mounts, copy_owner, copy_tree, default_seccomp, digest_of,
        disk_usage, first_difference, launch, mount, prepare_launch, read_file, remove_tree, resolve,
        set_top_directory, try_mount, unmount,
    };
    #[pymodule_export]
    use super::networks::{
        await_strays, connect_network, make_network, network_owner, pin_network, release_network, route_socket,
        run_program, serves_network, tell_names, unpin_network,
    };
    #[pymodule_export]
    use super::pattern::Pattern;
    #[pymodule_export]
    use super::pipeline::Pipeline;
    #[pymodule_export]
    use super::place::{helper_maps, prepare_unpacking, user_extents};
    #[pymodule_export]
    use super::serve::{Stream, Transport};
    #[pymodule_export]
    use super::unpacked::{Deferred, Unpacked};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("HOSTS_COMMENTS", super::networks::HOSTS_COMMENTS)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
