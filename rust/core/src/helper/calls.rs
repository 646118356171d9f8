//! What can be asked of the helper: functions of the core, with their arguments and answers as values.

use std::fs::File;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connect::Connect;
use super::files::OnFiles;
use crate::error::{Error, Result};
use crate::layer::diff::{self, Changes, Trees};
use crate::layer::{self, Deferred, Merged, WhiteoutFormat};
use crate::mount::{self, Mount};
use crate::tar::{Limits, Timestamp};
use crate::tree::{self, Check, Usage};

/// A function that may run in either place.
pub trait Call: Clone + Into<Request> {
    /// What it gives.
    type Answer: Serialize + DeserializeOwned;

    /// Whether it is tried without a helper first, and asked of one only where access is refused: doing it by halves is harmless,
    /// and most of what it is done to belongs to the user alone.
    const HERE_FIRST: bool = false;

    /// Do it, in this process. `check` is called now and then; its error ends the work.
    fn run(self, check: Check<'_>) -> Result<Self::Answer>;
}

/// Everything that is asked of a helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// See [`RemoveTree`].
    RemoveTree(RemoveTree),
    /// See [`DiskUsage`].
    DiskUsage(DiskUsage),
    /// See [`CopyTree`].
    CopyTree(CopyTree),
    /// See [`CopyOwner`].
    CopyOwner(CopyOwner),
    /// See [`Resolve`].
    Resolve(Resolve),
    /// See [`ReadFile`].
    ReadFile(ReadFile),
    /// See [`DiffTrees`].
    DiffTrees(DiffTrees),
    /// See [`DiffUpper`].
    DiffUpper(DiffUpper),
    /// See [`FirstDifference`].
    FirstDifference(FirstDifference),
    /// See [`TryMount`].
    TryMount(TryMount),
    /// See [`CopyMounts`].
    CopyMounts(CopyMounts),
    /// See [`Apply`].
    Apply(Apply),
    /// See [`Pack`].
    Pack(Pack),
    /// See [`Connect`].
    Connect(Connect),
    /// See [`OnFiles`].
    OnFiles(OnFiles),
    /// Hand over the helper's user namespace, in the place of an answer.
    Namespace,
    /// Hand over a mount that is attached nowhere ([`mount::make`]), in the place of an answer; the answer says why not.
    Mount(Mount),
    /// Hand over a network namespace that is made for it, with loopback up, in the place of an answer.
    Network,
}

macro_rules! requests {
    ($($name:ident),+) => {
        $(impl From<$name> for Request {
            fn from(call: $name) -> Self {
                Self::$name(call)
            }
        })+
    };
}

requests!(
    RemoveTree,
    DiskUsage,
    CopyTree,
    CopyOwner,
    Resolve,
    ReadFile,
    DiffTrees,
    DiffUpper,
    FirstDifference,
    TryMount,
    CopyMounts
);

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply<T> {
    /// A piece of memory is not needed any more.
    Free(u32),
    /// What came of it; the last thing that is said.
    Answer(std::result::Result<T, Error>),
}

/// Remove a tree ([`tree::remove`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveTree {
    /// Its top.
    pub path: PathBuf,
}

impl Call for RemoveTree {
    type Answer = ();
    const HERE_FIRST: bool = true;

    fn run(self, check: Check<'_>) -> Result<()> {
        tree::remove(&self.path, check)
    }
}

/// Count a tree ([`tree::usage`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Its top.
    pub path: PathBuf,
}

impl Call for DiskUsage {
    type Answer = Usage;
    const HERE_FIRST: bool = true;

    fn run(self, check: Check<'_>) -> Result<Usage> {
        tree::usage(&self.path, check)
    }
}

/// Copy a tree into an empty folder ([`layer::copy_tree`]). Gives notes of what was left out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyTree {
    /// What is copied.
    pub source: PathBuf,
    /// The folder.
    pub target: PathBuf,
}

impl Call for CopyTree {
    type Answer = Vec<String>;

    fn run(self, check: Check<'_>) -> Result<Vec<String>> {
        layer::copy_tree(&self.source, &self.target, check)
    }
}

/// Give a folder the owner and the mode of another ([`layer::copy_owner`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyOwner {
    /// The other.
    pub source: PathBuf,
    /// The folder.
    pub target: PathBuf,
}

impl Call for CopyOwner {
    type Answer = ();
    const HERE_FIRST: bool = true;

    fn run(self, _: Check<'_>) -> Result<()> {
        layer::copy_owner(&self.source, &self.target)
    }
}

/// Finish a layer with what lies beneath it ([`layer::resolve`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolve {
    /// The layer's folder.
    pub layer: PathBuf,
    /// Those beneath, nearest first.
    pub lowers: Vec<PathBuf>,
    /// What it needs of them.
    pub deferred: Deferred,
}

