//! The helper's process: a user and a mount namespace in which a user is root, and the core's calls served there.
//!
//! The first process forks the helper, which makes the namespaces, has its ids mapped from outside (inside, the set-uid programs
//! newuidmap and newgidmap have no rights), tells what was mapped, and ends. The helper is nobody's child then, and ends when its
//! control socket does. Both are in a process group of their own, so that a terminal's Ctrl-C does not reach them; a session
//! would have its own share of the processors (sched(7)).
//!
//! The helper of a root is the first process itself, in its caller's namespaces.
//!
//! One's own id is 0 inside; the ranges that /etc/subuid and /etc/subgid give follow from 1 on, in their order. Where they cannot
//! be had, what is mapped is one's own id alone, and a note says why.

mod confine;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use lamella_core::error::{Error, Kind as ErrorKind};
use lamella_core::helper::{Extent, Maps, Setup, decode, encode, extents, listed, ranges, serve};
use lamella_core::stopped::Watch;
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};

use crate::channel::{Channel, Message};
use crate::error::{Failure, Kind, Step};
use crate::namespaces::{GROUPS, Ids, PATIENCE, USERS, write_mapping};
use crate::network::program::Program;
use crate::spec::IdMapping;
use crate::sys::{self, Forked};

const REQUEST: i32 = 3;
const REPLY: i32 = 4;
const CONTROL: i32 = 5;
/// A bound for what is read of a list of ranges.
const LONGEST_FILE: u64 = 4 << 20;

/// The whole life of the process; the result is its exit status.
pub fn run() -> i32 {
    let taken = (sys::inherited(REQUEST), sys::inherited(REPLY), sys::inherited(CONTROL));
    let (Some(request), Some(reply), Some(control)) = taken else { return 2 };
    sys::close_from(CONTROL + 1);
    // Before the fork, so that nobody of its group has a parent in the caller's: who is stopped when the last such parent ends is sent
    // SIGHUP and let go on (setpgid(2), orphaned process groups).
    let _ = rustix::process::setpgid(None, None);
    match setup(request) {
        Ok(setup) if setup.namespace => in_user_namespace(&setup, reply, control),
        Ok(_) => in_place(reply, &control),
        Err(failure) => i32::from(answer(reply, &Err(told(failure))).is_err()),
    }
}

fn setup(request: OwnedFd) -> Result<Setup, Failure> {
    let mut document = Vec::new();
    let mut request = File::from(request);
    // The parent may have written it through the same open file: its offset is at the end then.
    let _ = rustix::fs::seek(&request, rustix::fs::SeekFrom::Start(0));
    request.read_to_end(&mut document).step(|| "read the request")?;
    decode(&document).map_err(|error| Failure::invalid("the request", &error.message))
}

/// Become the helper of a root, as whom this process runs already.
fn in_place(reply: OwnedFd, control: &OwnedFd) -> i32 {
    let _ = rustix::thread::set_name(c"lamella-helper");
    let _ = rustix::process::chdir("/");
    let hidden = || rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "hide its memory");
    let ready = confine::keep_capabilities().and_then(|()| hidden()).map_err(told);
    let refused = ready.is_err();
    if answer(reply, &ready.map(|()| Maps { helper: Some(rustix::process::getpid().as_raw_pid()), ..Maps::default() }))
        .is_ok()
        && !refused
    {
        serve(control, confine::confine);
    }
    0
}

fn in_user_namespace(setup: &Setup, reply: OwnedFd, control: OwnedFd) -> i32 {
    match begin() {
        Ok((Forked::Parent(pid), channel)) => {
            drop(control);
            let mapped = map(pid, &channel, setup).map_err(told);
            i32::from(answer(reply, &mapped).is_err())
        }
        Ok((Forked::Child, channel)) => {
            drop(reply);
            if become_helper(channel) {
                serve(&control, confine::confine);
            }
            0
        }
        Err(failure) => i32::from(answer(reply, &Err(told(failure))).is_err()),
    }
}

fn begin() -> Result<(Forked, Channel), Failure> {
    let (first, helper) = Channel::pair()?;
    match sys::fork().step(|| "start the helper")? {
        Forked::Parent(pid) => Ok((Forked::Parent(pid), first)),
        Forked::Child => Ok((Forked::Child, helper)),
    }
}

fn answer(reply: OwnedFd, maps: &Result<Maps, Error>) -> std::io::Result<()> {
    let document = encode(maps).map_err(std::io::Error::other)?;
    File::from(reply).write_all(&document)
}

