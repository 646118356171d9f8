//! The assembler: decisions per system call number become classic BPF.
//! <https://docs.kernel.org/userspace-api/seccomp_filter.html>

use crate::sys::SeccompInstruction;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_GREATER_OR_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What happens with a call: a `SECCOMP_RET_*` value with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    pub(super) const LOG: Self = Self(libc::SECCOMP_RET_LOG);
    pub(super) const TRAP: Self = Self(libc::SECCOMP_RET_TRAP);
    pub(super) const KILL_THREAD: Self = Self(libc::SECCOMP_RET_KILL_THREAD);
    pub(super) const KILL_PROCESS: Self = Self(libc::SECCOMP_RET_KILL_PROCESS);

    pub(super) const fn errno(errno: u32) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | errno)
    }

    pub(super) const fn trace(data: u32) -> Self {
        Self(libc::SECCOMP_RET_TRACE | data)
    }

    pub(super) fn is_errno(self) -> bool {
        self.0 & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO
    }

    /// Whether the call is certain not to be made.
    pub(super) fn is_refusal(self) -> bool {
        self != Self::ALLOW && self != Self::LOG && self.0 & libc::SECCOMP_RET_ACTION_FULL != libc::SECCOMP_RET_TRACE
    }
}

/// How an argument is compared; unsigned, 64 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    MaskedEqual(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// Conditions that must all hold, and what happens then.
#[derive(Clone, Debug)]
pub(super) struct Alternative {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// What happens with one call: the first alternative that holds, else `otherwise`.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) alternatives: Vec<Alternative>,
    pub(super) otherwise: Action,
}

/// The calls of one `AUDIT_ARCH_*` value: runs of numbers, each from `start` up to the next one's.
pub(super) struct Group {
    pub(super) audit: u32,
    runs: Vec<(u32, Leaf)>,
    checked: Vec<Decision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Do(Action),
    /// An index of `checked`.
    Check(usize),
}

impl Group {
    pub(super) fn new(audit: u32) -> Self {
        Self { audit, runs: Vec::new(), checked: Vec::new() }
    }

    /// Add an architecture's decisions, sorted by number: `first` is its lowest number, `default` fills the gaps,
    /// `beyond` holds for what is above all named numbers. Call it in the order of the numbers.
    pub(super) fn add(&mut self, first: u32, decisions: Vec<(u32, Decision)>, default: Action, beyond: Action) {
        let mut next = first;
        for (number, decision) in decisions {
            if number > next {
                self.push(next, Leaf::Do(default));
            }
            let leaf = if decision.alternatives.is_empty() {
                Leaf::Do(decision.otherwise)
            } else {
                self.checked.push(decision);
                Leaf::Check(self.checked.len() - 1)
            };
            self.push(number, leaf);
            next = number + 1;
        }
        self.push(next, Leaf::Do(beyond));
    }

    /// Kill the numbers of x32, which share x86_64's audit value; -1, which a tracer leaves to skip a call, is none.
    pub(super) fn close(&mut self, x32_bit: u32) {
        let beyond = self.runs.last().map_or(Leaf::Do(Action::KILL_PROCESS), |(_, leaf)| *leaf);
        self.push(x32_bit, Leaf::Do(Action::KILL_PROCESS));
        self.push(u32::MAX, beyond);
    }

    fn push(&mut self, start: u32, leaf: Leaf) {
        if self.runs.last().is_none_or(|(_, last)| *last != leaf) {
            self.runs.push((start, leaf));
        }
    }
}

const fn instruction(code: u16, k: u32) -> SeccompInstruction {
    SeccompInstruction { code, jt: 0, jf: 0, k }
}

const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> SeccompInstruction {
    SeccompInstruction { code, jt, jf, k }
}

/// Assemble the whole program. Calls of an architecture without a group are killed.
pub(super) fn program(groups: &[Group]) -> Vec<SeccompInstruction> {
    let mut program = vec![instruction(LOAD, ARCHITECTURE)];
    for group in groups {
        program.push(branch(IF_EQUAL, group.audit, 1, 0));
        let over = program.len();
        program.push(instruction(JUMP, 0));
        program.push(instruction(LOAD, NUMBER));
        let mut pending = Vec::new();
        search(&group.runs, &mut program, &mut pending);
        let mut blocks: Vec<Option<usize>> = vec![None; group.checked.len()];
        for (position, index) in pending {
            let block = *blocks[index].get_or_insert_with(|| {
                let start = program.len();
                check(&group.checked[index], &mut program);
                start
            });
            program[position].k = (block - position - 1) as u32;
        }
        program[over].k = (program.len() - over - 1) as u32;
    }
    program.push(instruction(RETURN, Action::KILL_PROCESS.0));
    program
}

/// Emit a binary search over runs. `pending` collects jumps whose target, the check of an index, is not known yet.
fn search(runs: &[(u32, Leaf)], program: &mut Vec<SeccompInstruction>, pending: &mut Vec<(usize, usize)>) {
    if runs.len() <= LONGEST_SEARCH {
        return Search { program, pending, leaves: Vec::new() }.emit(runs);
    }
    let (left, right) = runs.split_at(runs.len() / 2);
    // A conditional jump reaches 255 instructions, an unconditional one any distance.
    program.push(branch(IF_GREATER_OR_EQUAL, right[0].0, 0, 1));
    let over = program.len();
    program.push(instruction(JUMP, 0));
    search(left, program, pending);
    program[over].k = (program.len() - over - 1) as u32;
    search(right, program, pending);
}

/// So many runs that conditional jumps reach all that is emitted for them: a comparison fewer, and what they lead to.
const LONGEST_SEARCH: usize = 150;

