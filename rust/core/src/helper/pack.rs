//! Packing what a helper reads: it writes the archive to a pipe, and this side compresses it.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use super::calls::{Pack, Reply, Request};
use super::client::{Helper, is_needed};
use super::connection::ended;
use crate::blob::{Blob, Form};
use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::layer::diff::{self, Changes};
use crate::tar::Timestamp;
use crate::tree::Check;

const PIECE: usize = 256 * 1024;

/// [`diff::pack`], in the place where the tree may be read.
pub fn pack(
    changes: &Changes,
    target: &Path,
    form: Form,
    latest: Option<Timestamp>,
    program: &[u8],
    check: Check<'_>,
) -> Result<Blob> {
    if !is_needed() {
        return diff::pack(changes, target, form, latest, check);
    }
    let helper = Helper::of_this_process(program, check)?;
    Blob::write(target, form, Algorithm::Sha256, |out| {
        let failed = |error| Error::system("cannot read the archive from the helper", error);
        let (mut reader, writer) = std::io::pipe().map_err(failed)?;
        // A larger pipe takes fewer turns between the two.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIECE);
        let request = Request::Pack(Pack { changes: changes.clone(), latest });
        let mut connection = helper.open(&request, &[writer.as_fd()], check)?;
        drop(writer);
        let mut buffer = vec![0; PIECE];
        loop {
            connection.until_readable(&reader, check)?;
            match reader.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => {
                    check()?;
                    let written = out.write_all(&buffer[..count]);
                    written.map_err(|error| Error::system(format!("cannot write {}", target.display()), error))?;
                }
            }
        }
        match connection.hear(check)? {
            Some(Reply::Answer(answer)) => answer,
            _ => Err(ended()),
        }
    })
}
