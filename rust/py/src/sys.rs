//! The only module of the crate with unsafe code: bytes of a Python object, read without the GIL; descriptors by number.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// An exported buffer. While it lives, the object neither frees nor moves its memory.
pub struct Bytes {
    _export: PyBuffer<u8>,
    memory: NonNull<[u8]>,
}

// SAFETY: the memory belongs to the export, which pins it until it is dropped, in whatever thread (it takes the GIL for that);
// nothing here depends on which thread reads.
unsafe impl Send for Bytes {}
// SAFETY: as above; `copy` only reads, which several threads may do at once.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Export the buffer of an object; it must be contiguous bytes.
    pub fn get(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let export = PyBuffer::<u8>::get(object)?;
        let memory = export.as_slice_ptr().ok_or_else(|| PyBufferError::new_err("the buffer is not contiguous"))?;
        Ok(Self { _export: export, memory })
    }

    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Copy bytes from `start` on into `target`.
    ///
    /// A thread that writes to the object meanwhile garbles the bytes, as with any write of a buffer in Python; the
    /// digest then refuses them.
    pub fn copy(&self, start: usize, target: &mut [u8]) {
        assert!(start.checked_add(target.len()).is_some_and(|end| end <= self.len()));
        // SAFETY: `start` lies in the exported memory, or at its end (checked above).
        let source = unsafe { self.memory.cast::<u8>().add(start) };
        // SAFETY: so does what follows, as far as `target` is long. `target` is borrowed for writing, and so is memory that no
        // Python object exports. No reference to the exported memory is made: bytes alone are read, of which any are valid.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target.as_mut_ptr(), target.len()) };
    }
}

/// Give a descriptor of our own for what an open one of Python's is.
pub fn duplicate(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::from_raw_os_error(9)); // EBADF
    }
    // SAFETY: it is not -1, and used for this one call alone, which refuses a number that is not open.
    unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()
}
