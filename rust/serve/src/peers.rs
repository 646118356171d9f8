//! Who is at the other end of a connection, and whether they may be.

use std::io;
use std::os::fd::AsFd;

use tokio::net::UnixStream;

use crate::sys::peer_groups;

/// A process at the other end, as it was when it connected.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its id; 0 where it is of another pid namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Who may connect, besides root. The socket's mode says the same; a descriptor that was handed on, or a mode that somebody
/// changed, is what this is for.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups.
    pub gids: Vec<u32>,
}

impl Access {
    /// Give the peer if it may connect.
    pub(crate) fn check(&self, stream: &UnixStream) -> io::Result<Option<Peer>> {
        let credentials = stream.peer_cred()?;
        let peer = Peer { pid: credentials.pid().unwrap_or_default(), uid: credentials.uid(), gid: credentials.gid() };
        let known = peer.uid == 0
            || self.uids.contains(&peer.uid)
            || self.gids.contains(&peer.gid)
            || (!self.gids.is_empty() && peer_groups(stream.as_fd())?.iter().any(|group| self.gids.contains(group)));
        Ok(known.then_some(peer))
    }
}
