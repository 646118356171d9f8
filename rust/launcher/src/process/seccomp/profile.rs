//! The default profile: what Docker's default lets through, in our own form.
//!
//! `default_syscalls.json` holds the rules for a container with Docker's default capabilities;
//! `by_capability.json` what a further capability opens.
//!
//! Families of sockets are listed, not excluded: the kernel looks at the lower half of the argument alone, so that a rule
//! "not 40" lets 2^32 + 40 through. AF_ALG (CVE-2026-31431), AF_VSOCK and what no kernel has any more are not in the list;
//! masks take neighbours together.
//! socketcall(2) of 32-bit programs, whose family lies in memory that no filter sees, looks absent: direct calls are
//! there since Linux 4.3. (Docker leaves it to AppArmor, which not every machine has.)

use std::collections::BTreeMap;

use serde_json::{Value, json};

#[cfg(target_arch = "x86_64")]
macro_rules! architectures {
    () => {
        r#"["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"]"#
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! architectures {
    () => {
        r#"["SCMP_ARCH_AARCH64"]"#
    };
}

/// The default profile as the runtime spec's `linux.seccomp` object: everything is refused with EPERM but what it
/// allows. Right for containers with no capabilities beyond Docker's default ones.
pub const DEFAULT_SECCOMP: &str = concat!(
    r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":"#,
    architectures!(),
    r#","syscalls":"#,
    include_str!("default_syscalls.json"),
    "}"
);

const BY_CAPABILITY: &str = include_str!("by_capability.json");

/// The default profile for a container that has exactly these capabilities (`CAP_*` names).
pub fn default_seccomp(capabilities: &[&str]) -> String {
    let mut profile: Value = serde_json::from_str(DEFAULT_SECCOMP).unwrap_or_default();
    let opened: BTreeMap<String, Vec<String>> = serde_json::from_str(BY_CAPABILITY).unwrap_or_default();
    let allowed: Vec<&String> = opened
        .iter()
        .filter(|(capability, _)| capabilities.contains(&capability.as_str()))
        .flat_map(|(_, names)| names)
        .collect();
    let chroot = capabilities.contains(&"CAP_SYS_CHROOT");
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        // A rule that this one widens must go: libseccomp refuses two answers for one call.
        for rule in rules.iter_mut() {
            if let Some(names) = rule.get_mut("names").and_then(Value::as_array_mut) {
                names.retain(|name| {
                    let name = name.as_str().unwrap_or_default();
                    !allowed.iter().any(|allowed| *allowed == name) && (chroot || name != "chroot")
                });
            }
        }
        rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
        if !allowed.is_empty() {
            rules.push(json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}));
        }
    }
    profile.to_string()
}
