//! A gRPC server on a Unix socket (grpc/doc/PROTOCOL-HTTP2.md over h2): bodies of messages in, bodies out.
//!
//! One thread does all input and output. What an RPC does runs on threads of a [`pool`], through [`Handler`], which may block;
//! while a client is silent, or reads slowly, no RPC that only waits for it holds one, but for those that stream responses.
//!
//! ```text
//! server   the socket: who may connect, connections, the end
//! rpc      one RPC from its headers to its trailers, by its kind
//! call     what an RPC and its handler share: headers, deadline, cancellation, the way out
//! authority hosts of requests that are paths
//! gathered a socket whose writes are gathered
//! file     bytes of a file on their way out
//! message  five bytes in front of a body
//! status   codes, and how they are told
//! pool     threads that come when they are needed
//! peers    who is at the other end
//! sys      the only unsafe code
//! ```

mod authority;
mod call;
mod file;
mod gathered;
mod message;
mod peers;
mod pool;
mod rpc;
mod server;
mod status;
mod sys;

pub use call::{Call, Gone, Item, Sink};
pub use message::framed;
pub use peers::{Access, Peer};
pub use server::{Options, Server};
pub use status::{Code, Status};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

/// What an RPC takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request, a response.
    Unary,
    /// The same, of what may take as long as it likes: it ends when the server begins to.
    Waiting,
    /// A request, any number of responses.
    Responses,
    /// Any number of requests, and of responses.
    Talk,
}

/// What one step of a [`Kind::Talk`] gives: framed responses, and whether the RPC ends with them.
#[derive(Debug, Default)]
pub struct Step {
    /// Responses, each [`framed`].
    pub responses: Vec<Bytes>,
    /// Whether the stream ends, with OK.
    pub ended: bool,
}

/// How an RPC ended.
pub struct Ended<'a> {
    /// What it was called.
    pub path: &'a str,
    /// Which of the methods of [`Options`] that is; None: there is none of that path.
    pub method: Option<usize>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its status; where the client has gone, [`Code::CANCELLED`].
    pub code: Code,
    /// From its headers until there was nothing left to send.
    pub took: Duration,
}

/// What RPCs do. All but `ended` are called on threads of the pool, and may block; `method` counts those of [`Options`].
pub trait Handler: Send + Sync + 'static {
    /// What one bidirectional RPC keeps between its steps.
    type Talk: Send + 'static;

    /// Live the life of a thread of the pool: call `work`, once, which returns when the thread is to end.
    fn thread(&self, work: &mut (dyn FnMut() + Send));

    /// Answer a request of a [`Kind::Unary`] or a [`Kind::Waiting`] with a [`framed`] response.
    ///
    /// # Errors
    /// The status of the RPC.
    fn unary(&self, method: usize, call: &Arc<Call>, body: Bytes) -> Result<Bytes, Status>;

    /// Answer a request by [`Call::send`], any number of times.
    ///
    /// # Errors
    /// The status of the RPC.
    fn responses(&self, method: usize, call: &Arc<Call>, body: Bytes) -> Result<(), Status>;

    /// Begin a bidirectional RPC.
    ///
    /// # Errors
    /// The status of the RPC.
    fn begin(&self, method: usize, call: &Arc<Call>) -> Result<(Self::Talk, Step), Status>;

    /// Answer one request of it; None: the client has sent the last one.
    ///
    /// # Errors
    /// The status of the RPC.
    fn receive(&self, talk: &mut Self::Talk, body: Option<Bytes>) -> Result<Step, Status>;

    /// End it, whatever ended it.
    fn close(&self, talk: Self::Talk);

    /// Hear that an RPC has ended, on the one thread of input and output, which waits meanwhile.
    fn ended(&self, ended: &Ended<'_>);
}
