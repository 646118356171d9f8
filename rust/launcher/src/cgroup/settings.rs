//! From the spec's limits to control files and values. Pure: nothing is read or written here.

use crate::error::Failure;
use crate::spec::{BlockIo, Resources, ThrottleDevice};

/// One value for one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller that the file belongs to; empty for files of the cgroup itself.
    pub(super) controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
    /// The spec's field, for messages.
    pub(super) field: String,
    /// A kernel without the file is worth a warning only.
    pub(super) optional: bool,
    /// The file and value to write where the kernel has not the first file.
    pub(super) otherwise: Option<(String, String)>,
}

fn setting(controller: &'static str, file: &str, value: impl ToString, field: &str) -> Setting {
    Setting {
        controller,
        file: file.to_owned(),
        value: value.to_string(),
        field: format!("linux.resources.{field}"),
        optional: false,
        otherwise: None,
    }
}

fn optional(setting: Setting) -> Setting {
    Setting { optional: true, ..setting }
}

/// A weight of block input and output: schedulers have files of their own, and a kernel may have neither.
fn io_weight(controller: &'static str, file: &str, other: &str, value: String, other_value: String) -> Setting {
    let field = if value.contains(' ') { "blockIO.weightDevice" } else { "blockIO.weight" };
    Setting { otherwise: Some((other.to_owned(), other_value)), ..optional(setting(controller, file, value, field)) }
}

impl Resources {
    /// Whether any limit is given (the device list always has a meaning, and is no limit in this sense).
    pub(super) fn ask_for_limits(&self) -> bool {
        let any_pids = self.pids.as_ref().is_some_and(|pids| pids.limit > 0);
        any_pids
            || self.memory.as_ref().is_some_and(|it| {
                [it.limit, it.reservation, it.swap].iter().flatten().any(|limit| *limit > 0)
                    || it.swappiness.is_some()
                    || it.disable_oom_killer == Some(true)
            })
            || self.cpu.as_ref().is_some_and(|it| {
                it.shares.is_some_and(|shares| shares > 0)
                    || it.quota.is_some_and(|quota| quota > 0)
                    || [&it.cpus, &it.mems].iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
                    || it.idle.is_some()
            })
            || self.block_io.is_some()
            || !self.hugepage_limits.is_empty()
            || !self.unified.is_empty()
    }
}

/// Settings for cgroup v1, and for the controllers `on_v2` of the v2 hierarchy that a hybrid machine has beside.
pub(super) fn hybrid(resources: &Resources, on_v2: &[String]) -> Result<Vec<Setting>, Failure> {
    let is_there = |controller: &str| on_v2.iter().any(|name| name == controller);
    if let Some(name) = resources.unified.keys().find(|name| !is_there(controller_of(name))) {
        return Err(Failure::unsupported(format!("linux.resources.unified[{name:?}] on a cgroup v1 machine")));
    }
    let mut all = legacy(resources);
    all.retain(|setting| !is_there(setting.controller));
    all.extend(unified_of(resources, &is_there)?);
    Ok(all)
}

