//! One error type: what kind it is, what happened to which thing, and what the reader can do.
//!
//! The kinds are those of `lamella.errors` in Python, name for name; a test there holds the two lists together.

use std::borrow::Cow;
use std::fmt;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What sort of failure it is: gRPC's status names, as containerd's errdefs has them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* $name,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name),+];

            /// The name of the class in `lamella.errors`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Kind::$name => stringify!($name),)+
                }
            }
        }
    };
}

kinds! {
    /// The named thing is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The input breaks a rule; another try gives the same answer.
    InvalidArgument,
    /// The thing is not in a state that allows the operation.
    FailedPrecondition,
    /// Busy, or no answer; another try may succeed.
    Unavailable,
    /// The kernel or the file system refused access.
    PermissionDenied,
    /// Bytes are damaged, or end early.
    DataLoss,
    /// Stopped by its caller.
    Cancelled,
    /// The time-out passed.
    DeadlineExceeded,
    /// Full disk, or a cap was exceeded.
    ResourceExhausted,
    /// A feature that is not handled; it is named.
    Unsupported,
    /// A defect of lamella.
    Internal,
    /// The program is not in the image.
    CommandNotFound,
    /// The program is there and cannot be run.
    CommandNotExecutable,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The sort of failure.
    pub kind: Kind,
    /// The thing, and what was tried.
    pub message: String,
    /// One sentence that says what the reader can do.
    pub hint: Option<Cow<'static, str>>,
}

impl Error {
    /// Make an error without a hint.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Add what the reader can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Put words before the message: the larger thing that was being done.
    #[must_use]
    pub fn context(mut self, words: impl fmt::Display) -> Self {
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// Turn what the kernel said into an error. `what` names the thing and what was tried.
    pub fn system(what: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        let error: io::Error = error.into();
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let (kind, hint) = classify(errno, error.kind());
        let text = match errno {
            Some(_) => strip_code(&error.to_string()),
            None => error.to_string(),
        };
        Self { kind, message: format!("{what}: {text}"), hint: hint.map(Cow::Borrowed) }
    }

    /// `InvalidArgument`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// `DataLoss`.
    pub fn data_loss(message: impl Into<String>) -> Self {
        Self::new(Kind::DataLoss, message)
    }

    /// `Cancelled`.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(Kind::Cancelled, "the work was stopped")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(formatter, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Drop the " (os error 2)" of std's text.
fn strip_code(text: &str) -> String {
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}

fn classify(errno: Option<Errno>, kind: io::ErrorKind) -> (Kind, Option<&'static str>) {
    match errno {
        Some(Errno::NOENT) => (Kind::NotFound, None),
        Some(Errno::EXIST | Errno::NOTEMPTY) => (Kind::AlreadyExists, None),
        Some(Errno::PERM | Errno::ACCESS) => {
            (Kind::PermissionDenied, Some("It takes root, or a user namespace in which the caller is root."))
        }
        Some(Errno::ROFS) => (Kind::PermissionDenied, Some("The file system is read-only.")),
        Some(Errno::NOSPC) => (Kind::ResourceExhausted, Some("The disk, or its inodes, are used up; free some space.")),
        Some(Errno::DQUOT) => (Kind::ResourceExhausted, Some("The disk quota is used up.")),
        Some(Errno::MFILE | Errno::NFILE) => {
            (Kind::ResourceExhausted, Some("Too many open files; raise the limit (ulimit -n)."))
        }
        Some(Errno::NOMEM | Errno::FBIG) => (Kind::ResourceExhausted, None),
        Some(Errno::BUSY | Errno::AGAIN) => (Kind::Unavailable, None),
        Some(Errno::NOSYS) => {
            (Kind::Unsupported, Some("This kernel, or a filter around, lacks the call; see lamella doctor."))
        }
        Some(Errno::OPNOTSUPP) => (Kind::Unsupported, None),
        Some(Errno::INVAL | Errno::NAMETOOLONG | Errno::LOOP | Errno::NOTDIR | Errno::ISDIR) => {
            (Kind::InvalidArgument, None)
        }
        Some(Errno::IO) => (Kind::Unavailable, Some("Look at the kernel's log for errors of the disk.")),
        Some(Errno::TIMEDOUT) => (Kind::DeadlineExceeded, None),
        Some(_) => (Kind::FailedPrecondition, None),
        None if kind == io::ErrorKind::UnexpectedEof => (Kind::DataLoss, None),
        None if matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => (Kind::DataLoss, None),
        None => (Kind::Internal, None),
    }
}

/// Show bytes of a name in a message: UTF-8 as it is, other bytes and controls escaped, cut after 200 bytes.
#[must_use]
pub fn show(name: &[u8]) -> String {
    const LIMIT: usize = 200;
    let (head, cut) = if name.len() > LIMIT { (&name[..LIMIT], "...") } else { (name, "") };
    let mut text = String::with_capacity(head.len() + cut.len());
    for chunk in head.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push_str(cut);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_have_the_kind_that_fits_and_no_code_number() {
        let error = Error::system("cannot open /x", Errno::NOENT);
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.message, "cannot open /x: No such file or directory");
        assert_eq!(Error::system("x", Errno::NOSPC).kind, Kind::ResourceExhausted);
        assert!(Error::system("x", Errno::PERM).hint.is_some());
    }

    #[test]
    fn names_are_shown_without_control_bytes() {
        assert_eq!(show(b"a\nb\xff"), "a\\nb\\xff");
        assert_eq!(show("ü".as_bytes()), "ü");
        assert_eq!(show(&[b'a'; 300]).len(), 203);
    }
}
