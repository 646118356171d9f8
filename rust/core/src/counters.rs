//! Counters that all processes of a machine add to: a file of 64-bit cells that each of them maps.
//!
//! There is no daemon that could add up what thousands of short-lived processes did, and a file that each of them would
//! have to lock and rewrite costs more than what is counted. Adding to a mapped cell is one atomic instruction, and what
//! was added stays when the process is killed in the next one.
//!
//! The file has no header: who opens it knows how many cells there are, since its name says which layout it has. It is
//! made by whoever finds it too short, under its flock, by writing zeros: a hole that a full disk cannot fill would
//! take a process down at its first addition. Cells only grow; they wrap at 2^64.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::sys::SharedCells;

/// How often, and how long, whoever finds another making the file waits for it. Making it takes microseconds.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// Counters by index.
#[derive(Debug)]
pub struct Counters(Cells);

#[derive(Debug)]
enum Cells {
    Shared(SharedCells),
    Own(Box<[AtomicU64]>),
}

impl Counters {
    /// Counters of this process alone.
    #[must_use]
    pub fn own(count: usize) -> Self {
        Self(Cells::Own((0..count).map(|_| AtomicU64::new(0)).collect()))
    }

    /// The counters in the file at `path`, which is made if it is not there (its folder is not).
    ///
    /// A file that another user owns, or that has more cells, is refused.
    pub fn open(path: &Path, count: usize) -> Result<Self> {
        let failed = |error: Errno| Error::system(format!("cannot keep counters in {}", path.display()), error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let refused = |why: &str| {
            Error::new(Kind::FailedPrecondition, format!("cannot keep counters in {}: {why}", path.display()))
                .hint("Remove it; it is made anew.")
        };
        let status = rustix::fs::fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(refused("it is no file"));
        }
        if status.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused("it belongs to another user"));
        }
        let length = (count * size_of::<AtomicU64>()) as u64;
        if length_of(&file).map_err(failed)? < length {
            fill(&file, length).map_err(failed)?;
        }
        if length_of(&file).map_err(failed)? != length {
            return Err(refused("it has another length"));
        }
        SharedCells::map(file.as_fd(), count).map(|cells| Self(Cells::Shared(cells))).map_err(failed)
    }

    /// Whether other processes see what is added.
    #[must_use]
    pub fn shared(&self) -> bool {
        matches!(self.0, Cells::Shared(_))
    }

    /// Add to a counter. False when there is none of that index.
    pub fn add(&self, index: usize, amount: u64) -> bool {
        self.cells().get(index).map(|cell| cell.fetch_add(amount, Ordering::Relaxed)).is_some()
    }

    /// All values. What is added meanwhile may be in some of them and not in others.
    #[must_use]
    pub fn read(&self) -> Vec<u64> {
        self.cells().iter().map(|cell| cell.load(Ordering::Relaxed)).collect()
    }

    fn cells(&self) -> &[AtomicU64] {
        match &self.0 {
            Cells::Shared(cells) => cells.cells(),
            Cells::Own(cells) => cells,
        }
    }
}

fn length_of(file: &OwnedFd) -> std::result::Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or_default())
}

/// Write zeros up to `length`; the lock keeps others from doing the same, and ends with the descriptor.
fn fill(file: &OwnedFd, length: u64) -> std::result::Result<(), Errno> {
    let mut tries = 0;
    while let Err(error) = rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        tries += 1;
        if tries == TRIES {
            return Err(error);
        }
        std::thread::sleep(PAUSE);
    }
    let zeros = [0u8; 4096];
    loop {
        let there = length_of(file)?;
        let missing = usize::try_from(length.saturating_sub(there)).unwrap_or(usize::MAX).min(zeros.len());
        if missing == 0 {
            return rustix::fs::flock(file, FlockOperation::Unlock);
        }
        if rustix::io::pwrite(file, &zeros[..missing], there)? == 0 {
            return Err(Errno::NOSPC);
        }
    }
}
