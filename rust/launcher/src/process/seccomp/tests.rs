//! Filters are run by a small BPF interpreter: every verdict can be asked for without making the call.

use super::*;
use crate::error::Kind;
use crate::spec::SeccompArgument;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;

/// What the kernel would answer to a call.
fn verdict(filter: &Filter, audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0u32; 16];
    data[0] = number;
    data[1] = audit;
    for (index, argument) in arguments.iter().enumerate() {
        data[4 + 2 * index] = *argument as u32;
        data[5 + 2 * index] = (*argument >> 32) as u32;
    }
    let (mut position, mut accumulator) = (0, 0);
    loop {
        let step = filter.program[position];
        position += 1;
        let class = u32::from(step.code) & 0x07;
        match class {
            libc::BPF_LD => accumulator = data[step.k as usize / 4],
            libc::BPF_ALU => accumulator &= step.k,
            libc::BPF_RET => return step.k,
            libc::BPF_JMP => {
                let holds = match u32::from(step.code) & 0xf0 {
                    libc::BPF_JA => {
                        position += step.k as usize;
                        continue;
                    }
                    libc::BPF_JEQ => accumulator == step.k,
                    libc::BPF_JGT => accumulator > step.k,
                    libc::BPF_JGE => accumulator >= step.k,
                    other => panic!("unexpected jump {other:#x}"),
                };
                position += usize::from(if holds { step.jt } else { step.jf });
            }
            other => panic!("unexpected class {other:#x}"),
        }
    }
}

fn number(name: &str) -> u32 {
    syscalls::numbers(name).map_or(u32::MAX, |numbers| numbers[0] as u32)
}

fn default() -> Filter {
    compile(&serde_json::from_str(DEFAULT_SECCOMP).expect("the default profile parses")).expect("it compiles")
}

fn call(filter: &Filter, name: &str) -> u32 {
    verdict(filter, X86_64, number(name), [0; 6])
}

const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

#[test]
fn the_table_is_sorted_and_right() {
    for (name, expected) in [("read", 0), ("execve", 59), ("clone3", 435), ("seccomp", 317)] {
        assert_eq!(number(name), expected, "{name}");
    }
    assert_eq!(number("no_such_call"), u32::MAX);
}

#[test]
fn the_default_profile_refuses_what_docker_refuses() {
    let filter = default();
    for name in [
        "acct",
        "add_key",
        "bpf",
        "clock_settime",
        "create_module",
        "delete_module",
        "finit_module",
        "fsopen",
        "get_mempolicy",
        "init_module",
        "io_uring_setup",
        "ioperm",
        "iopl",
        "kcmp",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
        "mbind",
        "mount",
        "move_mount",
        "move_pages",
        "nfsservctl",
        "open_by_handle_at",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "process_madvise",
        "quotactl",
        "reboot",
        "request_key",
        "set_mempolicy",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "sysfs",
        "syslog",
        "umount2",
        "unshare",
        "uselib",
        "userfaultfd",
        "ustat",
        "vhangup",
    ] {
        assert_eq!(call(&filter, name), EPERM, "{name}");
    }
}

#[test]
fn the_default_profile_allows_ordinary_calls() {
    let filter = default();
    for name in ["read", "write", "openat", "execve", "mmap", "futex", "chroot", "ptrace", "mseal", "fchmodat2"] {
        assert_eq!(call(&filter, name), ALLOW, "{name}");
    }
}

#[test]
fn clone_may_not_make_namespaces_and_clone3_looks_absent() {
    let filter = default();
    for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
        let flags = (flag | libc::SIGCHLD) as u64;
        assert_eq!(verdict(&filter, X86_64, number("clone"), [flags, 0, 0, 0, 0, 0]), EPERM);
    }
    assert_eq!(verdict(&filter, X86_64, number("clone"), [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "clone3"), ENOSYS);
}

