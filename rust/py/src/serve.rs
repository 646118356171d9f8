//! The Transport class: lamella-serve with handlers in Python.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lamella_core::{Error, Kind as ErrorKind};
use lamella_serve::{Access, Call, Code, Ended, Gone, Handler, Item, Kind, Options, Server, Status, Step, framed};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::appender::Appender;
use crate::counters::Counters;
use crate::gate::{through, to_python};
use crate::sys::duplicate;

/// One RPC under way, as its handler in Python sees it.
#[pyclass(frozen, module = "lamella._core")]
pub struct Stream {
    call: Arc<Call>,
}

#[pymethods]
impl Stream {
    /// The headers; of one that was sent several times the first.
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyDict::new(py);
        for (name, value) in self.call.headers.iter().rev() {
            headers.set_item(name, value)?;
        }
        Ok(headers)
    }

    /// Seconds until the client gives up; None: it does not.
    #[getter]
    fn remaining(&self) -> Option<f64> {
        self.call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_secs_f64())
    }

    /// The other end: process, user, group.
    #[getter]
    fn peer(&self) -> (i32, u32, u32) {
        let peer = self.call.peer;
        (peer.pid, peer.uid, peer.gid)
    }

    /// Have this called when the client has gone or its time is up; at once if it was so.
    fn on_cancel(&self, py: Python<'_>, action: Py<PyAny>) {
        let call = &self.call;
        // Without the GIL, for it may be called here.
        py.detach(|| {
            call.on_cancel(move || {
                _ = enter(|py| action.call0(py).map(drop));
            });
        });
    }

    /// Send a message; waits while the client reads slowly. False: the RPC has ended.
    fn send(&self, py: Python<'_>, message: &Bound<'_, PyBytes>) -> bool {
        self.put(py, Item::Message(frame(message))).is_ok()
    }

    /// Say what the next message may be: the fields of `head`, then bytes, at most `most`, as field `number`, which go to the appender.
    fn expect(&self, head: &[u8], number: u32, most: u64, appender: &Appender) {
        self.call.expect(Bytes::copy_from_slice(head), number, most, appender.sink());
    }

    /// End the RPC, with OK. Harmless twice.
    fn finish(&self, py: Python<'_>) {
        _ = self.put(py, Item::End(Status::OK));
    }
}

impl Stream {
    fn put(&self, py: Python<'_>, item: Item) -> Result<(), Gone> {
        put(&self.call, py, item)
    }
}

/// A gRPC server on a Unix socket; what it serves are functions.
#[pyclass(frozen, module = "lamella._core")]
pub struct Transport {
    server: Mutex<Option<Server>>,
    functions: Mutex<Option<Functions>>,
    told: Option<Told>,
    methods: Vec<(String, Kind)>,
    threads: usize,
    message_max: usize,
}

#[pymethods]
impl Transport {
    #[new]
    #[pyo3(signature = (methods, *, threads, message_max, counts=None, log=None))]
    fn new(
        py: Python<'_>,
        methods: Vec<(String, String, Py<PyAny>)>,
        threads: usize,
        message_max: usize,
        counts: Option<Counting>,
        log: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let mut names = Vec::with_capacity(methods.len());
        let mut functions = Vec::with_capacity(methods.len());
        for (path, kind, function) in methods {
            let kind = match kind.as_str() {
                "unary" => Kind::Unary,
                "waiting" => Kind::Waiting,
                "responses" => Kind::Responses,
                "talk" => Kind::Talk,
                _ => return Err(PyValueError::new_err(format!("there is no kind {kind:?} of RPC"))),
            };
            names.push((path, kind));
            functions.push(function);
        }
        let counts =
            counts.map(|(counters, bounds, cells)| Counts { counters: counters.get().counting(), bounds, cells });
        let told = log.map(|function| Told::start(py, function)).transpose()?;
        let functions = Mutex::new(Some(Functions { functions, counts, told: told.clone() }));
        Ok(Self { server: Mutex::new(None), functions, told, methods: names, threads, message_max })
    }

