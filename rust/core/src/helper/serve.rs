//! The helper's side: a thread for each call.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::Serialize;

use super::calls::{Apply, Call, Feed, Pack, Reply, Request};
use super::connection::{Connection, take};
use crate::error::{Error, Result};
use crate::layer::diff::write_until;
use crate::layer::{self, Applied};
use crate::mount::{self, Options};
use crate::sys::{self, OtherPieces};
use crate::tar::{Source, Writer};

/// Time between two looks whether the caller still wants the answer.
const LOOK: Duration = Duration::from_millis(100);
const PIECE: usize = 256 * 1024;

/// Confines the calling thread to a folder.
pub type Confine = fn(&Path) -> Result<()>;

/// Serve calls until the control socket closes. Whoever calls this ends the process then, and with it what is still at work.
///
/// `confine` takes from a thread what unpacking a layer into a folder does not need, before anything of the layer is read.
pub fn serve(control: &OwnedFd, confine: Confine) {
    while let Ok(Some((_, descriptors))) = take(control.as_fd()) {
        // Where there is no thread to be had the connection closes, which the caller notices.
        let _ = Builder::new().name("lamella-call".to_owned()).spawn(move || answer(descriptors, confine));
    }
}

fn answer(descriptors: Vec<OwnedFd>, confine: Confine) {
    let mut descriptors = descriptors.into_iter();
    let Some(connection) = descriptors.next() else { return };
    let mut connection = Connection::from(connection);
    let Ok(Some(request)) = connection.hear::<Request>(&mut || Ok(())) else { return };
    match request {
        Request::RemoveTree(call) => run(call, &connection),
        Request::DiskUsage(call) => run(call, &connection),
        Request::CopyTree(call) => run(call, &connection),
        Request::CopyOwner(call) => run(call, &connection),
        Request::Resolve(call) => run(call, &connection),
        Request::ReadFile(call) => run(call, &connection),
        Request::DiffTrees(call) => run(call, &connection),
        Request::DiffUpper(call) => run(call, &connection),
        Request::FirstDifference(call) => run(call, &connection),
        Request::TryMount(call) => run(call, &connection),
        Request::CopyMounts(call) => run(call, &connection),
        Request::Apply(call) => {
            let applied = apply(call, &mut connection, descriptors.next(), confine);
            tell(applied, &connection);
        }
        Request::Pack(call) => tell(pack(&call, &connection, descriptors.next()), &connection),
        Request::OnFiles(call) => {
            let root = descriptors.next().ok_or_else(missing);
            let archive = || descriptors.next().ok_or_else(missing);
            tell(root.and_then(|root| call.run(root, archive, &mut is_wanted(&connection))), &connection);
        }
        Request::Connect(call) => {
            let network = descriptors.next().ok_or_else(missing);
            tell(network.and_then(|network| call.run(&network, &mut is_wanted(&connection))), &connection);
        }
        Request::Mount(mount) => {
            let made = Options::parse(&mount.options).and_then(|options| mount::make(&mount, &options));
            hand_over(made, &connection);
        }
        Request::Network => {
            // This thread is for the call alone.
            let made = sys::own_network_namespace().and_then(|()| sys::bring_loopback_up());
            let opened = made.map_err(std::io::Error::from).and_then(|()| File::open("/proc/thread-self/ns/net"));
            hand_over(opened.map_err(|error| refused("make a network namespace", &error)), &connection);
        }
        Request::Namespace => {
            let opened = File::open("/proc/self/ns/user");
            hand_over(opened.map_err(|error| refused("open the user namespace", &error)), &connection);
        }
    }
}

fn run<C: Call>(call: C, connection: &Connection) {
    tell(call.run(&mut is_wanted(connection)), connection);
}

/// The caller may be gone, and does not care then.
fn tell<T: Serialize>(answer: Result<T>, connection: &Connection) {
    if let Err(error) = connection.say(&Reply::Answer(answer)) {
        let _ = connection.say(&Reply::<()>::Answer(Err(error)));
    }
}

/// A check that fails when the caller has closed the connection.
fn is_wanted(connection: &Connection) -> impl FnMut() -> Result<()> {
    let mut last = Instant::now();
    move || {
        if last.elapsed() < LOOK {
            return Ok(());
        }
        last = Instant::now();
        if connection.is_closed() { Err(Error::cancelled()) } else { Ok(()) }
    }
}

/// Hand a descriptor over, or say why there is none.
fn hand_over<T: Into<OwnedFd>>(made: Result<T>, connection: &Connection) {
    match made {
        Ok(made) => drop(connection.hand_over(made.into().as_fd())),
        Err(error) => tell::<()>(Err(error), connection),
    }
}

fn refused(what: &str, error: &std::io::Error) -> Error {
    let number = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    Error::system(format!("the helper cannot {what}"), number)
}

fn missing() -> Error {
    Error::invalid("a call of the helper lacks a descriptor")
}

fn apply(call: Apply, connection: &mut Connection, memory: Option<OwnedFd>, confine: Confine) -> Result<Applied> {
    let memory = OtherPieces::map(memory.ok_or_else(missing)?.as_fd(), call.piece)
        .map_err(|error| Error::system("cannot map the archive's memory", error))?;
    let caller = connection.speaker()?;
    let beneath = layer::Kept::beside(&call.layer)?;
    confine(&call.layer)?;
    let archive = Archive { memory, connection, current: None, position: 0 };
    layer::make(archive, &call.layer, call.format, call.limits, beneath, &mut is_wanted(&caller))
}

/// An archive that comes in pieces of another process's memory.
struct Archive<'a> {
    memory: OtherPieces,
    connection: &'a mut Connection,
    /// The piece in work, and how much of it is filled.
    current: Option<(u32, usize)>,
    position: usize,
}

impl Source for Archive<'_> {
    fn fill(&mut self) -> Result<&[u8]> {
        if let Some((index, length)) = self.current
            && self.position >= length
        {
            self.current = None;
            self.connection.say(&Reply::<Applied>::Free(index)).map_err(|_| Error::cancelled())?;
        }
        if self.current.is_none() {
            match self.connection.hear(&mut || Ok(()))? {
                Some(Feed::Piece { index, length }) => {
                    self.current = Some((index, usize::try_from(length).unwrap_or(usize::MAX)));
                    self.position = 0;
                }
                Some(Feed::End) => return Ok(&[]),
                None => return Err(Error::cancelled()),
            }
        }
        let Some((index, length)) = self.current else { return Ok(&[]) };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let piece = self.memory.get(index, length).ok_or_else(|| Error::invalid("there is no such piece of memory"))?;
        Ok(&piece[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

fn pack(call: &Pack, connection: &Connection, pipe: Option<OwnedFd>) -> Result<()> {
    let pipe = BufWriter::with_capacity(PIECE, File::from(pipe.ok_or_else(missing)?));
    let mut archive = Writer::new(pipe);
    write_until(&call.changes, &mut archive, call.latest, &mut is_wanted(connection))?;
    archive.finish().map(drop)
}
