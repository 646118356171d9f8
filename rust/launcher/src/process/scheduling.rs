//! How the kernel gives a process processor time and disk accesses: sched_setattr(2), ioprio_set(2).

use crate::error::{Failure, Step};
use crate::spec::{IoPriority, Scheduler};
use crate::sys::{self, Scheduling};

/// Numbers of linux/sched.h.
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
/// Numbers of linux/ioprio.h.
const CLASSES: [(&str, u32); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
const LOWEST_PRIORITY: u32 = 7;

/// What is asked for, ready to be set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    io: Option<(u32, u32)>,
    scheduling: Option<Scheduling>,
}

fn number<T: Copy>(table: &[(&str, T)], field: &str, name: &str) -> Result<T, Failure> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    found.ok_or_else(|| Failure::unsupported(format!("{field} {name:?}")))
}

impl Plan {
    /// Prepare a process's wishes; what is no name of a class, policy or flag is refused.
    pub(super) fn new(io: Option<&IoPriority>, scheduler: Option<&Scheduler>) -> Result<Self, Failure> {
        let io = io.map(|io| {
            if io.priority > LOWEST_PRIORITY {
                return Err(Failure::invalid("process.ioPriority.priority", "is not between 0 and 7"));
            }
            Ok((number(&CLASSES, "process.ioPriority.class", &io.class)?, io.priority))
        });
        let scheduling = scheduler.map(|wish| -> Result<Scheduling, Failure> {
            let flag =
                |flags: u64, name: &String| Ok::<_, Failure>(flags | number(&FLAGS, "process.scheduler.flags", name)?);
            Ok(Scheduling {
                policy: number(&POLICIES, "process.scheduler.policy", &wish.policy)?,
                flags: wish.flags.iter().try_fold(0, flag)?,
                nice: wish.nice,
                priority: wish.priority,
                runtime: wish.runtime,
                deadline: wish.deadline,
                period: wish.period,
                ..Scheduling::default()
            })
        });
        Ok(Self { io: io.transpose()?, scheduling: scheduling.transpose()? })
    }

    /// Set it, for this process. Some of it takes CAP_SYS_NICE.
    pub(super) fn apply(&self) -> Result<(), Failure> {
        if let Some((class, priority)) = self.io {
            sys::set_io_priority(class, priority).step(|| "set process.ioPriority")?;
        }
        self.scheduling.map_or(Ok(()), sys::set_scheduling).step(|| "set process.scheduler")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers_and_what_is_none_is_refused_by_name() {
        let io = IoPriority { class: "IOPRIO_CLASS_IDLE".into(), priority: 7 };
        let scheduler = Scheduler { policy: "SCHED_BATCH".into(), nice: 5, ..Scheduler::default() };
        let plan = Plan::new(Some(&io), Some(&scheduler)).expect("valid");
        assert_eq!((plan.io, plan.scheduling.map(|it| (it.policy, it.nice))), (Some((3, 7)), Some((3, 5))));
        Plan::new(Some(&IoPriority { priority: 8, ..io }), None).expect_err("too low");
        let odd = Scheduler { flags: vec!["SCHED_FLAG_X".into()], ..scheduler };
        assert!(Plan::new(None, Some(&odd)).expect_err("unknown").message.contains("SCHED_FLAG_X"));
    }
}
