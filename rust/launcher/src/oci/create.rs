//! `create` and `run`: making a container, whose first process then waits for `start`.
//!
//! It is a child of the calling process here, and the caller's when this one ends. Whatever stops a creation ends the
//! process and takes away what was made. Killed in the middle this process takes its child with it, and leaves a folder
//! and perhaps an empty cgroup, which `delete --force` removes.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg,
};

use super::arguments::{Arguments, Global, wrong};
use super::container::{CONFIG, Container, Record, read_text, start_time, write_whole};
use super::foreground::Foreground;
use super::journal::Journal;
use super::{delete, start};
use crate::cgroup::{self, Cgroup};
use crate::channel::{Channel, Message};
use crate::container::Wait;
use crate::error::{Failure, Kind, Step};
use crate::hooks::{self, Point};
use crate::rootfs::RootfsPlan;
use crate::run::{self, Run};
use crate::spec::Spec;
use crate::{sys, time};

/// The first descriptor that may be handed down to a container beyond its standard streams.
const FIRST_PRESERVED: i32 = 3;
const PRESERVED_MAX: i32 = 60;

/// Make a container.
pub(super) fn create(global: &Global, arguments: Arguments, journal: &mut Journal) -> Result<i32, Failure> {
    let id = arguments.only_id()?;
    let wishes = Wishes::new(&arguments)?;
    let bundle = Bundle::read(&arguments)?;
    let console = wishes.console(bundle.spec.process.terminal)?;
    make(global, id, bundle, &wishes, journal, |master| console.as_ref().map_or(Ok(()), |way| send(way, &master)))?;
    Ok(0)
}

/// Make a container and start its program; without `--detach` wait for its end, and delete it.
pub(super) fn run(global: &Global, arguments: Arguments, journal: &mut Journal) -> Result<i32, Failure> {
    let id = arguments.only_id()?;
    let wishes = Wishes::new(&arguments)?;
    let bundle = Bundle::read(&arguments)?;
    let terminal = bundle.spec.process.terminal;
    let detach = arguments.has("detach");
    let console =
        if detach { wishes.console(terminal)? } else { wishes.console.as_deref().map(connect).transpose()? };
    let mut foreground = Foreground::default();
    let made = make(global, id, bundle, &wishes, journal, |master| match &console {
        Some(way) => send(way, &master),
        None => foreground.take(master),
    })?;
    let pid = made.record.pid;
    drop(made); // and with it the lock
    if !detach {
        foreground.begin()?;
    }
    if let Err(failure) = start::start_program(global, id, journal) {
        let _ = delete::remove(global, id, true, journal);
        run::end(pid);
        return Err(failure);
    }
    if detach {
        return Ok(0);
    }
    let status = foreground.wait(pid)?;
    if !arguments.has("keep") {
        delete::remove(global, id, true, journal)?;
    }
    Ok(status)
}

/// What `create`, `run` and `exec` are asked for beside the process itself.
#[derive(Debug)]
pub(super) struct Wishes {
    pid_file: Option<PathBuf>,
    console: Option<PathBuf>,
    preserved: i32,
    shares_keyring: bool,
}

impl Wishes {
    pub(super) fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let text = arguments.value("preserve-fds").unwrap_or("0");
        let preserved = text.parse().ok().filter(|number| (0..=PRESERVED_MAX).contains(number));
        let path = |name| arguments.value(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self {
            pid_file: path("pid-file"),
            console: path("console-socket"),
            preserved: preserved
                .ok_or_else(|| wrong(format!("--preserve-fds {text:?} is no number from 0 to {PRESERVED_MAX}")))?,
            shares_keyring: arguments.has("no-new-keyring"),
        })
    }

    /// The way to who takes the terminal of a process that nobody here waits for.
    pub(super) fn console(&self, terminal: bool) -> Result<Option<OwnedFd>, Failure> {
        match (&self.console, terminal) {
            (Some(path), true) => connect(path).map(Some),
            (None, true) => {
                Err(wrong("process.terminal is true: --console-socket says who is to have the terminal's other end"))
            }
            (Some(_), false) => {
                Err(wrong("--console-socket is for a process with a terminal: process.terminal is false"))
            }
            (None, false) => Ok(None),
        }
    }

    /// Tell a process what is special about it.
    pub(super) fn apply(&self, process: &mut crate::process::Plan) -> Result<(), Failure> {
        process.outlives_parent = true;
        process.shares_keyring = self.shares_keyring;
        for number in FIRST_PRESERVED..FIRST_PRESERVED + self.preserved {
            let missing = || wrong(format!("--preserve-fds: descriptor {number} is not open"));
            process.preserved.push(sys::inherited(number).ok_or_else(missing)?);
        }
        Ok(())
    }

    /// Tell the caller which process it is.
    pub(super) fn tell(&self, pid: i32) -> Result<(), Failure> {
        self.pid_file.as_ref().map_or(Ok(()), |path| write_whole(path, &pid.to_string()))
    }
}

