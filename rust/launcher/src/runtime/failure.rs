//! What a runtime complains of, as one of our failures: runtimes have no error codes, only words.

use crate::error::{Failure, Kind};

/// One line of a log in JSON, as runc, crun and youki write it.
#[derive(serde::Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// Explain why a command failed, by the last complaint in its log; `status` is all that is known where there is none.
pub(super) fn explain(what: &str, log: &str, status: &str) -> Failure {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let complaints: Vec<String> =
        lines.filter(|line| line.level != "warning" && line.level != "debug").map(|line| line.msg).collect();
    let Some(complaint) = complaints.last() else {
        return Failure::new(Kind::Internal, format!("{what}: {status}, and it does not say why"));
    };
    let mut said = complaint.as_str();
    for again in
        [format!("{what} failed: "), "exec failed: ".to_owned(), "unable to start container process: ".to_owned()]
    {
        said = said.strip_prefix(&again).unwrap_or(said);
    }
    of_program(complaint).unwrap_or_else(|| Failure::new(kind_of(complaint), format!("{what}: {said}")))
}

/// Name the program that could not be run, where the runtime does not: crun says "open executable: Permission denied".
pub(super) fn name(failure: Failure, program: Option<&String>) -> Failure {
    match program {
        Some(program) if failure.exit_code.is_some() && !failure.message.contains(program.as_str()) => {
            Failure { message: format!("{program}: {}", failure.message), ..failure }
        }
        _ => failure,
    }
}

/// A complaint that is about the program to run, in the words of our own launcher.
fn of_program(complaint: &str) -> Option<Failure> {
    let words = complaint.to_lowercase();
    let missing = words.contains("executable file") && words.contains("not found");
    let about = if let Some(start) = complaint.find("exec: \"") {
        // runc: the name, and what Go says of it.
        &complaint[start..]
    } else if missing || words.contains("open executable") || words.contains("exec format error") {
        complaint
    } else {
        return None;
    };
    let about = about.trim_end_matches(": unknown");
    let (kind, code) = if missing || words.contains("no such file or directory") || words.contains("not a directory") {
        (Kind::CommandNotFound, 127)
    } else {
        (Kind::CommandNotExecutable, 126)
    };
    let failure = Failure { exit_code: Some(code), ..Failure::new(kind, about) };
    Some(match kind {
        Kind::CommandNotFound => failure.with_hint("check the command, and that the image has it"),
        _ => failure,
    })
}

fn kind_of(complaint: &str) -> Kind {
    let words = complaint.to_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if says(&["not supported", "unsupported", "not implemented"]) {
        Kind::Unsupported
    } else if says(&["operation not permitted", "permission denied"]) {
        Kind::PermissionDenied
    } else if says(&["no space left", "cannot allocate memory", "too many open files"]) {
        Kind::ResourceExhausted
    } else if says(&["no such file or directory", "does not exist", "no such device"]) {
        Kind::NotFound
    } else if says(&["invalid", "must be", "cannot be", "unknown", "not a directory", "unmarshal"]) {
        Kind::InvalidArgument
    } else {
        Kind::FailedPrecondition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(message: &str) -> Failure {
        let line = serde_json::json!({"level": "error", "msg": message, "time": "now"});
        explain("runc create", &format!("{{\"level\":\"warning\",\"msg\":\"w\"}}\n{line}\n"), "exit status: 1")
    }

    #[test]
    fn a_program_that_is_missing_or_cannot_be_run_is_told_as_by_our_own_launcher() {
        let start = "runc create failed: unable to start container process: ";
        for (complaint, kind, code) in [
            (r#"exec: "no": executable file not found in $PATH"#, Kind::CommandNotFound, 127),
            (r#"exec: "/no/such": stat /no/such: no such file or directory"#, Kind::CommandNotFound, 127),
            (r#"exec: "/etc/passwd": permission denied"#, Kind::CommandNotExecutable, 126),
            (r#"exec: "/etc": is a directory"#, Kind::CommandNotExecutable, 126),
        ] {
            let failure = explained(&format!("{start}{complaint}: unknown"));
            assert_eq!((failure.kind, failure.exit_code), (kind, Some(code)), "{complaint}");
            assert_eq!(failure.message, complaint);
        }
        // crun's words
        for (complaint, kind) in [
            ("executable file `no` not found in $PATH: No such file or directory", Kind::CommandNotFound),
            ("open executable: Permission denied", Kind::CommandNotExecutable),
        ] {
            assert_eq!(explained(complaint).kind, kind);
        }
    }

    #[test]
    fn the_program_that_cannot_be_run_is_named_once() {
        let program = "/etc/passwd".to_owned();
        let told = |complaint| name(explained(complaint), Some(&program)).message;
        assert_eq!(told("open executable: Permission denied"), "/etc/passwd: open executable: Permission denied");
        let named = r#"exec: "/etc/passwd": permission denied"#;
        assert_eq!(told(named), named);
        assert_eq!(told("something else"), "runc create: something else");
    }

    #[test]
    fn anything_else_says_which_command_complained_and_of_what() {
        for (complaint, kind) in [
            ("cgroups in hybrid mode not supported, drop all controllers from cgroupv2", Kind::Unsupported),
            ("error mounting \"x\": operation not permitted", Kind::PermissionDenied),
            ("invalid mount option", Kind::InvalidArgument),
            ("something else", Kind::FailedPrecondition),
        ] {
            let failure = explained(complaint);
            assert_eq!(failure.kind, kind, "{complaint}");
            assert_eq!(failure.message, format!("runc create: {complaint}"));
        }
        let failure = explained("runc create failed: unable to start container process: invalid x");
        assert_eq!(failure.message, "runc create: invalid x");
        let failure = explain("runc start", "no JSON", "signal: 9 (SIGKILL)");
        assert_eq!(failure.message, "runc start: signal: 9 (SIGKILL), and it does not say why");
    }
}