#[test]
fn arguments_decide_where_the_profile_says_so() {
    let filter = default();
    let socket = |family| verdict(&filter, X86_64, number("socket"), [family, 0, 0, 0, 0, 0]);
    // The kernel takes the lower half alone: 2^32 + 40 is AF_VSOCK too.
    assert_eq!((socket(2), socket(40), socket(40 + (1 << 32))), (ALLOW, EPERM, EPERM));
    for family in 0..64 {
        let refused = [12, 19, 20, 23, 25, 34, 37, 38, 40].contains(&family) || family > 45;
        assert_eq!(socket(family), if refused { EPERM } else { ALLOW }, "{family}");
        assert_eq!(socket(family | 1 << 32), EPERM, "{family}");
    }
    // Its family lies in memory: what a filter cannot see it cannot let through.
    assert_eq!(verdict(&filter, X86, 102, [1, 0, 0, 0, 0, 0]), ENOSYS);
    let personality = |domain| verdict(&filter, X86_64, number("personality"), [domain, 0, 0, 0, 0, 0]);
    assert_eq!((personality(0), personality(8), personality(0xffff_ffff)), (ALLOW, ALLOW, ALLOW));
    assert_eq!((personality(0x0040_0000), personality(1 << 32)), (EPERM, EPERM));
}

#[test]
fn calls_newer_than_the_profile_look_absent() {
    assert_eq!(verdict(&default(), X86_64, 1000, [0; 6]), ENOSYS);
    assert_eq!(verdict(&default(), X86_64, u32::MAX, [0; 6]), ENOSYS);
}

