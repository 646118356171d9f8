//! From the request to a running container and its monitor.
//!
//! The process is nobody's child and becomes the monitor. Where the request says that the container will have a network namespace
//! of its own a thread makes that, for it takes as long as all that goes on meanwhile: the monitor reads and checks everything
//! ([`run`](crate::run)), takes the container's lock and makes the cgroup. It then has no thread but its own, makes the streams and
//! the container's first process, hears from that whether the program runs, and replies.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Pid, WaitId, WaitIdOptions, waitid};
use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind, Step};
use crate::hooks::{Plan as Hooks, Point};
use crate::monitor::{self, Monitor, Redirected, Start, Stdio};
use crate::namespaces::NetworkAhead;
use crate::network::{self, Network};
use crate::request::{Given, Outline, Reply, Request};
use crate::run::{Begun, LONGEST_DOCUMENT, Maker, Prepared, document_length};
use crate::sys;
use crate::time;

const REQUEST: i32 = 3;
const REPLY: i32 = 4;
const FIRST_CLIENT: i32 = 5;
const SOCKET: &str = "control.sock";

const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Everything that is needed to make a container, checked.
struct Job {
    run: Prepared,
    request: Request,
    bundle: OwnedFd,
    client: Option<OwnedFd>,
    /// The network namespace that is made meanwhile.
    network: Option<NetworkAhead>,
    /// Held until the monitor ends: never closed.
    lock: &'static OwnedFd,
}

/// The whole life of the launcher process; the result is its exit status.
pub fn run() -> i32 {
    let (Some(request), Some(reply)) = (sys::inherited(REQUEST), sys::inherited(REPLY)) else { return 2 };
    let mut reply = File::from(reply);
    let text = match read_request(File::from(request)) {
        Ok(text) => text,
        Err(error) => return answer(&mut reply, &Reply::Failed { error }),
    };
    let outline = Outline::of(&text);
    let given = match Given::take(FIRST_CLIENT + i32::from(outline.attach)) {
        Ok(given) => given,
        Err(error) => return answer(&mut reply, &Reply::Failed { error }),
    };
    sys::block_all();
    supervise(&text, given, outline.own_network.then(NetworkAhead::begin).flatten(), reply);
    0
}

fn read_request(mut request: File) -> Result<String, Failure> {
    let step = || "read the request";
    let mut text = String::with_capacity(document_length(&request));
    // The parent may have written it through the same open file: its offset is at the end then.
    let _ = request.rewind();
    request.take(LONGEST_DOCUMENT).read_to_string(&mut text).step(step)?;
    Ok(text)
}

impl Given {
    /// Take over the namespaces that a caller who is not root passes from descriptor `first` on, and close all others.
    ///
    /// The last is a user namespace, and this process becomes its root: the monitor is in it, and all namespaces and mounts that
    /// are made for the container belong to it. It stays as long as the container, whoever made it ends. One before it is the
    /// container's network namespace.
    fn take(first: i32) -> Result<Self, Failure> {
        let passed = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0);
        let last = FIRST_CLIENT + passed - 1;
        let Some(user) = (last >= first).then(|| sys::inherited(last)).flatten() else {
            sys::close_from(first);
            return Ok(Self::default());
        };
        let network = (last > first).then(|| sys::inherited(first)).flatten();
        sys::move_into(user.as_fd(), libc::CLONE_NEWUSER).step(|| "enter the caller's user namespace")?;
        drop(user);
        // Its memory belongs to the user namespace that it came from: nobody in this one may look into it then.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "hide from containers")?;
        sys::close_from(last);
        Ok(Self { as_user: true, network: network.map(Arc::new) })
    }
}

fn answer(reply: &mut File, document: &Reply) -> i32 {
    let text = serde_json::to_vec(document).unwrap_or_default();
    i32::from(reply.write_all(&text).is_err())
}

/// Read and check everything; nothing is made yet.
fn prepare(request: &str, given: Given, network: Option<NetworkAhead>) -> Result<Job, Failure> {
    let request = Request { given, ..Request::parse(request)? };
    let client = if request.attach {
        let missing = || Failure::invalid("attach", "descriptor 5 is not open");
        Some(sys::inherited(FIRST_CLIENT).ok_or_else(missing)?)
    } else {
        None
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let bundle = rustix::fs::openat(CWD, request.bundle.as_str(), flags, Mode::empty())
        .step(|| format!("open the bundle {}", request.bundle))?;
    let run = Prepared::read(&request, bundle.as_fd())?;
    let lock = lock(&request, run.cgroups_path())?;
    Ok(Job { run, request, bundle, client, network, lock: Box::leak(Box::new(lock)) })
}

/// What is said in a lock for who finds it alone, without the bundle.
#[derive(Serialize)]
struct Holder<'a> {
    /// The monitor's process.
    pid: i32,
    /// The host name of its machine: others may have the file system, too.
    machine: &'a str,
    bundle: &'a str,
    /// What is to be cleared away where the monitor was killed: from the root of each hierarchy, empty for nothing.
    cgroups_path: &'a str,
}

