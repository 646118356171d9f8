//! The keeper: has the runtime make and start the container, then stays to end it when the monitor is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitOptions};

use super::{Making, Runtime, keep_only, make_folder};
use crate::channel::{Channel, Message};
use crate::container::Streams;
use crate::error::{Failure, Kind, Step};
use crate::init;
use crate::monitor::Stdio;
use crate::rootfs;
use crate::run::{Begun, Maker};
use crate::sys::{self, Forked};

const CREATE: &str = "create";
/// The bundle's copy of our executable, which the spec of a container with an init has as its program.
const INIT: &str = "init";

fn ended_early() -> Failure {
    Failure::new(Kind::FailedPrecondition, "the container was ended before its program was started")
}

impl Runtime {
    /// Begin to make the container. `lock` is the container's, which the keeper holds on to until nothing of the container is
    /// left, also where the monitor was killed.
    pub fn begin(&self, stdin: bool, lock: BorrowedFd<'_>) -> Result<Begun, Failure> {
        let step = || "start the keeper of the container";
        let monitor = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).step(step)?;
        let (ours, theirs) = Channel::pair()?;
        let (stdio, streams) = Stdio::for_process(self.has_terminal(), stdin)?;
        if let (Some(streams), Some(root)) = (&streams, self.outer_root()) {
            streams.give_to(root);
        }
        match sys::fork().step(step)? {
            Forked::Parent(keeper) => Ok(Begun { maker: Maker::Helper(keeper), channel: ours, stdio }),
            Forked::Child => self.keep(&theirs, &monitor, lock, streams),
        }
    }

    fn keep(&self, channel: &Channel, monitor: &OwnedFd, lock: BorrowedFd<'_>, streams: Option<Streams>) -> ! {
        let _ = rustix::process::setsid();
        let _ = rustix::thread::set_name(c"lamella-keeper");
        let kept = [channel.as_fd(), monitor.as_fd(), lock].into_iter().chain(self.network.as_deref().map(AsFd::as_fd));
        keep_only(&kept.collect::<Vec<_>>(), streams.as_ref());
        let told = match self.create_and_start(channel, streams) {
            Ok(()) => channel.send(&Message::Running),
            Err(failure) => channel.send(&Message::Failed(failure)),
        };
        // The end of the channel says that the program runs.
        keep_only(&[monitor.as_fd(), lock], None);
        if told.is_ok() {
            sys::ends_within(monitor.as_fd(), None);
        }
        self.clear();
        let _ = rustix::fs::unlink(self.bundle.join("control.sock"));
        sys::exit_now(0)
    }

    fn create_and_start(&self, channel: &Channel, streams: Option<Streams>) -> Result<(), Failure> {
        make_folder(&self.state())?;
        // Of a run whose monitor and keeper were both killed.
        self.delete()?;
        self.forget_commands();
        if let Some(place) = &self.place {
            place.reserve();
        }
        if self.init {
            init::write_copy(&self.bundle.join(INIT))?;
        }
        self.create(channel, streams)?;
        if self.hold {
            channel.send(&Message::Ready)?;
            // Otherwise the monitor is gone: what is made goes with this process.
            let Some(Message::Go(_)) = channel.receive()? else { return Err(ended_early()) };
        }
        let null = std::process::Stdio::null;
        self.run("start", "start", &[&self.id], [null(), null(), null()])
    }

    /// Have the container made by a process in a mount namespace of its own, which then ends: mounts of the snapshot are seen by
    /// the runtime alone, and by the container, and go with them. Who is not root on the machine could enter such a namespace
    /// himself, and not leave it again.
    fn create(&self, channel: &Channel, streams: Option<Streams>) -> Result<(), Failure> {
        let (ours, theirs) = Channel::pair()?;
        let between = match sys::fork().step(|| "start a process that mounts the container's root")? {
            Forked::Parent(between) => between,
            Forked::Child => {
                drop(ours);
                let told = match self.mount_and_create(channel, streams) {
                    Ok(()) => Message::Made,
                    Err(failure) => Message::Failed(failure),
                };
                let _ = theirs.send(&told);
                sys::exit_now(0)
            }
        };
        drop((theirs, streams));
        let told = ours.receive();
        let _ = rustix::process::waitpid(Pid::from_raw(between), WaitOptions::empty());
        match told? {
            Some(Message::Made) => Ok(()),
            Some(Message::Failed(failure)) => Err(failure),
            _ => Err(ended_early()),
        }
    }

    fn mount_and_create(&self, channel: &Channel, streams: Option<Streams>) -> Result<(), Failure> {
        if let Some(network) = &self.network {
            sys::move_into(network.as_fd(), libc::CLONE_NEWNET).step(|| "enter the container's network namespace")?;
        }
        sys::unshare(libc::CLONE_NEWNS).step(|| "make a mount namespace")?;
        let root = self.bundle.join(&self.config.root.path);
        let propagation = self.config.linux.rootfs_propagation.as_deref();
        rootfs::mount_for_runtime(&self.bundle, &root, &self.snapshot, &self.sources, propagation)?;
        let bundle = self.bundle.to_string_lossy();
        let words = ["--bundle", &*bundle];
        let making = Making { verb: CREATE, name: CREATE, words: &words, process: &self.config.process };
        self.make(&making, streams, channel)
    }
}
