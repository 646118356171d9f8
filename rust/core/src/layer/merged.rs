//! The merged view of a stack of layer folders, as an overlay mount would show it, without mounting.
//!
//! Lookups go through descriptors one component at a time; symlinks resolve inside the merged root, whoever made them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::WhiteoutFormat;
use super::folders::{open_child, open_layer};
use super::name::{c_name, split};
use super::whiteout::{is_opaque, is_whiteout};
use crate::error::{Error, Kind, Result, show};
use crate::inode;

/// As the kernel's MAXSYMLINKS.
const MAX_SYMLINKS: usize = 40;

/// The folders of the layers that merge into one, nearest first.
type Folders = Vec<Rc<OwnedFd>>;

/// A stack of layer folders, which nobody changes meanwhile.
#[derive(Debug)]
pub struct Merged {
    roots: Folders,
    format: WhiteoutFormat,
    /// The folders that the last walk ended in: paths that are looked up in order share most of their folders, and
    /// finding one costs a few system calls for each layer.
    trail: RefCell<Vec<Level>>,
}

/// A folder of the merged view on the way to where a walk is.
#[derive(Clone, Debug)]
struct Level {
    name: Vec<u8>,
    /// The nearest layer's folder that holds it, and its attributes there.
    parent: Rc<OwnedFd>,
    stat: Stat,
    folders: Folders,
}

/// What a path leads to.
#[derive(Debug)]
pub struct Found {
    /// The folder, in the layer that shows through, that holds it.
    pub parent: Rc<OwnedFd>,
    /// Its name there.
    pub name: CString,
    /// Its attributes.
    pub stat: Stat,
    /// The components that lead to it without a symlink.
    pub path: Vec<Vec<u8>>,
}

impl Found {
    /// What it is.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// How symlinks are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Also in the last component.
    All,
    /// In all but the last component.
    Parents,
    /// Not at all: a symlink on the way is no folder.
    Never,
}

enum Step {
    Missing,
    Folder(Rc<OwnedFd>, Stat, Folders),
    Leaf(Rc<OwnedFd>, Stat),
}

/// Where a walk ended.
enum End {
    Found(Found),
    /// The path without symlinks, of which the tail is not there.
    Missing(Vec<Vec<u8>>),
    Root,
}

impl Merged {
    /// Open layer folders, nearest first, which record deletions in that form.
    pub fn open<P: AsRef<Path>>(layers: &[P], format: WhiteoutFormat) -> Result<Self> {
        let mut roots = Folders::with_capacity(layers.len());
        for layer in layers {
            roots.push(Rc::new(open_layer(layer.as_ref())?));
        }
        Ok(Self { roots, format, trail: RefCell::default() })
    }

    /// The nearest root folder.
    #[must_use]
    pub fn root(&self) -> Option<&OwnedFd> {
        self.roots.first().map(Rc::as_ref)
    }

    /// Find what a path leads to. None when it is not there, or is the root itself.
    pub fn lookup(&self, path: &[u8], follow: Follow) -> Result<Option<Found>> {
        match self.walk(path, follow)? {
            End::Found(found) => Ok(Some(found)),
            End::Missing(_) | End::Root => Ok(None),
        }
    }

    /// Where a path leads to when symlinks are followed, whether or not the end is there.
    pub fn canonical(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(match self.walk(path, Follow::All)? {
            End::Found(found) => found.path,
            End::Missing(path) => path,
            End::Root => Vec::new(),
        })
    }

    fn step(&self, level: &Folders, name: &[u8]) -> Result<Step> {
        let c_name = c_name(name)?;
        let mut first = None;
        let mut folders = Folders::new();
        for folder in level {
            let stat = match rustix::fs::statat(folder, &c_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(Error::system(format!("cannot read '{}'", show(name)), error)),
            };
            if is_whiteout(folder.as_fd(), &c_name, &stat, self.format) {
                break;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if first.is_none() {
                    return Ok(Step::Leaf(Rc::clone(folder), stat));
                }
                break;
            }
            let opened = open_child(folder.as_fd(), &c_name)
                .map_err(|error| Error::system(format!("cannot open folder '{}'", show(name)), error))?;
            let opaque = is_opaque(opened.as_fd(), self.format);
            first.get_or_insert_with(|| (Rc::clone(folder), stat));
            folders.push(Rc::new(opened));
            if opaque {
                break;
            }
        }
        Ok(first.map_or(Step::Missing, |(parent, stat)| Step::Folder(parent, stat, folders)))
    }