/// Take the container's lock, and say in it who has it: a container has one monitor.
fn lock(request: &Request, cgroups_path: Option<&str>) -> Result<OwnedFd, Failure> {
    let path = request.lock.clone().unwrap_or_else(|| format!("{}/lock", request.bundle));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock =
        rustix::fs::openat(CWD, path.as_str(), flags, Mode::from_raw_mode(0o600)).step(|| format!("open {path}"))?;
    // Whoever looks whether there is a monitor holds the lock for a moment.
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            result => {
                result.step(|| format!("lock {path}"))?;
                let machine = rustix::system::uname();
                let holder = Holder {
                    pid: rustix::process::getpid().as_raw_nonzero().get(),
                    machine: &machine.nodename().to_string_lossy(),
                    bundle: &request.bundle,
                    cgroups_path: cgroups_path.unwrap_or_default(),
                };
                let text = serde_json::to_vec(&holder).unwrap_or_default();
                let step = || format!("write {path}");
                rustix::fs::ftruncate(&lock, 0).step(step)?;
                rustix::io::pwrite(&lock, &text, 0).step(step)?;
                return Ok(lock);
            }
        }
    }
    Err(Failure::new(Kind::FailedPrecondition, format!("the container of {} has a monitor already", request.bundle))
        .with_hint("stop the container first, or give the new one another id"))
}

/// Be the monitor: make the container, reply, serve.
fn supervise(request: &str, given: Given, network: Option<NetworkAhead>, mut reply: File) {
    let session = rustix::process::setsid().map(drop).step(|| "start the monitor's session");
    let job = match session.and_then(|()| prepare(request, given, network)) {
        Ok(job) => job,
        Err(error) => {
            answer(&mut reply, &Reply::Failed { error });
            return;
        }
    };
    let bundle = job.request.bundle.clone();
    let record = job.request.network.clone();
    let made = make(job, &mut reply);
    match made {
        Ok(Some(mut monitor)) => {
            drop(reply);
            monitor.run();
        }
        Ok(None) => {}
        Err(error) => {
            // The caller does it, too, if it is still there.
            let _ = record.map(|record| Network::new(record).release(false, network::PATIENCE, &mut || Ok(())));
            answer(&mut reply, &Reply::Failed { error });
        }
    }
    // Last of all, so that it stands for "there is a monitor" as long as there is one.
    let _ = rustix::fs::unlink(format!("{bundle}/{SOCKET}"));
}

fn make(job: Job, reply: &mut File) -> Result<Option<Monitor>, Failure> {
    let Job { mut run, request, bundle, client, network: ahead, lock } = job;
    monitor::forget_exit(bundle.as_fd());
    let listener = listen(&request.bundle, &bundle)?;
    let network = request.network.as_deref().map(Network::new);
    let hooks = run.shared.hooks.clone();
    monitor::expect_end(bundle.as_fd(), &request, &run.shared)?;
    let redirected = Redirected::open(&request.stdio, &request.owner())?;
    let mut cgroup = run.make_cgroup(&request)?;
    if !run.own_pids || run.shared.runtime.is_some() {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .step(|| "become the reaper of the container's orphans")?;
    }
    // Also where nobody wants it: from here on there is one thread, as setns(2) and fork(2) like it.
    let network_ahead = ahead.and_then(NetworkAhead::wait);
    if let (Some(namespaces), Some(made)) = (run.namespaces().filter(|all| all.can_have_network()), network_ahead) {
        namespaces.have_network(made);
    }
    let begun = begin(&mut run, &request, &cgroup, lock.as_fd(), reply.as_fd());
    let Prepared { own_pids, shared, mut warnings, builder } = run;
    let (begun, pid) = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            if let Some(runtime) = &shared.runtime {
                runtime.clear();
            }
            if hooks.is_some() && !own_pids {
                cgroup.signal_all(libc::SIGKILL); // what hooks of the container's side have left
            }
            cgroup.remove();
            monitor::run_at_end(bundle.as_fd(), hooks.as_deref());
            redirected.give_up();
            return Err(failure);
        }
    };
    drop(builder);
    if let Some(runtime) = &shared.runtime {
        cgroup = runtime.cgroup();
    }
    let hold = request.hold;
    let started_at = time::now();
    let _ = std::fs::write(format!("{}/pid", request.bundle), pid.to_string());
    let document = Reply::Started {
        pid,
        monitor_pid: rustix::process::getpid().as_raw_nonzero().get(),
        started_at: started_at.clone(),
        warnings: std::mem::take(&mut warnings),
    };
    let monitor = Monitor::new(Start {
        pid,
        keeper: if let Maker::Helper(keeper) = begun.maker { Some(keeper) } else { None },
        started_at: (!hold).then_some(started_at),
        channel: hold.then_some(begun.channel),
        stdio: begun.stdio,
        redirected,
        cgroup,
        network,
        own_pids,
        bundle,
        listener,
        client,
        lock: lock.as_fd(),
        shared,
        request,
    });
    let monitor = match monitor {
        Ok(monitor) => monitor.announce(),
        Err(failure) => {
            begun.maker.end();
            return Err(failure);
        }
    };
    if answer(reply, &document) != 0 {
        // The caller is gone and knows of no container: the monitor sees it end and cleans up.
        let _ = sys::kill(pid, libc::SIGKILL);
    }
    Ok(Some(monitor))
}

