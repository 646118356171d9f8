//! Signals by name.

use super::arguments::wrong;
use crate::error::Failure;

const REAL_TIME_FIRST: i32 = 34;
const LAST: i32 = 64;

const NAMES: [(&str, i32); 34] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGIOT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// The number of a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3` and `RTMAX-1` are understood, in either case.
pub(super) fn number(text: &str) -> Result<i32, Failure> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text[1..].parse().ok() };
    let found = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest).map(|offset: i32| REAL_TIME_FIRST + offset)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest).map(|offset: i32| LAST - offset)
    } else {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).or_else(|| name.parse().ok())
    };
    found.filter(|number| (0..=LAST).contains(number)).ok_or_else(|| wrong(format!("{text:?} is no signal")))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for (text, expected) in
            [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("0", 0), ("RTMIN+1", 35), ("SIGRTMAX", 64)]
        {
            assert_eq!(number(text).expect(text), expected);
        }
        for text in ["", "TERMX", "65", "-1", "RTMIN+x", "SIG"] {
            number(text).expect_err(text);
        }
    }
}