    /// What a name is in the folder that a walk has come to.
    fn look(&self, above: &[Level], name: &[u8]) -> Result<Step> {
        let trail = self.trail.borrow();
        if let Some(known) = trail.get(above.len())
            && known.name == name
            && above.iter().zip(&*trail).all(|(here, known)| here.name == known.name)
        {
            return Ok(Step::Folder(Rc::clone(&known.parent), known.stat, known.folders.clone()));
        }
        self.step(above.last().map_or(&self.roots, |level| &level.folders), name)
    }

    fn walk(&self, path: &[u8], follow: Follow) -> Result<End> {
        let mut above = Vec::new();
        let end = self.walk_from_root(path, follow, &mut above);
        *self.trail.borrow_mut() = above;
        end
    }

    /// `above` is where the walk is; it stays where it ended.
    fn walk_from_root(&self, path: &[u8], follow: Follow, above: &mut Vec<Level>) -> Result<End> {
        let mut pending: VecDeque<Vec<u8>> = split(path)?.into_iter().map(<[u8]>::to_vec).collect();
        let mut symlinks = 0;
        while let Some(name) = pending.pop_front() {
            if name == b".." {
                above.pop();
                continue;
            }
            match self.look(above, &name)? {
                Step::Missing => {
                    let mut path = names(above);
                    path.push(name);
                    for name in pending {
                        if name == b".." {
                            path.pop();
                        } else {
                            path.push(name);
                        }
                    }
                    return Ok(End::Missing(path));
                }
                Step::Folder(parent, stat, folders) => above.push(Level { name, parent, stat, folders }),
                Step::Leaf(parent, stat) => {
                    let last = pending.is_empty();
                    let symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
                    let mut path_here = names(above);
                    path_here.push(name.clone());
                    let leaf = Found { parent, name: c_name(&name)?, stat, path: path_here };
                    if symlink && (follow == Follow::All || follow == Follow::Parents && !last) {
                        symlinks += 1;
                        if symlinks > MAX_SYMLINKS {
                            return Err(Error::invalid(format!("too many symlinks in '{}'", show(path))));
                        }
                        let target = rustix::fs::readlinkat(&leaf.parent, &leaf.name, Vec::new())
                            .map_err(|error| Error::system(format!("cannot read '{}'", show(&name)), error))?;
                        if target.as_bytes().starts_with(b"/") {
                            above.clear();
                        }
                        for part in split(target.as_bytes())?.into_iter().rev() {
                            pending.push_front(part.to_vec());
                        }
                        continue;
                    }
                    // A file on the way ends it.
                    return Ok(if last { End::Found(leaf) } else { End::Missing(leaf.path) });
                }
            }
        }
        Ok(match above.last() {
            None => End::Root,
            Some(level) => End::Found(Found {
                parent: Rc::clone(&level.parent),
                name: c_name(&level.name)?,
                stat: level.stat,
                path: names(above),
            }),
        })
    }
}

fn names(levels: &[Level]) -> Vec<Vec<u8>> {
    levels.iter().map(|level| level.name.clone()).collect()
}

/// Read a regular file of the merged view. None when it is not there, or is something else.
///
/// `ResourceExhausted` when it is longer than `limit` bytes.
pub fn read_file<P: AsRef<Path>>(
    layers: &[P],
    format: WhiteoutFormat,
    path: &[u8],
    limit: u64,
) -> Result<Option<Vec<u8>>> {
    let Some(found) = Merged::open(layers, format)?.lookup(path, Follow::All)? else { return Ok(None) };
    if found.file_type() != FileType::RegularFile {
        return Ok(None);
    }
    let failed = |error: std::io::Error| Error::system(format!("cannot read '{}'", show(path)), error);
    // The topmost layer may be a container's that runs, and puts a device there at the last moment.
    let opened = inode::open_file_at(found.parent.as_fd(), &found.name).map_err(|error| failed(error.into()))?;
    let Some((file, _)) = opened else { return Ok(None) };
    let mut content = Vec::new();
    let read = std::fs::File::from(file).take(limit.saturating_add(1)).read_to_end(&mut content).map_err(failed)?;
    if read as u64 > limit {
        return Err(Error::new(
            Kind::ResourceExhausted,
            format!("'{}' in the image is longer than {limit} bytes", show(path)),
        ));
    }
    Ok(Some(content))
}
