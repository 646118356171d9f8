//! One RPC, from its headers to its trailers.

use std::collections::HashMap;
use std::fs::File;
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use tokio::sync::{mpsc, oneshot, watch};

use crate::call::{Call, Gone, Item, Sink};
use crate::file::{Buffers, Pieces};
use crate::message::{Messages, Next};
use crate::peers::Peer;
use crate::pool::Pool;
use crate::server::{Phase, reached};
use crate::status::{Code, Status};
use crate::{Ended, Handler, Kind, Step};

/// Items that may wait for a client that reads slowly.
const QUEUE: usize = 4;
/// Bytes that a sink is given at once, as far as they have come.
const POURED: usize = 128 << 10;
/// Bytes, and pieces, that wait for a sink at most.
const HELD: usize = 1 << 20;
const PIECES: usize = 1024;

/// What all RPCs of a server share.
pub struct Context<H> {
    pub handler: Arc<H>,
    pub pool: Arc<Pool>,
    pub buffers: Arc<Buffers>,
    pub methods: HashMap<String, (usize, Kind)>,
    pub message_max: usize,
    pub phase: watch::Receiver<Phase>,
}

/// Serve one.
pub async fn serve<H: Handler>(
    context: Arc<Context<H>>,
    peer: Peer,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let mut responder = Responder { respond, stream: None };
    if !is_grpc(&head) {
        return responder.refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let begun = Instant::now();
    let (method, ended) = match begin(&context, &head) {
        Ok((method, kind, timeout)) => {
            let deadline = timeout.and_then(|timeout| begun.checked_add(timeout));
            let rpc = Rpc { method, headers: texts(&head.headers), deadline, peer, context: Arc::clone(&context) };
            let messages = Messages::new(body, context.message_max);
            let ended = match kind {
                Kind::Unary => rpc.unary(messages, &mut responder, Phase::Ending).await,
                Kind::Waiting => rpc.unary(messages, &mut responder, Phase::Draining).await,
                Kind::Responses => rpc.responses(messages, &mut responder).await,
                Kind::Talk => rpc.talk(messages, &mut responder).await,
            };
            (Some(method), ended)
        }
        Err(status) => (None, Some(status)),
    };
    let code = ended.as_ref().map_or(Code::CANCELLED, |status| status.code);
    if let Some(status) = ended {
        responder.end(&status);
    }
    let (path, headers) = (head.uri.path(), &head.headers);
    context.handler.ended(&Ended { path, method, headers, code, took: begun.elapsed() });
}

fn is_grpc(head: &request::Parts) -> bool {
    let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    head.method == Method::POST && kind.starts_with(b"application/grpc")
}

fn begin<H>(context: &Context<H>, head: &request::Parts) -> Result<(usize, Kind, Option<Duration>), Status> {
    let path = head.uri.path();
    let (method, kind) = *context.methods.get(path).ok_or_else(|| {
        let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
        Status::new(Code::UNIMPLEMENTED, format!("unknown method {method} for service {service}"))
    })?;
    if let Some(encoding) = head.headers.get("grpc-encoding").filter(|encoding| *encoding != "identity") {
        return Err(Status::new(
            Code::UNIMPLEMENTED,
            format!("grpc: messages compressed by {} are not read", String::from_utf8_lossy(encoding.as_bytes())),
        ));
    }
    let timeout = head
        .headers
        .get("grpc-timeout")
        .map(|value| timeout(value.as_bytes()).ok_or_else(|| Status::new(Code::INTERNAL, "malformed grpc-timeout")));
    Ok((method, kind, timeout.transpose()?))
}

/// Parse at most eight digits and a unit (PROTOCOL-HTTP2.md, "Timeout").
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// An RPC before its first message. What its kinds give is its end; None: the client has gone.
struct Rpc<H> {
    method: usize,
    headers: Vec<(String, String)>,
    deadline: Option<Instant>,
    peer: Peer,
    context: Arc<Context<H>>,
}

impl<H: Handler> Rpc<H> {
    async fn unary(self, mut messages: Messages, responder: &mut Responder, until: Phase) -> Option<Status> {
        let request = match self.request(&mut messages, until).await {
            Ok(request) => request,
            Err(status) => return Some(status),
        };
        let interrupt = self.interrupt(until);
        let (context, call, method) = self.into_call(None);
        let (reply, answer) = oneshot::channel();
        let (handler, asked) = (Arc::clone(&context.handler), Arc::clone(&call));
        context.pool.run(move || _ = reply.send(handler.unary(method, &asked, request)));
        let ended = tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Ok(response)) => return responder.send(response).await.ok().map(|()| Status::OK),
                Ok(Err(status)) => return Some(status),
                Err(_) => return Some(defect()),
            },
            () = responder.gone() => None,
            status = interrupt => Some(status),
        };
        context.cancel(&call);
        ended
    }

    async fn responses(self, mut messages: Messages, responder: &mut Responder) -> Option<Status> {
        let request = match self.request(&mut messages, Phase::Draining).await {
            Ok(request) => request,
            Err(status) => return Some(status),
        };
        let interrupt = self.interrupt(Phase::Draining);
        let (out, mut items) = mpsc::channel(QUEUE);
        let (context, call, method) = self.into_call(Some(out));
        let (handler, asked) = (Arc::clone(&context.handler), Arc::clone(&call));
        context.pool.run(move || {
            let done = catch_unwind(AssertUnwindSafe(|| handler.responses(method, &asked, request)));
            let ended = done.unwrap_or_else(|_| Err(defect()));
            _ = asked.send(Item::End(ended.err().unwrap_or(Status::OK)));
        });
        tokio::select! {
            biased;
            ended = responder.pump(&mut items, &context.buffers) => if ended.is_some() { return ended },
            status = interrupt => {
                context.cancel(&call);
                return Some(status);
            }
        }
        context.cancel(&call);
        None
    }

    async fn talk(self, messages: Messages, responder: &mut Responder) -> Option<Status> {
        let interrupt = self.interrupt(Phase::Draining);
        let (out, mut items) = mpsc::channel(QUEUE);
        let (context, call, method) = self.into_call(Some(out.clone()));
        let talk = Arc::new(Mutex::new(None));
        let steps = Steps { context: &context, call: &call, method, talk: &talk };
        let (status, cancelled) = tokio::select! {
            biased;
            ended = responder.pump(&mut items, &context.buffers) => {
                let gone = ended.is_none();
                (ended, gone)
            }
            status = interrupt => (Some(status), true),
            never = steps.drive(messages, out) => match never {},
        };
        drop(items); // so that nobody waits to send any more
        if cancelled {
            context.cancel(&call);
        }
        let handler = Arc::clone(&context.handler);
        context.pool.run(move || {
            let talk = talk.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(talk) = talk {
                handler.close(talk);
            }
        });
        status
    }

    /// Give the one message that it is asked with.
    async fn request(&self, messages: &mut Messages, phase: Phase) -> Result<Bytes, Status> {
        tokio::select! {
            request = only(messages) => request,
            status = self.interrupt(phase) => Err(status),
        }
    }

    /// Wait for what ends an RPC besides its client: the deadline, and that the end of the server is as far as `phase`.
    fn interrupt(&self, phase: Phase) -> impl Future<Output = Status> + use<H> {
        let mut phases = self.context.phase.clone();
        let deadline = self.deadline;
        async move {
            let late = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = late => Status::new(Code::DEADLINE_EXCEEDED, "context deadline exceeded"),
                () = reached(&mut phases, phase) => Status::new(Code::UNAVAILABLE, "the server is stopping"),
            }
        }
    }

    fn into_call(self, out: Option<mpsc::Sender<Item>>) -> (Arc<Context<H>>, Arc<Call>, usize) {
        (self.context, Arc::new(Call::new(self.headers, self.deadline, self.peer, out)), self.method)
    }
}

