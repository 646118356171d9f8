//! Clients: from the connection to its end.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::net::SocketFlags;

use super::clients::{self, Client, Gone, LOW_WATER};
use super::frames::{FrameKind, Malformed};
use super::{INIT, Monitor, Source, control, stdio};

impl Monitor {
    pub(super) fn accept(&mut self) {
        while let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            if clients::may_command(socket.as_fd()) {
                self.add_client(socket);
            }
        }
    }

    pub(super) fn add_client(&mut self, socket: OwnedFd) -> u32 {
        let id = self.next_client;
        self.next_client += 1;
        self.clients.insert(id, Client::new(socket));
        self.watch_client(id);
        id
    }

    pub(super) fn serve(&mut self, id: u32, flags: epoll::EventFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if flags.contains(epoll::EventFlags::OUT) && client.flush().is_err() {
            return self.drop_client(id);
        }
        if flags.contains(epoll::EventFlags::IN) && client.read().is_err() {
            return self.drop_client(id);
        }
        self.take_frames(id);
        let Some(client) = self.clients.get(&id) else { return };
        let lost = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        // Half closed: it may still listen, if there is something to hear.
        let listens = client.attached.is_some() || client.waits() || client.queued() > 0 || self.is_starter(id);
        if client.silent && (lost || !listens) || lost && !flags.contains(epoll::EventFlags::IN) {
            return self.drop_client(id);
        }
        if let Some(process) = client.attached
            && !self.behind(process, LOW_WATER)
        {
            self.go_on_reading(process);
        }
        self.watch_client(id);
    }

    fn is_starter(&self, id: u32) -> bool {
        self.processes.values().any(|process| process.starter == Some(id))
    }

    /// Handle what a client sent, as far as it is whole.
    pub(super) fn take_frames(&mut self, id: u32) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.held_back {
                break;
            }
            match client.frame() {
                Ok(Some((FrameKind::Control, document))) => control::obey(self, id, &document),
                Ok(Some((_, data))) => self.take_input(id, &data),
                Ok(None) => break,
                Err(Malformed) => return self.drop_client(id),
            }
        }
        self.watch_client(id);
    }

    /// Go on with clients that were held back until their process took its input.
    pub(super) fn take_resumed(&mut self) {
        while let Some(id) = self.clients.iter().find(|(_, client)| client.resumed).map(|(id, _)| *id) {
            if let Some(client) = self.clients.get_mut(&id) {
                client.resumed = false;
            }
            self.take_frames(id);
        }
    }

    fn take_input(&mut self, id: u32, data: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let (Some(process), true) = (client.attached, client.gives_input) else { return };
        let Some(input) = self.processes.get_mut(&process).and_then(|it| it.stdio.input.as_mut()) else { return };
        input.push(data);
        client.held_back = input.queued() > stdio::INPUT_LIMIT;
        self.feed(process, false);
    }

    /// Watch a client for what matters now.
    fn watch_client(&mut self, id: u32) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let reads = !client.held_back && !client.silent;
        let writes = client.queued() > 0;
        let wanted = (!client.held_back || writes).then_some((reads, writes));
        if client.watched == wanted {
            return;
        }
        let mut events = epoll::EventFlags::empty();
        events.set(epoll::EventFlags::IN, reads);
        events.set(epoll::EventFlags::OUT, writes);
        let data = Source::Client(id).encode();
        let result = match (client.watched, wanted) {
            (None, None) => Ok(()),
            (None, Some(_)) => epoll::add(&self.epoll, client.socket(), data, events),
            (Some(_), Some(_)) => epoll::modify(&self.epoll, client.socket(), data, events),
            // Held back: its end would be reported at once, and what it sent before must not be lost.
            (Some(_), None) => epoll::delete(&self.epoll, client.socket()),
        };
        client.watched = wanted;
        if result.is_err() {
            self.drop_client(id);
        }
    }

    /// Send something to a client; one that is gone is dropped.
    pub(super) fn tell(&mut self, id: u32, send: impl FnOnce(&mut Client) -> Result<(), Gone>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match send(client) {
            Ok(()) => self.watch_client(id),
            Err(Gone) => self.drop_client(id),
        }
    }

    pub(super) fn drop_client(&mut self, id: u32) {
        let Some(client) = self.clients.remove(&id) else { return };
        self.release(id);
        if client.watched.is_some() {
            let _ = epoll::delete(&self.epoll, client.socket());
        }
        let Some(process) = client.attached else { return };
        if process == INIT
            && self.restarts.request.program_at_start
            && !self.restarts.is_further_run()
            && let Some(init) = self.processes.get(&INIT)
            && let (Some(pid), true, None) = (init.pid, init.channel.is_some(), init.starter)
        {
            // Whoever was to tell the program is gone.
            let _ = self.send_signal(pid, libc::SIGKILL);
        }
        if self.input_ends_with == Some(id)
            && let Some(input) = self.processes.get_mut(&process).and_then(|it| it.stdio.input.as_mut())
        {
            input.push(b"");
            self.feed(process, false);
        }
        if !self.behind(process, LOW_WATER) {
            self.go_on_reading(process);
        }
    }
}