/// Bind the control socket. Its name may be longer than a socket's address takes, so it is bound from within.
fn listen(shown: &str, bundle: &OwnedFd) -> Result<OwnedFd, Failure> {
    let step = || format!("make the control socket {shown}/{SOCKET}");
    rustix::process::fchdir(bundle).step(step)?;
    let _ = rustix::fs::unlink(SOCKET);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).step(step)?;
    let mask = rustix::process::umask(Mode::from_raw_mode(0o117));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(SOCKET).step(step)?);
    rustix::process::umask(mask);
    bound.step(step)?;
    rustix::net::listen(&socket, 64).step(step)?;
    rustix::process::chdir("/").step(|| "change to /")?;
    Ok(socket)
}

/// Make the container and follow that until its program runs, or waits to be run. Returns the id of its first process, too.
fn begin(
    run: &mut Prepared,
    request: &Request,
    cgroup: &Cgroup,
    lock: BorrowedFd<'_>,
    reply: BorrowedFd<'_>,
) -> Result<(Begun, i32), Failure> {
    let mut begun = run.begin(request.stdin, cgroup, lock)?;
    let hooks = run.shared.hooks.as_deref();
    let followed = follow(&mut begun, hooks, reply, &mut run.warnings).and_then(|pid| {
        if !request.hold {
            run_hooks(hooks, Point::Start, pid, reply)?;
        }
        Ok(pid)
    });
    match followed {
        Ok(pid) => Ok((begun, pid)),
        Err(failure) => {
            begun.maker.end();
            Err(failure)
        }
    }
}

/// Hear how the making fares. Returns the id of the first process.
fn follow(
    begun: &mut Begun,
    hooks: Option<&Hooks>,
    reply: BorrowedFd<'_>,
    warnings: &mut Vec<String>,
) -> Result<i32, Failure> {
    let (mut pid, maker) = match begun.maker {
        Maker::Process(pid) => (Some(pid), pid),
        Maker::Helper(helper) => (None, helper),
    };
    let mut running = false;
    loop {
        await_message(&begun.channel, reply)?;
        let over = match begun.channel.receive()? {
            Some(Message::Warning(text)) => {
                warnings.push(text);
                false
            }
            Some(Message::Terminal(master)) => {
                begun.stdio = Stdio::of_terminal(master)?;
                false
            }
            Some(Message::Failed(failure)) => return Err(failure),
            Some(Message::Ready) => true,
            Some(Message::Running) => {
                running = true;
                false
            }
            Some(Message::Pid(told)) => {
                pid = Some(told);
                false
            }
            Some(Message::Made) => {
                run_hooks(hooks, Point::Creation, maker, reply)?;
                begun.channel.send(&Message::Proceed)?;
                false
            }
            Some(Message::Mapped | Message::Proceed | Message::Go(_)) => false,
            None if running || is_alive(maker) => true,
            None => return Err(killed_early()),
        };
        if over {
            return pid.ok_or_else(killed_early);
        }
    }
}

/// Run hooks of the host's side to their end, or until the caller is gone.
fn run_hooks(hooks: Option<&Hooks>, point: Point, pid: i32, reply: BorrowedFd<'_>) -> Result<(), Failure> {
    if let Some(mut running) = hooks.map_or(Ok(None), |hooks| hooks.begin(point, pid))? {
        running.wait(|channel| await_message(channel, reply))?;
    }
    Ok(())
}

fn killed_early() -> Failure {
    Failure::new(Kind::FailedPrecondition, "the container's first process was killed before its program started")
        .with_hint("a memory limit that is too small, or a seccomp profile that kills ordinary calls")
}

/// Wait for a message; fails when the caller, who waits for the reply, is gone: what it does not know of shall not start.
fn await_message(channel: &Channel, reply: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut watched = [PollFd::new(channel, PollFlags::IN), PollFd::from_borrowed_fd(reply, PollFlags::empty())];
    while let Err(Errno::INTR) = poll(&mut watched, None) {}
    if watched[1].revents().contains(PollFlags::ERR) {
        return Err(Failure::new(Kind::Unavailable, "the caller went away before the container was started"));
    }
    Ok(())
}

/// Whether a child has not ended yet.
fn is_alive(pid: i32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Pid::from_raw(pid).is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
}
