//! Plugins that go on without the process that had started them: what they do would come after its undoing.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// The variable that says for which container a plugin runs (CNI spec, "Parameters").
pub const VARIABLE: &str = "CNI_CONTAINERID";
/// How long they may take. Halfway through a DEL they may have taken away what tells the next one what else there is, so that
/// they are killed only when they do not end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// Wait for the end of what runs for a container; it is known by its environment.
pub fn await_strays(container: &str) {
    let mark = format!("{VARIABLE}={container}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if with_variable(&mark).is_empty() {
            return;
        }
        if Instant::now() > deadline {
            kill(&mark);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Kill all that have a variable (`NAME=VALUE`) in their environment.
pub fn kill(mark: &str) {
    for pid in with_variable(mark) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn with_variable(mark: &str) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let has_mark = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
    };
    entries.filter_map(number).filter(has_mark).filter_map(Pid::from_raw).collect()
}
