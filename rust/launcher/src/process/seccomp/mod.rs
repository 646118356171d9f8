//! System call filters: from the spec's rules to a BPF program.
//!
//! A program tests the architecture, then finds the call's number by binary search over runs of numbers that share an
//! action. Docker's default profile, three architectures included, becomes some 700 instructions of which a call
//! passes about ten; compiling it takes 0.1 ms, so nothing is built ahead.

mod assemble;
mod profile;
mod syscalls;

pub use profile::{DEFAULT_SECCOMP, default_seccomp};

use crate::error::Failure;
use crate::spec::{Seccomp, SeccompRule};
use crate::sys::SeccompInstruction;
use assemble::{Action, Alternative, Comparison, Condition, Decision, Group};

const X32_BIT: u32 = 0x4000_0000;
/// The kernel's BPF_MAXINSNS.
const LONGEST_PROGRAM: usize = 4096;
const ARGUMENTS: u32 = 6;

/// An architecture that a process on this machine can make calls by.
struct Architecture {
    /// libseccomp's name.
    name: &'static str,
    /// Which column of the table of numbers.
    column: usize,
    /// `AUDIT_ARCH_*`.
    audit: u32,
    /// What numbers carry beyond the table.
    bit: u32,
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "SCMP_ARCH_X86_64", column: 0, audit: 0xc000_003e, bit: 0 },
    Architecture { name: "SCMP_ARCH_X32", column: 2, audit: 0xc000_003e, bit: X32_BIT },
    Architecture { name: "SCMP_ARCH_X86", column: 1, audit: 0x4000_0003, bit: 0 },
];
// 32-bit ARM programs are killed, whether or not a profile names their architecture: its numbers are not in the table.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[Architecture] =
    &[Architecture { name: "SCMP_ARCH_AARCH64", column: 3, audit: 0xc000_00b7, bit: 0 }];

/// Names that a profile may list; those of other machines change nothing on this one.
pub const KNOWN_ARCHITECTURES: &[&str] = &[
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
];

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter {
    /// What the kernel runs.
    pub program: Vec<SeccompInstruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
}

/// Compile `linux.seccomp`. What it asks for and cannot be had is refused by name.
pub fn compile(profile: &Seccomp) -> Result<Filter, Failure> {
    let default = action("linux.seccomp.defaultAction", &profile.default_action, profile.default_errno_ret)?;
    for name in &profile.architectures {
        if !KNOWN_ARCHITECTURES.contains(&name.as_str()) {
            return Err(Failure::unsupported(format!("linux.seccomp.architectures {name:?}")));
        }
    }
    let flags = flags(profile.flags.as_deref())?;
    let rules = rules(profile, default)?;
    let mut groups: Vec<Group> = Vec::new();
    for (position, architecture) in ARCHITECTURES.iter().enumerate() {
        // The machine's own architecture always counts; the others only where the profile names them.
        if position > 0 && !profile.architectures.iter().any(|name| name == architecture.name) {
            continue;
        }
        let mut entries: Vec<(u32, usize)> = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            for numbers in &rule.numbers {
                if let Ok(number) = u32::try_from(numbers[architecture.column]) {
                    entries.push((number | architecture.bit, index));
                }
            }
        }
        entries.sort_unstable();
        let index = match groups.iter().position(|group| group.audit == architecture.audit) {
            Some(index) => index,
            None => {
                groups.push(Group::new(architecture.audit));
                groups.len() - 1
            }
        };
        let decisions = decisions(&entries, &rules, default);
        groups[index].add(architecture.bit, decisions, default, beyond(default));
    }
    let x32 = profile.architectures.iter().any(|name| name == "SCMP_ARCH_X32");
    if cfg!(target_arch = "x86_64") && !x32 {
        groups[0].close(X32_BIT);
    }
    let program = assemble::program(&groups);
    if program.len() > LONGEST_PROGRAM {
        return Err(Failure::unsupported(format!("linux.seccomp of {} instructions", program.len())));
    }
    Ok(Filter { program, flags })
}

/// What a call gets whose number is above all that the profile names: the profile's author did not know it. Programs
/// fall back to an older call on ENOSYS, and give up on EPERM (runc does the same).
fn beyond(default: Action) -> Action {
    if default.is_errno() { Action::errno(libc::ENOSYS as u32) } else { default }
}

struct Rule {
    numbers: Vec<&'static syscalls::Numbers>,
    alternatives: Vec<Vec<Condition>>,
    action: Action,
}

