//! cgroup v2 on the kernel's own hierarchy. Needs root and a mounted v2 hierarchy (a hybrid machine has one too, without
//! controllers); without them there is nothing to test here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lamella_launcher::cgroup::{Cgroup, CgroupPlan};
use lamella_launcher::spec::Spec;

fn hierarchy() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    rustix::process::geteuid().is_root().then(|| PathBuf::from(line.split(' ').nth(1).unwrap_or_default()))
}

struct Made {
    cgroup: Cgroup,
    folder: PathBuf,
}

fn make(root: &Path, name: &str, resources: &str) -> Made {
    let path = format!("/lamella-launcher-{}-{name}/box", std::process::id());
    let document = format!(
        r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},"process":{{"args":["x"],"cwd":"/"}},
        "linux":{{"cgroupsPath":"{path}","resources":{resources},"namespaces":[{{"type":"mount"}}]}}}}"#
    );
    let mut spec = Spec::parse(&document).expect("valid");
    let mut warnings = Vec::new();
    let cgroup = CgroupPlan::new(&mut spec).create(root, &mut warnings).expect("created");
    assert!(warnings.is_empty(), "{warnings:?}");
    Made { cgroup, folder: root.join(path.trim_start_matches('/')) }
}

/// Run a script in the cgroup; whether it succeeded.
fn succeeds(made: &Made, script: &str) -> bool {
    let script = format!("echo $$ > {}/cgroup.procs && {script}", made.folder.display());
    Command::new("/bin/sh").args(["-c", &script]).stderr(Stdio::null()).status().expect("run").success()
}

#[test]
fn the_kernel_takes_the_device_filter_and_obeys_it() {
    let Some(root) = hierarchy() else { return };
    let mut made = make(&root, "devices", "{}");
    assert!(succeeds(&made, ": < /dev/null"));
    assert!(succeeds(&made, "head -c 1 /dev/urandom > /dev/null"));
    assert!(!succeeds(&made, ": > /dev/kmsg"));
    made.cgroup.remove();
    assert!(!made.folder.exists());
    let rule = r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":11,"access":"w"}]}"#;
    let mut made = make(&root, "allowed", rule);
    assert!(succeeds(&made, ": > /dev/kmsg"));
    assert!(!succeeds(&made, ": < /dev/kmsg"));
    made.cgroup.remove();
    let mut made = make(&root, "all", r#"{"devices":[{"allow":true,"access":"rwm"}]}"#);
    assert!(succeeds(&made, ": < /dev/kmsg"));
    made.cgroup.remove();
}

#[test]
fn processes_are_found_frozen_and_killed_with_those_of_groups_beneath() {
    let Some(root) = hierarchy() else { return };
    let mut made = make(&root, "processes", "{}");
    let group = made.cgroup.group("exec-1").expect("made");
    let join = |folder: &Path| {
        let script = format!("echo $$ > {}/cgroup.procs; exec sleep 1000", folder.display());
        Command::new("/bin/sh").args(["-c", &script]).spawn().expect("started")
    };
    let (mut one, mut other) = (join(&made.folder), join(&made.folder.join("exec-1")));
    let started = Instant::now();
    while made.cgroup.processes().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    made.cgroup.set_frozen(true).expect("frozen");
    made.cgroup.set_frozen(false).expect("let go on");
    group.signal_all(libc::SIGKILL);
    other.wait().expect("killed");
    assert_eq!(made.cgroup.processes(), [one.id() as i32]);
    made.cgroup.signal_all(libc::SIGKILL);
    one.wait().expect("killed");
    drop(group);
    made.cgroup.remove();
    assert!(!made.folder.exists());
    assert!(!made.folder.parent().is_some_and(Path::exists));
}
