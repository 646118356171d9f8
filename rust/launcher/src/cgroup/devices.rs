//! The device allow-list: rules of the spec, what every container may use, and the filter program of cgroup v2.
//!
//! A container that gives no rules may use the default devices only: whoever wants all devices must say so.

use crate::spec::DeviceRule;

const READ_WRITE_MAKE: &str = "rwm";
/// Devices that every container may use (making a node is allowed; what it may be opened for is not thereby).
const DEFAULTS: [(&str, Option<u32>, Option<u32>, &str); 10] = [
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), READ_WRITE_MAKE),
    ("c", Some(1), Some(5), READ_WRITE_MAKE),
    ("c", Some(1), Some(7), READ_WRITE_MAKE),
    ("c", Some(1), Some(8), READ_WRITE_MAKE),
    ("c", Some(1), Some(9), READ_WRITE_MAKE),
    ("c", Some(5), Some(0), READ_WRITE_MAKE),
    ("c", Some(5), Some(2), READ_WRITE_MAKE),
    ("c", Some(136), None, READ_WRITE_MAKE),
];

/// One rule, with None for "any".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// `a`, `b` or `c`.
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
    access: String,
}

impl Rule {
    /// Whether it concerns every device in every way.
    fn is_all(&self) -> bool {
        self.kind == 'a'
            && self.major.is_none()
            && self.minor.is_none()
            && "rwm".chars().all(|it| self.access.contains(it))
    }