    /// Serve what connects to a listening socket, which the caller may close then.
    #[pyo3(signature = (descriptor, *, uids, gids))]
    fn start(&self, py: Python<'_>, descriptor: i32, uids: Vec<u32>, gids: Vec<u32>) -> PyResult<()> {
        let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner).take();
        let functions = functions.ok_or_else(|| to_python(py, already()))?;
        let options = Options {
            methods: self.methods.clone(),
            access: Access { uids, gids },
            threads: self.threads,
            message_max: self.message_max,
        };
        let server = Server::start(UnixListener::from(duplicate(descriptor)?), Arc::new(functions), options)?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    /// End it: streams at once, unary RPCs after `grace` seconds. Twice is harmless.
    fn stop(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        through(py, |_| {
            if let Some(server) = server {
                server.stop(Duration::try_from_secs_f64(grace).unwrap_or_default());
            }
            if let Some(told) = &self.told {
                told.wait();
            }
            Ok(())
        })
    }
}

fn already() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "the transport was started before")
}

/// The functions that do the RPCs, and what is done when one has ended.
struct Functions {
    functions: Vec<Py<PyAny>>,
    counts: Option<Counts>,
    told: Option<Told>,
}

/// The counters, the bounds of histograms, each method's cells.
type Counting = (Py<Counters>, Vec<f64>, Vec<(usize, usize)>);

/// Where RPCs are counted.
struct Counts {
    counters: Arc<lamella_core::counters::Counters>,
    /// Of the histograms' buckets, in seconds.
    bounds: Vec<f64>,
    /// Of each method, the first of its cells by status code, and the first of its histogram, at whose end the sum is.
    cells: Vec<(usize, usize)>,
}

/// The last code of gRPC, each of which has a cell.
const LAST_CODE: u8 = 16;

