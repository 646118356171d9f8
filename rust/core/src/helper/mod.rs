//! The helper: what a user who is not root may not do with layers is done by a process in a user namespace, in which he is.
//!
//! ```text
//! caller ──starts──> launcher's first process ──fork──> helper: a user and a mount namespace of its own
//!    │                    └ newuidmap, newgidmap; ends        │
//!    └── control socket ──────────────────────────────────────┘ one packet a call: the helper's end of its connection
//!    └── connection ──────────────────────────────────────────> one thread a call: request, answer
//! ```
//! It is the launcher's executable in another role, started afresh from its sealed copy at the first call that takes it, for
//! this process alone, and it ends when the control socket closes: with its caller, however that ends. A call is a connection,
//! so that calls run beside each other, and closing the connection stops one. A [`Call`] says what is to be done, and does it,
//! here or there; [`carry_out`] decides where, and nobody else has to know.
//!
//! A root needs none, but has layers unpacked by one, unless he says no, so that it is confined who reads what strangers wrote.
//! That one is in its caller's namespaces, without most of root's capabilities, and is asked for nothing else.
//!
//! The helper is trusted less than its caller: it reads what strangers wrote. It gets paths and a read-only view of the memory
//! with the archive, and what it answers is parsed, with a cap. Nothing that it says chooses what the caller does next.

mod calls;
mod connect;
mod connection;
mod files;
mod ids;
mod serve;
mod setup;

// The helper itself does without.
#[cfg(feature = "unpack")]
mod client;
#[cfg(feature = "unpack")]
mod pack;
#[cfg(all(test, feature = "unpack"))]
mod tests;

#[cfg(feature = "unpack")]
pub(crate) use calls::{Apply, Feed, Reply, Request};
pub use calls::{
    Call, CopyMounts, CopyOwner, CopyTree, DiffTrees, DiffUpper, DiskUsage, FirstDifference, ReadFile, RemoveTree,
    Resolve, TryMount,
};
#[cfg(feature = "unpack")]
pub use client::{Helper, carry_out, is_needed};
pub use connect::Connect;
#[cfg(feature = "unpack")]
pub(crate) use connection::ended;
pub use connection::{decode, encode, is_closed};
pub use files::{Done, OnFiles, Work};
pub use ids::{extents, listed, ranges};
#[cfg(feature = "unpack")]
pub use pack::pack;
pub use serve::{Confine, serve};
pub use setup::{Extent, Maps, Setup};

/// What the executable is called in this role.
pub const NAME: &str = "lamella-helper";