impl<H> Context<H> {
    fn cancel(&self, call: &Call) {
        let actions = call.cancel();
        if !actions.is_empty() {
            self.pool.run(move || actions.into_iter().for_each(|action| action()));
        }
    }
}

/// Give the one message of a request.
async fn only(messages: &mut Messages) -> Result<Bytes, Status> {
    let Next::Message(body) = messages.next(None).await? else {
        return Err(Status::new(Code::INTERNAL, "the request has no message"));
    };
    match messages.next(None).await? {
        Next::End => Ok(body),
        _ => Err(Status::new(Code::INTERNAL, "the request has more than one message")),
    }
}

fn defect() -> Status {
    Status::new(Code::INTERNAL, "internal error")
}

/// The steps of a bidirectional RPC, one after the other.
struct Steps<'a, H: Handler> {
    context: &'a Context<H>,
    call: &'a Arc<Call>,
    method: usize,
    talk: &'a Arc<Mutex<Option<H::Talk>>>,
}

enum Never {}

/// Wait for an answer; where none is waited for, for ever.
async fn answered(answer: &mut Option<oneshot::Receiver<()>>) -> Result<(), oneshot::error::RecvError> {
    match answer {
        Some(answer) => answer.await,
        None => pending().await,
    }
}

impl<H: Handler> Steps<'_, H> {
    /// Do them, for what the client sends, until somebody drops this.
    async fn drive(self, mut messages: Messages, out: mpsc::Sender<Item>) -> Never {
        let method = self.method;
        let begun = self.step(move |handler, call, talk| {
            let (begun, step) = handler.begin(method, call)?;
            *talk = Some(begun);
            Ok(step)
        });
        let mut more = begun.await;
        while more {
            more = match self.next(&mut messages).await {
                Ok(body) => {
                    let last = body.is_none();
                    let received = self.step(move |handler, _, talk| match talk {
                        Some(talk) => handler.receive(talk, body),
                        None => Ok(Step::default()),
                    });
                    received.await && !last
                }
                Err(status) => {
                    _ = out.send(Item::End(status)).await;
                    false
                }
            };
        }
        pending().await
    }

    /// Give the next body; None: the client has sent the last one. Of the expected message its head, the rest is where it belongs.
    async fn next(&self, messages: &mut Messages) -> Result<Option<Bytes>, Status> {
        let expected = self.call.expected();
        match (messages.next(expected.as_ref()).await?, expected) {
            (Next::Message(body), _) => Ok(Some(body)),
            (Next::Bulk(size), Some(expected)) => {
                self.pour(messages, size, &expected.sink).await?;
                Ok(Some(expected.head))
            }
            (Next::Bulk(_) | Next::End, _) => Ok(None),
        }
    }

    /// Give a sink bytes of a message as they come, on threads of the pool, of which a silent client holds none.
    async fn pour(&self, messages: &mut Messages, mut left: usize, sink: &Arc<dyn Sink>) -> Result<(), Status> {
        let (mut pieces, mut held) = (Vec::new(), 0);
        let mut taking: Option<oneshot::Receiver<()>> = None;
        while left > 0 || held > 0 || taking.is_some() {
            let full = held >= POURED || pieces.len() >= PIECES;
            if taking.is_none() && (full || left == 0) {
                taking = Some(self.give(std::mem::take(&mut pieces), sink));
                held = 0;
            }
            tokio::select! {
                piece = messages.piece(left), if left > 0 && held < HELD && pieces.len() < PIECES => {
                    let piece = piece?;
                    left -= piece.len();
                    held += piece.len();
                    if !piece.is_empty() {
                        pieces.push(piece);
                    }
                }
                taken = answered(&mut taking) => {
                    taken.map_err(|_| defect())?;
                    taking = None;
                }
            }
        }
        Ok(())
    }

    fn give(&self, pieces: Vec<Bytes>, sink: &Arc<dyn Sink>) -> oneshot::Receiver<()> {
        let (reply, taken) = oneshot::channel();
        let (sink, talk) = (Arc::clone(sink), Arc::clone(self.talk));
        self.context.pool.run(move || {
            // Not after its end, nor during it: whoever owns the sink lets go of it then.
            let talk = talk.lock().unwrap_or_else(PoisonError::into_inner);
            if talk.is_some() {
                sink.take(&pieces);
            }
            drop(talk);
            _ = reply.send(());
        });
        taken
    }

    /// Do one on a thread of the pool, and send what it gives; tell whether another may follow.
    async fn step(
        &self,
        work: impl FnOnce(&H, &Arc<Call>, &mut Option<H::Talk>) -> Result<Step, Status> + Send + 'static,
    ) -> bool {
        let (reply, done) = oneshot::channel();
        let (handler, call, talk) = (Arc::clone(&self.context.handler), Arc::clone(self.call), Arc::clone(self.talk));
        self.context.pool.run(move || {
            let mut talk = talk.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = match work(&handler, &call, &mut talk) {
                Ok(step) => {
                    let sent = step.responses.into_iter().all(|each| call.send(Item::Message(each)).is_ok());
                    (step.ended || !sent).then_some(Status::OK)
                }
                Err(status) => Some(status),
            };
            drop(talk);
            let more = ended.is_none();
            if let Some(status) = ended {
                _ = call.send(Item::End(status));
            }
            _ = reply.send(more);
        });
        match done.await {
            Ok(more) => more,
            Err(_) => {
                let call = Arc::clone(self.call);
                self.context.pool.run(move || _ = call.send(Item::End(defect())));
                false
            }
        }
    }
}