impl Counts {
    fn add(&self, method: usize, code: Code, took: Duration) {
        let Some((codes, histogram)) = self.cells.get(method) else { return };
        if code.0 <= LAST_CODE {
            self.counters.add(codes + usize::from(code.0), 1);
        }
        let bucket = self.bounds.iter().take_while(|bound| took.as_secs_f64() > **bound).count();
        self.counters.add(histogram + bucket, 1);
        self.counters.add(histogram + self.bounds.len() + 1, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// A function in Python that is told of each RPC that has ended, on a thread of its own, one after the other.
#[derive(Clone)]
struct Told(mpsc::SyncSender<News>);

enum News {
    Ended { path: String, namespace: Option<String>, code: u8, seconds: f64 },
    Wait(mpsc::Sender<()>),
}

/// What may wait to be told; more is not told at all.
const NEWS: usize = 10_000;
/// How long the end waits for what is still to be told.
const LAST_NEWS: Duration = Duration::from_secs(1);
const NAMESPACE: &str = "containerd-namespace";

impl Told {
    fn start(py: Python<'_>, function: Py<PyAny>) -> PyResult<Self> {
        let (sender, news) = mpsc::sync_channel(NEWS);
        let tell = move || {
            for each in news {
                match each {
                    News::Ended { path, namespace, code, seconds } => {
                        _ = enter(|py| function.call1(py, (path, namespace, code, seconds)).map(drop));
                    }
                    News::Wait(reply) => _ = reply.send(()),
                }
            }
        };
        py.detach(|| std::thread::Builder::new().name("serve-log".into()).spawn(tell))?;
        Ok(Self(sender))
    }

    fn tell(&self, ended: &Ended<'_>) {
        let namespace = ended.headers.get(NAMESPACE).map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        let (path, code, seconds) = (ended.path.to_owned(), ended.code.0, ended.took.as_secs_f64());
        _ = self.0.try_send(News::Ended { path, namespace, code, seconds });
    }

    fn wait(&self) {
        let (reply, told) = mpsc::channel();
        if self.0.try_send(News::Wait(reply)).is_ok() {
            _ = told.recv_timeout(LAST_NEWS);
        }
    }
}

impl Handler for Functions {
    type Talk = Py<PyAny>;

    fn thread(&self, work: &mut (dyn FnMut() + Send)) {
        // What Python keeps of a thread then lasts as long as the thread, and not for one call.
        Python::attach(|py| py.detach(work));
    }

    fn unary(&self, method: usize, call: &Arc<Call>, body: Bytes) -> Result<Bytes, Status> {
        enter(|py| {
            let answer = self.functions[method].bind(py).call1((PyBytes::new(py, &body), stream(call)))?;
            Ok(frame(answer.cast::<PyBytes>()?))
        })
    }

    fn responses(&self, method: usize, call: &Arc<Call>, body: Bytes) -> Result<(), Status> {
        enter(|py| {
            let responses = self.functions[method].bind(py).call1((PyBytes::new(py, &body), stream(call)))?;
            for response in responses.try_iter()? {
                if put(call, py, item(&response?)?).is_err() {
                    // As a loop that is left early does it.
                    responses.call_method0(intern!(py, "close"))?;
                    break;
                }
            }
            Ok(())
        })
    }

    fn begin(&self, method: usize, call: &Arc<Call>) -> Result<(Self::Talk, Step), Status> {
        enter(|py| {
            let talk = self.functions[method].bind(py).call1((stream(call),))?;
            let responses = talk.call_method0(intern!(py, "begin"))?;
            let step = step(&talk, &responses)?;
            Ok((talk.unbind(), step))
        })
    }

    fn receive(&self, talk: &mut Self::Talk, body: Option<Bytes>) -> Result<Step, Status> {
        enter(|py| {
            let talk = talk.bind(py);
            let responses = match body {
                Some(body) => talk.call_method1(intern!(py, "receive"), (PyBytes::new(py, &body),))?,
                None => talk.call_method0(intern!(py, "half_close"))?,
            };
            step(talk, &responses)
        })
    }

    fn close(&self, talk: Self::Talk) {
        _ = enter(|py| talk.call_method0(py, intern!(py, "close")).map(drop));
    }

    fn ended(&self, ended: &Ended<'_>) {
        if let (Some(counts), Some(method)) = (&self.counts, ended.method) {
            counts.add(method, ended.code, ended.took);
        }
        if let Some(told) = &self.told {
            told.tell(ended);
        }
    }
}

/// Run something in Python; every call from here into it goes through this. What it raises becomes the status that the exception
/// has as `code` and `message`, or Internal.
fn enter<T>(work: impl FnOnce(Python<'_>) -> PyResult<T>) -> Result<T, Status> {
    Python::attach(|py| work(py).map_err(|error| status(py, &error)))
}

fn status(py: Python<'_>, error: &PyErr) -> Status {
    let value = error.value(py);
    let code = value.getattr(intern!(py, "code")).and_then(|code| code.extract::<u8>());
    let message = value.getattr(intern!(py, "message")).and_then(|message| message.extract::<String>());
    match (code, message) {
        (Ok(code), Ok(message)) => Status::new(Code(code), message),
        _ => Status::new(Code::INTERNAL, format!("internal error: {error}")),
    }
}

fn stream(call: &Arc<Call>) -> Stream {
    Stream { call: Arc::clone(call) }
}

/// Wait, without the GIL, until an item is on its way.
fn put(call: &Call, py: Python<'_>, item: Item) -> Result<(), Gone> {
    py.detach(|| call.send(item))
}

fn frame(message: &Bound<'_, PyBytes>) -> Bytes {
    let body = message.as_bytes();
    framed(body.len(), |frame| frame.extend_from_slice(body))
}

/// Take a message, or the descriptor, offset and size of bytes of a file; the descriptor stays the caller's.
fn item(response: &Bound<'_, PyAny>) -> PyResult<Item> {
    if let Ok(message) = response.cast::<PyBytes>() {
        return Ok(Item::Message(frame(message)));
    }
    let (descriptor, offset, size) = response.cast::<PyTuple>()?.extract()?;
    Ok(Item::File { file: File::from(duplicate(descriptor)?), offset, size })
}

fn step(talk: &Bound<'_, PyAny>, responses: &Bound<'_, PyAny>) -> PyResult<Step> {
    let responses: PyResult<_> = responses.try_iter()?.map(|each| Ok(frame(each?.cast::<PyBytes>()?))).collect();
    let ended = talk.getattr(intern!(talk.py(), "ended"))?.extract()?;
    Ok(Step { responses: responses?, ended })
}
