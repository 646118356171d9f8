//! Cgroups on a faked tree: plain folders and files, which stand for the kernel's.

use std::fs;

use super::*;

fn legacy_tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    for name in ["memory", "pids", "devices", "freezer", "cpu,cpuacct", "cpuset"] {
        fs::create_dir(root.path().join(name)).expect("made");
    }
    for name in ["cpu", "cpuacct"] {
        std::os::unix::fs::symlink("cpu,cpuacct", root.path().join(name)).expect("linked");
    }
    fs::write(root.path().join("cpuset/cpuset.cpus"), "0-3\n").expect("written");
    fs::write(root.path().join("cpuset/cpuset.mems"), "0\n").expect("written");
    root
}

fn unified_tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    fs::write(root.path().join("cgroup.controllers"), "cpu memory pids io\n").expect("written");
    fs::write(root.path().join("cgroup.subtree_control"), "\n").expect("written");
    root
}

fn plan(resources: &str) -> CgroupPlan {
    CgroupPlan { path: Some("lamella/default/box".into()), resources: serde_json::from_str(resources).expect("valid") }
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn v1_gets_a_folder_a_hierarchy_with_its_limits_and_leaves_nothing() {
    let root = legacy_tree();
    let before = tree(root.path());
    let mut warnings = Vec::new();
    let resources = r#"{"memory":{"limit":4096},"cpu":{"quota":5000,"cpus":"1"},"pids":{"limit":5}}"#;
    let mut cgroup = plan(resources).create(root.path(), &mut warnings).expect("created");
    assert_eq!(read(root.path(), "memory/lamella/default/box/memory.limit_in_bytes"), "4096");
    assert_eq!(read(root.path(), "cpu,cpuacct/lamella/default/box/cpu.cfs_quota_us"), "5000");
    assert_eq!(read(root.path(), "cpuset/lamella/default/box/cpuset.cpus"), "1");
    assert_eq!(read(root.path(), "cpuset/lamella/default/box/cpuset.mems"), "0");
    assert_eq!(read(root.path(), "cpuset/lamella/cpuset.cpus"), "0-3");
    assert_eq!(read(root.path(), "pids/lamella/default/box/pids.max"), "5");
    assert_eq!(read(root.path(), "devices/lamella/default/box/devices.deny"), "a");
    assert!(root.path().join("freezer/lamella/default/box").is_dir());
    assert!(cgroup.clone_target().is_none());
    cgroup.join().expect("joined");
    assert_eq!(read(root.path(), "memory/lamella/default/box/tasks"), "0");
    assert!(warnings.is_empty());
    fs::remove_file(root.path().join("cpuset/lamella/cpuset.cpus")).expect("a file that no cgroup has");
    fs::remove_file(root.path().join("cpuset/lamella/cpuset.mems")).expect("a file that no cgroup has");
    fs::remove_file(root.path().join("cpuset/lamella/default/cpuset.cpus")).expect("a file that no cgroup has");
    fs::remove_file(root.path().join("cpuset/lamella/default/cpuset.mems")).expect("a file that no cgroup has");
    cgroup.remove();
    assert_eq!(tree(root.path()), before);
}

#[test]
fn v2_gets_one_folder_and_the_controllers_it_needs() {
    let root = unified_tree();
    let mut warnings = Vec::new();
    let resources = r#"{"memory":{"limit":4096},"cpu":{"shares":2},"unified":{"memory.high":"2048"}}"#;
    let mut cgroup = plan(resources).create(root.path(), &mut warnings).expect("created");
    assert_eq!(read(root.path(), "lamella/default/box/memory.max"), "4096");
    assert_eq!(read(root.path(), "lamella/default/box/memory.high"), "2048");
    assert_eq!(read(root.path(), "lamella/default/box/cpu.weight"), "1");
    assert!(read(root.path(), "cgroup.subtree_control").starts_with('+'));
    assert!(cgroup.clone_target().is_some());
    assert!(!root.path().join("lamella/default/box/cgroup.subtree_control").exists());
    fs::write(root.path().join("lamella/default/box/memory.events"), "low 0\noom 3\noom_kill 2\n").expect("written");
    assert_eq!(cgroup.oom_kills(), 2);
    fs::write(root.path().join("lamella/default/box/cgroup.procs"), "17\n18\n").expect("written");
    assert_eq!(cgroup.processes(), [17, 18]);
    cgroup.remove();
    assert!(!root.path().join("lamella/default/box").exists());
}

#[test]
fn a_controller_that_is_missing_is_an_error_when_a_limit_needs_it() {
    let failure = plan(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#)
        .create(unified_tree().path(), &mut Vec::new())
        .expect_err("refused");
    assert_eq!(failure.kind, Kind::FailedPrecondition);
    let root = legacy_tree();
    let failure = plan(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#)
        .create(root.path(), &mut Vec::new())
        .expect_err("refused");
    assert!(failure.message.contains("hugetlb"), "{}", failure.message);
    assert!(!root.path().join("memory/lamella").exists(), "nothing is left");
}

/// A v1 tree with a v2 hierarchy beside it, which has hugetlb.
fn hybrid_tree() -> tempfile::TempDir {
    let root = legacy_tree();
    fs::create_dir(root.path().join(v1::BESIDE)).expect("made");
    fs::write(root.path().join("unified/cgroup.controllers"), "hugetlb\n").expect("written");
    fs::write(root.path().join("unified/cgroup.subtree_control"), "\n").expect("written");
    root
}

#[test]
fn a_hybrid_machine_gets_a_folder_beside_where_a_limit_needs_one() {
    let root = hybrid_tree();
    let leaf = root.path().join("unified/lamella/default/box");
    let none = plan(r#"{"memory":{"limit":4096}}"#).create(root.path(), &mut Vec::new()).expect("created");
    assert!(!leaf.exists(), "no limit needs it");
    drop(none);
    let resources = r#"{"memory":{"limit":4096},"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#;
    let mut cgroup = plan(resources).create(root.path(), &mut Vec::new()).expect("created");
    assert_eq!(read(root.path(), "memory/lamella/default/box/memory.limit_in_bytes"), "4096");
    assert_eq!(read(root.path(), "unified/lamella/default/box/hugetlb.2MB.max"), "1");
    assert_eq!(read(root.path(), "unified/cgroup.subtree_control"), "+hugetlb");
    assert!(cgroup.clone_target().is_none(), "processes join by hand");
    cgroup.join().expect("joined");
    assert_eq!(read(root.path(), "unified/lamella/default/box/cgroup.procs"), "0");
    assert!(cgroup.legacy_folders().any(|(name, _)| name == v1::BESIDE));
    let change = change(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":2}]}"#);
    fs::write(leaf.join("cgroup.procs"), "").expect("written");
    cgroup.update(&change, &mut Vec::new()).expect("changed");
    assert_eq!(read(root.path(), "unified/lamella/default/box/hugetlb.2MB.max"), "2");
    cgroup.remove();
    assert!(!leaf.exists());
}

#[test]
fn a_parent_that_was_there_before_stays_and_one_that_was_made_goes() {
    let root = unified_tree();
    fs::create_dir(root.path().join("builds")).expect("made");
    let plan = CgroupPlan { path: Some("builds/one/box".into()), resources: Resources::default() };
    plan.create(root.path(), &mut Vec::new()).expect("created").remove();
    assert!(root.path().join("builds").is_dir());
    assert!(!root.path().join("builds/one/box").exists());
    assert_eq!(kept_parent(Path::new("/c"), "user.slice/lamella/default/box"), Path::new("/c/user.slice"));
    assert_eq!(kept_parent(Path::new("/c"), "lamella/default/box"), Path::new("/c"));
    assert_eq!(kept_parent(root.path(), "builds/one/box"), root.path().join("builds"));
}

#[test]
fn parents_that_are_to_be_kept_stay_also_when_they_are_empty() {
    for (root, top) in [(legacy_tree(), "pids"), (unified_tree(), "")] {
        let plan = CgroupPlan { path: Some("lamella/default/box".into()), resources: Resources::default() };
        let mut cgroup = plan.create(root.path(), &mut Vec::new()).expect("created");
        cgroup.keep_parents();
        cgroup.remove();
        let parent = root.path().join(top).join("lamella/default");
        assert!(parent.is_dir() && !parent.join("box").exists());
        plan.create(root.path(), &mut Vec::new()).expect("created").remove();
        assert!(!parent.exists());
    }
}

#[test]
fn what_is_found_again_leaves_parents_that_are_not_ours() {
    for (root, top) in [(legacy_tree(), "pids"), (unified_tree(), "")] {
        let top = root.path().join(top);
        for (path, parent, stays) in [
            ("builds/box", "builds", true),
            ("lamella/default/box", "lamella", false),
            ("lamella-oci/box", "lamella-oci", false),
        ] {
            fs::create_dir(top.join(parent)).expect("made");
            let plan = CgroupPlan { path: Some(path.into()), resources: Resources::default() };
            plan.create(root.path(), &mut Vec::new()).expect("created");
            plan.open(root.path()).remove();
            assert!(!top.join(path).exists(), "{path}");
            assert_eq!(top.join(parent).is_dir(), stays, "{parent}");
        }
    }
}

#[test]
fn another_runtimes_cgroup_goes_with_the_parents_that_were_made_for_it() {
    let root = legacy_tree();
    fs::create_dir(root.path().join("pids/builds")).expect("made");
    let before = tree(root.path());
    let place = Place::new(root.path(), "/builds/one/box");
    place.reserve();
    assert!(root.path().join("memory/builds/one/box").is_dir());
    place.open().remove();
    place.remove();
    place.remove();
    assert_eq!(tree(root.path()), before);
}

#[test]
fn what_a_machine_cannot_limit_is_seen_before_anything_is_made() {
    let root = legacy_tree();
    let before = tree(root.path());
    for refused in [r#"{"unified":{"memory.high":"1"}}"#, r#"{"unified":{"nobody.knows":"1"}}"#] {
        assert_eq!(plan(refused).check(root.path()).expect_err(refused).kind, Kind::Unsupported);
    }
    plan(r#"{"memory":{"swappiness":5}}"#).check(unified_tree().path()).expect_err("v2 has none");
    assert_eq!(tree(root.path()), before);
}

#[test]
fn a_machine_without_cgroups_is_fine_unless_limits_are_asked_for() {
    let root = tempfile::tempdir().expect("a folder");
    let mut warnings = Vec::new();
    plan("{}").create(root.path(), &mut warnings).expect("without");
    assert_eq!(warnings.len(), 1);
    plan(r#"{"pids":{"limit":3}}"#).create(root.path(), &mut warnings).expect_err("refused");
}

#[test]
fn a_cgroup_that_a_killed_monitor_left_is_made_anew_and_one_in_use_is_refused() {
    let root = legacy_tree();
    let leaf = root.path().join("memory/lamella/default/box");
    fs::create_dir_all(&leaf).expect("made");
    fs::write(leaf.join("memory.oom_control"), "oom_kill 9\n").expect("written");
    let cgroup = plan("{}").create(root.path(), &mut Vec::new()).expect("made anew");
    assert_eq!(cgroup.oom_kills(), 0);
    fs::write(leaf.join("cgroup.procs"), "1\n").expect("written");
    let failure = plan("{}").create(root.path(), &mut Vec::new()).expect_err("in use");
    assert_eq!(failure.kind, Kind::FailedPrecondition);
}

#[test]
fn limits_without_a_cgroup_path_are_refused() {
    let plan = CgroupPlan { path: None, resources: serde_json::from_str(r#"{"pids":{"limit":3}}"#).expect("valid") };
    plan.create(legacy_tree().path(), &mut Vec::new()).expect_err("refused");
}

fn change(resources: &str) -> Resources {
    serde_json::from_str(resources).expect("valid")
}

#[test]
fn a_change_that_is_refused_half_way_leaves_every_limit_as_it_was() {
    let root = legacy_tree();
    let mut cgroup =
        plan(r#"{"memory":{"limit":4096},"pids":{"limit":5}}"#).create(root.path(), &mut Vec::new()).expect("created");
    let leaf = root.path().join("cpuset/lamella/default/box");
    let before = tree(root.path());
    let refused = cgroup
        .update(
            &change(r#"{"memory":{"limit":8192},"pids":{"limit":9},"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#),
            &mut Vec::new(),
        )
        .expect_err("there is no hugetlb");
    assert!(refused.message.contains("hugetlb"), "{}", refused.message);
    // A folder in the file's place: the kernel refuses the write.
    fs::create_dir_all(root.path().join("pids/lamella/default/box")).expect("there");
    fs::remove_file(root.path().join("pids/lamella/default/box/pids.max")).expect("removed");
    fs::create_dir(root.path().join("pids/lamella/default/box/pids.max")).expect("made");
    cgroup
        .update(&change(r#"{"memory":{"limit":8192},"cpu":{"cpus":"1"},"pids":{"limit":9}}"#), &mut Vec::new())
        .expect_err("pids.max cannot be written");
    assert_eq!(read(root.path(), "memory/lamella/default/box/memory.limit_in_bytes"), "4096");
    assert!(!leaf.exists(), "the folder that the change made is gone");
    assert!(before.iter().all(|path| path.exists()));
}

#[test]
fn a_change_makes_the_folder_of_a_controller_that_had_no_limit_and_moves_the_processes() {
    let root = legacy_tree();
    let mut cgroup = plan("{}").create(root.path(), &mut Vec::new()).expect("created");
    fs::write(root.path().join("pids/lamella/default/box/cgroup.procs"), "17\n").expect("written");
    cgroup.update(&change(r#"{"cpu":{"quota":5000,"cpus":"1"}}"#), &mut Vec::new()).expect("changed");
    assert_eq!(read(root.path(), "cpuset/lamella/default/box/cpuset.cpus"), "1");
    assert_eq!(read(root.path(), "cpuset/lamella/default/box/cgroup.procs"), "17");
    assert_eq!(read(root.path(), "cpu,cpuacct/lamella/default/box/cpu.cfs_quota_us"), "5000");
    fs::write(root.path().join("pids/lamella/default/box/cgroup.procs"), "").expect("written");
    cgroup.remove();
    assert!(!root.path().join("cpuset/lamella/default/box").exists());
}

#[test]
fn v2_refuses_a_limit_below_what_is_in_use_and_not_cached() {
    let root = unified_tree();
    let mut cgroup = plan(r#"{"memory":{"limit":4096}}"#).create(root.path(), &mut Vec::new()).expect("created");
    let leaf = root.path().join("lamella/default/box");
    fs::write(leaf.join("memory.current"), "3000\n").expect("written");
    fs::write(leaf.join("memory.stat"), "anon 1000\ninactive_file 1500\nactive_file 500\n").expect("written");
    let to = |limit: u32| change(&format!(r#"{{"memory":{{"limit":{limit},"checkBeforeUpdate":true}}}}"#));
    let failure = cgroup.update(&to(999), &mut Vec::new()).expect_err("in use");
    assert_eq!(failure.kind, Kind::Unavailable);
    assert_eq!(read(root.path(), "lamella/default/box/memory.max"), "4096");
    cgroup.update(&to(1000), &mut Vec::new()).expect("changed");
    assert_eq!(read(root.path(), "lamella/default/box/memory.max"), "1000");
}

#[test]
fn v2_enables_a_controller_that_a_change_needs_in_every_parent() {
    let root = unified_tree();
    let mut cgroup = plan("{}").create(root.path(), &mut Vec::new()).expect("created");
    fs::write(root.path().join("cgroup.controllers"), "cpu memory pids io cpuset\n").expect("written");
    for parent in ["lamella", "lamella/default"] {
        fs::write(root.path().join(parent).join("cgroup.controllers"), "cpuset\n").expect("written");
    }
    cgroup.update(&change(r#"{"cpu":{"cpus":"1"}}"#), &mut Vec::new()).expect("changed");
    // What was written last: a faked file keeps no more.
    for (parent, enabled) in [(".", "+pids"), ("lamella", "+cpuset"), ("lamella/default", "+cpuset")] {
        assert_eq!(read(root.path(), &format!("{parent}/cgroup.subtree_control")), enabled);
    }
    assert_eq!(read(root.path(), "lamella/default/box/cpuset.cpus"), "1");
}

fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).expect("readable").flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found.sort();
    found
}
