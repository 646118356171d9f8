//! Memory that ran out while the container goes on: an event, at most one a second.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Monitor, Source, events};
use crate::cgroup::OomWatch;

/// On v1 the kernel speaks before it kills.
const KILL_TAKES: Duration = Duration::from_millis(50);
/// A container that is killed in again and again does not fill the store's events.
const SELDOM: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Memory {
    watch: Option<OomWatch>,
    /// Kills that an event told of.
    told: u64,
    told_at: Option<Instant>,
    /// When to look whether there is a kill to tell of.
    look_at: Option<Instant>,
}

impl Memory {
    /// How long the monitor may sleep.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.look_at.map(|moment| moment.saturating_duration_since(Instant::now()))
    }
}

impl Monitor {
    pub(super) fn watch_memory(&mut self) {
        let Some(watch) = self.cgroup.watch_oom() else { return };
        if self.watch(watch.as_fd(), Source::Memory, watch.flags()).is_ok() {
            watch.acknowledge();
            self.memory.watch = Some(watch);
            self.memory.look_at = Some(Instant::now()); // for what came before
        }
    }

    pub(super) fn memory_ran_out(&mut self) {
        if let Some(watch) = &self.memory.watch {
            watch.acknowledge();
        }
        let soon = Instant::now() + KILL_TAKES;
        self.memory.look_at.get_or_insert(soon);
    }

    /// Tell of kills when it is time to.
    pub(super) fn look_at_memory(&mut self) {
        let now = Instant::now();
        if self.memory.look_at.is_none_or(|moment| moment > now) {
            return;
        }
        self.memory.look_at = self.memory.told_at.map(|moment| moment + SELDOM).filter(|moment| *moment > now);
        if self.memory.look_at.is_none() && self.exit.is_none() && self.has_untold_kills() {
            self.memory.told_at = Some(now);
            self.events.tell([(events::OOM, json!({}))]);
        }
    }

    /// Whether the kernel killed since the last event that told of it; they count as told then.
    pub(super) fn has_untold_kills(&mut self) -> bool {
        let kills = self.cgroup.oom_kills();
        std::mem::replace(&mut self.memory.told, kills) < kills
    }
}