/// Settings for cgroup v1.
fn legacy(resources: &Resources) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(memory) = &resources.memory {
        // First the memory, then memory and swap together: the second must never be below the first.
        if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
            all.push(setting("memory", "memory.limit_in_bytes", limit, "memory.limit"));
        }
        if let Some(swap) = memory.swap.filter(|swap| *swap != 0) {
            let swap = setting("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap");
            // Kernels without swap accounting: the memory limit holds, swap is not counted.
            all.push(optional(swap));
        }
        if let Some(reservation) = memory.reservation.filter(|limit| *limit != 0) {
            all.push(setting("memory", "memory.soft_limit_in_bytes", reservation, "memory.reservation"));
        }
        if let Some(swappiness) = memory.swappiness {
            all.push(setting("memory", "memory.swappiness", swappiness, "memory.swappiness"));
        }
        if memory.disable_oom_killer == Some(true) {
            all.push(setting("memory", "memory.oom_control", 1, "memory.disableOOMKiller"));
        }
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
            all.push(setting("cpu", "cpu.shares", shares, "cpu.shares"));
        }
        if let Some(period) = cpu.period.filter(|period| *period > 0) {
            all.push(setting("cpu", "cpu.cfs_period_us", period, "cpu.period"));
        }
        if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
            all.push(setting("cpu", "cpu.cfs_quota_us", quota, "cpu.quota"));
        }
        if let Some(burst) = cpu.burst {
            all.push(setting("cpu", "cpu.cfs_burst_us", burst, "cpu.burst"));
        }
        if let Some(idle) = cpu.idle {
            all.push(setting("cpu", "cpu.idle", idle, "cpu.idle"));
        }
        cpuset(cpu.cpus.as_deref(), cpu.mems.as_deref(), &mut all);
    }
    if let Some(pids) = &resources.pids {
        all.push(pids_limit(pids.limit));
    }
    if let Some(io) = &resources.block_io {
        legacy_io(io, &mut all);
    }
    for limit in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size);
        all.push(setting("hugetlb", &file, limit.limit, "hugepageLimits"));
    }
    all
}

fn pids_limit(limit: i64) -> Setting {
    let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
    setting("pids", "pids.max", value, "pids.limit")
}

fn cpuset(cpus: Option<&str>, mems: Option<&str>, all: &mut Vec<Setting>) {
    for (file, field, value) in [("cpuset.cpus", "cpu.cpus", cpus), ("cpuset.mems", "cpu.mems", mems)] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            all.push(setting("cpuset", file, value, field));
        }
    }
}

