//! What an RPC under way and its handler share.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::peers::Peer;
use crate::status::Status;

type Action = Box<dyn FnOnce() + Send>;

/// One thing on its way to the client.
pub enum Item {
    /// A message, framed.
    Message(Bytes),
    /// Bytes of a file, as messages whose field 1 is the offset and whose field 2 are the bytes.
    File {
        /// It.
        file: File,
        /// Where the bytes begin.
        offset: u64,
        /// How many there are.
        size: u64,
    },
    /// The end of the RPC.
    End(Status),
}

/// The RPC has ended, and nobody is there to hear.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

/// One RPC under way.
pub struct Call {
    /// Its headers; what is not UTF-8 in them is replaced.
    pub headers: Vec<(String, String)>,
    /// When the client gives up.
    pub deadline: Option<Instant>,
    /// Who asks.
    pub peer: Peer,
    out: Option<mpsc::Sender<Item>>,
    cancellation: Mutex<Cancellation>,
}

#[derive(Default)]
struct Cancellation {
    cancelled: bool,
    actions: Vec<Action>,
}

impl Call {
    pub(crate) fn new(
        headers: Vec<(String, String)>,
        deadline: Option<Instant>,
        peer: Peer,
        out: Option<mpsc::Sender<Item>>,
    ) -> Self {
        Self { headers, deadline, peer, out, cancellation: Mutex::default() }
    }

    /// Send something, from any thread of the handler; waits while the client reads slowly.
    ///
    /// # Errors
    /// Gone: the RPC has ended, or it is a unary one.
    pub fn send(&self, item: Item) -> Result<(), Gone> {
        self.out.as_ref().ok_or(Gone)?.blocking_send(item).map_err(|_| Gone)
    }

    /// Have this called when the client has gone or its time is up, on a thread of the pool; at once, here, if that was so.
    pub fn on_cancel(&self, action: impl FnOnce() + Send + 'static) {
        {
            let mut cancellation = self.lock();
            if !cancellation.cancelled {
                cancellation.actions.push(Box::new(action));
                return;
            }
        }
        action();
    }

    /// Mark it as cancelled; give what is to be called.
    pub(crate) fn cancel(&self) -> Vec<Action> {
        let mut cancellation = self.lock();
        cancellation.cancelled = true;
        std::mem::take(&mut cancellation.actions)
    }

    fn lock(&self) -> MutexGuard<'_, Cancellation> {
        self.cancellation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
