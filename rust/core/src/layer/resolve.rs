//! Finishes a layer folder with what lies beneath it.
//!
//! 1. A folder that the tar did not name may be a symlink in the lower layers (`lib -> usr/lib`): what the tar put
//!    into it belongs where the symlink leads.
//! 2. A hard link into a lower layer copies its target up, under the target's own name too, as overlayfs does when
//!    link(2) is called on the mount. Links to one lower inode stay one inode.
//! 3. A folder that the tar did not name gets the attributes of the nearest lower one.
//!
//! Doing it twice is harmless: what is there already is left alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

use super::attributes::{Attributes, Target, read_xattrs, set_attributes, set_times, set_xattrs, take_default_acl};
use super::copy::{Name, attributes_of, copy_up, set_attributes_at};
use super::finish::unnamed_folder;
use super::folders::{open_child, open_layer};
use super::kept::Kept;
use super::merged::{Follow, Merged};
use super::name::{c_name, components, join};
use super::whiteout::{self, is_opaque, is_whiteout};
use super::{Deferred, DeferredLink, WhiteoutFormat};
use crate::error::{Error, Result, show};
use crate::tar::Timestamp;
use crate::tree;

/// Finish the layer folder `layer` with the folders of the lower layers, nearest first.
///
/// True when the result depends on them: it is right for this chain alone. The root counts only when the lower root is
/// other than what a root is that no tar names. `InvalidArgument` when a hard link's target exists nowhere.
pub fn resolve<P: AsRef<Path>>(layer: &Path, lowers: &[P], deferred: &Deferred) -> Result<bool> {
    if deferred.is_empty() {
        return Ok(false);
    }
    // Most layers leave open nothing but their root, which needs the nearest of the lower layers alone, however many there are.
    let needed = if deferred.folders.is_empty() && deferred.links.is_empty() { 1 } else { lowers.len() };
    let root = open_layer(layer)?;
    let format = deferred.format.unwrap_or(WhiteoutFormat::Overlay);
    let lower = Merged::open(&lowers[..needed.min(lowers.len())], format)?;
    let mut work = Resolver {
        root,
        layer,
        lower,
        format,
        links: deferred.links.iter().map(|link| owned(&link.path)).collect::<Result<_>>()?,
        unnamed: deferred.folders.iter().map(|folder| owned(folder)).collect::<Result<_>>()?,
        moved: Vec::new(),
        copies: HashMap::new(),
        touched: Vec::new(),
        kept: Kept::default(),
        kept_beneath: Vec::new(),
    };
    if !deferred.links.is_empty() {
        work.kept = Kept::beside(layer)?;
        work.kept_beneath = lowers.iter().map(|lower| Kept::beside(lower.as_ref())).collect::<Result<_>>()?;
    }
    work.relocate(&deferred.folders)?;
    work.links = std::mem::take(&mut work.links).into_iter().map(|link| work.current(link)).collect();
    for link in &deferred.links {
        work.link(link).map_err(|error| error.context(format!("hard link '{}'", show(&link.path))))?;
    }
    work.restore_touched()?;
    if !deferred.links.is_empty() {
        work.kept.store(layer)?;
    }
    // Children first: setting a child's attributes does not touch its parent's time, but a mode may lock us out.
    for path in work.unnamed.iter().rev() {
        work.adopt(path).map_err(|error| error.context(format!("folder '{}'", show(&join(path)))))?;
    }
    let mut depends = !deferred.folders.is_empty() || !deferred.links.is_empty();
    if deferred.root {
        depends |= work.adopt_root()?;
    }
    Ok(depends)
}

/// A path of the layer, taken apart.
type Components = Vec<Vec<u8>>;

struct Resolver<'a> {
    root: OwnedFd,
    layer: &'a Path,
    lower: Merged,
    format: WhiteoutFormat,
    /// Where the layer's links into lower layers belong. Not all are there yet, but nothing else may take their place.
    links: HashSet<Components>,
    /// Folders that the tar did not name, where they are now.
    unnamed: BTreeSet<Components>,
    /// Folders whose content was moved: from, to.
    moved: Vec<(Components, Components)>,
    /// Lower inodes that were copied up, and where to.
    copies: HashMap<(u64, u64), Components>,
    /// Folders of the layer that are being changed, with what they get back at the end: their times and default ACLs.
    touched: Vec<(Components, Attributes)>,
    /// What is kept beside the layer, and beside those beneath it.
    kept: Kept,
    kept_beneath: Vec<Kept>,
}

