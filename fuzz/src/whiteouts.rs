//! Whiteouts, opaque markers and what they stand among, over a lower layer: the merged tree, and the plain folder that holds a
//! copy of the lower layer, are held against a model in memory.
//!
//! The model says what the rules say, not how: a name of the lower layer is hidden if the upper one has a whiteout of it, or of a
//! folder above it, or an opaque marker there, or ever had something other than a folder in its place, wherever in the archive
//! that stands. The upper layer's own entries take each other's place in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lamella_core::Kind;
use lamella_core::layer::{Applied, Applier, Follow, Merged, WhiteoutFormat, read_file, resolve};
use lamella_core::tar::{Entry, EntryKind, Timestamp};
use rustix::fs::FileType;

use crate::ground::{Ground, check, watch};
use crate::input::Input;

/// Names in both layers. One begins as a whiteout does, without being one; one is another's prefix.
const NAMES: [&str; 3] = ["a", ".wh", "ab"];
const DEPTH: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    File(String),
    Folder(String),
    Whiteout(String),
    /// An opaque marker in a folder; the root is the empty path.
    Opaque(String),
}

/// What is at a path: a folder, or a file with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(usize),
}

type Tree = BTreeMap<String, Node>;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let below = input.below(16);
    let lower: Vec<Step> = (0..below).map_while(|_| step(&mut input, 2)).collect();
    let upper: Vec<Step> = (0..40).map_while(|_| step(&mut input, 4)).collect();
    // Numbers tell the layers' files apart.
    let base = model(&Tree::new(), &lower, 0, false);
    watch(|ground| {
        let stacked = WhiteoutFormat::OverlayUserXattr;
        let first = apply(&ground.layer(0), &lower, 0, stacked);
        assert_eq!(first.is_ok(), base.is_some(), "the lower layer {lower:?}: {first:?}");
        let (Ok(_), Some(base)) = (first, base) else { return };
        overlay(ground, &upper, model(&base, &upper, 100, false));
        let copy = ground.layer(2);
        apply(&copy, &lower, 0, WhiteoutFormat::Plain).unwrap();
        let second = apply(&copy, &upper, 100, WhiteoutFormat::Plain);
        let expected = model(&base, &upper, 100, true);
        assert_eq!(second.is_ok(), expected.is_some(), "plain: {upper:?} on {lower:?}: {second:?}");
        if let Some(expected) = expected {
            assert_eq!(seen(&[&copy], WhiteoutFormat::Plain), expected, "plain: {upper:?} on {lower:?}");
        }
    });
}

fn overlay(ground: &Ground<'_>, upper: &[Step], expected: Option<Tree>) {
    let (lower, layer) = (ground.layer(0), ground.layer(1));
    let applied = apply(&layer, upper, 100, WhiteoutFormat::OverlayUserXattr);
    assert_eq!(applied.is_ok(), expected.is_some(), "{upper:?}: {applied:?}");
    let (Ok(applied), Some(expected)) = (applied, expected) else { return };
    resolve(&layer, &[&lower], &applied.deferred).unwrap();
    let stack: &[&Path] = if applied.opaque_root { &[&layer] } else { &[&layer, &lower] };
    assert_eq!(seen(stack, WhiteoutFormat::OverlayUserXattr), expected, "{upper:?}");
}

fn step(input: &mut Input<'_>, kinds: usize) -> Option<Step> {
    if input.is_empty() {
        return None;
    }
    let kind = input.below(kinds);
    let depth = input.below(DEPTH + 1);
    let parts: Vec<&str> = (0..depth).map(|_| NAMES[input.below(NAMES.len())]).collect();
    let path = parts.join("/");
    Some(match kind {
        3 => Step::Opaque(path),
        _ if path.is_empty() => Step::Folder(NAMES[0].to_owned()),
        0 => Step::File(path),
        1 => Step::Folder(path),
        _ => Step::Whiteout(path),
    })
}

