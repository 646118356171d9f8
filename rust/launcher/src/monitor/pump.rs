//! Bytes on their way: from processes to clients and the log, from clients to processes.

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;

use super::clients::HIGH_WATER;
use super::frames::FrameKind;
use super::log::Stream;
use super::{INIT, Monitor, Source, stdio};

const CHUNK: usize = 64 * 1024;

impl Monitor {
    /// Read some output and pass it on.
    pub(super) fn pump(&mut self, id: u32, index: u8) {
        let Some(process) = self.processes.get(&id) else { return };
        let Some(output) = process.stdio.outputs.get(usize::from(index)) else { return };
        let (Some(source), kind) = (&output.source, output.kind) else { return };
        // What a dead process has left in a pipe is all there, whoever else holds the pipe; a terminal hands its last
        // output over a little later, and then gives EIO.
        let complete = process.ended.is_some() && process.stdio.terminal.is_none();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.reserve_exact(CHUNK);
        match rustix::io::read(source, spare_capacity(&mut buffer)) {
            Ok(0) | Err(Errno::IO) => self.close_output(id, index),
            Ok(_) => self.pass_on(id, kind, &buffer),
            Err(Errno::AGAIN) if complete => self.close_output(id, index),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close_output(id, index),
        }
        self.buffer = buffer;
    }

    /// Read what a dead process has left.
    pub(super) fn drain(&mut self, id: u32) {
        while let Some(process) = self.processes.get(&id)
            && !process.stalled
            && process.stdio.terminal.is_none()
            && let Some(index) = process.stdio.outputs.iter().position(|output| output.source.is_some())
        {
            self.pump(id, index as u8);
        }
    }

    fn pass_on(&mut self, id: u32, kind: FrameKind, data: &[u8]) {
        if id == INIT
            && let Some(log) = &mut self.log
        {
            log.record(stream(kind), data);
        }
        for client in self.clients_of(id) {
            self.tell(client, |client| client.send(kind, data));
        }
        self.write_to_path(id, kind, data);
        // What the container has left in its pipes is little; the log, and whoever waits for the end, do not wait for a client.
        if self.behind(id, HIGH_WATER) && self.exit.is_none() {
            self.stop_reading(id);
        }
    }

    /// The clients that get a process's output.
    pub(super) fn clients_of(&self, process: u32) -> Vec<u32> {
        self.clients.iter().filter(|(_, client)| client.attached == Some(process)).map(|(id, _)| *id).collect()
    }

    /// Whether a client of a process, or a path of it, has more than this to get still.
    pub(super) fn behind(&self, process: u32, limit: usize) -> bool {
        self.clients.values().any(|client| client.attached == Some(process) && client.queued() > limit)
            || self.sinks.range((process, 0)..=(process, u8::MAX)).any(|(_, sink)| sink.queued() > limit)
    }

    fn stop_reading(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.stalled = true;
        // Not merely without events: the end of a stream would be reported again and again.
        for source in process.stdio.outputs.iter().filter_map(|output| output.source.as_ref()) {
            let _ = epoll::delete(&self.epoll, source);
        }
    }

    /// Read a process's output (again), if it was not read.
    pub(super) fn go_on_reading(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.channel.is_none()) else { return };
        if !std::mem::replace(&mut process.stalled, false) {
            return;
        }
        for (index, output) in process.stdio.outputs.iter().enumerate() {
            if let Some(source) = &output.source {
                let data = Source::Output(id, index as u8).encode();
                let _ = epoll::add(&self.epoll, source, data, epoll::EventFlags::IN);
            }
        }
        if process.ended.is_some() {
            self.drain(id);
            self.settle(id);
        }
    }

    fn close_output(&mut self, id: u32, index: u8) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(output) = process.stdio.outputs.get_mut(usize::from(index)) else { return };
        if let Some(source) = output.source.take() {
            let kind = output.kind;
            let _ = epoll::delete(&self.epoll, &source);
            if id == INIT
                && let Some(log) = &mut self.log
            {
                log.finish(stream(kind));
            }
            self.finish_path(id, kind);
        }
        self.settle(id);
    }

    /// Give up on output that its process's end should have closed.
    pub(super) fn close_stray_outputs(&mut self) {
        let stray: Vec<(u32, usize)> = self
            .processes
            .iter()
            .filter(|(_, process)| process.has_stray_output())
            .map(|(id, process)| (*id, process.stdio.outputs.len()))
            .collect();
        for (id, count) in stray {
            (0..count).for_each(|index| self.close_output(id, index as u8));
        }
    }

    /// Hand input over to a process, as much as it takes.
    pub(super) fn feed(&mut self, id: u32, reader_is_gone: bool) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(input) = &mut process.stdio.input else { return };
        if reader_is_gone || !input.flush() {
            let _ = epoll::delete(&self.epoll, &input.target);
            process.stdio.input = None;
        } else {
            let mut events = epoll::EventFlags::empty();
            events.set(epoll::EventFlags::OUT, input.queued() > 0);
            let _ = epoll::modify(&self.epoll, &input.target, Source::Input(id).encode(), events);
            if input.queued() > stdio::INPUT_LIMIT {
                return self.watch_feed(id);
            }
        }
        self.watch_feed(id);
        for client in self.clients_of(id) {
            if let Some(client) = self.clients.get_mut(&client)
                && std::mem::replace(&mut client.held_back, false)
            {
                client.resumed = true;
            }
        }
        self.take_resumed();
    }
}

fn stream(kind: FrameKind) -> Stream {
    if kind == FrameKind::Error { Stream::Error } else { Stream::Output }
}
