//! Bytes of a Python object, read without the GIL.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// An exported buffer. While it lives, the object neither frees nor moves its memory.
pub struct Bytes {
    _export: PyBuffer<u8>,
    memory: NonNull<[u8]>,
}

// SAFETY: the memory belongs to the export, which pins it until it is dropped; `copy` only reads it.
unsafe impl Send for Bytes {}
// SAFETY: as above; reading from several threads at once is fine.
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
        // SAFETY: the range lies in the exported memory (checked above); `target` is Rust's own and cannot overlap it.
        unsafe {
            let source = self.memory.cast::<u8>().as_ptr().add(start);
            std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len());
        }
    }
}
