//! The threads that the stages run in.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::chunk::Pool;
use super::lend::Lender;
use super::queue::{Sender, bounded};
use super::stage::{self, Incoming, Inflated, Outgoing, State};
use super::{BLOB_CHUNKS, Options, TAR_CHUNKS};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::layer::Applied;

#[derive(Debug)]
pub struct Threads {
    pub store: JoinHandle<Option<Digest>>,
    pub layer: Option<LayerThreads>,
}

#[derive(Debug)]
pub struct LayerThreads {
    pub inflate: JoinHandle<Option<Inflated>>,
    pub hash: JoinHandle<Option<Digest>>,
    pub apply: JoinHandle<Option<Applied>>,
}

/// Panics were caught inside the thread.
pub fn join<T>(thread: JoinHandle<Option<T>>) -> Option<T> {
    thread.join().ok().flatten()
}

pub fn spawn<T: Send + 'static>(
    name: &str,
    state: &Arc<State>,
    end_mark: &Sender<()>,
    body: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Option<T>>> {
    let (state, end_mark) = (Arc::clone(state), end_mark.clone());
    Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let value = state.run(body);
            drop(end_mark);
            value
        })
        .map_err(|error| Error::system("cannot start a thread", error))
}

pub fn start_layer(
    options: &Options,
    layer: PathBuf,
    lender: Option<Lender>,
    pool: Pool,
    chunks: Incoming,
    state: &Arc<State>,
    end_mark: &Sender<()>,
) -> Result<LayerThreads> {
    let algorithm = options.diff_id.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let same_algorithm = algorithm == options.digest.algorithm();
    let (compression, format, limits) = (options.compression, options.whiteouts, options.limits.clone());
    let max_size = limits.archive;
    let begun = options.cores.begin();
    // Chunks of a plain blob come through here too.
    let (hash_sender, hash_receiver) = bounded(BLOB_CHUNKS.max(TAR_CHUNKS) + 1);
    let (apply_sender, apply_receiver) = bounded(BLOB_CHUNKS.max(TAR_CHUNKS) + 1);
    let to = Outgoing { pool, hash: hash_sender, apply: apply_sender };
    let to_hash = Incoming::new(hash_receiver, Arc::clone(state));
    let to_apply = Incoming::new(apply_receiver, Arc::clone(state));
    Ok(LayerThreads {
        inflate: spawn("lamella-inflate", state, end_mark, move || {
            stage::inflate(chunks, compression, same_algorithm, &to, max_size, &begun)
        })?,
        hash: spawn("lamella-hash", state, end_mark, move || stage::hash(to_hash, algorithm))?,
        apply: spawn("lamella-apply", state, end_mark, move || match lender {
            None => stage::apply(to_apply, &layer, format, limits),
            Some(lender) => lender.apply(to_apply, layer, format, limits),
        })?,
    })
}
