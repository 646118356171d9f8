//! The socket, its connections, and their end.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::Request;
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::gathered::{Gathered, Out};
use crate::peers::{Access, Peer};
use crate::pool::Pool;
use crate::rpc::{self, Context};
use crate::{Handler, Kind};

/// How much a client may send before it is read: less than this makes it wait for us at each message of a MiB.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes to read at once: h2 by itself reads 8 KiB.
const READ: usize = 128 << 10;
/// Streams of one connection at a time.
const STREAMS: u32 = 20_000;
/// Threads that read files.
const READERS: usize = 16;
/// How long what was cancelled at the end may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long to wait when there are no descriptors for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// How far the end is. In this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It is far.
    Serving,
    /// No new connections and RPCs; streams are ended, and RPCs that wait; other unary RPCs go on.
    Draining,
    /// Everything is cancelled.
    Ending,
}

/// How a server serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The RPCs, by path: `/package.Service/Method`.
    pub methods: Vec<(String, Kind)>,
    /// Who may connect.
    pub access: Access,
    /// The most threads of the pool.
    pub threads: usize,
    /// Bytes that a message of a client may have.
    pub message_max: usize,
}

/// A server, which runs until it is stopped.
pub struct Server {
    phase: watch::Sender<Phase>,
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Server {
    /// Serve what connects to a listening socket.
    ///
    /// # Errors
    /// Those of starting a thread, and of making the socket non-blocking.
    pub fn start<H: Handler>(listener: StdListener, handler: Arc<H>, options: Options) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(READERS).build()?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let (end, ended) = mpsc::channel();
        let life = Arc::clone(&handler);
        let pool = Arc::new(Pool::new(options.threads, Box::new(move |work| life.thread(work))));
        let methods = options.methods.into_iter().enumerate();
        let context = Arc::new(Context {
            handler,
            pool: Arc::clone(&pool),
            buffers: Arc::default(),
            methods: methods.map(|(number, (path, kind))| (path, (number, kind))).collect::<HashMap<_, _>>(),
            message_max: options.message_max,
            phase: phases,
        });
        thread::Builder::new().name("serve-io".into()).spawn(move || {
            runtime.block_on(async move {
                if let Ok(listener) = UnixListener::from_std(listener) {
                    serve(listener, options.access, context).await;
                }
            });
            runtime.shutdown_background();
            pool.close();
            drop(end);
        })?;
        Ok(Self { phase, ended: Mutex::new(ended) })
    }

    /// End it. No new RPCs; streams, and RPCs that wait, end at once, unary RPCs have `grace`, then they are cancelled and have another second.
    ///
    /// Twice is harmless. A handler that goes on after that is left alone; nobody hears its answer.
    pub fn stop(&self, grace: Duration) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.phase.send_if_modified(|phase| advance(phase, Phase::Draining));
        if ended.recv_timeout(grace) == Err(mpsc::RecvTimeoutError::Timeout) {
            self.phase.send_if_modified(|phase| advance(phase, Phase::Ending));
            _ = ended.recv();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.phase.send_if_modified(|phase| advance(phase, Phase::Ending));
    }
}

fn advance(phase: &mut Phase, to: Phase) -> bool {
    let further = *phase < to;
    *phase = (*phase).max(to);
    further
}

/// Wait until the end is as far as that.
pub async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    _ = phases.wait_for(|now| *now >= phase).await; // an error: the server was dropped
}

async fn serve<H: Handler>(listener: UnixListener, access: Access, context: Arc<Context<H>>) {
    let mut phase = context.phase.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = reached(&mut phase, Phase::Draining) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Who may not is told nothing; a client sees that the connection is closed.
                    if let Ok(Some(peer)) = access.check(&stream) {
                        connections.spawn(connection(stream, peer, Arc::clone(&context)));
                    }
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
    drop(listener);
    let last = async {
        reached(&mut phase, Phase::Ending).await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = last => {}
    }
}

async fn connection<H: Handler>(stream: UnixStream, peer: Peer, context: Arc<Context<H>>) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(STREAM_WINDOW as usize);
    let mut phase = context.phase.clone();
    let (stream, out) = Gathered::new(stream);
    let mut connection = tokio::select! {
        made = builder.handshake(BufReader::with_capacity(READ, stream)) => match made {
            Ok(connection) => connection,
            Err(_) => return,
        },
        () = reached(&mut phase, Phase::Draining) => return,
    };
    let mut draining = false;
    loop {
        tokio::select! {
            accepted = accept(&mut connection, &out) => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::spawn(rpc::serve(Arc::clone(&context), peer, request, respond));
                }
                // A peer that breaks the protocol or has gone: the RPCs learn it from their streams.
                Some(Err(_)) | None => return,
            },
            () = reached(&mut phase, Phase::Draining), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// Drive a connection up to its next request, and write out what it has for the client before every sleep.
async fn accept(
    connection: &mut Connection<BufReader<Gathered>, Bytes>,
    out: &Out,
) -> Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>> {
    poll_fn(|context| {
        let accepted = connection.poll_accept(context);
        // Pending: it wakes this task; an error: the connection finds it, too.
        _ = out.poll(context);
        accepted
    })
    .await
}
