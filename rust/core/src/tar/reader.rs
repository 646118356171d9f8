//! Turns the archive's bytes into entries and pieces of content.

use super::header::{BLOCK, Block, Header, owner};
use super::pax::Pax;
use super::sparse::{self, DataMap, PaxMap, Segment};
use super::{Entry, EntryKind, Limits, MAX_PATH, Source, is_zero};
use crate::error::{Error, Kind, Result, show};

/// Some of a file's content: bytes and where they belong.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Position in the file; what lies between pieces is a hole.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Reads entries one after another; content that is not asked for is skipped.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    limits: Limits,
    global: Pax,
    /// Bytes of the archive consumed so far.
    offset: u64,
    entries: u64,
    finished: bool,
    content: Content,
    /// Bytes handed out by `data`, consumed at the next call.
    pending: usize,
}

/// What is left of the present entry's content.
#[derive(Debug, Default)]
struct Content {
    stored: u64,
    padding: u64,
    position: u64,
    segments: Option<std::vec::IntoIter<Segment>>,
    segment_left: u64,
}

/// Extension headers that stand before an entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    count: u32,
}

impl<S: Source> Reader<S> {
    /// Read an archive from its start.
    pub fn new(source: S, limits: Limits) -> Self {
        Self {
            source,
            limits,
            global: Pax::default(),
            offset: 0,
            entries: 0,
            finished: false,
            content: Content::default(),
            pending: 0,
        }
    }

