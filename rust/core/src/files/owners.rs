//! Making files as the root of a container whose ids are mapped, for a while.

use rustix::thread::CapabilitySets;

use crate::error::{Error, Result};
use crate::mount::IdMaps;
use crate::sys;

/// While it lives this thread makes files as a map's root: on mounts that show ids so, nobody else can make any (EOVERFLOW).
pub(super) struct ActingAsRoot {
    capabilities: CapabilitySets,
}

impl ActingAsRoot {
    pub(super) fn of(maps: &IdMaps) -> Result<Self> {
        let failed = |error| Error::system("cannot act as the container's root", error);
        let capabilities = rustix::thread::capabilities(None).map_err(failed)?;
        let acting = Self { capabilities };
        let (user, group) = maps.root();
        sys::make_files_as(user, group).map_err(failed)?;
        Ok(acting)
    }
}

impl Drop for ActingAsRoot {
    fn drop(&mut self) {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let _ = sys::make_files_as(user, group);
        let _ = rustix::thread::set_capabilities(None, self.capabilities);
    }
}
