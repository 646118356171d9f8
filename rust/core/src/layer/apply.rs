//! Applies entries to a layer folder.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use super::WhiteoutFormat;
use super::attributes::{
    Attributes, KEPT, Target, is_own_xattr, mode_bits, set_attributes, set_owner_at, set_times_at, set_xattrs,
};
use super::folders::{Folders, open_layer};
use super::kept::Kept;
use super::made::{ChildKind, FolderId, Made};
use super::name::{MAX_DEPTH, c_name, components, join};
use super::walk::Place;
use super::whiteout::{self, Meaning};
use crate::error::{Error, Kind, Result, show};
use crate::sys;
use crate::tar::{Device, Entry, EntryKind, is_zero};
use crate::tree::{self, Usage};

const MAX_NOTES: usize = 100;
/// Zeros that fill a block of this size are not written: they become a hole. A layer is never written to in place, so that nobody
/// needs the space, and 4 GiB of zeros, which gzip makes 4 MB of, take none. Smaller holes would tear programs, which have many pages
/// of zeros, into pieces.
const HOLE: u64 = 64 * 1024;

/// Makes a layer folder out of entries. Lives in the thread that made it.
///
/// After an error the folder is half done and must be thrown away.
#[derive(Debug)]
pub struct Applier {
    pub(super) format: WhiteoutFormat,
    pub(super) made: Made<Attributes>,
    pub(super) folders: Folders,
    pub(super) path: PathBuf,
    pub(super) usage: Usage,
    /// Something was removed or was there before, so that the running count is not the folder's usage.
    pub(super) recount: bool,
    pub(super) deferred_links: bool,
    pub(super) whiteouts: Vec<(FolderId, Box<[u8]>)>,
    pub(super) notes: Vec<String>,
    pub(super) kept: Kept,
    file: Option<OpenFile>,
}

/// The regular file that is being written.
#[derive(Debug)]
struct OpenFile {
    handle: File,
    attributes: Attributes,
    size: u64,
    sparse: bool,
    /// Where the content that came ends.
    end: u64,
    /// Where the content that was written ends.
    written: u64,
}