/// Where a folder's content waits while it is moved; no layer has such a name.
const ASIDE: &CStr = c".wh..wh.aside";

fn not_moved(error: Errno) -> Error {
    Error::system("cannot move what a symlink of a lower layer leads to", error)
}

/// Where a path is after a folder's content was moved.
fn moved(path: Components, from: &[Vec<u8>], to: &[Vec<u8>]) -> Components {
    match path.strip_prefix(from) {
        Some(rest) => [to, rest].concat(),
        None => path,
    }
}

fn owned(path: &[u8]) -> Result<Components> {
    Ok(components(path)?.into_iter().map(<[u8]>::to_vec).collect())
}

impl Resolver<'_> {
    /// Where a path of the layer is now.
    fn current(&self, path: Components) -> Components {
        self.moved.iter().fold(path, |path, (from, to)| moved(path, from, to))
    }

    /// Open a folder of the layer; None when it is not there or no folder.
    fn open(&self, path: &[Vec<u8>]) -> Result<Option<OwnedFd>> {
        let mut current: Option<OwnedFd> = None;
        for name in path {
            let parent = current.as_ref().unwrap_or(&self.root);
            match open_child(parent.as_fd(), &c_name(name)?) {
                Ok(folder) => current = Some(folder),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(Error::system(format!("cannot open folder '{}'", show(name)), error)),
            }
        }
        match current {
            Some(folder) => Ok(Some(folder)),
            None => {
                self.root.try_clone().map(Some).map_err(|error| Error::system("cannot open the layer folder", error))
            }
        }
    }

    fn stat(folder: &OwnedFd, name: &CString) -> Result<Option<Stat>> {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::system(format!("cannot read '{}'", show(name.to_bytes())), error)),
        }
    }

    /// Remember a folder's times before something changes in it; let what is made in it inherit nothing.
    fn touch(&mut self, path: &[Vec<u8>], folder: &OwnedFd) -> Result<()> {
        if self.touched.iter().all(|(known, _)| known != path) {
            let stat = rustix::fs::fstat(folder).map_err(|error| Error::system("cannot read a folder", error))?;
            let acl = take_default_acl(&Target::Descriptor(folder.as_fd()))?;
            self.touched.push((path.to_vec(), Attributes::read(&stat, acl)));
        }
        Ok(())
    }

    fn restore_touched(&mut self) -> Result<()> {
        for (path, attributes) in std::mem::take(&mut self.touched) {
            let Some(folder) = self.open(&path)? else { continue };
            set_xattrs(&Target::Descriptor(folder.as_fd()), &attributes.xattrs, &mut |_| {})?;
            set_times(folder.as_fd(), attributes.atime, attributes.mtime)?;
        }
        Ok(())
    }

    /// Move what lies in unnamed folders that are symlinks below.
    fn relocate(&mut self, folders: &[Vec<u8>]) -> Result<()> {
        for folder in folders {
            let path = self.current(owned(folder)?);
            let joined = join(&path);
            let is_symlink =
                self.lower.lookup(&joined, Follow::Never)?.is_some_and(|found| found.file_type() == FileType::Symlink);
            if !is_symlink || !self.unnamed.contains(&path) {
                continue;
            }
            let target = self.lower.canonical(&joined)?;
            if let Some(found) = self.lower.lookup(&join(&target), Follow::Never)?
                && found.file_type() != FileType::Directory
            {
                return Err(Error::invalid(format!("'{}' leads to a file of a lower layer", show(&joined))));
            }
            self.move_folder(&path, &target)?;
            self.unnamed.remove(&path);
            self.unnamed = self.unnamed.iter().map(|folder| moved(folder.clone(), &path, &target)).collect();
            self.moved.push((path, target));
        }
        Ok(())
    }

    fn move_folder(&mut self, from: &[Vec<u8>], to: &[Vec<u8>]) -> Result<()> {
        let Some((name, parents)) = from.split_last() else { return Ok(()) };
        let (Some(root), Some(parent), Some(source)) = (self.open(&[])?, self.open(parents)?, self.open(from)?) else {
            // It was moved before, and the folders in it were completed.
            self.unnamed.retain(|folder| !folder.starts_with(to) && !folder.starts_with(from));
            return Ok(());
        };
        self.touch(parents, &parent)?;
        self.touch(&[], &root)?;
        // Out of the way first: what is in it may belong where it stands itself.
        rustix::fs::renameat(&parent, &c_name(name)?, &root, ASIDE).map_err(not_moved)?;
        let Some(target) = self.ensure(to)? else {
            return Err(Error::invalid(format!(
                "'{}' belongs into '{}', which is not a folder in this layer",
                show(&join(from)),
                show(&join(to))
            )));
        };
        self.touch(to, &target)?;
        self.merge(&source, from, &target, to)?;
        tree::remove_at(&root, ASIDE, self.layer, &mut || Ok(()))
    }

    /// Move all names of one folder into another. What stands there under its own name stays.
    fn merge(&mut self, source: &OwnedFd, from: &[Vec<u8>], target: &OwnedFd, to: &[Vec<u8>]) -> Result<()> {
        if is_opaque(source.as_fd(), self.format) {
            whiteout::set_opaque(target.as_fd(), self.format)?;
        }
        for name in tree::names(source).map_err(not_moved)? {
            let Some(new) = Self::stat(source, &name)? else { continue };
            let inside = |folder: &[Vec<u8>]| [folder, &[name.to_bytes().to_vec()]].concat();
            let path = inside(to);
            if self.links.contains(&path) {
                continue;
            }
            let Some(old) = Self::stat(target, &name)? else {
                rustix::fs::renameat(source, &name, target, &name).map_err(not_moved)?;
                continue;
            };
            let is_folder = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_whiteout(target.as_fd(), &name, &old, self.format) {
                rustix::fs::unlinkat(target, &name, AtFlags::empty()).map_err(not_moved)?;
                rustix::fs::renameat(source, &name, target, &name).map_err(not_moved)?;
                if is_folder(&new) {
                    let folder = open_child(target.as_fd(), &name).map_err(not_moved)?;
                    whiteout::set_opaque(folder.as_fd(), self.format)?;
                }
            } else if is_folder(&old) && (is_folder(&new) || is_whiteout(source.as_fd(), &name, &new, self.format)) {
                let inner = open_child(target.as_fd(), &name).map_err(not_moved)?;
                if !is_folder(&new) {
                    whiteout::set_opaque(inner.as_fd(), self.format)?;
                    continue;
                }
                let moving = open_child(source.as_fd(), &name).map_err(not_moved)?;
                self.touch(&path, &inner)?;
                // One folder under two names: what the tar says of either holds. (A folder that an opaque one hides waits for
                // nothing, named or not.)
                let said = |folder: &OwnedFd, stat: &Stat| -> Result<Attributes> {
                    Ok(Attributes::read(stat, read_xattrs(&Target::Descriptor(folder.as_fd()))?))
                };
                let nothing = |said: Attributes| Attributes { atime: said.mtime, ..said } == unnamed_folder();
                if !self.unnamed.remove(&inside(from)) && (self.unnamed.remove(&path) || nothing(said(&inner, &old)?)) {
                    let attributes = said(&moving, &new)?;
                    set_attributes_at(target.as_fd(), &name, &attributes, &mut |_| {})?;
                    self.touched.retain(|(known, _)| *known != path);
                    self.touch(&path, &inner)?;
                }
                self.merge(&moving, &inside(from), &inner, &path)?;
            }
        }
        Ok(())
    }

    /// Open a folder of the layer, making it and its parents with the lower layers' attributes where they are missing.
    ///
    /// None where this layer hides what lies beneath: a whiteout, a file or link, or an opaque folder on the way.
    fn ensure(&mut self, path: &[Vec<u8>]) -> Result<Option<OwnedFd>> {
        let mut current = self.open(&[])?;
        for (index, name) in path.iter().enumerate() {
            let Some(parent) = current else { return Ok(None) };
            let c_name = c_name(name)?;
            let here = &path[..=index];
            if self.links.contains(here) {
                return Ok(None);
            }
            if Self::stat(&parent, &c_name)?.is_none() {
                if index > 0 && is_opaque(parent.as_fd(), self.format) {
                    return Ok(None);
                }
                self.touch(&path[..index], &parent)?;
                rustix::fs::mkdirat(&parent, &c_name, Mode::RWXU)
                    .map_err(|error| Error::system(format!("cannot make folder '{}'", show(name)), error))?;
                let attributes = match self.lower.lookup(&join(here), Follow::Never)? {
                    Some(found) if found.file_type() == FileType::Directory => attributes_of(&found)?,
                    _ => unnamed_folder(),
                };
                set_attributes_at(parent.as_fd(), &c_name, &attributes, &mut |_| {})?;
            }
            current = match open_child(parent.as_fd(), &c_name) {
                Ok(folder) => Some(folder),
                Err(Errno::NOTDIR | Errno::LOOP) => None,
                Err(error) => return Err(Error::system(format!("cannot open folder '{}'", show(name)), error)),
            };
        }
        Ok(current)
    }

    fn link(&mut self, link: &DeferredLink) -> Result<()> {
        let path = self.current(owned(&link.path)?);
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let name = c_name(name)?;
        let Some(folder) = self.open(parents)? else {
            return Err(Error::invalid("its folder is gone"));
        };
        if Self::stat(&folder, &name)?.is_some() {
            return Ok(());
        }
        self.touch(parents, &folder)?;
        let beneath = self.lower.lookup(&link.target, Follow::Parents)?;
        // The archive named the target after the link, or either by way of a symlink that only the lower layers have; or it put a
        // folder in the place of one.
        let as_named = owned(&link.target).map(|path| self.current(path)).unwrap_or_default();
        for target in [as_named, self.canonical(&link.target)?] {
            let by_symlink = join(&target) != link.target || self.moved.iter().any(|(_, to)| target.starts_with(to));
            if (beneath.is_none() || by_symlink) && self.holds(&target)? {
                return self.link_to(&target, &folder, &name);
            }
        }
        let Some(found) = beneath else {
            if self.link_device(&path, &self.canonical(&link.target)?)? {
                return Ok(());
            }
            return Err(Error::invalid(format!("its target '{}' is in no layer", show(&link.target)))
                .hint("The image is damaged, or its layers are in the wrong order."));
        };
        if found.file_type() == FileType::Directory {
            return Err(Error::invalid(format!("its target '{}' is a folder", show(&link.target))));
        }
        let inode = (found.stat.st_dev, found.stat.st_ino);
        if let Some(copy) = self.copies.get(&inode) {
            return self.link_to(copy, &folder, &name);
        }
        // Under the target's own name, unless this layer has something else, or nothing, to be seen there.
        if let Some((target_name, target_parents)) = found.path.split_last()
            && let Some(target_folder) = self.ensure(target_parents)?
        {
            let target_name = c_name(target_name)?;
            let hidden = self.links.contains(&found.path)
                || !target_parents.is_empty() && is_opaque(target_folder.as_fd(), self.format);
            if !hidden && Self::stat(&target_folder, &target_name)?.is_none() {
                self.touch(target_parents, &target_folder)?;
                self.copy(&found, &target_folder, &target_name)?;
                self.keep(&found.path, &join(&found.path));
                self.kept.link(&join(&path), &join(&found.path));
                self.copies.insert(inode, found.path.clone());
                return self.link_to(&found.path, &folder, &name);
            }
        }
        self.copy(&found, &folder, &name)?;
        self.keep(&path, &join(&found.path));
        self.copies.insert(inode, path);
        Ok(())
    }

    /// As [`Self::link`], to a device that is kept beside a layer. False where there is none.
    fn link_device(&mut self, path: &[Vec<u8>], target: &[Vec<u8>]) -> Result<bool> {
        if self.kept.link(&join(path), &join(target)) {
            return Ok(true);
        }
        if !self.keep(path, &join(target)) {
            return Ok(false);
        }
        if let Some((name, parents)) = target.split_last()
            && let Some(folder) = self.ensure(parents)?
        {
            let hidden = self.links.contains(target) || !parents.is_empty() && is_opaque(folder.as_fd(), self.format);
            if !hidden && Self::stat(&folder, &c_name(name)?)?.is_none() {
                self.kept.link(&join(target), &join(path));
            }
        }
        Ok(true)
    }

    /// Keep for a name what is kept beneath for another one. False where nothing is.
    fn keep(&mut self, path: &[Vec<u8>], target: &[u8]) -> bool {
        let path = join(path);
        self.kept_beneath.iter().any(|beneath| self.kept.adopt(path.clone(), beneath, target))
    }

    fn copy(&self, found: &super::Found, folder: &OwnedFd, name: &CString) -> Result<()> {
        copy_up(found, Name { folder: folder.as_fd(), name }).inspect_err(|_| {
            // Half a copy must not pass for a whole one when this is tried again.
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        })
    }

    /// Link to a name of this layer.
    fn link_to(&self, target: &[Vec<u8>], folder: &OwnedFd, name: &CString) -> Result<()> {
        let gone = || Error::invalid("its target is gone");
        let (target_name, target_parents) = target.split_last().ok_or_else(gone)?;
        let target_folder = self.open(target_parents)?.ok_or_else(gone)?;
        rustix::fs::linkat(&target_folder, c_name(target_name)?, folder, name, AtFlags::empty())
            .map_err(|error| Error::system(format!("cannot link to '{}'", show(&join(target))), error))
    }

    /// Where the path of a link's target leads to when the lower layers' symlinks are followed. Empty if it goes up: by way
    /// of what is not there, nothing does.
    fn canonical(&self, path: &[u8]) -> Result<Components> {
        let Ok(parts) = components(path) else { return Ok(Components::new()) };
        let Some((name, parents)) = parts.split_last() else { return Ok(Components::new()) };
        let mut canonical = self.lower.canonical(&join(parents))?;
        canonical.push(name.to_vec());
        Ok(canonical)
    }

    /// Whether this layer has something at a path that can be linked to.
    fn holds(&self, path: &[Vec<u8>]) -> Result<bool> {
        let Some((name, parents)) = path.split_last() else { return Ok(false) };
        let Some(folder) = self.open(parents)? else { return Ok(false) };
        let name = c_name(name)?;
        Ok(Self::stat(&folder, &name)?.is_some_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) != FileType::Directory
                && !is_whiteout(folder.as_fd(), &name, &stat, self.format)
        }))
    }

    /// Give an unnamed folder the attributes of the nearest lower one.
    fn adopt(&self, path: &[Vec<u8>]) -> Result<()> {
        let Some(found) = self.lower.lookup(&join(path), Follow::Never)? else { return Ok(()) };
        if found.file_type() != FileType::Directory {
            return Ok(());
        }
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let Some(parent) = self.open(parents)? else { return Ok(()) };
        let name = c_name(name)?;
        if Self::stat(&parent, &name)?.is_none() {
            return Ok(());
        }
        set_attributes_at(parent.as_fd(), &name, &attributes_of(&found)?, &mut |_| {})
    }

    /// Give the root the attributes of the lower root; true when they are not those that it has.
    fn adopt_root(&self) -> Result<bool> {
        let Some(lower) = self.lower.root() else { return Ok(false) };
        let failed = |error| Error::system("cannot read the root of the lower layer", error);
        let stat = rustix::fs::fstat(lower).map_err(failed)?;
        let attributes = Attributes::read(&stat, read_xattrs(&Target::Descriptor(lower.as_fd()))?);
        set_attributes(self.root.as_fd(), &attributes, &mut |_| {})?;
        Ok(Attributes { atime: Timestamp::default(), ..attributes } != unnamed_folder())
    }
}