/// The four throttles: field, v1 file, v2 key.
fn throttles(io: &BlockIo) -> [(&'static str, &'static str, &'static str, &[ThrottleDevice]); 4] {
    [
        ("blockIO.throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps", &io.throttle_read_bps_device),
        ("blockIO.throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps", &io.throttle_write_bps_device),
        ("blockIO.throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops", &io.throttle_read_iops_device),
        (
            "blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            &io.throttle_write_iops_device,
        ),
    ]
}

fn legacy_io(io: &BlockIo, all: &mut Vec<Setting>) {
    if let Some(weight) = io.weight.filter(|weight| *weight > 0) {
        let value = weight.to_string();
        all.push(io_weight("blkio", "blkio.bfq.weight", "blkio.weight", value.clone(), value));
    }
    for device in &io.weight_device {
        let value = format!("{}:{} {}", device.major, device.minor, device.weight);
        all.push(io_weight("blkio", "blkio.bfq.weight_device", "blkio.weight_device", value.clone(), value));
    }
    for (field, file, _, devices) in throttles(io) {
        for device in devices {
            all.push(setting("blkio", file, format!("{}:{} {}", device.major, device.minor, device.rate), field));
        }
    }
}

/// Settings for cgroup v2.
pub(super) fn unified(resources: &Resources) -> Result<Vec<Setting>, Failure> {
    unified_of(resources, &|_| true)
}

/// Settings for those controllers of cgroup v2 that are wanted.
fn unified_of(resources: &Resources, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Setting>, Failure> {
    let mut all = Vec::new();
    if let Some(memory) = resources.memory.as_ref().filter(|_| wanted("memory")) {
        let amount = |limit: i64| if limit < 0 { "max".to_owned() } else { limit.to_string() };
        if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
            all.push(setting("memory", "memory.max", amount(limit), "memory.limit"));
        }
        if let Some(swap) = memory.swap.filter(|swap| *swap != 0) {
            all.push(optional(setting("memory", "memory.swap.max", swap_alone(swap, memory.limit)?, "memory.swap")));
        }
        if let Some(reservation) = memory.reservation.filter(|limit| *limit != 0) {
            all.push(setting("memory", "memory.low", amount(reservation), "memory.reservation"));
        }
        if memory.swappiness.is_some() {
            return Err(Failure::unsupported("linux.resources.memory.swappiness on a cgroup v2 machine"));
        }
        if memory.disable_oom_killer == Some(true) {
            return Err(Failure::unsupported("linux.resources.memory.disableOOMKiller on a cgroup v2 machine"));
        }
    }
    if let Some(cpu) = resources.cpu.as_ref().filter(|_| wanted("cpu")) {
        if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
            all.push(setting("cpu", "cpu.weight", weight(shares), "cpu.shares"));
        }
        let quota = cpu.quota.filter(|quota| *quota != 0);
        let period = cpu.period.filter(|period| *period > 0);
        if quota.is_some() || period.is_some() {
            let quota = quota.filter(|quota| *quota > 0).map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            all.push(setting("cpu", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)), "cpu.quota"));
        }
        if let Some(burst) = cpu.burst {
            all.push(setting("cpu", "cpu.max.burst", burst, "cpu.burst"));
        }
        if let Some(idle) = cpu.idle {
            all.push(setting("cpu", "cpu.idle", idle, "cpu.idle"));
        }
    }
    if let Some(cpu) = resources.cpu.as_ref().filter(|_| wanted("cpuset")) {
        cpuset(cpu.cpus.as_deref(), cpu.mems.as_deref(), &mut all);
    }
    if let Some(pids) = resources.pids.as_ref().filter(|_| wanted("pids")) {
        all.push(pids_limit(pids.limit));
    }
    if let Some(io) = resources.block_io.as_ref().filter(|_| wanted("io")) {
        if let Some(weight) = io.weight.filter(|weight| *weight > 0) {
            let other = share_of_io(weight).to_string();
            all.push(io_weight("io", "io.bfq.weight", "io.weight", weight.to_string(), other));
        }
        for device in &io.weight_device {
            let line = |weight: u64| format!("{}:{} {weight}", device.major, device.minor);
            let (value, other) = (line(device.weight.into()), line(share_of_io(device.weight)));
            all.push(io_weight("io", "io.bfq.weight", "io.weight", value, other));
        }
        for (field, _, key, devices) in throttles(io) {
            for device in devices {
                let value = format!("{}:{} {key}={}", device.major, device.minor, device.rate);
                all.push(setting("io", "io.max", value, field));
            }
        }
    }
    for limit in resources.hugepage_limits.iter().filter(|_| wanted("hugetlb")) {
        let file = format!("hugetlb.{}.max", limit.page_size);
        all.push(setting("hugetlb", &file, limit.limit, "hugepageLimits"));
    }
    for (name, value) in &resources.unified {
        all.push(setting(controller_of(name), name, value, &format!("unified[{name:?}]")));
    }
    Ok(all)
}

/// The controller that a file of cgroup v2 belongs to; empty for files of the cgroup itself.
fn controller_of(file: &str) -> &'static str {
    const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc"];
    CONTROLLERS.into_iter().find(|known| file.split('.').next() == Some(known)).unwrap_or("")
}

/// v2 limits swap by itself, where the spec (and v1) has memory and swap together.
fn swap_alone(swap: i64, limit: Option<i64>) -> Result<String, Failure> {
    let field = "linux.resources.memory.swap";
    match (swap, limit.filter(|limit| *limit != 0)) {
        (swap, _) if swap < 0 => Ok("max".to_owned()),
        (_, None) => Err(Failure::invalid(field, "needs a memory limit")),
        (_, Some(limit)) if limit < 0 => Err(Failure::invalid(field, "is below an unlimited memory limit")),
        (swap, Some(limit)) if swap < limit => Err(Failure::invalid(field, "is below the memory limit")),
        (swap, Some(limit)) => Ok((swap - limit).to_string()),
    }
}

/// Shares (2 to 262144) as a weight (1 to 10000), so that 1024, the default of the one, is 100, the default of the other, and
/// both ends stay ends: as runc does it since 1.4. (The older formula, a straight line, made 39 of the default.)
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

