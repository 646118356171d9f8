//! lamella's core: what costs time, in Rust. It knows nothing of Python.
//!
//! | module | what it does |
//! |---|---|
//! | [`error`] | one error type, with a kind and a hint |
//! | [`sys`] | the only module with unsafe code: system calls that rustix does not wrap |
//! | [`mount`] | mounts by the new mount API, or mount(2) |
//! | [`network`] | network namespaces that outlive the process that made them |
//! | [`inode`] | finds what a name leads to before it is opened |
//! | [`tree`] | disk usage and removal of a tree, through directory descriptors |
//! | [`launch`] | starts the launcher from a sealed copy in memory |
//! | [`stopped`] | gives up waiting for a process that a signal has stopped |
//! | [`counters`] | counters that all processes of a machine add to |
//! | [`tar`] | reads an archive that is not trusted |
//! | [`layer`] | makes a layer folder of it, completes it with what lies beneath, looks things up in a stack of layers |
//! | [`helper`] | has that done by a process in a user namespace, for who may not do it |
//! | [`files`] | a container's files from outside: out of it as an archive, and in from one |
//! | `digest`, `compression`, `compress` | hashes, inflates, deflates |
//! | `inflate`, `cores` | inflates gzip with several threads, as many as are free |
//! | `pipeline` | all of that at once, in one pass over the blob |
//! | `blob` | the way back: a layer's blob is written, or turned into another form |
//! | `appender` | a file that grows at its end, and its digest |
//!
//! The last five rows belong to the feature `unpack` (on by default).

pub mod counters;
pub mod error;
pub mod files;
pub mod helper;
pub mod inode;
pub mod launch;
pub mod layer;
pub mod mount;
pub mod network;
pub mod stopped;
pub mod sys;
pub mod tar;
pub mod tree;

#[cfg(feature = "unpack")]
pub mod appender;
#[cfg(feature = "unpack")]
pub mod blob;
#[cfg(feature = "unpack")]
pub mod compress;
#[cfg(feature = "unpack")]
pub mod compression;
#[cfg(feature = "unpack")]
pub mod cores;
#[cfg(feature = "unpack")]
pub mod digest;
#[cfg(feature = "unpack")]
pub mod inflate;
#[cfg(feature = "unpack")]
pub mod pipeline;

pub use error::{Error, Kind, Result};
