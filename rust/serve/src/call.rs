//! What an RPC under way and its handler share.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::message::varint;
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

/// Where bytes go that need not be in memory as a whole.
pub trait Sink: Send + Sync {
    /// Take some, in their order, on a thread of the pool. What fails here is for the sink's owner to find.
    fn take(&self, pieces: &[Bytes]);
}

/// What the next message of a client may be, so that its bytes go to a sink as they come: `head`, and then, as its last field,
/// `bytes` of some length.
#[derive(Clone)]
pub(crate) struct Expected {
    /// The encoded fields before it.
    pub head: Bytes,
    /// The field's tag.
    pub tag: Bytes,
    /// How many bytes the sink takes at most.
    pub most: u64,
    pub sink: Arc<dyn Sink>,
}

/// One RPC under way.
pub struct Call {
    /// Its headers; what is not UTF-8 in them is replaced.
    pub headers: Vec<(String, String)>,
    /// When the client gives up.
    pub deadline: Option<Instant>,
    /// Who asks.
    pub peer: Peer,
    out: Option<mpsc::Sender<Item>>,
    expected: Mutex<Option<Expected>>,
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
        Self { headers, deadline, peer, out, expected: Mutex::default(), cancellation: Mutex::default() }
    }

    /// Send something, from any thread of the handler; waits while the client reads slowly.
    ///
    /// # Errors
    /// Gone: the RPC has ended, or it is a unary one.
    pub fn send(&self, item: Item) -> Result<(), Gone> {
        self.out.as_ref().ok_or(Gone)?.blocking_send(item).map_err(|_| Gone)
    }

    /// Say, in a step of a [`Kind::Talk`](crate::Kind::Talk), what the next message may be: a message of the encoded fields
    /// `head`, followed by nothing but a field `number` of bytes, at most `most`. If it is, and large, these go to the sink as
    /// they come, and the handler receives `head` when the sink has taken the last one. Any other message comes as ever.
    pub fn expect(&self, head: Bytes, number: u32, most: u64, sink: Arc<dyn Sink>) {
        const LENGTH_DELIMITED: u64 = 2;
        let mut tag = Vec::new();
        varint(u64::from(number) << 3 | LENGTH_DELIMITED, &mut tag);
        let expected = Expected { head, tag: tag.into(), most, sink };
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(expected);
    }

    pub(crate) fn expected(&self) -> Option<Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).take()
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