impl Applier {
    /// Apply to a folder, which must be empty unless the format is plain.
    pub fn new(path: &Path, format: WhiteoutFormat) -> Result<Self> {
        let failed = |error| Error::system(format!("cannot open the layer folder {}", path.display()), error);
        let root = open_layer(path)?;
        if format != WhiteoutFormat::Plain && !tree::names(&root).map_err(failed)?.is_empty() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("the layer folder {} is not empty", path.display()),
            ));
        }
        // With a umask of zero files get their mode as they are made. Where that is refused, they are corrected.
        let _ = sys::own_zero_umask();
        let mut applier = Self {
            format,
            made: Made::new(),
            folders: Folders::new(root),
            path: path.to_owned(),
            usage: Usage::default(),
            recount: format == WhiteoutFormat::Plain,
            deferred_links: false,
            whiteouts: Vec::new(),
            notes: Vec::new(),
            kept: Kept::default(),
            file: None,
        };
        if format == WhiteoutFormat::Plain {
            applier.remember_root()?;
        }
        Ok(applier)
    }

    /// Apply to a folder that holds a copy of the lower layers, of which this is kept.
    #[must_use]
    pub fn on(mut self, beneath: Kept) -> Self {
        self.kept = beneath;
        self
    }

    /// Start an entry. True when its content is wanted: `data` then takes the pieces, `end` completes it.
    pub fn begin(&mut self, entry: &Entry) -> Result<bool> {
        let parts = components(&entry.path)?;
        match whiteout::meaning(&parts)? {
            Meaning::Metadata => {
                self.note(format!("'{}' is book-keeping of aufs and was left out", show(&entry.path)));
                return Ok(false);
            }
            Meaning::Opaque => {
                let folder = self.make_parents(&parts[..parts.len() - 1])?;
                self.hide_lower(folder)?;
                return Ok(false);
            }
            Meaning::Delete(name) => {
                let folder = self.make_parents(&parts[..parts.len() - 1])?;
                self.delete(folder, name)?;
                return Ok(false);
            }
            Meaning::Entry => {}
        }
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(Error::invalid("the root of the layer is not a folder"));
            }
            self.forget_attributes(FolderId::ROOT)?;
            let attributes = Some(self.attributes_of(entry));
            self.made.folder_mut(FolderId::ROOT).attributes = attributes;
            return Ok(false);
        };
        let parent = self.make_parents(parents)?;
        match &entry.kind {
            EntryKind::Directory => self.folder(parent, name, entry)?,
            EntryKind::HardLink(target) => self.hard_link(parent, name, target)?,
            EntryKind::File => {
                self.file(parent, name, entry)?;
                return Ok(true);
            }
            EntryKind::Symlink(target) => self.symlink(parent, name, target, entry)?,
            EntryKind::Character(device) => self.node(parent, name, FileType::CharacterDevice, Some(*device), entry)?,
            EntryKind::Block(device) => self.node(parent, name, FileType::BlockDevice, Some(*device), entry)?,
            EntryKind::Fifo => self.node(parent, name, FileType::Fifo, None, entry)?,
        }
        Ok(false)
    }

    /// Write a piece of the present file.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.end = file.end.max(offset + bytes.len() as u64);
        let (mut start, mut end) = (0, 0);
        while end < bytes.len() {
            let block = HOLE - (offset + end as u64) % HOLE;
            let next = bytes.len().min(end + usize::try_from(block).unwrap_or(usize::MAX));
            if is_zero(&bytes[end..next]) {
                file.write(offset + start as u64, &bytes[start..end])?;
                start = next;
            }
            end = next;
        }
        file.write(offset + start as u64, &bytes[start..])
    }

    /// Complete the present entry.
    pub fn end(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        if file.end < file.size && !file.sparse {
            return Err(Error::data_loss("the content is shorter than the header says"));
        }
        if file.written < file.size {
            rustix::fs::ftruncate(&file.handle, file.size)
                .map_err(|error| Error::system("cannot set the size", error))?;
        }
        self.complete(file.handle.as_fd(), &file.attributes)
    }

    /// Set what differs on an inode that was written, and count it.
    pub(super) fn complete(&mut self, inode: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
        let notes = &mut self.notes;
        let stat = set_attributes(inode, attributes, &mut |text| push_note(notes, text))?;
        self.count(tree::allocated(&stat));
        Ok(())
    }

    /// What an entry says of its inode. Attributes of overlayfs would rewire the mount, lamella's say who a file belongs to.
    fn attributes_of(&mut self, entry: &Entry) -> Attributes {
        let mut attributes = Attributes::of(entry);
        attributes.xattrs.retain(|(name, _)| {
            let whose = match () {
                () if whiteout::is_overlay_xattr(name) => "overlayfs",
                () if is_own_xattr(name) => "lamella",
                () => return true,
            };
            self.note(format!("the attribute {} belongs to {whose} and was left out", show(name)));
            false
        });
        attributes
    }

    fn count(&mut self, bytes: u64) {
        self.usage.bytes += bytes;
        self.usage.inodes += 1;
    }

    fn note(&mut self, text: String) {
        push_note(&mut self.notes, text);
    }

    fn folder(&mut self, parent: FolderId, name: &[u8], entry: &Entry) -> Result<()> {
        let attributes = Some(self.attributes_of(entry));
        if let Some(ChildKind::Folder(id)) = self.child(parent, name)? {
            self.forget_attributes(id)?;
            self.made.folder_mut(id).attributes = attributes;
            self.mark_made(parent, name);
            return Ok(());
        }
        let id = self.make_folder(parent, name)?;
        self.made.folder_mut(id).attributes = attributes;
        Ok(())
    }

    /// Make a folder in the place of whatever is not one.
    pub(super) fn make_folder(&mut self, parent: FolderId, name: &[u8]) -> Result<FolderId> {
        if self.made.folder(parent).depth >= MAX_DEPTH {
            return Err(Error::new(Kind::ResourceExhausted, format!("more than {MAX_DEPTH} folders deep")));
        }
        let failure = format!("cannot make folder '{}'", show(name));
        let ((), replaced) = self.create(parent, name, &failure, |folder, name| {
            rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))
        })?;
        let id = self.made.insert_folder(parent, name, true)?;
        if replaced {
            // What stood here in this layer (a whiteout, a file) had hidden the lower layers' folder.
            let folder = self.made.folder_mut(id);
            folder.opaque = true;
            folder.fresh = true;
        }
        Ok(id)
    }

    fn file(&mut self, parent: FolderId, name: &[u8], entry: &Entry) -> Result<()> {
        // Attributes may need a writable mode; set-id bits come when the content is complete.
        let attributes = self.attributes_of(entry);
        let mode = if attributes.xattrs.is_empty() { entry.mode & 0o777 } else { 0o600 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (made, _) = self.create(parent, name, "cannot make the file", |folder, name| {
            rustix::fs::openat(folder, name, flags, mode_bits(mode))
        })?;
        self.remember(parent, name, ChildKind::Other);
        self.file = Some(OpenFile {
            handle: made.into(),
            attributes,
            size: entry.size,
            sparse: entry.sparse,
            end: 0,
            written: 0,
        });
        Ok(())
    }

    fn symlink(&mut self, parent: FolderId, name: &[u8], target: &[u8], entry: &Entry) -> Result<()> {
        let c_target = CString::new(target).map_err(|_| Error::invalid("the symlink's target holds a NUL"))?;
        self.create(parent, name, "cannot make the symlink", |folder, name| {
            rustix::fs::symlinkat(&c_target, folder, name)
        })?;
        self.remember(parent, name, ChildKind::Symlink(target.into()));
        let folder = self.folders.get(&self.made, parent)?;
        let attributes = self.attributes_of(entry);
        let owned = self.complete_at(folder.as_fd(), &c_name(name)?, &attributes)?;
        if !owned {
            self.keep(parent, name, entry, attributes);
        }
        Ok(())
    }

    fn node(
        &mut self,
        parent: FolderId,
        name: &[u8],
        kind: FileType,
        device: Option<Device>,
        entry: &Entry,
    ) -> Result<()> {
        if kind == FileType::CharacterDevice
            && device == Some(Device { major: 0, minor: 0 })
            && self.format != WhiteoutFormat::Plain
        {
            return Err(Error::new(Kind::Unsupported, "a character device 0:0 is overlayfs's own whiteout"));
        }
        let number = device.map_or(0, |device| makedev(device.major, device.minor));
        let (made, _) =
            self.create(parent, name, "cannot make the device", |folder, name| {
                match rustix::fs::mknodat(folder, name, kind, mode_bits(entry.mode & 0o777), number) {
                    Err(Errno::PERM) if kind != FileType::Fifo && in_user_namespace() => Ok(false),
                    result => result.map(|()| true),
                }
            })?;
        if !made {
            self.note("devices cannot be made in a user namespace; they are kept beside the layer".to_owned());
            let attributes = self.attributes_of(entry);
            self.keep(parent, name, entry, attributes);
            return Ok(());
        }
        self.remember(parent, name, ChildKind::Other);
        let folder = self.folders.get(&self.made, parent)?;
        let c_name = c_name(name)?;
        let attributes = self.attributes_of(entry);
        let owned = self.complete_at(folder.as_fd(), &c_name, &attributes)?;
        if !owned {
            self.keep(parent, name, entry, attributes.clone());
        }
        // Through a handle of the very inode: fchmodat follows symlinks.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inode = rustix::fs::openat(&folder, &c_name, flags, Mode::empty());
        inode
            .and_then(|inode| rustix::fs::chmod(sys::descriptor_path(inode.as_fd()), mode_bits(attributes.mode)))
            .map_err(|error| Error::system("cannot set the mode", error))
    }

    fn keep(&mut self, parent: FolderId, name: &[u8], entry: &Entry, attributes: Attributes) {
        let path = self.path_of(parent, name);
        let kept = Entry { size: 0, ..attributes.entry(path.clone(), entry.kind.clone()) };
        self.kept.keep(path, kept);
    }

    /// Whatever was kept of a name is replaced.
    fn forget(&mut self, parent: FolderId, name: &[u8]) {
        if !self.kept.is_empty() {
            let path = self.path_of(parent, name);
            self.kept.forget(&path);
        }
    }

    pub(super) fn path_of(&self, parent: FolderId, name: &[u8]) -> Vec<u8> {
        let mut path = self.made.path(parent);
        path.push(name);
        join(&path)
    }

    /// [`Self::complete`] for what cannot be opened. False where it has another owner now than it should.
    fn complete_at(&mut self, folder: BorrowedFd<'_>, name: &CString, attributes: &Attributes) -> Result<bool> {
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::system("cannot read attributes", error))?;
        let owned = (stat.st_uid, stat.st_gid) == (attributes.uid, attributes.gid)
            || set_owner_at(folder, name, attributes.uid, attributes.gid)?;
        if !owned {
            self.note(KEPT.to_owned());
        }
        if !attributes.xattrs.is_empty() {
            let notes = &mut self.notes;
            set_xattrs(&Target::Name(folder, name), &attributes.xattrs, &mut |text| push_note(notes, text))?;
        }
        set_times_at(folder, name, attributes.atime, attributes.mtime)?;
        self.count(tree::allocated(&stat));
        Ok(owned)
    }

    pub(super) fn hard_link(&mut self, parent: FolderId, name: &[u8], target: &[u8]) -> Result<()> {
        let parts = components(target)?;
        let Some((target_name, target_parents)) = parts.split_last() else {
            return Err(Error::invalid("a hard link to the root"));
        };
        // Resolve before and after: what is replaced here may be, or hold, the target.
        let same = |place: &Place| matches!(place, Place::Folder(id) if *id == parent) && *target_name == name;
        if same(&self.walk(target_parents, false)?)
            && (self.child(parent, name)?.is_some() || self.kept.device(&self.path_of(parent, name)).is_some())
        {
            return Ok(());
        }
        self.clear(parent, name)?;
        let beneath = match self.walk(target_parents, false)? {
            Place::Beneath(path) => join(&[&path[..], target_name]),
            Place::Folder(source) => match self.child(source, target_name)? {
                Some(ChildKind::Folder(id)) if self.is_settled(id) => {
                    return Err(Error::invalid(format!("a hard link to the folder '{}'", show(target))));
                }
                Some(ChildKind::DeferredLink(path)) => path.into_vec(),
                Some(kind @ (ChildKind::Symlink(_) | ChildKind::Other)) => {
                    let from = self.folders.get(&self.made, source)?;
                    let to = self.folders.get(&self.made, parent)?;
                    rustix::fs::linkat(&from, c_name(target_name)?, &to, c_name(name)?, AtFlags::empty())
                        .map_err(|error| Error::system(format!("cannot link to '{}'", show(target)), error))?;
                    self.remember(parent, name, kind);
                    self.keep_link(parent, name, source, target_name);
                    return Ok(());
                }
                None if self.keep_link(parent, name, source, target_name) => return Ok(()),
                None | Some(ChildKind::Whiteout | ChildKind::Folder(_)) => {
                    let mut path = self.made.path(source);
                    path.push(target_name);
                    join(&path)
                }
            },
        };
        self.deferred_links = true;
        self.remember(parent, name, ChildKind::DeferredLink(beneath.into()));
        Ok(())
    }

    /// Keep for a name what is kept for another one; false where there is nothing.
    fn keep_link(&mut self, parent: FolderId, name: &[u8], source: FolderId, target: &[u8]) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        let (path, target) = (self.path_of(parent, name), self.path_of(source, target));
        self.kept.link(&path, &target)
    }

    /// Whether a folder is one: what the tar only went through may be a symlink in the lower layers.
    fn is_settled(&self, id: FolderId) -> bool {
        let folder = self.made.folder(id);
        folder.attributes.is_some() || folder.fresh || self.format == WhiteoutFormat::Plain
    }

    /// A whiteout of `name`: it speaks of the lower layers only.
    fn delete(&mut self, parent: FolderId, name: &[u8]) -> Result<()> {
        if self.format == WhiteoutFormat::Plain {
            return self.delete_plain(parent, name);
        }
        match self.child(parent, name)? {
            None => {
                let folder = self.folders.get(&self.made, parent)?;
                whiteout::make(folder.as_fd(), &c_name(name)?)?;
                self.remember(parent, name, ChildKind::Whiteout);
                self.whiteouts.push((parent, name.into()));
                self.count(0);
            }
            Some(ChildKind::Folder(id)) => {
                let folder = self.made.folder_mut(id);
                folder.opaque = true;
                folder.fresh = true;
            }
            // It hides the lower layers' entry by itself.
            Some(_) => {}
        }
        Ok(())
    }

    /// An opaque marker in a folder: it speaks of the lower layers only, wherever it stands.
    fn hide_lower(&mut self, folder: FolderId) -> Result<()> {
        if self.format == WhiteoutFormat::Plain {
            return self.prune(folder);
        }
        self.made.folder_mut(folder).opaque = true;
        Ok(())
    }

    /// Make something at a name, in the place of what stands there. Says also what [`Self::clear`] does.
    ///
    /// Almost every name is new, so that it is made first; only where the kernel says that something is there is that looked at.
    fn create<T>(
        &mut self,
        parent: FolderId,
        name: &[u8],
        failure: &str,
        make: impl Fn(BorrowedFd<'_>, &CStr) -> std::result::Result<T, Errno>,
    ) -> Result<(T, bool)> {
        let c_name = c_name(name)?;
        self.forget(parent, name);
        let mut replaced = self.made.child(parent, name).is_some() && self.clear(parent, name)?;
        let mut made = make(self.folders.get(&self.made, parent)?.as_fd(), &c_name);
        if matches!(made, Err(Errno::EXIST)) {
            replaced |= self.clear(parent, name)?;
            made = make(self.folders.get(&self.made, parent)?.as_fd(), &c_name);
        }
        made.map(|made| (made, replaced)).map_err(|error| Error::system(failure, error))
    }

    /// Remove what stands at a name. True when the layer itself had put something other than a folder there.
    pub(super) fn clear(&mut self, parent: FolderId, name: &[u8]) -> Result<bool> {
        self.forget(parent, name);
        let Some(kind) = self.child(parent, name)? else { return Ok(false) };
        let folder = self.folders.get(&self.made, parent)?;
        match kind {
            ChildKind::DeferredLink(_) => {}
            _ => {
                self.recount = true;
                tree::remove_at(&folder, &c_name(name)?, &self.path, &mut || Ok(()))?;
            }
        }
        let folders = &mut self.folders;
        self.made.remove(parent, name, &mut |id| folders.close(id));
        // A folder that was put here may have been merged with a lower one until now: what takes its place hides that.
        Ok(self.format != WhiteoutFormat::Plain && !matches!(kind, ChildKind::Folder(_)))
    }
}

impl OpenFile {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.handle.write_all_at(bytes, offset).map_err(|error| Error::system("cannot write", error))?;
        self.written = self.written.max(offset + bytes.len() as u64);
        Ok(())
    }
}

pub(super) fn push_note(notes: &mut Vec<String>, text: String) {
    if notes.contains(&text) {
        return;
    }
    match notes.len() {
        length if length < MAX_NOTES => notes.push(text),
        MAX_NOTES => notes.push("further notes were left out".to_owned()),
        _ => {}
    }
}

/// Whether root here is not the machine's root, who alone may make device nodes.
fn in_user_namespace() -> bool {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => map.split_whitespace().ne(["0", "0", "4294967295"]),
        Err(_) => true,
    }
}