/// A search whose comparisons share what they lead to: half as long as with a RETURN behind each, which the kernel
/// translates and runs through for every call when the filter is installed.
struct Search<'program> {
    program: &'program mut Vec<SeccompInstruction>,
    pending: &'program mut Vec<(usize, usize)>,
    /// Comparisons whose one side (the true one, or the other) ends the search, and how.
    leaves: Vec<(usize, bool, Leaf)>,
}

impl Search<'_> {
    fn emit(mut self, runs: &[(u32, Leaf)]) {
        if let [(_, leaf)] = runs {
            self.end(*leaf);
            return;
        }
        self.compare(runs);
        let mut ends: Vec<(Leaf, usize)> = Vec::new();
        for (position, side, leaf) in std::mem::take(&mut self.leaves) {
            let end = match ends.iter().find(|(known, _)| *known == leaf) {
                Some((_, end)) => *end,
                None => {
                    ends.push((leaf, self.program.len()));
                    self.end(leaf);
                    self.program.len() - 1
                }
            };
            self.set(position, side, end);
        }
    }

    /// Emit comparisons for at least two runs.
    fn compare(&mut self, runs: &[(u32, Leaf)]) {
        let (left, right) = runs.split_at(runs.len() / 2);
        let position = self.program.len();
        self.program.push(branch(IF_GREATER_OR_EQUAL, right[0].0, 0, 0));
        for (side, runs) in [(false, left), (true, right)] {
            if let [(_, leaf)] = runs {
                self.leaves.push((position, side, *leaf));
            } else {
                self.set(position, side, self.program.len());
                self.compare(runs);
            }
        }
    }

    /// Let one side of a comparison lead to an instruction.
    fn set(&mut self, position: usize, side: bool, target: usize) {
        let distance = (target - position - 1) as u8;
        let comparison = &mut self.program[position];
        *(if side { &mut comparison.jt } else { &mut comparison.jf }) = distance;
    }

    fn end(&mut self, leaf: Leaf) {
        match leaf {
            Leaf::Do(action) => self.program.push(instruction(RETURN, action.0)),
            Leaf::Check(index) => {
                self.pending.push((self.program.len(), index));
                self.program.push(instruction(JUMP, 0));
            }
        }
    }
}

/// Emit the alternatives of one call.
fn check(decision: &Decision, program: &mut Vec<SeccompInstruction>) {
    for alternative in &decision.alternatives {
        let lengths: usize = alternative.conditions.iter().map(Condition::length).sum();
        // Counted from the start of the alternative; its RETURN is the last instruction.
        let failed = lengths + 1;
        let mut offset = 0;
        for condition in &alternative.conditions {
            condition.emit(offset, failed, program);
            offset += condition.length();
        }
        program.push(instruction(RETURN, alternative.action.0));
    }
    program.push(instruction(RETURN, decision.otherwise.0));
}

impl Condition {
    fn length(&self) -> usize {
        match self.comparison {
            Comparison::Equal | Comparison::NotEqual => 4,
            Comparison::MaskedEqual(_) => 6,
            _ => 5,
        }
    }

    /// Emit the condition; it starts at `offset` of its alternative and goes to `failed` when it does not hold, else
    /// on to what follows. Arguments are compared half by half: BPF has 32-bit words.
    fn emit(&self, offset: usize, failed: usize, program: &mut Vec<SeccompInstruction>) {
        let position = |inside: usize| offset + inside + 1;
        // Distances from the instruction at `inside`; an alternative has at most 37 instructions.
        let fail = |inside: usize| (failed - position(inside)) as u8;
        let hold = |inside: usize| (self.length() - inside - 1) as u8;
        let (high, low) = ((self.value >> 32) as u32, self.value as u32);
        let low_half = ARGUMENTS + self.index * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
        let high_half = ARGUMENTS + self.index * 8 + if cfg!(target_endian = "big") { 0 } else { 4 };
        program.push(instruction(LOAD, high_half));
        match self.comparison {
            Comparison::Equal => {
                program.push(branch(IF_EQUAL, high, 0, fail(1)));
                program.push(instruction(LOAD, low_half));
                program.push(branch(IF_EQUAL, low, 0, fail(3)));
            }
            Comparison::NotEqual => {
                program.push(branch(IF_EQUAL, high, 0, hold(1)));
                program.push(instruction(LOAD, low_half));
                program.push(branch(IF_EQUAL, low, fail(3), 0));
            }
            Comparison::MaskedEqual(mask) => {
                program.push(instruction(AND, (mask >> 32) as u32));
                program.push(branch(IF_EQUAL, high, 0, fail(2)));
                program.push(instruction(LOAD, low_half));
                program.push(instruction(AND, mask as u32));
                program.push(branch(IF_EQUAL, low, 0, fail(5)));
            }
            Comparison::Greater | Comparison::GreaterOrEqual => {
                program.push(branch(IF_GREATER, high, hold(1), 0));
                program.push(branch(IF_EQUAL, high, 0, fail(2)));
                program.push(instruction(LOAD, low_half));
                let strict = matches!(self.comparison, Comparison::Greater);
                program.push(branch(if strict { IF_GREATER } else { IF_GREATER_OR_EQUAL }, low, 0, fail(4)));
            }
            Comparison::Less | Comparison::LessOrEqual => {
                program.push(branch(IF_GREATER, high, fail(1), 0));
                program.push(branch(IF_EQUAL, high, 0, hold(2)));
                program.push(instruction(LOAD, low_half));
                let strict = matches!(self.comparison, Comparison::Less);
                program.push(branch(if strict { IF_GREATER_OR_EQUAL } else { IF_GREATER }, low, fail(4), 0));
            }
        }
    }
}
