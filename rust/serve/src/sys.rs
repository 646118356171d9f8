//! The only module with unsafe code: a socket option and a flag of reading that neither std nor tokio have.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Give the supplementary groups that the peer of a Unix socket had when it connected (unix(7), `SO_PEERGROUPS`).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut size = libc::socklen_t::try_from(groups.len() * size_of::<u32>()).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the kernel writes at most `size` bytes to the vector, which has as many, and the new size to `size`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        let count = size as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: there are more, and `size` says how many.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Read what the page cache has of a file from `offset`, without waiting for a disk (readv(2), `RWF_NOWAIT`); give how many bytes
/// that are. 0 also where the file system cannot say.
pub fn read_cached(file: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> usize {
    let Ok(offset) = libc::off_t::try_from(offset) else { return 0 };
    let part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: the kernel writes at most `iov_len` bytes to the slice, which has as many and is borrowed meanwhile.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_just_written_is_read_and_what_is_no_file_gives_nothing() {
        let path = std::env::temp_dir().join(format!("lamella-serve-cached-{}", std::process::id()));
        std::fs::write(&path, b"0123456789").unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut into = [0; 4];
        let count = read_cached(file.as_fd(), &mut into, 3);
        assert_eq!(&into[..count], &b"3456"[..count]); // none where the file system does not know
        assert_eq!(read_cached(file.as_fd(), &mut into, 10), 0);
        assert_eq!(read_cached(file.as_fd(), &mut into, u64::MAX), 0);
        assert_eq!(read_cached(UnixStream::pair().unwrap().0.as_fd(), &mut into, 0), 0);
    }
}