#[test]
fn the_other_ways_into_the_kernel_are_filtered_too() {
    let filter = default();
    // mount is 21 on x86 and 165 on x32; int 0x80 and x32 must not get around the rules of x86_64.
    assert_eq!(verdict(&filter, X86, 21, [0; 6]), EPERM);
    assert_eq!(verdict(&filter, X86, 3, [0; 6]), ALLOW);
    assert_eq!(verdict(&filter, X86_64, X32_BIT | 165, [0; 6]), EPERM);
    assert_eq!(verdict(&filter, X86_64, X32_BIT, [0; 6]), ALLOW);
    assert_eq!(verdict(&filter, AARCH64, 63, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn architectures_that_the_profile_does_not_name_are_killed() {
    let mut profile: Seccomp = serde_json::from_str(DEFAULT_SECCOMP).expect("parses");
    profile.architectures = vec!["SCMP_ARCH_X86_64".into()];
    let filter = compile(&profile).expect("compiles");
    assert_eq!(verdict(&filter, X86_64, 0, [0; 6]), ALLOW);
    assert_eq!(verdict(&filter, X86_64, X32_BIT, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(verdict(&filter, X86, 3, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_capability_opens_its_calls_and_no_others() {
    let filter =
        compile(&serde_json::from_str(&default_seccomp(&["CAP_SYS_ADMIN"])).expect("parses")).expect("compiles");
    for name in ["mount", "unshare", "setns", "clone3", "clone"] {
        assert_eq!(call(&filter, name), ALLOW, "{name}");
    }
    assert_eq!(verdict(&filter, X86_64, number("clone"), [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "chroot"), EPERM);
    assert_eq!(call(&filter, "keyctl"), EPERM);
}

fn single(op: &str, value: u64, value_two: u64) -> Filter {
    let argument = SeccompArgument { index: 1, value, value_two, op: op.into() };
    compile(&Seccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        syscalls: vec![SeccompRule {
            names: vec!["read".into()],
            action: "SCMP_ACT_KILL_PROCESS".into(),
            errno_ret: None,
            args: vec![argument],
        }],
        ..Seccomp::default()
    })
    .expect("compiles")
}

#[test]
fn every_comparison_is_unsigned_and_64_bits_wide() {
    let samples = [0, 1, 5, 0xffff_ffff, 1 << 32, (1 << 32) + 5, (5 << 32) + 1, u64::MAX];
    type Compare = fn(u64, u64) -> bool;
    let table: [(&str, Compare); 6] = [
        ("SCMP_CMP_NE", |one, other| one != other),
        ("SCMP_CMP_LT", |one, other| one < other),
        ("SCMP_CMP_LE", |one, other| one <= other),
        ("SCMP_CMP_EQ", |one, other| one == other),
        ("SCMP_CMP_GE", |one, other| one >= other),
        ("SCMP_CMP_GT", |one, other| one > other),
    ];
    for (op, compare) in table {
        for value in samples {
            let filter = single(op, value, 0);
            for argument in samples {
                let killed = verdict(&filter, X86_64, 0, [7, argument, 7, 7, 7, 7]) != ALLOW;
                assert_eq!(killed, compare(argument, value), "{argument} {op} {value}");
            }
        }
    }
    let filter = single("SCMP_CMP_MASKED_EQ", 0xff00_0000_00ff, 0x1200_0000_0034);
    assert_ne!(verdict(&filter, X86_64, 0, [0, 0x12ab_0000_cd34, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&filter, X86_64, 0, [0, 0x13ab_0000_cd34, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn conditions_on_different_arguments_must_all_hold_and_on_one_argument_are_alternatives() {
    let argument = |index, value| SeccompArgument { index, value, value_two: 0, op: "SCMP_CMP_EQ".into() };
    let rule = |args| Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        syscalls: vec![SeccompRule {
            names: vec!["read".into()],
            action: "SCMP_ACT_ALLOW".into(),
            errno_ret: None,
            args,
        }],
        ..Seccomp::default()
    };
    let both = compile(&rule(vec![argument(0, 1), argument(1, 2)])).expect("compiles");
    assert_eq!(verdict(&both, X86_64, 0, [1, 2, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&both, X86_64, 0, [1, 3, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&both, X86_64, 0, [3, 2, 0, 0, 0, 0]), EPERM);
    let either = compile(&rule(vec![argument(0, 1), argument(0, 2)])).expect("compiles");
    assert_eq!(verdict(&either, X86_64, 0, [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&either, X86_64, 0, [3, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn a_program_with_far_jumps_decides_like_its_rules() {
    // Every number with an errno of its own: nothing merges, nothing is shared, the tree is as large as it can be.
    for count in [1, 2, 3, 75, 150, 151, 450, 600] {
        let mut group = assemble::Group::new(X86_64);
        let decisions = (0..count)
            .map(|number| (number, Decision { alternatives: vec![], otherwise: Action::errno(number + 1) }))
            .collect();
        group.add(0, decisions, Action::ALLOW, Action::ALLOW);
        let filter = Filter { program: assemble::program(&[group]), flags: 0 };
        for number in 0..count {
            let expected = libc::SECCOMP_RET_ERRNO | (number + 1);
            assert_eq!(verdict(&filter, X86_64, number, [0; 6]), expected, "{number} of {count}");
        }
        assert_eq!(verdict(&filter, X86_64, count, [0; 6]), ALLOW);
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let profile = |change: fn(&mut Seccomp)| {
        let mut profile = Seccomp { default_action: "SCMP_ACT_ALLOW".into(), ..Seccomp::default() };
        profile.syscalls.push(SeccompRule {
            names: vec!["read".into()],
            action: "SCMP_ACT_ERRNO".into(),
            ..SeccompRule::default()
        });
        change(&mut profile);
        compile(&profile).expect_err("refused")
    };
    for (failure, name) in [
        (profile(|it| it.syscalls[0].names[0] = "imaginary".into()), "imaginary"),
        (profile(|it| it.syscalls[0].action = "SCMP_ACT_NOTIFY".into()), "SCMP_ACT_NOTIFY"),
        (profile(|it| it.default_action = "X".into()), "defaultAction"),
        (profile(|it| it.architectures.push("SCMP_ARCH_PDP11".into())), "SCMP_ARCH_PDP11"),
        (profile(|it| it.flags = Some(vec!["SECCOMP_FILTER_FLAG_NEW_LISTENER".into()])), "NEW_LISTENER"),
    ] {
        assert_eq!(failure.kind, Kind::Unsupported);
        assert!(failure.message.contains(name), "{}", failure.message);
    }
}

#[test]
fn an_allowed_call_that_is_unknown_here_is_no_error_in_an_allow_list() {
    let profile = Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        syscalls: vec![SeccompRule {
            names: vec!["read".into(), "call_of_the_future".into()],
            action: "SCMP_ACT_ALLOW".into(),
            ..SeccompRule::default()
        }],
        ..Seccomp::default()
    };
    assert_eq!(call(&compile(&profile).expect("compiles"), "read"), ALLOW);
}

#[test]
fn the_program_is_small() {
    assert!(default().program.len() < 750, "{}", default().program.len());
}