    /// The line for `devices.allow` or `devices.deny` of cgroup v1.
    pub(super) fn line(&self) -> String {
        if self.is_all() {
            return "a".to_owned();
        }
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        format!("{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

/// The whole list in force: everything denied, the spec's (checked) rules, then the defaults, unless all is allowed.
pub(super) fn rules(given: &[DeviceRule]) -> Vec<Rule> {
    let all = |allow| Rule { allow, kind: 'a', major: None, minor: None, access: READ_WRITE_MAKE.to_owned() };
    let mut rules = vec![all(false)];
    for rule in given {
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let kind = match rule.kind.as_deref().unwrap_or("a") {
            "b" => 'b',
            "c" | "u" => 'c',
            _ => 'a',
        };
        let access = rule.access.as_deref().filter(|access| !access.is_empty()).unwrap_or(READ_WRITE_MAKE);
        let rule = Rule {
            allow: rule.allow,
            kind,
            major: number(rule.major),
            minor: number(rule.minor),
            access: access.into(),
        };
        if rule.is_all() {
            rules.clear();
        }
        // The kernel's list knows "all devices" only as a whole; a narrower rule of type a stands for both types.
        if rule.kind == 'a' && !rule.is_all() {
            rules.extend(['b', 'c'].map(|kind| Rule { kind, ..rule.clone() }));
        } else {
            rules.push(rule);
        }
    }
    if !rules.last().is_some_and(|rule| rule.allow && rule.is_all()) {
        let defaults = DEFAULTS.map(|(kind, major, minor, access)| Rule {
            allow: true,
            kind: if kind == "b" { 'b' } else { 'c' },
            major,
            minor,
            access: access.to_owned(),
        });
        // Those that are in force already need not be said again, each by a write of its own on v1.
        let denied = rules.iter().rposition(|rule| !rule.allow).unwrap_or_default();
        let more: Vec<_> = defaults.into_iter().filter(|rule| !rules[denied..].contains(rule)).collect();
        rules.extend(more);
    }
    rules
}

/// Opcodes of eBPF: <https://docs.kernel.org/bpf/standardization/instruction-set.html>.
mod code {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const MOVE: u8 = 0xb4;
    pub(super) const MOVE_REGISTER: u8 = 0xbc;
    pub(super) const AND: u8 = 0x54;
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    pub(super) const IF_NOT_EQUAL: u8 = 0x56;
    pub(super) const IF_EQUAL: u8 = 0x16;
    pub(super) const EXIT: u8 = 0x95;
}

fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(opcode)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset as u16) << 16
        | u64::from(immediate) << 32
}

/// The filter program: the last rule that matches decides, so rules are tried from the end. Its context holds type and
/// access in one word, then major and minor.
pub(super) fn program(rules: &[Rule]) -> Vec<u64> {
    const TYPE: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    const SCRATCH: u8 = 0;
    let mut program = vec![
        instruction(code::LOAD_WORD, TYPE, 1, 0, 0),
        instruction(code::MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        instruction(code::AND, TYPE, 0, 0, 0xffff),
        instruction(code::SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(code::LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(code::LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests: Vec<(u8, u8, u32)> = Vec::new();
        match rule.kind {
            'b' => tests.push((code::IF_NOT_EQUAL, TYPE, 1)),
            'c' => tests.push((code::IF_NOT_EQUAL, TYPE, 2)),
            _ => {}
        }
        let access = [('m', 1), ('r', 2), ('w', 4)]
            .iter()
            .filter(|(letter, _)| rule.access.contains(*letter))
            .fold(0u32, |access, (_, bit)| access | bit);
        // Allowed: nothing beyond what the rule allows is asked for. Denied: anything that it denies is.
        let test = if rule.allow { (!access & 7, code::IF_NOT_EQUAL) } else { (access, code::IF_EQUAL) };
        let access_test = (access != 7).then_some(test);
        tests.extend(rule.major.map(|major| (code::IF_NOT_EQUAL, MAJOR, major)));
        tests.extend(rule.minor.map(|minor| (code::IF_NOT_EQUAL, MINOR, minor)));
        let always = tests.is_empty() && access_test.is_none();
        let mut remaining = tests.len() + access_test.map_or(0, |_| 3) + 2;
        for (opcode, register, value) in tests {
            remaining -= 1;
            program.push(instruction(opcode, register, 0, remaining as i16, value));
        }
        if let Some((mask, opcode)) = access_test {
            remaining -= 3;
            program.push(instruction(code::MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
            program.push(instruction(code::AND, SCRATCH, 0, 0, mask));
            program.push(instruction(opcode, SCRATCH, 0, remaining as i16, 0));
        }
        program.push(instruction(code::MOVE, SCRATCH, 0, 0, u32::from(rule.allow)));
        program.push(instruction(code::EXIT, 0, 0, 0, 0));
        if always {
            // The kernel refuses a program with instructions that cannot be reached.
            return program;
        }
    }
    program.push(instruction(code::MOVE, SCRATCH, 0, 0, 0));
    program.push(instruction(code::EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> DeviceRule {
        serde_json::from_str(text).expect("valid")
    }

    /// Run a filter program; kind 1 is block, 2 character; access is a sum of 1 (make), 2 (read) and 4 (write).
    fn allowed(rules: &[Rule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 11];
        let program = program(rules);
        let mut position = 0usize;
        loop {
            let word = program[position];
            position += 1;
            let (destination, source) = ((word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
            let (offset, immediate) = ((word >> 16) as u16, (word >> 32) as u32);
            match word as u8 {
                code::LOAD_WORD => registers[destination] = context[usize::from(offset) / 4],
                code::MOVE => registers[destination] = immediate,
                code::MOVE_REGISTER => registers[destination] = registers[source],
                code::AND => registers[destination] &= immediate,
                code::SHIFT_RIGHT => registers[destination] >>= immediate,
                code::IF_NOT_EQUAL if registers[destination] != immediate => position += usize::from(offset),
                code::IF_EQUAL if registers[destination] == immediate => position += usize::from(offset),
                code::IF_NOT_EQUAL | code::IF_EQUAL => {}
                code::EXIT => return registers[0] != 0,
                other => panic!("unexpected opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn without_rules_only_the_default_devices_work() {
        let rules = rules(&[]);
        assert!(allowed(&rules, 2, 6, 1, 3), "read and write /dev/null");
        assert!(allowed(&rules, 2, 6, 136, 7), "a terminal");
        assert!(allowed(&rules, 1, 1, 8, 0), "make a block device's node");
        assert!(!allowed(&rules, 1, 2, 8, 0), "read a block device");
        assert!(!allowed(&rules, 2, 2, 1, 1), "read /dev/mem");
        assert!(!allowed(&rules, 2, 6, 10, 200), "use /dev/net/tun");
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let rules = rules(&[
            rule(r#"{"allow":false,"access":"rwm"}"#),
            rule(r#"{"allow":true,"type":"b","major":8,"access":"rwm"}"#),
            rule(r#"{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}"#),
        ]);
        assert!(allowed(&rules, 1, 6, 8, 0));
        assert!(allowed(&rules, 1, 2, 8, 1));
        assert!(!allowed(&rules, 1, 4, 8, 1));
        assert!(!allowed(&rules, 1, 6, 8, 1));
        assert!(!allowed(&rules, 1, 2, 9, 0));
    }

    #[test]
    fn a_default_that_the_spec_allows_is_there_once_and_one_that_it_forbids_is_there_again() {
        let null = rule(r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#);
        let shown = |given: &[DeviceRule]| rules(given).iter().filter(|rule| rule.line() == "c 1:3 rwm").count();
        assert_eq!(shown(std::slice::from_ref(&null)), 1);
        let denied = rule(r#"{"allow":false,"type":"c","access":"rwm"}"#);
        let rules = rules(&[null, denied]);
        assert!(allowed(&rules, 2, 6, 1, 3), "/dev/null, which every container has");
    }

    #[test]
    fn a_privileged_container_may_use_everything() {
        let rules = rules(&[rule(r#"{"allow":true,"type":"a","major":-1,"minor":-1,"access":"rwm"}"#)]);
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].line(), "a");
        assert!(allowed(&rules, 1, 7, 8, 0));
    }

    #[test]
    fn lines_are_what_v1_takes() {
        let rules = rules(&[rule(r#"{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}"#)]);
        let lines: Vec<String> = rules.iter().map(Rule::line).collect();
        assert_eq!(lines[..2], ["a", "c 10:229 rw"]);
        assert!(lines.contains(&"c 136:* rwm".to_owned()));
    }
}
