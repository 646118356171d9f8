//! What goes wrong, told on standard error and in the log that the caller names: an engine shows its user the last line
//! of level `error` in there.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use serde_json::json;

use super::NAME;
use super::arguments::Global;
use crate::error::Failure;
use crate::time;

/// Where messages go.
#[derive(Debug)]
pub(super) struct Journal {
    log: Option<File>,
    json: bool,
    /// Standard error is the container's: only why the command fails is said there.
    quiet: bool,
}

impl Journal {
    /// Open the log, if one is asked for. That it cannot be had is said, and stops nothing.
    pub(super) fn open(global: &Global, quiet: bool) -> Self {
        let mut options = File::options();
        options.append(true).create(true).mode(0o644);
        let mut journal = Self { log: None, json: global.log_json, quiet };
        match global.log.as_ref().map(|path| options.open(path)) {
            Some(Ok(log)) => journal.log = Some(log),
            Some(Err(error)) => journal.warn(&format!("the log cannot be opened: {error}")),
            None => {}
        }
        journal
    }

    /// Tell what could not be had.
    pub(super) fn warn(&mut self, message: &str) {
        self.tell("warning", message);
    }

    /// Tell why the command failed.
    pub(super) fn fail(&mut self, failure: &Failure) {
        let message = match &failure.hint {
            Some(hint) => format!("{}\n  hint: {hint}", failure.message),
            None => failure.message.clone(),
        };
        if self.log.is_some() {
            let _ = writeln!(std::io::stderr(), "{NAME}: {message}");
        }
        self.tell("error", &message);
    }

    fn tell(&mut self, level: &str, message: &str) {
        let time = time::now();
        let Some(log) = &mut self.log else {
            if self.quiet && level != "error" {
                return;
            }
            let _ = writeln!(std::io::stderr(), "{NAME}: {}{message}", if level == "error" { "" } else { "warning: " });
            return;
        };
        let line = if self.json {
            json!({"level": level, "msg": message, "time": time}).to_string()
        } else {
            format!("time={time:?} level={level} msg={message:?}")
        };
        let _ = log.write_all(format!("{line}\n").as_bytes());
    }
}
