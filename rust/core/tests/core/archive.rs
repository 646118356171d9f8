//! Builds tar archives, well-formed and not, byte by byte.

/// A header to be; the fields that tests vary.
#[derive(Clone)]
pub struct Header<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub size: Option<u64>,
    pub device: (u64, u64),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            kind: b'0',
            link: b"",
            mode: 0o644,
            uid: rustix::process::geteuid().as_raw().into(),
            gid: rustix::process::getegid().as_raw().into(),
            mtime: 1_500_000_000,
            size: None,
            device: (0, 0),
        }
    }
}

/// An archive that grows.
#[derive(Clone, Default)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    /// A header block with its checksum, and content padded to whole blocks.
    pub fn entry(mut self, header: &Header<'_>, content: &[u8]) -> Self {
        self.0.extend_from_slice(&block(header, content.len() as u64));
        self.0.extend_from_slice(content);
        self.pad()
    }

    pub fn pad(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(&Header { path: path.as_bytes(), ..Header::default() }, content)
    }

    pub fn folder(self, path: &str) -> Self {
        self.folder_of_mode(path, 0o755)
    }

    pub fn folder_of_mode(self, path: &str, mode: u32) -> Self {
        self.entry(&Header { path: path.as_bytes(), kind: b'5', mode, ..Header::default() }, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        let header =
            Header { path: path.as_bytes(), kind: b'2', link: target.as_bytes(), mode: 0o777, ..Header::default() };
        self.entry(&header, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let header = Header { path: path.as_bytes(), kind: b'1', link: target.as_bytes(), ..Header::default() };
        self.entry(&header, b"")
    }

    /// A PAX header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', &pax_records(records))
    }

    pub fn extension(self, kind: u8, body: &[u8]) -> Self {
        self.entry(&Header { path: b"extension", kind, ..Header::default() }, body)
    }

    /// The two zero blocks.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}

/// Octal where it fits, base-256 where not.
fn put_number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    if text.len() <= digits {
        field[..digits].copy_from_slice(text.as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    let length = field.len();
    field[0] = 0x80;
    let from = length.saturating_sub(8).max(1);
    field[from..].copy_from_slice(&bytes[8 - (length - from)..]);
}

pub fn block(header: &Header<'_>, content: u64) -> [u8; 512] {
    let mut block = [0u8; 512];
    let path = &header.path[..header.path.len().min(100)];
    block[..path.len()].copy_from_slice(path);
    put_number(&mut block[100..108], u64::from(header.mode));
    put_number(&mut block[108..116], header.uid);
    put_number(&mut block[116..124], header.gid);
    put_number(&mut block[124..136], header.size.unwrap_or(content));
    put_number(&mut block[136..148], header.mtime);
    block[156] = header.kind;
    let link = &header.link[..header.link.len().min(100)];
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    put_number(&mut block[329..337], header.device.0);
    put_number(&mut block[337..345], header.device.1);
    seal(&mut block);
    block
}

/// Write the checksum.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