/// blkio's weight (10 to 1000) as io's (1 to 10000), as runc does it.
fn share_of_io(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(text: &str) -> Resources {
        serde_json::from_str(text).expect("valid")
    }

    fn pairs(settings: &[Setting]) -> Vec<(&str, &str)> {
        settings.iter().map(|setting| (setting.file.as_str(), setting.value.as_str())).collect()
    }

    const MANY: &str = r#"{"memory":{"limit":1000,"swap":3000,"reservation":500},"cpu":{"shares":1024,"quota":50000,
        "period":100000,"cpus":"0-1"},"pids":{"limit":7},"hugepageLimits":[{"pageSize":"2MB","limit":4}],
        "blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":9}]}}"#;

    #[test]
    fn limits_become_files_of_v1() {
        assert_eq!(
            pairs(&hybrid(&resources(MANY), &[]).expect("supported")),
            [
                ("memory.limit_in_bytes", "1000"),
                ("memory.memsw.limit_in_bytes", "3000"),
                ("memory.soft_limit_in_bytes", "500"),
                ("cpu.shares", "1024"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "7"),
                ("blkio.throttle.read_bps_device", "8:0 9"),
                ("hugetlb.2MB.limit_in_bytes", "4"),
            ]
        );
    }

    #[test]
    fn limits_become_files_of_v2() {
        assert_eq!(
            pairs(&unified(&resources(MANY)).expect("supported")),
            [
                ("memory.max", "1000"),
                ("memory.swap.max", "2000"),
                ("memory.low", "500"),
                ("cpu.weight", "100"),
                ("cpu.max", "50000 100000"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "7"),
                ("io.max", "8:0 rbps=9"),
                ("hugetlb.2MB.max", "4"),
            ]
        );
    }

    #[test]
    fn a_hybrid_machine_has_each_limit_where_its_controller_is() {
        let both = resources(
            r#"{"memory":{"limit":9,"swappiness":5},"hugepageLimits":[{"pageSize":"2MB","limit":4}],"unified":{"misc.max":"a 1"}}"#,
        );
        assert_eq!(
            pairs(&hybrid(&both, &["hugetlb".into(), "misc".into()]).expect("supported")),
            [("memory.limit_in_bytes", "9"), ("memory.swappiness", "5"), ("hugetlb.2MB.max", "4"), ("misc.max", "a 1")]
        );
        hybrid(&both, &["hugetlb".into()]).expect_err("misc is nowhere");
    }

    #[test]
    fn no_limit_is_no_limit() {
        let none = resources(r#"{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1}}"#);
        assert!(!none.ask_for_limits());
        assert_eq!(
            pairs(&unified(&none).expect("supported")),
            [("memory.max", "max"), ("memory.swap.max", "max"), ("pids.max", "max")]
        );
        assert!(resources(r#"{"pids":{"limit":1}}"#).ask_for_limits());
    }

    #[test]
    fn what_a_machine_cannot_do_is_refused_by_name() {
        let failure =
            hybrid(&resources(r#"{"unified":{"memory.high":"1"}}"#), &["hugetlb".into()]).expect_err("refused");
        assert!(failure.message.contains("memory.high"));
        let failure = unified(&resources(r#"{"memory":{"swappiness":1}}"#)).expect_err("refused");
        assert!(failure.message.contains("swappiness"));
        unified(&resources(r#"{"memory":{"swap":5,"limit":9}}"#)).expect_err("swap below memory");
        unified(&resources(r#"{"memory":{"swap":5}}"#)).expect_err("swap without memory");
    }

    #[test]
    fn shares_map_to_the_ends_of_the_weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
        assert_eq!([0, 3, 512, 2048, 262_143, u64::MAX].map(weight), [1, 2, 59, 174, 10_000, 10_000]);
        assert_eq!([10, 500, 1000].map(share_of_io), [1, 4950, 10_000]);
    }
}
