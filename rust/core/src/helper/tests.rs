//! A helper that is a thread: what goes over its connections, and what comes of it.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal};

use super::client::Helper;
use super::connection::{self, Connection};
use super::{DiskUsage, Feed, RemoveTree, Request, serve};
use crate::compression::Compression;
use crate::cores::Cores;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind, Result};
use crate::layer::WhiteoutFormat;
use crate::pipeline::{Options, Pipeline, Unpacked};
use crate::tar::{Entry, EntryKind, Limits, Timestamp, Writer};

fn helper() -> (Arc<Helper>, JoinHandle<()>) {
    let (ours, theirs) = connection::control().expect("sockets");
    let thread = thread::spawn(move || serve(&theirs, |_| Ok(())));
    (Arc::new(Helper::over(ours)), thread)
}

fn archive(files: usize, size: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for number in 0..files {
        let entry = Entry {
            path: format!("file-{number}").into_bytes(),
            kind: EntryKind::File,
            mode: 0o644,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mtime: Timestamp { seconds: 1, nanoseconds: 0 },
            atime: None,
            size: size as u64,
            sparse: false,
            xattrs: Vec::new(),
        };
        writer.entry(&entry).expect("memory");
        writer.data(&vec![(number % 251) as u8 + 1; size]).expect("memory");
    }
    writer.finish().expect("memory")
}

fn unpack(helper: &Arc<Helper>, archive: &[u8], layer: &Path) -> Result<Unpacked> {
    let pipeline = Pipeline::new(Options {
        digest: Digest::of(Algorithm::Sha256, archive),
        size: archive.len() as u64,
        blob: None,
        offset: 0,
        compression: Compression::None,
        layer: Some(layer.to_owned()),
        diff_id: None,
        whiteouts: WhiteoutFormat::OverlayUserXattr,
        limits: Limits::default(),
        cores: Cores::new(2),
        helper: Some(Arc::clone(helper)),
    })?;
    pipeline.write(archive, &mut || Ok(()))?;
    let found = pipeline.finish(&mut || Ok(()))?;
    assert_eq!(pipeline.unpacked(), archive.len() as u64);
    Ok(found)
}

#[test]
fn calls_are_answered_beside_each_other_until_the_control_socket_closes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let (helper, thread) = helper();
    let usage = DiskUsage { path: folder.path().to_owned() };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(helper.call(usage.clone(), &mut || Ok(())).unwrap().inodes, 2));
        }
    });
    helper.call(RemoveTree { path: folder.path().join("sub") }, &mut || Ok(())).unwrap();
    assert_eq!(helper.call(usage, &mut || Ok(())).unwrap().inodes, 1);
    drop(helper);
    thread.join().unwrap();
}

#[test]
fn an_error_comes_over_with_its_kind_and_hint() {
    let (helper, _thread) = helper();
    let error = helper.call(DiskUsage { path: "/proc/version".into() }, &mut || Ok(())).unwrap_err();
    assert_eq!(error, crate::tree::usage("/proc/version".as_ref(), &mut || Ok(())).unwrap_err());
}

#[test]
fn whoever_waits_is_asked_whether_to_go_on() {
    let (ours, _theirs) = connection::control().unwrap();
    let silent = Helper::over(ours);
    let error = silent.call(DiskUsage { path: "/".into() }, &mut || Err(Error::cancelled())).unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
}

#[test]
fn a_helper_that_is_gone_is_an_error_of_its_own() {
    let (ours, theirs) = connection::control().unwrap();
    let helper = Arc::new(Helper::over(ours));
    let thread = thread::spawn(move || drop(connection::take(theirs.as_fd())));
    let error = helper.call(DiskUsage { path: "/".into() }, &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    thread.join().unwrap();
    let error = helper.call(DiskUsage { path: "/".into() }, &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(unpack(&helper, &archive(1, 10), folder.path()).unwrap_err().kind, Kind::Unavailable);
}

#[test]
fn a_pipeline_that_lends_its_chunks_makes_the_layer() {
    let (helper, _thread) = helper();
    let folder = tempfile::tempdir().unwrap();
    let found = unpack(&helper, &archive(300, 50_000), folder.path()).unwrap();
    assert_eq!(found.layer.inodes, 301);
    for number in [0, 7, 299] {
        let content = std::fs::read(folder.path().join(format!("file-{number}"))).unwrap();
        assert_eq!(content, vec![u8::try_from(number % 251).unwrap() + 1; 50_000]);
    }
}

#[test]
fn what_the_helper_refuses_ends_the_pipeline() {
    let (helper, _thread) = helper();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("there"), "").unwrap();
    let archive = archive(300, 50_000);
    // More than once: who feeds may notice first that the helper has hung up, who hears that it has answered.
    for _ in 0..10 {
        let error = unpack(&helper, &archive, folder.path()).unwrap_err();
        assert_eq!(error.kind, Kind::FailedPrecondition);
        assert!(error.message.contains("not empty"));
    }
}

#[test]
fn a_helper_that_goes_while_it_is_fed_is_an_error_of_its_own() {
    let (ours, theirs) = connection::control().unwrap();
    let helper = Arc::new(Helper::over(ours));
    let thread = thread::spawn(move || {
        while let Ok(Some((_, mut descriptors))) = connection::take(theirs.as_fd()) {
            let mut connection = Connection::from(descriptors.swap_remove(0));
            connection.hear::<Request>(&mut || Ok(())).unwrap().unwrap();
            connection.hear::<Feed>(&mut || Ok(())).unwrap().unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let archive = archive(300, 50_000);
    for _ in 0..10 {
        assert_eq!(unpack(&helper, &archive, folder.path()).unwrap_err(), connection::ended());
    }
    drop(helper);
    thread.join().unwrap();
}

#[test]
fn a_long_question_waits_for_a_helper_no_longer_than_that_goes_on() {
    let mut stopped = Command::new("sleep").arg("600").spawn().unwrap();
    let process = stopped.id().cast_signed();
    rustix::process::kill_process(Pid::from_child(&stopped), Signal::STOP).unwrap();
    let (ours, _theirs) = Connection::pair().unwrap();
    let mut ours = ours.of_helper(Some(process));
    let question = vec![0u8; 4 << 20];
    let cancelled = ours.ask(&question, &mut || Err(Error::cancelled())).unwrap_err();
    assert_eq!(cancelled.kind, Kind::Cancelled);
    let error = ours.ask(&question, &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains(&format!("process {process}, is stopped")));
    stopped.kill().unwrap();
    stopped.wait().unwrap();
}
