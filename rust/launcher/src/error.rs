//! Failures as the reply, the control socket and the pipe from the container's first process carry them.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// The class of a failure: the names of the classes in `lamella.errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Kind {
    AlreadyExists,
    CommandNotExecutable,
    CommandNotFound,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
}

/// One failure: what was tried, why it did not work, and what the reader can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub kind: Kind,
    /// Names the thing and what was tried.
    pub message: String,
    /// One sentence that says what the reader can do.
    pub hint: Option<String>,
    /// The exit status that stands for it, 126 or 127, where a program could not be started.
    pub exit_code: Option<i32>,
}

impl Failure {
    /// Make a failure without a hint. What a document has in its names and values reaches the reader's terminal: control
    /// characters are escaped, and those that turn the writing direction.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.contains(drives_terminal) {
            let escape = |character: char| match drives_terminal(character) {
                true => character.escape_default().to_string(),
                false => character.to_string(),
            };
            message = message.chars().map(escape).collect();
        }
        Self { kind, message, hint: None, exit_code: None }
    }

    /// Say what the reader can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A spec field, or a value of one, that the launcher does not implement.
    pub fn unsupported(field: impl fmt::Display) -> Self {
        Self::new(Kind::Unsupported, format!("{field} is not supported by the lamella launcher"))
            .with_hint("leave it out, or run the container with runtime=\"runc\"")
    }

    /// A spec field whose value breaks a rule.
    pub fn invalid(field: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Kind::InvalidArgument, format!("{field}: {why}"))
    }

    /// A system call that failed during `step`.
    pub fn system(step: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(kind_of(error), format!("{step}: {}", describe(error)))
    }
}

/// What the core could not do, such as a mount.
impl From<lamella_core::Error> for Failure {
    fn from(error: lamella_core::Error) -> Self {
        // Both are spelled like the classes in Python; one that the launcher never gives is a defect.
        let kind = serde_json::from_value(error.kind.name().into()).unwrap_or(Kind::Internal);
        Self { hint: error.hint.map(String::from), ..Self::new(kind, error.message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The class of a system call's error.
fn kind_of(error: &io::Error) -> Kind {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => Kind::PermissionDenied,
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Kind::NotFound,
        Some(libc::EEXIST) => Kind::AlreadyExists,
        Some(libc::ENOSPC | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EDQUOT | libc::EAGAIN) => {
            Kind::ResourceExhausted
        }
        Some(libc::EBUSY | libc::ETXTBSY) => Kind::Unavailable,
        Some(
            libc::EINVAL
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::ELOOP
            | libc::ENAMETOOLONG
            | libc::ERANGE
            | libc::E2BIG
            | libc::EXDEV,
        ) => Kind::InvalidArgument,
        Some(libc::ENOSYS | libc::EOPNOTSUPP) => Kind::Unsupported,
        _ => Kind::Internal,
    }
}

/// The system's words for an error, without the number that Rust appends.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().map_or_else(String::new, str::to_lowercase)
}

/// Adds the step that failed to an error.
pub trait Step<T> {
    /// Say what was being tried.
    fn step<D: fmt::Display>(self, step: impl FnOnce() -> D) -> Result<T, Failure>;
}

impl<T> Step<T> for io::Result<T> {
    fn step<D: fmt::Display>(self, step: impl FnOnce() -> D) -> Result<T, Failure> {
        self.map_err(|error| Failure::system(step(), &error))
    }
}

impl<T> Step<T> for Result<T, rustix::io::Errno> {
    fn step<D: fmt::Display>(self, step: impl FnOnce() -> D) -> Result<T, Failure> {
        self.map_err(|error| Failure::system(step(), &error.into()))
    }
}

/// Whether a terminal obeys a character in the place of showing it (UAX #9 for those that turn the writing direction).
fn drives_terminal(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_error_names_the_step_and_speaks_plainly() {
        let failure = Failure::system("mount proc on /proc", &io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(failure.message, "mount proc on /proc: operation not permitted");
        assert_eq!(failure.kind, Kind::PermissionDenied);
    }

    #[test]
    fn a_message_holds_nothing_that_a_terminal_obeys() {
        let message = Failure::unsupported("\x1b[31mfield\n\u{9b}\u{2028}\u{202e}\u{2066}\u{e4}").message;
        assert!(message.starts_with("\\u{1b}[31mfield\\n\\u{9b}\\u{2028}\\u{202e}\\u{2066}\u{e4} "), "{message}");
    }

    #[test]
    fn kinds_are_spelled_like_the_python_classes() {
        let text = serde_json::to_string(&Failure::new(Kind::CommandNotFound, "x")).unwrap_or_default();
        assert_eq!(text, r#"{"kind":"CommandNotFound","message":"x","hint":null,"exit_code":null}"#);
    }
}
