//! What this runtime can do, and an example of a container.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::arguments::Arguments;
use super::container::CONFIG;
use super::print;
use crate::error::{Failure, Step};
use crate::process::{capabilities, seccomp};
use crate::spec;

/// Options of a mount that are not its file system's own.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "lazytime",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "rbind",
    "relatime",
    "rnodev",
    "ro",
    "rprivate",
    "rro",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "unbindable",
];

const ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
const FLAGS: [&str; 3] = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];

/// Print what this runtime can do.
/// <https://github.com/opencontainers/runtime-spec/blob/main/features.md>
pub(super) fn features(arguments: Arguments) -> Result<i32, Failure> {
    arguments.nothing()?;
    let hooks: Vec<&str> = spec::Hooks::default().all().map(|(point, _)| point).collect();
    let document = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::VERSION,
        "hooks": hooks,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": spec::NAMESPACES,
            "capabilities": capabilities::NAMES.as_slice(),
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": seccomp::KNOWN_ARCHITECTURES,
                "knownFlags": FLAGS,
                "supportedFlags": FLAGS,
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
        },
        "annotations": {"io.github.lamella.version": env!("CARGO_PKG_VERSION")},
    });
    print(&serde_json::to_string_pretty(&document).unwrap_or_default())
}

/// Write an example of a `config.json`: a shell in a container without a network, with few capabilities.
pub(super) fn example(arguments: Arguments) -> Result<i32, Failure> {
    arguments.nothing()?;
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let file_system = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let document = json!({
        "ociVersion": spec::VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "lamella",
        "mounts": [
            file_system("/proc", "proc", &["nosuid", "nodev", "noexec"]),
            file_system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            file_system("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            file_system("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            file_system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            file_system("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            file_system("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    let path = Path::new(arguments.value("bundle").unwrap_or(".")).join(CONFIG);
    let step = || format!("write {}", path.display());
    let mut file = std::fs::File::create_new(&path).step(step)?;
    writeln!(file, "{}", serde_json::to_string_pretty(&document).unwrap_or_default()).step(step)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Seccomp, SeccompArgument, SeccompRule};

    #[test]
    fn what_is_said_to_be_supported_is() {
        for action in ACTIONS {
            for op in OPERATORS {
                let argument = SeccompArgument { index: 0, value: 1, value_two: 1, op: op.into() };
                let names = vec!["read".into()];
                let rule = SeccompRule { names, action: action.into(), errno_ret: None, args: vec![argument] };
                let profile = Seccomp {
                    default_action: "SCMP_ACT_ALLOW".into(),
                    architectures: seccomp::KNOWN_ARCHITECTURES.iter().map(|name| (*name).into()).collect(),
                    flags: Some(FLAGS.map(String::from).to_vec()),
                    syscalls: vec![rule],
                    ..Seccomp::default()
                };
                seccomp::compile(&profile).expect(action);
            }
        }
        let options = lamella_core::mount::Options::parse(MOUNT_OPTIONS).expect("all are known");
        assert!(options.data.is_empty(), "{:?}", options.data);
    }
}
