//! A compressed stream in pieces, and who inflates them.

use std::collections::VecDeque;
use std::io::{self, BufRead};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::ahead::{Ahead, Done, Job, Piece};
use crate::cores::Layer;

/// A piece begins with the last bytes of the one before: what may be left there of a block's header, 572 bytes at most.
const OVERLAP: usize = 1024;
/// Pieces are as long as inflates to about this much: long enough to make up for finding a block's start, short enough that
/// all that are in work fit 40 MB.
const INFLATED: usize = 1 << 20;
const SHORTEST: usize = 64 << 10;
pub const LONGEST: usize = 512 << 10;
/// How long a helper waits for a piece before it goes.
const IDLE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub struct Pieces<R> {
    reader: R,
    all_read: bool,
    /// How long the next piece is to be, and the longest.
    length: usize,
    longest: usize,
    /// The piece that is inflated in order.
    current: Arc<Piece>,
    /// What a helper has of it.
    ahead: Option<Ahead>,
    /// Those behind it.
    waiting: VecDeque<Waiting>,
    /// How many were read.
    count: u64,
    /// Those of them that nobody has begun with.
    jobs: Option<Sender<Job>>,
    queue: Receiver<Job>,
    helpers: Vec<JoinHandle<()>>,
    layer: Arc<Layer>,
    /// Memory for what helpers will have.
    spare: Vec<Ahead>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    piece: Arc<Piece>,
    /// None for the first one of all: nobody need look for its first block.
    done: Option<Receiver<Done>>,
}

impl<R: BufRead> Pieces<R> {
    /// What `reader` gives, in pieces of at most `longest` bytes, inflated by helpers while `layer` has cores for them.
    pub fn new(reader: R, layer: Arc<Layer>, longest: usize) -> Self {
        let longest = longest.max(2 * OVERLAP);
        let (jobs, queue) = unbounded();
        Self {
            reader,
            all_read: false,
            length: longest / 2,
            longest,
            current: Arc::default(),
            ahead: None,
            waiting: VecDeque::new(),
            count: 0,
            jobs: Some(jobs),
            queue,
            helpers: Vec::new(),
            layer,
            spare: Vec::new(),
        }
    }

    /// The stream, which was read up to the end of the last piece.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// The piece to inflate; empty before the first.
    pub fn bytes(&self) -> &[u8] {
        &self.current.bytes
    }

    /// What a helper has of it.
    pub fn ahead(&self) -> Option<&Ahead> {
        self.ahead.as_ref()
    }

    /// The same.
    pub fn ahead_mut(&mut self) -> Option<&mut Ahead> {
        self.ahead.as_mut()
    }

    /// Be done with what a helper had.
    pub fn give_back(&mut self) {
        self.spare.extend(self.ahead.take());
    }

    /// Go on to the next piece; None at the end of all. Says how much less positions are in this one, in bytes. `inflated`: what
    /// came of the last one, in bytes.
    pub fn next(&mut self, inflated: usize) -> io::Result<Option<usize>> {
        self.give_back();
        if self.waiting.is_empty() {
            self.read_ahead()?;
        }
        let Some(next) = self.waiting.pop_front() else { return Ok(None) };
        let last = std::mem::replace(&mut self.current, next.piece);
        if let Some(length) = ((last.bytes.len() - last.overlap) * INFLATED).checked_div(inflated) {
            self.length = length.clamp(SHORTEST.min(self.longest), self.longest);
        }
        self.read_ahead()?;
        if let Some(done) = next.done {
            self.wait(next.number, &done);
        }
        Ok(Some(last.bytes.len() - self.current.overlap))
    }

    /// Get what a helper has of a piece, while it is at work help with others; or see to it that none begins.
    fn wait(&mut self, number: u64, done: &Receiver<Done>) {
        let (found, ahead) = loop {
            if let Ok(done) = done.try_recv() {
                break done;
            }
            match self.queue.try_recv() {
                Ok(job) if job.number == number => break (false, job.ahead),
                Ok(job) => job.work(),
                Err(_) => break done.recv().expect("a helper ends by a defect only"),
            }
        };
        if found {
            self.ahead = Some(ahead);
        } else {
            self.spare.push(ahead);
        }
    }

    /// Read pieces, as many as helpers can have in work and one more, which may bring a helper.
    fn read_ahead(&mut self) -> io::Result<()> {
        self.helpers.retain(|helper| !helper.is_finished());
        while !self.all_read && self.waiting.len() < 1 + self.helpers.len() {
            let last = &self.waiting.back().map_or(&self.current, |last| &last.piece).bytes;
            let overlap = last.len().min(OVERLAP);
            let mut bytes = Vec::with_capacity(overlap + self.length);
            bytes.extend_from_slice(&last[last.len() - overlap..]);
            while bytes.len() < overlap + self.length && !self.all_read {
                let more = match self.reader.fill_buf() {
                    Ok(more) => more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                let count = more.len().min(overlap + self.length - bytes.len());
                bytes.extend_from_slice(&more[..count]);
                self.reader.consume(count);
                self.all_read = count == 0;
            }
            if bytes.len() > overlap {
                self.hand_out(Piece { bytes, overlap });
            }
        }
        Ok(())
    }

    fn hand_out(&mut self, piece: Piece) {
        let (number, piece) = (self.count, Arc::new(piece));
        self.count += 1;
        let jobs = self.jobs.as_ref().filter(|_| number > 0);
        let done = jobs.map(|jobs| {
            let (sender, done) = bounded(1);
            let ahead = self.spare.pop().unwrap_or_default();
            let _ = jobs.send(Job { number, piece: Arc::clone(&piece), ahead, done: sender }); // the other end is here
            done
        });
        self.waiting.push_back(Waiting { number, piece, done });
        self.get_help();
    }

    /// Start one more helper, if there is something to do and a core for it.
    fn get_help(&mut self) {
        let number = self.helpers.len();
        if self.queue.is_empty() || number >= self.layer.helpers() {
            return;
        }
        let (queue, layer) = (self.queue.clone(), Arc::clone(&self.layer));
        let helper = thread::Builder::new().name(String::from("lamella-inflate")).spawn(move || {
            while number < layer.helpers() {
                match queue.recv_timeout(IDLE) {
                    Ok(job) => job.work(),
                    Err(_) => break,
                }
            }
        });
        self.helpers.extend(helper); // without it things go on as they did
    }
}

impl<R> Drop for Pieces<R> {
    fn drop(&mut self) {
        // What nobody began, nobody needs.
        while self.queue.try_recv().is_ok() {}
        self.jobs = None;
        for helper in self.helpers.drain(..) {
            let _ = helper.join(); // its panic was seen, or does not matter now
        }
    }
}