impl Call for Resolve {
    type Answer = bool;

    fn run(self, _: Check<'_>) -> Result<bool> {
        layer::resolve(&self.layer, &self.lowers, &self.deferred)
    }
}

/// Read a file of a stack of layers ([`layer::read_file`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadFile {
    /// Their folders, nearest first.
    pub layers: Vec<PathBuf>,
    /// How they record deletions.
    pub format: WhiteoutFormat,
    /// The file's path in them.
    pub path: Vec<u8>,
    /// How many bytes it may have.
    pub limit: u64,
}

impl Call for ReadFile {
    type Answer = Option<Vec<u8>>;
    const HERE_FIRST: bool = true;

    fn run(self, _: Check<'_>) -> Result<Option<Vec<u8>>> {
        layer::read_file(&self.layers, self.format, &self.path, self.limit)
    }
}

/// Compare two trees ([`diff::diff`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiffTrees {
    /// What it was; nothing where there is none.
    pub before: Option<PathBuf>,
    /// What it is.
    pub after: PathBuf,
}

impl Call for DiffTrees {
    type Answer = Changes;

    fn run(self, check: Check<'_>) -> Result<Changes> {
        diff::diff(&Trees::Pair { before: self.before.as_deref(), after: &self.after }, check)
    }
}

/// List what an overlay's upper folder changes ([`diff::diff`], [`diff::tell_apart`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiffUpper {
    /// The folder.
    pub folder: PathBuf,
    /// Those beneath, nearest first.
    pub lowers: Vec<PathBuf>,
    /// It hides them all.
    pub opaque: bool,
    /// How all of them record deletions.
    pub format: WhiteoutFormat,
}

impl Call for DiffUpper {
    type Answer = Changes;

    fn run(self, check: Check<'_>) -> Result<Changes> {
        let Self { folder, lowers, opaque, format } = self;
        let mut found = diff::diff(&Trees::Upper { folder: &folder, opaque, format }, check)?;
        diff::tell_apart(&mut found, &Merged::open(&lowers, format)?)?;
        Ok(found)
    }
}

/// Compare two layer folders ([`layer::first_difference`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FirstDifference {
    /// What is expected.
    pub expected: PathBuf,
    /// What is there.
    pub found: PathBuf,
}

impl Call for FirstDifference {
    type Answer = Option<String>;

    fn run(self, check: Check<'_>) -> Result<Option<String>> {
        layer::first_difference(&self.expected, &self.found, check)
    }
}

/// See whether mounts can be made, and written to: they are made on a folder, a file in them, and they are unmounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TryMount {
    /// The mounts.
    pub mounts: Vec<Mount>,
    /// The folder.
    pub target: PathBuf,
    /// The file's name.
    pub name: String,
}

impl Call for TryMount {
    type Answer = ();

    fn run(self, _: Check<'_>) -> Result<()> {
        mount::mount(&self.mounts, &self.target)?;
        let path = self.target.join(&self.name);
        let made = File::create(&path).map_err(|error| Error::system(format!("cannot make {}", path.display()), error));
        mount::unmount(&self.target).and(made.map(drop))
    }
}

/// Copy what mounts show into an empty folder, for who cannot see them. They are made on a folder, and gone afterwards. Gives notes
/// of what was left out, as [`CopyTree`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyMounts {
    /// The mounts.
    pub mounts: Vec<Mount>,
    /// Where they are made.
    pub point: PathBuf,
    /// The folder that is filled.
    pub target: PathBuf,
}

impl Call for CopyMounts {
    type Answer = Vec<String>;

    fn run(self, check: Check<'_>) -> Result<Vec<String>> {
        mount::mount(&self.mounts, &self.point)?;
        let copied = layer::copy_tree(&self.point, &self.target, check);
        mount::unmount(&self.point).and(copied)
    }
}

/// Make a layer folder of an archive ([`layer::make`]), which comes in pieces of the memory that is passed along.
#[derive(Debug, Serialize, Deserialize)]
pub struct Apply {
    /// The folder.
    pub layer: PathBuf,
    /// How it records deletions.
    pub format: WhiteoutFormat,
    /// Caps.
    pub limits: Limits,
    /// Bytes of a piece.
    pub piece: usize,
}

/// What follows an [`Apply`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Feed {
    /// A piece, filled so far; it is lent until the helper says that it is free.
    Piece {
        /// Which one.
        index: u32,
        /// How many bytes of it.
        length: u32,
    },
    /// The archive is complete. Without this before the end of the connection the work was stopped.
    End,
}

/// Write changes as an archive ([`diff::write_until`]) to the pipe that is passed along.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pack {
    /// What was found before.
    pub changes: Changes,
    /// Nothing is younger.
    pub latest: Option<Timestamp>,
}