fn rules(profile: &Seccomp, default: Action) -> Result<Vec<Rule>, Failure> {
    let mut rules = Vec::with_capacity(profile.syscalls.len());
    for (index, rule) in profile.syscalls.iter().enumerate() {
        let field = format!("linux.seccomp.syscalls[{index}]");
        let action = action(&format!("{field}.action"), &rule.action, rule.errno_ret)?;
        let mut numbers = Vec::with_capacity(rule.names.len());
        for name in &rule.names {
            match syscalls::numbers(name) {
                Some(found) => numbers.push(found),
                // Not to allow a call that is unknown here is safe; not to refuse it would not be.
                None if default.is_refusal() => {}
                None => return Err(Failure::unsupported(format!("{field}: the system call {name:?}"))),
            }
        }
        rules.push(Rule { numbers, alternatives: alternatives(&field, rule)?, action });
    }
    Ok(rules)
}

/// The conditions of a rule as alternatives of which one must hold. Several conditions on the same argument are
/// alternatives, as runc takes them: libseccomp can test an argument once only.
fn alternatives(field: &str, rule: &SeccompRule) -> Result<Vec<Vec<Condition>>, Failure> {
    let mut conditions = Vec::with_capacity(rule.args.len());
    for argument in &rule.args {
        if argument.index >= ARGUMENTS {
            return Err(Failure::invalid(format!("{field}.args"), format!("there is no argument {}", argument.index)));
        }
        let comparison = match argument.op.as_str() {
            "SCMP_CMP_NE" => Comparison::NotEqual,
            "SCMP_CMP_LT" => Comparison::Less,
            "SCMP_CMP_LE" => Comparison::LessOrEqual,
            "SCMP_CMP_EQ" => Comparison::Equal,
            "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
            "SCMP_CMP_GT" => Comparison::Greater,
            "SCMP_CMP_MASKED_EQ" => Comparison::MaskedEqual(argument.value),
            op => return Err(Failure::unsupported(format!("{field}.args.op {op:?}"))),
        };
        let masked = matches!(comparison, Comparison::MaskedEqual(_));
        let value = if masked { argument.value_two } else { argument.value };
        conditions.push(Condition { index: argument.index, comparison, value });
    }
    let repeated = conditions
        .iter()
        .enumerate()
        .any(|(position, one)| conditions.iter().take(position).any(|other| other.index == one.index));
    Ok(if repeated {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else if conditions.is_empty() {
        Vec::new()
    } else {
        vec![conditions]
    })
}

/// Bring the rules of each number together.
fn decisions(entries: &[(u32, usize)], rules: &[Rule], default: Action) -> Vec<(u32, Decision)> {
    let mut decisions: Vec<(u32, Decision)> = Vec::with_capacity(entries.len());
    for chunk in entries.chunk_by(|one, other| one.0 == other.0) {
        let mut alternatives = Vec::new();
        let mut otherwise = None;
        for rule in chunk.iter().map(|(_, index)| &rules[*index]) {
            if rule.alternatives.is_empty() {
                otherwise = otherwise.or(Some(rule.action));
            }
            for conditions in &rule.alternatives {
                alternatives.push(Alternative { conditions: conditions.clone(), action: rule.action });
            }
        }
        decisions.push((chunk[0].0, Decision { alternatives, otherwise: otherwise.unwrap_or(default) }));
    }
    decisions
}

fn action(field: &str, name: &str, errno: Option<u32>) -> Result<Action, Failure> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    if errno > 0xffff {
        return Err(Failure::invalid(field, format!("errno {errno} does not fit")));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_LOG" => Action::LOG,
        "SCMP_ACT_ERRNO" => Action::errno(errno),
        "SCMP_ACT_TRACE" => Action::trace(errno),
        "SCMP_ACT_TRAP" => Action::TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Action::KILL_PROCESS,
        _ => return Err(Failure::unsupported(format!("{field} {name:?}"))),
    })
}

fn flags(names: Option<&[String]>) -> Result<u64, Failure> {
    // Without SPEC_ALLOW every filtered process pays for a mitigation that kernels since 5.16 no longer deem needed.
    let Some(names) = names else { return Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) };
    names.iter().try_fold(0, |flags, name| {
        Ok(flags
            | match name.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => libc::SECCOMP_FILTER_FLAG_TSYNC,
                "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                _ => return Err(Failure::unsupported(format!("linux.seccomp.flags {name:?}"))),
            })
    })
}

#[cfg(test)]
mod tests;
