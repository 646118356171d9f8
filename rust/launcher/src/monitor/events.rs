//! Events: what the task does, for those who follow the store. Each is a line of JSON that is appended to a spool, a file
//! of the store; `lamella/events/spool.py` says who takes it in and how the two agree.
//!
//! Nothing here waits, and nothing that goes wrong here (a full disk, a store that was removed) harms the container.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::record::ExitRecord;
use crate::request::EventTarget;
use crate::time;

/// A spool that nobody takes in grows to this and no further: a container can have any number of events.
const LONGEST_SPOOL: u64 = 8 << 20;
const ATTEMPTS: u32 = 100;

pub(super) const CREATE: &str = "/tasks/create";
pub(super) const START: &str = "/tasks/start";
pub(super) const PAUSED: &str = "/tasks/paused";
pub(super) const RESUMED: &str = "/tasks/resumed";
pub(super) const OOM: &str = "/tasks/oom";
pub(super) const EXIT: &str = "/tasks/exit";
pub(super) const DELETE: &str = "/tasks/delete";
pub(super) const EXEC_ADDED: &str = "/tasks/exec-added";
pub(super) const EXEC_STARTED: &str = "/tasks/exec-started";

/// Where the events of one container go; nowhere when its caller keeps no store.
#[derive(Debug)]
pub(super) struct Events(pub(super) Option<EventTarget>);

impl Events {
    /// Tell events, by topic, in this order and together. `container_id` is added to their fields.
    pub(super) fn tell<const N: usize>(&self, events: [(&str, Value); N]) {
        let Some(target) = &self.0 else { return };
        // An empty line in front: where the disk was full, the line before may be a half one.
        let mut text = vec![b'\n'];
        for (topic, mut fields) in events {
            if let Some(fields) = fields.as_object_mut() {
                fields.insert("container_id".to_owned(), json!(&target.container));
            }
            let line = json!({"at": time::now(), "namespace": &target.namespace, "topic": topic, "event": fields});
            text.extend_from_slice(line.to_string().as_bytes());
            text.push(b'\n');
        }
        let _ = append(Path::new(&target.spool), &text);
    }

    /// The fields of an exit; `exec` is None for the container's first process.
    pub(super) fn exit(&self, exec: Option<&str>, pid: Option<i32>, record: &ExitRecord) -> Value {
        let container = self.0.as_ref().map(|target| target.container.as_str());
        json!({
            "id": exec.or(container),
            "pid": pid,
            "exit_status": record.exit_code,
            "exited_at": &record.exited_at,
        })
    }
}

/// How events name a process that an exec added.
pub(super) fn exec_id(process: u32) -> String {
    format!("exec-{process}")
}

fn append(spool: &Path, text: &[u8]) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        let Some(mut file) = open(spool)? else { continue };
        if file.metadata()?.len() < LONGEST_SPOOL {
            file.write_all(text)?;
        }
        return Ok(());
    }
    Err(ErrorKind::ResourceBusy.into())
}

/// Open the spool and hold it; None when it was taken in just now.
fn open(spool: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: OwnedFd = match rustix::fs::openat(CWD, spool, flags, Mode::from_raw_mode(0o600)) {
        Err(Errno::NOENT) => {
            let folder = spool.parent().unwrap_or(spool);
            match rustix::fs::mkdir(folder, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        result => result?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        result => result?,
    }
    let there = match rustix::fs::statat(CWD, spool, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        result => result?,
    };
    let held = rustix::fs::fstat(&file)?;
    Ok(((there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)).then(|| file.into()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn events(spool: &Path) -> Events {
        let spool = spool.to_string_lossy().into_owned();
        Events(Some(EventTarget { spool, namespace: "ns".to_owned(), container: "box".to_owned() }))
    }

    fn lines(spool: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(spool).expect("read");
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn spool() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = folder.path().join("events/spool");
        (folder, spool)
    }

    #[test]
    fn events_are_lines_in_the_order_in_which_they_were_told() {
        let (_folder, spool) = spool();
        let events = events(&spool);
        events.tell([(CREATE, json!({"pid": 7})), (START, json!({}))]);
        events.tell([(PAUSED, json!({}))]);
        let told = lines(&spool);
        assert_eq!(
            told.iter().map(|line| line["topic"].as_str()).collect::<Vec<_>>(),
            [Some(CREATE), Some(START), Some(PAUSED)]
        );
        assert_eq!(told[0]["event"], json!({"container_id": "box", "pid": 7}));
        assert_eq!((&told[0]["namespace"], told[0]["at"].as_str().map(str::len)), (&json!("ns"), Some(30)));
        let mode = std::os::unix::fs::PermissionsExt::mode(&spool.metadata().expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_half_line_spoils_no_other() {
        let (_folder, spool) = spool();
        let events = events(&spool);
        events.tell([(OOM, json!({}))]);
        File::options().append(true).open(&spool).expect("opened").write_all(b"{\"at\":").expect("written");
        events.tell([(OOM, json!({}))]);
        let text = std::fs::read_to_string(&spool).expect("read");
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 2);
    }

    #[test]
    fn a_spool_that_was_taken_in_is_written_to_no_more() {
        let (folder, spool) = spool();
        let events = events(&spool);
        events.tell([(OOM, json!({}))]);
        let taken = folder.path().join("events/taken");
        std::fs::rename(&spool, &taken).expect("renamed");
        let holder = File::open(&taken).expect("opened");
        rustix::fs::flock(&holder, FlockOperation::NonBlockingLockExclusive).expect("no writer holds it");
        events.tell([(EXIT, json!({}))]);
        assert_eq!((lines(&taken).len(), lines(&spool).len()), (1, 1));
    }

    #[test]
    fn while_it_is_being_taken_in_nobody_waits() {
        let (_folder, spool) = spool();
        let events = events(&spool);
        events.tell([(OOM, json!({}))]);
        let holder = File::open(&spool).expect("opened");
        rustix::fs::flock(&holder, FlockOperation::NonBlockingLockExclusive).expect("no writer holds it");
        assert_eq!(append(&spool, b"x\n").map_err(|error| error.kind()), Err(ErrorKind::ResourceBusy));
    }

    #[test]
    fn a_spool_that_nobody_takes_in_grows_to_a_bound() {
        let (_folder, spool) = spool();
        let events = events(&spool);
        events.tell([(OOM, json!({}))]);
        File::options().append(true).open(&spool).expect("opened").set_len(LONGEST_SPOOL).expect("grown");
        events.tell([(OOM, json!({}))]);
        assert_eq!(spool.metadata().expect("there").len(), LONGEST_SPOOL);
    }

    #[test]
    fn what_stands_in_the_place_of_the_spool_is_left_alone() {
        let (folder, spool) = spool();
        let target = folder.path().join("target");
        std::fs::write(&target, b"").expect("written");
        std::fs::create_dir(folder.path().join("events")).expect("made");
        std::os::unix::fs::symlink(&target, &spool).expect("linked");
        events(&spool).tell([(OOM, json!({}))]);
        assert_eq!(target.metadata().expect("there").len(), 0);
        events(&folder.path().join("no/such/spool")).tell([(OOM, json!({}))]);
        Events(None).tell([(OOM, json!({}))]);
    }
}