/// The way back to the client.
struct Responder {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

impl Responder {
    /// Send what comes, up to the end; None: the client has gone.
    async fn pump(&mut self, items: &mut mpsc::Receiver<Item>, buffers: &Arc<Buffers>) -> Option<Status> {
        loop {
            let item = tokio::select! {
                biased;
                item = items.recv() => item?,
                () = self.gone() => return None,
            };
            match item {
                Item::Message(message) => self.send(message).await.ok()?,
                Item::File { file, offset, size } => {
                    if let Err(status) = self.send_file(file, offset, size, buffers).await {
                        return status;
                    }
                }
                Item::End(status) => return Some(status),
            }
        }
    }

    /// Send a framed message, as fast as the client takes it.
    async fn send(&mut self, mut message: Bytes) -> Result<(), Gone> {
        let stream = self.stream()?;
        while !message.is_empty() {
            stream.reserve_capacity(message.len());
            let capacity = poll_fn(|context| stream.poll_capacity(context)).await.ok_or(Gone)?.map_err(|_| Gone)?;
            let part = message.split_to(capacity.min(message.len()));
            stream.send_data(part, false).map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Send bytes of a file. An error without a status: the client has gone.
    async fn send_file(
        &mut self,
        file: File,
        offset: u64,
        size: u64,
        buffers: &Arc<Buffers>,
    ) -> Result<(), Option<Status>> {
        let lost = |at: u64, error: std::io::Error| {
            Some(Status::new(Code::DATA_LOSS, format!("the file cannot be read at offset {at}: {error}")))
        };
        let pieces = Pieces::new(file, offset, size, Arc::clone(buffers));
        let mut pieces = pieces.map_err(|error| lost(offset, error))?;
        while let Some(piece) = pieces.next().await.map_err(|error| lost(pieces.at(), error))? {
            self.send(piece).await.map_err(|Gone| None)?;
        }
        Ok(())
    }

    /// Wait until the client has gone, or takes nothing more.
    async fn gone(&mut self) {
        poll_fn(|context| match &mut self.stream {
            Some(stream) => stream.poll_reset(context),
            None => self.respond.poll_reset(context),
        })
        .await
        .ok();
    }

    fn stream(&mut self) -> Result<&mut SendStream<Bytes>, Gone> {
        if self.stream.is_none() {
            self.stream = Some(self.respond.send_response(head(), false).map_err(|_| Gone)?);
        }
        self.stream.as_mut().ok_or(Gone)
    }

    /// Tell how it ended; in the headers if nothing was sent.
    fn end(mut self, status: &Status) {
        if let Some(stream) = &mut self.stream {
            let mut trailers = HeaderMap::new();
            status.tell(&mut trailers);
            _ = stream.send_trailers(trailers);
        } else {
            let mut response = head();
            status.tell(response.headers_mut());
            _ = self.respond.send_response(response, true);
        }
    }

    fn refuse(mut self, code: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = code;
        _ = self.respond.send_response(response, true);
    }
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_eight_digits_and_a_unit() {
        assert_eq!(timeout(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout(b"99999999M"), Some(Duration::from_secs(99_999_999 * 60)));
        assert_eq!(timeout(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout(b"20m"), Some(Duration::from_millis(20)));
        assert_eq!(timeout(b"7u"), Some(Duration::from_micros(7)));
        assert_eq!(timeout(b"0n"), Some(Duration::ZERO));
        for malformed in [&b""[..], b"S", b"5", b"5s", b"-1S", b"123456789S", b" 1S", b"1.5S"] {
            assert_eq!(timeout(malformed), None);
        }
    }
}
