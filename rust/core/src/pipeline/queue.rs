//! A bounded queue between two threads. Who has to wait sleeps at once.
//!
//! The channels of crossbeam and of the standard library call `sched_yield` a few times before they sleep. Linux 6.18 takes
//! that for giving up one's share: beside a dozen busy processes a pull of 2 GB, which takes 6.5 s of CPU, ended after 15 to 26 s, and
//! ends after 8.5 with this.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A queue of at most `capacity` items.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::with_capacity(capacity), senders: 1, received: true };
    let shared =
        Arc::new(Shared { state: Mutex::new(state), filled: Condvar::new(), emptied: Condvar::new(), capacity });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    emptied: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    senders: usize,
    /// Whether the receiver is there.
    received: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that puts in.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The end that takes out.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Put an item in, when there is room. Fails when the receiver is gone.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        let full = |state: &mut State<T>| state.received && state.items.len() >= self.0.capacity;
        let mut state = self.0.emptied.wait_while(self.0.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if !state.received {
            return Err(SendError(item));
        }
        state.items.push_back(item);
        drop(state);
        self.0.filled.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Take an item out if there is one.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut state = self.0.lock();
        let item = state.items.pop_front().ok_or(TryRecvError::Empty)?;
        drop(state);
        self.0.emptied.notify_one();
        Ok(item)
    }

    /// Take an item out when there is one. Fails when all senders are gone, and what they sent was taken.
    pub fn recv(&self) -> Result<T, RecvError> {
        let empty = |state: &mut State<T>| state.items.is_empty() && state.senders > 0;
        let mut state = self.0.filled.wait_while(self.0.lock(), empty).unwrap_or_else(PoisonError::into_inner);
        let item = state.items.pop_front().ok_or(RecvError)?;
        drop(state);
        self.0.emptied.notify_one();
        Ok(item)
    }

    /// [`Self::recv`], for so long.
    pub fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        let deadline = Instant::now() + patience;
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                drop(state);
                self.0.emptied.notify_one();
                return Ok(item);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RecvTimeoutError::Timeout);
            }
            state = self.0.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.0.filled.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.received = false;
        // Dropped without the lock: an item may belong to another queue.
        let items = std::mem::take(&mut state.items);
        drop(state);
        self.0.emptied.notify_all();
        drop(items);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn items_come_in_order_and_wait_for_room() {
        let (sender, receiver) = bounded(3);
        let thread = thread::spawn(move || (0..10_000).all(|number| sender.send(number).is_ok()));
        let mut expected = 0;
        while let Ok(number) = receiver.recv() {
            assert_eq!(number, expected);
            expected += 1;
        }
        assert_eq!(expected, 10_000);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn whoever_waits_notices_that_the_other_end_is_gone() {
        let (sender, receiver) = bounded(1);
        sender.send(1).unwrap();
        let thread = thread::spawn(move || sender.send(2));
        drop(receiver);
        assert!(thread.join().unwrap().is_err());
        let (sender, receiver) = bounded::<u8>(0);
        let more = sender.clone();
        let thread = thread::spawn(move || (receiver.recv_timeout(Duration::from_secs(600)), receiver.recv()));
        drop((sender, more));
        assert_eq!(thread.join().unwrap(), (Err(RecvTimeoutError::Disconnected), Err(RecvError)));
    }

    #[test]
    fn patience_ends_and_what_is_left_in_a_queue_goes_with_it() {
        let (sender, receiver) = bounded(1);
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        let item = Arc::new(());
        sender.send(Arc::clone(&item)).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&item), 1);
    }
}
