//! Resource limits: setrlimit(2).

use crate::error::{Failure, Step};
use crate::spec::Rlimit;
use crate::sys;

const NAMES: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

/// A limit, ready to be set.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    name: &'static str,
    number: u32,
    soft: u64,
    hard: u64,
}

/// The kernel's number of a `RLIMIT_*` name.
pub fn number(name: &str) -> Option<u32> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Prepare the spec's limits.
pub fn parse(limits: &[Rlimit]) -> Result<Vec<Limit>, Failure> {
    let find = |limit: &Rlimit| {
        let (name, number) = NAMES
            .into_iter()
            .find(|(known, _)| *known == limit.kind)
            .ok_or_else(|| Failure::invalid("process.rlimits", format!("{:?} is not a limit", limit.kind)))?;
        Ok(Limit { name, number, soft: limit.soft, hard: limit.hard })
    };
    limits.iter().map(find).collect()
}

impl Limit {
    /// Set it. What cannot be raised beyond the present hard limit (no CAP_SYS_RESOURCE) is cut, and said.
    pub fn apply(&self) -> Result<Option<String>, Failure> {
        let cut = sys::set_rlimit(self.number, self.soft, self.hard).step(|| format!("set {}", self.name))?;
        Ok(cut.map(|(soft, hard)| {
            format!(
                "{} is {soft}:{hard} instead of {}:{}: the launcher may not raise the hard limit",
                self.name, self.soft, self.hard
            )
        }))
    }
}