/// A bundle's folder and document, checked.
struct Bundle {
    path: String,
    text: String,
    spec: Spec,
}

impl Bundle {
    fn read(arguments: &Arguments) -> Result<Self, Failure> {
        let shown = arguments.value("bundle").unwrap_or(".");
        let path = std::fs::canonicalize(shown).step(|| format!("open the bundle {shown}"))?;
        let name = path.join(CONFIG);
        let text = read_text(File::open(&name).step(|| format!("open {}", name.display()))?, &name)?;
        let spec = Spec::parse(&text)?;
        let path = path.into_os_string().into_string().map_err(|path| wrong(format!("{path:?} is not UTF-8")))?;
        Ok(Self { path, text, spec })
    }
}

/// Make a container; on failure nothing is left. `take_terminal` gets the other end of its terminal, if it has one.
fn make(
    global: &Global,
    id: &str,
    bundle: Bundle,
    wishes: &Wishes,
    journal: &mut Journal,
    take_terminal: impl FnMut(OwnedFd) -> Result<(), Failure>,
) -> Result<Container, Failure> {
    let Bundle { path, text, mut spec } = bundle;
    let mut container = Container::make(global, id, Record { bundle: path.clone(), ..Record::default() })?;
    let mut cgroup = Cgroup::default();
    let mut begun = None;
    let mut warnings = Vec::new();
    let made = (|| {
        container.write(CONFIG, &text)?;
        container.save()?;
        let plan = container.cgroup_plan(&mut spec);
        let rootfs = RootfsPlan::new(&path, Vec::new(), Vec::new(), &spec)?;
        let hooks = Rc::new(hooks::Plan::new(&mut spec, &path, id));
        let Run { plan: mut whole, warnings: told, .. } = Run::new(spec, rootfs)?;
        warnings.extend(told);
        wishes.apply(&mut whole.process)?;
        whole.wait = Wait::Starter(container.listen()?);
        whole.hooks = Some(hooks.clone());
        cgroup = plan.create(Path::new(cgroup::ROOT), &mut warnings)?;
        let (pid, channel) = run::make_first_process(&whole, None, &cgroup, &mut warnings)?;
        begun = Some(hooks);
        let followed = (|| {
            container.record.pid = pid;
            container.record.start_time = start_time(pid).unwrap_or_default();
            container.save()?;
            follow(&mut container.record.pid, &channel, whole.hooks.as_deref(), &mut warnings, take_terminal)?;
            wishes.tell(pid)?;
            container.record.created = time::now();
            container.save()
        })();
        if followed.is_err() {
            run::end(pid);
        }
        followed
    })();
    if made.is_err() {
        if begun.is_some() {
            cgroup.signal_all(libc::SIGKILL); // what hooks of the container's side have left
        }
        cgroup.remove();
        let _ = container.remove();
        // What others have done is undone by these (runtime.md, "Lifecycle").
        warnings.extend(begun.and_then(|hooks| hooks.run(Point::End, 0).ok()).unwrap_or_default());
    }
    for warning in warnings {
        journal.warn(&warning);
    }
    made?;
    Ok(container)
}

/// Hear what a process says until it is ready, or runs its program. Its id is told, too, where it is not known before.
pub(super) fn follow(
    pid: &mut i32,
    channel: &Channel,
    hooks: Option<&hooks::Plan>,
    warnings: &mut Vec<String>,
    mut take_terminal: impl FnMut(OwnedFd) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut running = false;
    loop {
        match channel.receive()? {
            Some(Message::Warning(text)) => warnings.push(text),
            Some(Message::Terminal(master)) => take_terminal(master)?,
            Some(Message::Made) => {
                warnings.extend(hooks.map_or(Ok(Vec::new()), |hooks| hooks.run(Point::Creation, *pid))?);
                channel.send(&Message::Proceed)?;
            }
            Some(Message::Failed(failure)) => return Err(failure),
            Some(Message::Pid(told)) => *pid = told,
            Some(Message::Ready) => return Ok(()),
            Some(Message::Running) => running = true,
            Some(Message::Mapped | Message::Proceed | Message::Go(_)) => {}
            None if running || start_time(*pid).is_some() => return Ok(()),
            None => {
                return Err(Failure::new(
                    Kind::FailedPrecondition,
                    "the process was killed before its program started",
                )
                .with_hint("a memory limit that is too small, or a seccomp profile that kills ordinary calls"));
            }
        }
    }
}

fn connect(path: &Path) -> Result<OwnedFd, Failure> {
    let step = || format!("connect to the console socket {}", path.display());
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).step(step)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).step(step)?).step(step)?;
    Ok(socket)
}

/// Hand the other end of a terminal over.
pub(super) fn send(way: &OwnedFd, master: &OwnedFd) -> Result<(), Failure> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    // Whoever receives it takes the text for the terminal's name.
    sendmsg(way, &[IoSlice::new(b"/dev/ptmx")], &mut ancillary, SendFlags::NOSIGNAL)
        .step(|| "hand the terminal over to the console socket")?;
    Ok(())
}
