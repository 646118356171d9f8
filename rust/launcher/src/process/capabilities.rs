//! Capability sets: capabilities(7).

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Failure, Step};
use crate::spec::Capabilities;

/// Names by number.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    /// Parse the spec's lists; none at all means no capabilities. Unknown names are refused.
    pub fn parse(capabilities: Option<&Capabilities>) -> Result<Self, Failure> {
        let Some(capabilities) = capabilities else { return Ok(Self::default()) };
        let mask = |field: &str, names: &[String]| {
            names.iter().try_fold(0, |mask, name| {
                let number = NAMES.iter().position(|known| known == name).ok_or_else(|| {
                    Failure::invalid(format!("process.capabilities.{field}"), format!("{name:?} is no capability"))
                })?;
                Ok::<u64, Failure>(mask | 1 << number)
            })
        };
        let sets = Self {
            bounding: mask("bounding", &capabilities.bounding)?,
            effective: mask("effective", &capabilities.effective)?,
            permitted: mask("permitted", &capabilities.permitted)?,
            inheritable: mask("inheritable", &capabilities.inheritable)?,
            ambient: mask("ambient", &capabilities.ambient)?,
        };
        // The kernel's own rules; broken ones would surface as a bare EPERM from inside the container.
        for (field, set, within) in [
            ("effective", sets.effective, sets.permitted),
            ("ambient", sets.ambient, sets.permitted & sets.inheritable),
        ] {
            if set & !within != 0 {
                return Err(Failure::invalid(
                    format!("process.capabilities.{field}"),
                    format!("{} would need to be permitted (and inheritable) too", names(set & !within).join(", ")),
                ));
            }
        }
        Ok(sets)
    }

    /// Keep only what this process has itself; returns what went.
    pub fn limit_to_own(&mut self) -> Result<Vec<String>, Failure> {
        let own = rustix::thread::capabilities(None).step(|| "read the launcher's capabilities")?.permitted.bits();
        let missing = (self.bounding | self.permitted | self.inheritable) & !own;
        for set in
            [&mut self.bounding, &mut self.effective, &mut self.permitted, &mut self.inheritable, &mut self.ambient]
        {
            *set &= own;
        }
        Ok(names(missing))
    }

    /// Drop everything else from the bounding set. Needs CAP_SETPCAP.
    pub fn drop_bounding(&self) -> Result<(), Failure> {
        for number in 0..64 {
            if self.bounding & 1 << number != 0 {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
                Ok(()) => {}
                // Beyond the kernel's last capability.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => {
                    let name = NAMES.get(number).copied().unwrap_or("a capability");
                    return Err(Failure::system(format!("drop {name} from the bounding set"), &error.into()));
                }
            }
        }
        Ok(())
    }

    /// Take on the other sets; after the change of identity, which was made with PR_SET_KEEPCAPS.
    pub fn apply(&self) -> Result<(), Failure> {
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective),
            permitted: CapabilitySet::from_bits_retain(self.permitted),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable),
        };
        rustix::thread::set_capabilities(None, sets).step(|| "set the capabilities")?;
        rustix::thread::clear_ambient_capability_set().step(|| "clear the ambient capabilities")?;
        for number in (0..64).filter(|number| self.ambient & 1 << number != 0) {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .step(|| "set an ambient capability")?;
        }
        Ok(())
    }
}

fn names(mask: u64) -> Vec<String> {
    NAMES.iter().enumerate().filter(|(number, _)| mask & 1 << number != 0).map(|(_, name)| (*name).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_become_bits() {
        let capabilities = Capabilities {
            bounding: list(&["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]),
            permitted: list(&["CAP_KILL"]),
            effective: list(&["CAP_KILL"]),
            ..Capabilities::default()
        };
        let sets = Sets::parse(Some(&capabilities)).expect("valid");
        assert_eq!((sets.bounding, sets.effective, sets.inheritable), (1 | 1 << 40, 1 << 5, 0));
    }

    #[test]
    fn none_given_means_none_had() {
        assert_eq!(Sets::parse(None).expect("valid"), Sets::default());
    }

    #[test]
    fn an_unknown_name_or_an_impossible_set_is_refused() {
        let unknown = Capabilities { bounding: list(&["CAP_FLY"]), ..Capabilities::default() };
        assert!(Sets::parse(Some(&unknown)).expect_err("refused").message.contains("CAP_FLY"));
        let ambient = Capabilities { ambient: list(&["CAP_KILL"]), ..Capabilities::default() };
        Sets::parse(Some(&ambient)).expect_err("ambient without permitted");
    }
}