/// What the caller is told of a failure.
fn told(failure: Failure) -> Error {
    let name = format!("{:?}", failure.kind);
    let kind = ErrorKind::ALL.iter().copied().find(|kind| kind.name() == name);
    let error = Error::new(kind.unwrap_or(ErrorKind::Internal), failure.message);
    match failure.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Make the namespaces and wait for the maps. False when it is over.
fn become_helper(channel: Channel) -> bool {
    let _ = rustix::thread::set_name(c"lamella-helper");
    if let Err(error) = sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) {
        let failure = if error.raw_os_error() == Some(libc::ENOSPC) {
            let text = "make a user namespace: user.max_user_namespaces allows no more of them here";
            Failure::new(Kind::ResourceExhausted, text)
                .with_hint("the administrator can allow more: sysctl -w user.max_user_namespaces=15000")
        } else {
            Failure::system("make a user namespace", &error).with_hint(
                "the administrator can switch user namespaces on (kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns); in a chroot nobody has them; lamella doctor says which it is",
            )
        };
        let _ = channel.send(&Message::Failed(failure));
        return false;
    }
    let _ = rustix::process::chdir("/");
    let mapped = channel.send(&Message::Made).is_ok() && matches!(channel.receive(), Ok(Some(Message::Mapped)));
    // Not before: newuidmap has to see whose process this is. Nobody in the user namespace may look into it, whatever he is
    // capable of there: its memory belongs to the namespace of its caller.
    mapped && rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok()
}

/// Wait until the helper has made its namespaces. One that does not come to that is ended: it may have the reply's end, too.
fn await_made(pid: i32, channel: &Channel) -> Result<(), Failure> {
    let heard = Watch::new(pid, "the helper that is started")
        .until_readable(channel, &mut || Ok(()))
        .map_err(|error| Failure::from(error).with_hint("it was ended; try again, and a new one is started"));
    let failure = match heard.and_then(|()| channel.receive()) {
        Ok(Some(Message::Made)) => return Ok(()),
        Ok(Some(Message::Failed(failure))) | Err(failure) => failure,
        Ok(_) => Failure::new(Kind::Unavailable, "the helper ended before its user namespace was made"),
    };
    if let Some(helper) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(helper, Signal::KILL);
        let _ = rustix::process::waitpid(Some(helper), WaitOptions::empty());
    }
    Err(failure)
}

/// Map the helper's ids.
fn map(pid: i32, channel: &Channel, setup: &Setup) -> Result<Maps, Failure> {
    await_made(pid, channel)?;
    let mut notes = Vec::new();
    let users = map_kind(pid, &USERS, setup, &mut notes)?;
    let groups = map_kind(pid, &GROUPS, setup, &mut notes)?;
    channel
        .send(&Message::Mapped)
        .map_err(|_| Failure::new(Kind::Unavailable, "the helper ended before its ids were mapped"))?;
    Ok(Maps { users, groups, notes, helper: Some(pid) })
}

fn map_kind(pid: i32, ids: &Ids, setup: &Setup, notes: &mut Vec<String>) -> Result<Vec<Extent>, Failure> {
    let user = rustix::process::getuid().as_raw();
    let own = if ids.groups { rustix::process::getegid().as_raw() } else { rustix::process::geteuid().as_raw() };
    let (file, option) = if ids.groups { ("/etc/subgid", "-g") } else { ("/etc/subuid", "-u") };
    let mut text = String::new();
    let _ = File::open(file).and_then(|opened| opened.take(LONGEST_FILE).read_to_string(&mut text));
    let mut found = ranges(&text, setup.user.as_deref(), user);
    if found.is_empty()
        && let Some(name) = &setup.user
    {
        // They may come from elsewhere (subid in nsswitch.conf).
        let asked = if ids.groups { vec![option, name] } else { vec![name.as_str()] };
        let asked = ["getsubids"].into_iter().chain(asked).map(str::to_owned).collect();
        let said = Program { args: asked, ..Program::default() }.run(PATIENCE, &mut || Ok(()));
        found = said.map(|said| listed(&String::from_utf8_lossy(&said.output))).unwrap_or_default();
    }
    let whole = extents(own, &found);
    if whole.len() > 1 {
        match write_mapping(pid, ids, &mappings(&whole), Some(&setup.search)) {
            Ok(()) => return Ok(whole),
            // It may have been mapped, or be mapped yet: what follows from one id only would not hold.
            Err(failure) if failure.kind == Kind::Unavailable => return Err(failure),
            Err(failure) => notes.push(match failure.hint {
                Some(hint) => format!("{} ({hint})", failure.message),
                None => failure.message,
            }),
        }
    } else {
        notes.push(format!("{file} gives this user no ids besides his own"));
    }
    let single = extents(own, &[]);
    write_mapping(pid, ids, &mappings(&single), None)?;
    Ok(single)
}

fn mappings(extents: &[Extent]) -> Vec<IdMapping> {
    let mapping = |&(container_id, host_id, size): &Extent| IdMapping { container_id, host_id, size };
    extents.iter().map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_helper_that_is_stopped_before_it_has_made_its_namespaces_is_ended() {
        let mut helper = Command::new("sleep").arg("600").spawn().expect("started");
        let pid = helper.id().cast_signed();
        rustix::process::kill_process(Pid::from_child(&helper), Signal::STOP).expect("stopped");
        let (first, _helpers) = Channel::pair().expect("made");
        let failure = await_made(pid, &first).expect_err("it does not answer");
        assert_eq!(failure.kind, Kind::Unavailable);
        assert!(failure.message.contains(&format!("process {pid}, is stopped")));
        assert!(helper.wait().is_err(), "it was ended, and reaped");
    }
}