/// A path and those above it, the topmost first.
fn lineage(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain((!path.is_empty()).then_some(path.len()));
    ends.map(|end| &path[..end])
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// What the layers show together; None where an entry needs a folder at what is a file of its own layer.
fn model(lower: &Tree, steps: &[Step], first: usize, plain: bool) -> Option<Tree> {
    let mut own = Tree::new();
    let (mut gone, mut opaque) = (BTreeSet::new(), BTreeSet::new());
    for (number, step) in steps.iter().enumerate() {
        let (path, needed) = match step {
            Step::Opaque(path) => (path, path.as_str()),
            Step::File(path) | Step::Folder(path) | Step::Whiteout(path) => (path, parent(path)),
        };
        let is_mark = matches!(step, Step::Whiteout(_) | Step::Opaque(_));
        for folder in lineage(needed) {
            // What a whiteout stands in is the lower layer's folder. An overlay has to have it all the same.
            let serves = plain && is_mark && shows(lower, &gone, &opaque, folder) == Some(Node::Folder);
            match own.get(folder) {
                Some(Node::File(_)) => return None,
                None if !serves => own.extend(lineage(folder).map(|path| (path.to_owned(), Node::Folder))),
                _ => {}
            }
        }
        match step {
            Step::File(path) => {
                own.retain(|known, _| !known.starts_with(&format!("{path}/")));
                own.insert(path.clone(), Node::File(first + number));
                gone.insert(path.clone());
            }
            Step::Folder(path) => drop(own.insert(path.clone(), Node::Folder)),
            Step::Whiteout(path) => drop(gone.insert(path.clone())),
            Step::Opaque(_) => drop(opaque.insert(path.clone())),
        }
    }
    let mut merged: Tree = lower.clone();
    merged.retain(|path, _| shows(lower, &gone, &opaque, path).is_some());
    // A folder in the place of a lower layer's file.
    merged.retain(|path, _| lineage(parent(path)).all(|above| !matches!(own.get(above), Some(Node::File(_)))));
    merged.extend(own);
    Some(merged)
}

/// What of the lower layer shows through at a path.
fn shows(lower: &Tree, gone: &BTreeSet<String>, opaque: &BTreeSet<String>, path: &str) -> Option<Node> {
    let hidden = lineage(path).any(|above| gone.contains(above) || opaque.contains(parent(above)));
    lower.get(path).copied().filter(|_| !hidden)
}

fn apply(layer: &Path, steps: &[Step], first: usize, format: WhiteoutFormat) -> lamella_core::Result<Applied> {
    let result = Applier::new(layer, format).and_then(|mut applier| {
        for (number, step) in steps.iter().enumerate() {
            let mark = |path: &str, name: &str| {
                let parent = parent(path);
                if parent.is_empty() { format!(".wh.{name}") } else { format!("{parent}/.wh.{name}") }
            };
            let (path, kind) = match step {
                Step::File(path) => (path.clone(), EntryKind::File),
                Step::Folder(path) => (path.clone(), EntryKind::Directory),
                Step::Whiteout(path) => (mark(path, path.rsplit('/').next().unwrap_or_default()), EntryKind::File),
                Step::Opaque(path) => (format!("{path}/.wh..wh..opq"), EntryKind::File),
            };
            let content = (first + number).to_string();
            let entry = Entry {
                path: path.into_bytes(),
                mode: 0o755,
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                mtime: Timestamp::default(),
                atime: None,
                size: if kind == EntryKind::File { content.len() as u64 } else { 0 },
                sparse: false,
                xattrs: Vec::new(),
                kind,
            };
            if applier.begin(&entry)? {
                applier.data(0, content.as_bytes())?;
            }
            applier.end()?;
        }
        applier.finish(&mut || Ok(()))
    });
    match &result {
        Ok(applied) => check(layer, applied),
        Err(error) => assert_eq!(error.kind, Kind::InvalidArgument, "{error}"),
    }
    result
}

/// What a stack of layers shows of the paths that the steps can name.
fn seen(stack: &[&Path], format: WhiteoutFormat) -> Tree {
    let merged = Merged::open(stack, format).unwrap();
    let mut tree = Tree::new();
    let mut pending: Vec<String> = NAMES.map(ToOwned::to_owned).to_vec();
    while let Some(path) = pending.pop() {
        let Some(found) = merged.lookup(path.as_bytes(), Follow::Never).unwrap() else { continue };
        let node = if found.file_type() == FileType::Directory {
            pending.extend(NAMES.iter().map(|name| format!("{path}/{name}")));
            Node::Folder
        } else {
            let content = read_file(stack, format, path.as_bytes(), 100).unwrap().unwrap_or_default();
            Node::File(String::from_utf8(content).unwrap().parse().unwrap())
        };
        tree.insert(path, node);
    }
    tree
}
