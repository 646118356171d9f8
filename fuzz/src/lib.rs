//! Fuzz targets for whatever reads what lamella did not write: each is a function of any bytes that panics when a promise
//! is broken.
//!
//! cargo-fuzz runs them for hours, led by coverage (`fuzz_targets/`, `make fuzz`); `cargo test` runs each over its corpus and some
//! thousand mutations of it, with the stable toolchain (`tests/replay.rs`). Both read `corpus/<target>/`, one input a file.
//!
//! | target | input | held against |
//! |---|---|---|
//! | [`tar_reader`] | a tar | the caps; itself, fed in other pieces |
//! | [`pax`] | the records of an extended header | a parser of its own |
//! | [`sparse`] | the map of a sparse file, told in all four forms | the definition of a map |
//! | [`whiteouts`] | entries over a lower layer, as overlay and as plain folder | a model of the merged tree |
//! | [`applier`] | layers, an entry a line | the host around them, which must stay as it is |
//! | [`unpack`] | a tar | the same |
//! | [`files`] | a tar, as cp takes it into a container | the same; what comes out again |
//! | [`decoders`] | a blob through the whole pipeline | the decoder alone |
//! | [`inflate`] | gzip, in pieces, with helpers | flate2 |
//! | [`diff`] | changes of a tree | the tree that applying the difference gives |
//! | [`mounts`] | mount options, lists of lower folders | rules of their own |
//! | [`documents`] | a request, a spec, a profile for the launcher | parsing it twice |
#![allow(missing_docs, clippy::unwrap_used)]

// The host that must not change, trees to compare, archives: as the core's own tests have them.
#[allow(dead_code)]
#[path = "../../rust/core/tests/core/archive.rs"]
mod archive;
#[allow(dead_code)]
#[path = "../../rust/core/tests/core/host.rs"]
mod host;
#[allow(dead_code)]
#[path = "../../rust/core/tests/core/tree.rs"]
mod tree;

pub mod applier;
pub mod decoders;
pub mod diff;
pub mod documents;
pub mod files;
pub mod inflate;
pub mod mounts;
pub mod pax;
pub mod sparse;
pub mod tar_reader;
pub mod unpack;
pub mod whiteouts;

mod ground;
mod input;

/// A target, and how often a short run calls it.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub executions: u32,
}

pub const TARGETS: [Target; 12] = [
    Target { name: "applier", run: applier::run, executions: 400 },
    Target { name: "decoders", run: decoders::run, executions: 1000 },
    Target { name: "diff", run: diff::run, executions: 200 },
    Target { name: "documents", run: documents::run, executions: 5000 },
    Target { name: "files", run: files::run, executions: 300 },
    Target { name: "inflate", run: inflate::run, executions: 100 },
    Target { name: "mounts", run: mounts::run, executions: 20_000 },
    Target { name: "pax", run: pax::run, executions: 20_000 },
    Target { name: "sparse", run: sparse::run, executions: 10_000 },
    Target { name: "tar_reader", run: tar_reader::run, executions: 10_000 },
    Target { name: "unpack", run: unpack::run, executions: 400 },
    Target { name: "whiteouts", run: whiteouts::run, executions: 400 },
];