    /// Where the next bytes come from.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// The next entry. None at the end, after everything behind the end mark was read too.
    ///
    /// Two zero blocks end an archive, and so does a clean end at a block's edge, as GNU tar has it.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.finished {
            return Ok(None);
        }
        self.skip_content()?;
        let start = self.offset;
        let result = self.read_entry();
        result.map_err(|error| match error.kind {
            Kind::Cancelled => error,
            _ => error.context(format!("tar entry {} at byte {start}", self.entries + 1)),
        })
    }

    fn read_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut block: Block = [0; BLOCK];
        loop {
            if !self.read_block(&mut block)? {
                if extensions.count > 0 {
                    return Err(truncated());
                }
                self.finished = true;
                return Ok(None);
            }
            if is_zero(&block) {
                return self.read_end(&mut block, &extensions);
            }
            let header = Header::parse(&block)?;
            let kind = header.kind();
            if matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K') {
                extensions.count += 1;
                if extensions.count > self.limits.extensions {
                    return Err(Error::new(
                        Kind::ResourceExhausted,
                        format!("more than {} extension headers before one entry", self.limits.extensions),
                    ));
                }
                let body = self.read_extension(header.size()?)?;
                self.take_extension(kind, &body, &mut extensions)?;
                continue;
            }
            if kind == b'V' {
                // A volume label: no file.
                self.skip(padded(header.size()?)?)?;
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(Error::new(
                    Kind::ResourceExhausted,
                    format!("the archive has more than {} entries", self.limits.entries),
                ));
            }
            return self.build(&header, extensions).map(Some);
        }
    }

    /// A zero block was read: another one or the end must follow.
    fn read_end(&mut self, block: &mut Block, extensions: &Extensions) -> Result<Option<Entry>> {
        if extensions.count > 0 {
            return Err(truncated());
        }
        if self.read_block(block)? && !is_zero(block) {
            return Err(Error::data_loss("a single zero block stands between entries"));
        }
        self.drain()?;
        self.finished = true;
        Ok(None)
    }

    fn take_extension(&mut self, kind: u8, body: &[u8], extensions: &mut Extensions) -> Result<()> {
        match kind {
            b'g' => {
                self.global.read_global(body, &self.limits)?;
                self.global.sparse = sparse::PaxSparse::default();
            }
            b'L' => extensions.long_path = Some(terminated(body)),
            b'K' => extensions.long_link = Some(terminated(body)),
            _ => {
                let mut pax = self.global.clone();
                pax.read(body, &self.limits)?;
                extensions.pax = Some(pax);
            }
        }
        Ok(())
    }

    fn build(&mut self, header: &Header<'_>, extensions: Extensions) -> Result<Entry> {
        let pax = extensions.pax.unwrap_or_else(|| self.global.clone());
        let is_pax_sparse = pax.sparse.is_set();
        let path = (pax.sparse.name.clone()).or(pax.path).or(extensions.long_path).unwrap_or_else(|| header.path());
        let link = pax.link.or(extensions.long_link).unwrap_or_else(|| header.link().to_vec());
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(Error::invalid(format!("'{}': a name is longer than {MAX_PATH} bytes", show(&path))));
        }
        let named = |error: Error| error.context(format!("'{}'", show(&path)));
        let stored = match pax.size {
            Some(size) => size,
            None => header.size().map_err(named)?,
        };
        let kind = entry_kind(header, &path, link).map_err(named)?;
        let (uid, gid) = (pax.uid.map_or_else(|| header.uid(), Ok), pax.gid.map_or_else(|| header.gid(), Ok));
        let mut entry = Entry {
            mode: header.mode().map_err(named)?,
            uid: uid.and_then(|uid| owner(uid, "user id")).map_err(named)?,
            gid: gid.and_then(|gid| owner(gid, "group id")).map_err(named)?,
            mtime: pax.mtime.map_or_else(|| header.mtime(), Ok).map_err(named)?,
            atime: pax.atime.map_or_else(|| header.atime(), |atime| Ok(Some(atime))).map_err(named)?,
            size: 0,
            sparse: false,
            xattrs: pax.xattrs.into_iter().collect(),
            kind,
            path,
        };
        if entry.kind != EntryKind::File {
            // What other kinds state as their size has no content behind it (Go's isHeaderOnly).
            return Ok(entry);
        }
        self.content.padding = padded(stored)? - stored;
        self.content.stored = stored;
        entry.size = stored;
        let map = if header.kind() == b'S' {
            Some(self.gnu_map(header)?)
        } else if is_pax_sparse {
            self.pax_map(&pax.sparse)?
        } else {
            None
        };
        if let Some((real_size, segments)) = map {
            if i64::try_from(real_size).is_err() {
                return Err(Error::invalid("the real size of a sparse file does not fit 63 bits"));
            }
            let segments = sparse::validate(segments, real_size, self.content.stored)?;
            self.content.segments = Some(segments.into_iter());
            entry.size = real_size;
            entry.sparse = true;
        }
        if self.offset.saturating_add(self.content.stored) > self.limits.archive {
            return Err(self.too_large());
        }
        Ok(entry)
    }

    /// The old format: the map begins in the header and goes on in blocks before the data.
    fn gnu_map(&mut self, header: &Header<'_>) -> Result<(u64, Vec<Segment>)> {
        let (first, mut more, real_size) = header.gnu_sparse()?;
        let mut segments = Vec::new();
        sparse::read_gnu(first, &mut segments, self.limits.sparse_segments)?;
        let mut block: Block = [0; BLOCK];
        let mut blocks = 0;
        while more {
            blocks += 1;
            if !self.read_block(&mut block)? {
                return Err(truncated());
            }
            if blocks > self.limits.sparse_segments {
                return Err(Error::new(Kind::ResourceExhausted, "a sparse map never ends"));
            }
            sparse::read_gnu(&block[..504], &mut segments, self.limits.sparse_segments)?;
            more = block[504] != 0;
        }
        Ok((real_size, segments))
    }

    fn pax_map(&mut self, records: &sparse::PaxSparse) -> Result<Option<(u64, Vec<Segment>)>> {
        let (real_size, map) = match records.map()? {
            None => return Ok(None),
            Some((real_size, PaxMap::Here(segments))) => return Ok(Some((real_size, segments))),
            Some((real_size, map)) => (real_size, map),
        };
        debug_assert!(matches!(map, PaxMap::InData));
        let mut map = DataMap::default();
        let mut block: Block = [0; BLOCK];
        loop {
            if self.content.stored < BLOCK as u64 {
                return Err(Error::invalid("the map of a sparse file is longer than its data"));
            }
            if !self.read_block(&mut block)? {
                return Err(truncated());
            }
            self.content.stored -= BLOCK as u64;
            if map.feed(&block, self.limits.sparse_segments)? {
                return Ok(Some((real_size, map.segments())));
            }
        }
    }

    /// The next piece of the present entry's content; None at its end.
    pub fn data(&mut self) -> Result<Option<Piece<'_>>> {
        self.settle();
        let content = &mut self.content;
        if content.stored == 0 {
            return Ok(None);
        }
        let mut room = content.stored;
        if let Some(segments) = &mut content.segments {
            if content.segment_left == 0 {
                let Some(next) = segments.next() else {
                    return Err(Error::new(Kind::Internal, "a sparse map ends before its data"));
                };
                content.position = next.offset;
                content.segment_left = next.length;
            }
            room = room.min(content.segment_left);
        }
        let bytes = self.source.fill()?;
        if bytes.is_empty() {
            return Err(truncated());
        }
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let offset = content.position;
        content.position += count as u64;
        content.stored -= count as u64;
        content.segment_left = content.segment_left.saturating_sub(count as u64);
        self.pending = count;
        Ok(Some(Piece { offset, bytes: &bytes[..count] }))
    }

    fn settle(&mut self) {
        let count = std::mem::take(&mut self.pending);
        if count > 0 {
            self.source.consume(count);
            self.offset += count as u64;
        }
    }

    fn skip_content(&mut self) -> Result<()> {
        self.settle();
        let rest = self.content.stored + self.content.padding;
        self.content = Content::default();
        self.skip(rest)
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        if self.offset.saturating_add(count) > self.limits.archive {
            return Err(self.too_large());
        }
        while count > 0 {
            let available = self.source.fill()?.len();
            if available == 0 {
                return Err(truncated());
            }
            let step = available.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.source.consume(step);
            self.offset += step as u64;
            count -= step as u64;
        }
        Ok(())
    }

    /// Read to the end of the source: bytes behind the end mark belong to the archive's digest.
    fn drain(&mut self) -> Result<()> {
        loop {
            let available = self.source.fill()?.len();
            if available == 0 {
                return Ok(());
            }
            self.source.consume(available);
            self.offset += available as u64;
            if self.offset > self.limits.archive {
                return Err(self.too_large());
            }
        }
    }

    /// Fill a block; false at a clean end.
    fn read_block(&mut self, block: &mut Block) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(truncated()) };
            }
            let count = bytes.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&bytes[..count]);
            self.source.consume(count);
            self.offset += count as u64;
            filled += count;
        }
        if self.offset > self.limits.archive { Err(self.too_large()) } else { Ok(true) }
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > self.limits.extension {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("an extension header of {size} bytes (at most {} are read)", self.limits.extension),
            ));
        }
        // The cap bounds it, so that the conversion and the allocation are safe.
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let mut body = Vec::with_capacity(length);
        while body.len() < length {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return Err(truncated());
            }
            let count = bytes.len().min(length - body.len());
            body.extend_from_slice(&bytes[..count]);
            self.source.consume(count);
            self.offset += count as u64;
        }
        self.skip(padded(size)? - size)?;
        Ok(body)
    }

    fn too_large(&self) -> Error {
        Error::new(
            Kind::ResourceExhausted,
            format!("the uncompressed layer is larger than {} bytes", self.limits.archive),
        )
    }
}

fn entry_kind(header: &Header<'_>, path: &[u8], link: Vec<u8>) -> Result<EntryKind> {
    Ok(match header.kind() {
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink(link),
        b'2' => EntryKind::Symlink(link),
        b'3' => EntryKind::Character(header.device()?),
        b'4' => EntryKind::Block(header.device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => {
            return Err(Error::new(Kind::Unsupported, format!("tar entry type '{}'", show(&[other]))));
        }
    })
}

/// A GNU long name: up to its first NUL.
fn terminated(body: &[u8]) -> Vec<u8> {
    let end = body.iter().position(|byte| *byte == 0).unwrap_or(body.len());
    body[..end].to_vec()
}

/// Round up to whole blocks.
fn padded(size: u64) -> Result<u64> {
    if i64::try_from(size).is_err() {
        return Err(Error::invalid("a size does not fit 63 bits"));
    }
    Ok(size.next_multiple_of(BLOCK as u64))
}

fn truncated() -> Error {
    Error::data_loss("the archive ends too early").hint("The layer is damaged; pull it again.")
}
